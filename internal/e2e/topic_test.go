package e2e

import (
	"context"
	"time"

	"github.com/segmentio/kafka-go"

	capturekafka "lethe/capture/kafka"
	"lethe/schema"
)

// record is one message of a topic.
type record struct {
	partition  int
	offset     int64
	key, value []byte
}

// topic reads a topic of this world from its beginning to its present end.
func (w *world) topic(suffix string) []record {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, soon)
	defer cancel()
	name, broker := w.name+"."+suffix, w.kafka.Brokers()[0]
	conn, err := kafka.DialContext(ctx, "tcp", broker)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	partitions, err := conn.ReadPartitions(name)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []record
	for _, p := range partitions {
		leader, err := kafka.DialLeader(ctx, "tcp", broker, name, p.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		first, end, err := leader.ReadOffsets()
		_ = leader.Close() // only read from
		if err != nil {
			w.t.Fatal(err)
		}
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, Topic: name, Partition: p.ID, MaxWait: 100 * time.Millisecond})
		for at := first; at < end; {
			if err := r.SetOffset(at); err != nil {
				w.t.Fatal(err)
			}
			for at < end {
				m, err := r.ReadMessage(ctx)
				if err != nil {
					w.t.Fatal(err)
				}
				at = m.Offset + 1
				out = append(out, record{partition: p.ID, offset: m.Offset, key: m.Key, value: m.Value})
			}
		}
		if err := r.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// events returns the events of the topic by their ids; delivered twice they are here once.
func (w *world) events() map[schema.EventID]*schema.Event {
	w.t.Helper()
	out := map[schema.EventID]*schema.Event{}
	dec := schema.NewDecoder(w.ring.Seal())
	for _, r := range w.topic("events") {
		if ev, err := dec.Decode(r.value); err == nil {
			out[ev.EventID] = ev
		}
	}
	return out
}

// decide puts an operator's decision on a customer's case into the log, as `lethe release|hold|cancel` does.
func (w *world) decide(id int64, d schema.Decision) {
	w.t.Helper()
	now := time.Now().UTC().Truncate(time.Millisecond)
	ev := &schema.Event{
		Header: schema.Header{
			EventID:    w.ids.EventID(schema.EventKey{Number: uint64(now.UnixNano()), Table: "decision", PK: keyOf(id), Op: uint8(d), Rule: "e2e"}), //nolint:gosec // after 1970
			SubjectRef: w.refOf(id), CaseID: w.caseOf(id), Source: w.cfg.Name, CommittedAt: now, DetectedAt: now, Rule: "decision",
			ConfigDigest: w.cfg.SourceDigest(),
		},
		Body:   &schema.CaseDecision{Decision: d, Reason: "e2e", DecidedBy: "dpo", DecidedAt: now},
		CRMKey: keyOf(id),
	}
	p, err := capturekafka.NewPublisher(capturekafka.Options{Conn: w.conn})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.PublishDecision(w.ctx, schema.NewEncoder(w.ring.Seal()), ev); err != nil {
		w.t.Fatal(err)
	}
}
