package simulation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lethe/internal/kafkaconn"
	"lethe/schema"
)

// record is one record of a topic.
type record struct {
	offset     int64
	key, value []byte
	event      *schema.Event // nil: not an event
}

// readTopic reads a partition from the start to the end.
func (s *simulation) readTopic(topic string, partition int) (out []record) {
	end := s.end(topic, int32(partition))
	failed := 0
	for next := int64(0); next < end && failed < patience; {
		res, err := s.admin.Client().Fetch(s.t.Context(), &kafkago.FetchRequest{
			Topic: topic, Partition: partition, Offset: next, MinBytes: 1, MaxBytes: 8 << 20,
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			failed++
			time.Sleep(100 * time.Millisecond)
			continue
		}
		for {
			rec, err := res.Records.ReadRecord()
			if err != nil {
				break
			}
			if rec.Offset < next {
				continue
			}
			r := record{offset: rec.Offset}
			r.key, _ = kafkago.ReadAll(orEmpty(rec.Key))
			r.value, _ = kafkago.ReadAll(orEmpty(rec.Value))
			out = append(out, r)
			next = rec.Offset + 1
		}
	}
	return out
}

func orEmpty(b kafkago.Bytes) kafkago.Bytes {
	if b == nil {
		return kafkago.NewBytes(nil)
	}
	return b
}

// place is where an event of a change has to be.
type place struct {
	commit    uint64
	ordinal   uint32
	rule      string
	partition int32 // of events to every partition; else -1
}

// topics compares the topics with the CRM and with the claims that were made while they were written.
func (c *checker) topics() {
	s := c.s
	dec := schema.NewDecoder(seal{})
	s.log = make([][]record, s.partitions)
	first := map[place]record{} // the first record of each event
	at := map[place]int32{}     // its partition
	ids := map[schema.EventID]place{}
	for i := range s.log {
		s.log[i] = s.readTopic("lethe.events", i)
		for j := range s.log[i] {
			r := &s.log[i][j]
			ev, err := dec.Decode(r.value)
			if err != nil {
				if !bytes.Equal(r.value, garbage) {
					c.fail("partition %d, offset %d: %v", i, r.offset, err)
				}
				continue
			}
			r.event = ev
			if _, isDecision := ev.Body.(*schema.CaseDecision); isDecision {
				continue
			}
			p := place{commit: ev.Order.Number(), ordinal: ev.Order.Ordinal(), rule: ev.Rule, partition: -1}
			if len(r.key) == 0 {
				p.partition = int32(i)
			}
			one := p
			one.partition = -1
			if q, known := ids[ev.EventID]; known && q != one {
				c.fail("I2: one event id for two changes: %v and %v", q, one)
			}
			ids[ev.EventID] = one
			if old, known := first[p]; !known {
				first[p], at[p] = *r, int32(i)
			} else if old.event.EventID != ev.EventID || string(old.key) != string(r.key) || at[p] != int32(i) {
				c.fail("I2: the event of %v has two ids, keys or partitions", p)
			}
			for _, text := range [][]byte{r.value, r.key} {
				if bytes.Contains(text, []byte(canary)) {
					c.fail("I7: a personal value is in the topic, at %d/%d", i, r.offset)
				}
			}
		}
	}
	c.changes(first, at)
	c.durable()
	c.chores()
}

// changes compares the events with what the CRM did: none is missing (I1), none is there for nothing, each says the truth.
func (c *checker) changes(first map[place]record, at map[place]int32) {
	s := c.s
	left := map[place]bool{}
	for p := range first {
		left[p] = true
	}
	refs := s.refs()
	for _, tx := range s.crm.log {
		for i := range tx.expect {
			e := &tx.expect[i]
			p := place{commit: tx.Position.Commit, ordinal: uint32(e.ordinal), rule: e.rule, partition: -1}
			if e.customer >= 0 {
				c.change(tx, e, p, first, left, refs[e.customer])
				continue
			}
			for n := range int32(s.partitions) {
				p.partition = n
				c.change(tx, e, p, first, left, "")
			}
		}
	}
	for p := range left {
		c.fail("I1: an event for nothing: %v says %q (partition %d, offset %d)", p, describe(first[p].event, s.contacts), at[p], first[p].offset)
	}
}

func (c *checker) change(tx *transaction, e *expected, p place, first map[place]record, left map[place]bool, ref string) {
	r, found := first[p]
	delete(left, p)
	switch {
	case !found && (e.optional || tx.Position.End > c.s.slot.confirmed.End):
		// What came after the last acknowledgement is read at the next start; settle waited for all before.
	case !found:
		c.fail("I1: transaction %s, change %d: the event %q (%s) is not in the topic", tx.Position, e.ordinal, e.says, e.rule)
	default:
		if says := describe(r.event, c.s.contacts); says != e.says {
			c.fail("transaction %s, change %d: the event says %q, the CRM %q", tx.Position, e.ordinal, says, e.says)
		}
		if string(r.key) != ref {
			c.fail("transaction %s, change %d: the event is about somebody else", tx.Position, e.ordinal)
		}
		if !r.event.CommittedAt.Equal(tx.CommittedAt) || r.event.Order.Epoch() != tx.Position.Epoch {
			c.fail("transaction %s, change %d: the event has another time or epoch", tx.Position, e.ordinal)
		}
	}
}

// durable compares what was claimed with what was in the topics then (I5).
func (c *checker) durable() {
	s := c.s
	// where[n] are, for the n-th transaction, the least ends by which all its events are in.
	offsets := map[place][]int64{}
	for i := range s.log {
		for _, r := range s.log[i] {
			if r.event == nil {
				continue
			}
			p := place{commit: r.event.Order.Number(), ordinal: r.event.Order.Ordinal(), rule: r.event.Rule, partition: int32(i)}
			if offsets[p] == nil {
				offsets[p] = []int64{r.offset}
			}
		}
	}
	reported := 0
	for n := range s.partitions {
		need := make([]int64, len(s.crm.log)+1) // the end that partition n must have after each transaction
		for i, tx := range s.crm.log {
			need[i+1] = need[i]
			for j := range tx.expect {
				e := &tx.expect[j]
				p := place{commit: tx.Position.Commit, ordinal: uint32(e.ordinal), rule: e.rule, partition: int32(n)}
				if o := offsets[p]; o != nil && !e.optional {
					need[i+1] = max(need[i+1], o[0]+1)
				}
			}
		}
		for _, claim := range c.claims {
			i := s.crm.after(claim.position.End)
			if claim.events[n] < need[i] && reported < 5 {
				reported++
				c.fail("I5: %s %s when partition %d ended at %d; its events end at %d", claim.what, claim.position, n, claim.events[n], need[i])
			}
		}
	}
	c.checkpoints()
}

// checkpoints: what the source was told is in the checkpoint topic before (I5).
func (c *checker) checkpoints() {
	recs := c.s.readTopic("lethe.checkpoints", 0)
	type saved struct {
		offset int64
		end    uint64
	}
	var list []saved
	for _, r := range recs {
		var doc struct {
			End uint64 `json:"end,string"`
		}
		if err := json.Unmarshal(r.value, &doc); err == nil {
			list = append(list, saved{r.offset, doc.End})
		}
		if bytes.Contains(r.value, []byte(canary)) {
			c.fail("I7: a personal value is in the checkpoint topic")
		}
	}
	for _, claim := range c.claims {
		if claim.checkpoints < 0 || c.s.compacted {
			continue
		}
		ok := false
		for _, s := range list {
			ok = ok || s.offset < claim.checkpoints && s.end >= claim.position.End
		}
		if !ok {
			c.fail("I5: %s was %s before its checkpoint was in the topic", claim.position, claim.what)
		}
	}
}

// chores: between where a replica stood and the log's end at its assignment there were heartbeats only.
func (c *checker) chores() {
	for d := range c.dues {
		for _, r := range c.s.log[d.partition] {
			if r.offset >= d.next && r.offset < d.end && (r.event == nil || r.event.Body.Type() != schema.TypeHeartbeat) {
				c.fail("%s did what is due at %d/%d although the log went to %d when it was assigned", d.replica, d.partition, d.next, d.end)
				break
			}
		}
	}
}

// replica compares a database with the oracle and with the topics.
func (c *checker) replica(d *database, now time.Time) {
	s := c.s
	d.mu.Lock()
	tables := d.tables.clone()
	d.mu.Unlock()
	refs := s.refs()
	for _, p := range s.crm.customers {
		key := refs[p.id]
		erased := p.erased
		if sub := tables.subjects[key]; sub != nil && sub.kase.state == "cancelled" {
			erased = false
			if !s.cancelled[key] {
				c.fail("%s: the case of customer %d was cancelled by nobody", d.name, p.id)
			}
		}
		if got, want := d.verdict(key, now), p.wanted(erased, now); got != want {
			c.fail("%s: customer %d (%s…): the replica says %s; the CRM says %s", d.name, p.id, key[:8], got, want)
			s.culprits[key] = true
		}
		if sub := tables.subjects[key]; sub != nil && sub.kase.state == "suppressed" {
			c.fail("%s: the erasure of customer %d never went to phase 2", d.name, p.id)
		}
	}
	// Every event about somebody has one outcome and one receipt (I2, I4), and nothing else has.
	events := map[schema.EventID]bool{}
	for i := range s.log {
		for _, r := range s.log[i] {
			if r.event != nil && len(r.key) > 0 && r.event.Body.Type() != schema.TypeSourceReport { // it asks for nothing in a replica
				events[r.event.EventID] = true
			}
		}
	}
	planned := map[schema.EventID]int{}
	for _, r := range tables.receipts {
		if bytes.Contains(r.Body, []byte("verified")) {
			continue
		}
		planned[r.event]++
	}
	for id := range events {
		if planned[id] != 1 || tables.seen[id] == "" {
			c.fail("I4: %s: event %s has %d receipts, outcome %q", d.name, id, planned[id], tables.seen[id])
		}
		delete(planned, id)
	}
	if len(planned) > 0 {
		c.fail("I4: %s: %d receipts for events that are not in the topic", d.name, len(planned))
	}
	if len(tables.parked) > 0 {
		c.fail("%s: %d events are still parked", d.name, len(tables.parked))
	}
	c.receipts(d.name, &tables)
}

// receipts: every receipt of a replica is in the topic, and no other.
func (c *checker) receipts(name string, tables *ledger) {
	have := map[string]bool{}
	for i := range c.s.partitions {
		for _, r := range c.s.readTopic("lethe.receipts", i) {
			have[string(r.value)] = true
			if bytes.Contains(r.value, []byte(canary)) {
				c.fail("I7: a personal value is in the receipts topic")
			}
		}
	}
	for _, r := range tables.receipts {
		if !have[string(r.Body)] || !r.sent {
			c.fail("%s: receipt %q is not in the topic, or not marked as sent", name, r.Body)
		}
	}
}

// logs: nothing personal is in any log line or status (I7).
func (c *checker) logs() {
	c.s.logs.mu.Lock()
	defer c.s.logs.mu.Unlock()
	if i := bytes.Index(c.s.logs.text, []byte(canary)); i >= 0 {
		c.fail("I7: a personal value is in the log: …%s…", c.s.logs.text[max(0, i-200):i])
	}
}

// refs are the Kafka keys of all customers.
func (s *simulation) refs() map[int]string {
	out := map[int]string{}
	for _, c := range s.crm.customers {
		out[c.id] = s.ids.SubjectRef(schema.CanonicalKey(nil, []byte(c.key()))).String()
	}
	return out
}

// contactRefs are the contact points that consents may be bound to.
func (s *simulation) contactRefs() {
	s.contacts = map[schema.ContactRef]string{{}: ""}
	for _, c := range s.crm.customers {
		for n := range 2 {
			for table, kind := range map[string]string{"public.email": "email", "public.phone": "phone"} {
				id := fmt.Sprintf("%s-%s-%d-%d", canary, kind, c.id, n)
				s.contacts[s.ids.ContactRef(table, schema.CanonicalKey(nil, []byte(id)))] = id
			}
		}
	}
}

// endList returns the ends of a topic's partitions.
func (s *simulation) endList(topic string) []int64 {
	infos := s.cluster.PartitionInfos(topic)
	out := make([]int64, len(infos))
	for i, info := range infos {
		out[i] = info.HighWatermark
	}
	return out
}

func (s *simulation) end(topic string, partition int32) int64 {
	info := s.cluster.PartitionInfo(topic, partition)
	if info == nil {
		return 0
	}
	return info.HighWatermark
}

// garbage is what a foreign producer writes.
var garbage = []byte("this is no event")

// patience is how often the simulation's own requests are tried again: leaders move, and a fault may be in force.
const patience = 300

// produce appends records to a partition.
func (s *simulation) produce(conn *kafkaconn.Conn, topic string, partition int, recs []record) {
	for failed := 0; len(recs) > 0 && failed < patience; {
		n := min(len(recs), 500)
		list := make([]kafkago.Record, n)
		for i, r := range recs[:n] {
			list[i] = kafkago.Record{Value: kafkago.NewBytes(r.value)}
			if len(r.key) > 0 {
				list[i].Key = kafkago.NewBytes(r.key)
			}
		}
		res, err := conn.Client().Produce(s.t.Context(), &kafkago.ProduceRequest{
			Topic: topic, Partition: partition, RequiredAcks: kafkago.RequireAll, Records: kafkago.NewRecordReader(list...),
		})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			failed++
			time.Sleep(100 * time.Millisecond)
			continue
		}
		recs = recs[n:]
	}
}
