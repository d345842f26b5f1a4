package simulation

import (
	"context"
	"fmt"
	"sync"
	"time"

	"lethe/capture"
	"lethe/schema"
	"lethe/sinks"
	sinkskafka "lethe/sinks/kafka"
)

// checker holds the invariants of FAULTS 1.2 (I1 to I10) against what happens. What needs the topics is noted with their
// ends at that moment and compared when they are read, after the run.
type checker struct {
	s *simulation

	mu       sync.Mutex
	failures []string

	claims   []acked      // positions that were said to be durable
	dues     map[due]bool // chores that ran in front of the log's end
	read     int          // changes handed over since the last unit was acknowledged
	mostRead int          // the most of them at once
}

// acked is a claim: when it was made, everything up to position was in the topics below these ends.
type acked struct {
	what        string
	position    capture.Position
	events      []int64
	checkpoints int64 // only of acknowledgements to the source; else -1
}

type due struct {
	replica   string
	partition int32
	next, end int64
}

// fail notes a broken invariant.
func (c *checker) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.s.tracef("BROKEN: %s", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) < 50 {
		c.failures = append(c.failures, text)
	}
}

func (c *checker) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.failures) > 0
}

// acknowledged is called before the source hears of a position (I5).
func (c *checker) acknowledged(p capture.Position) {
	claim := acked{what: "acknowledged to the source", position: p, events: c.s.endList("lethe.events"), checkpoints: c.s.end("lethe.checkpoints", 0)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims = append(c.claims, claim)
}

// saving is called before a checkpoint leaves (I5, I9).
func (c *checker) saving(cp *capture.Checkpoint) {
	if cp.Position == (capture.Position{}) {
		return
	}
	claim := acked{what: "checkpointed", position: cp.Position, events: c.s.endList("lethe.events"), checkpoints: -1}
	c.mu.Lock()
	c.claims = append(c.claims, claim)
	c.mu.Unlock()
	if !c.s.crm.isCommit(cp.Position) {
		c.fail("I9: checkpoint %s is not the end of a transaction", cp.Position)
	}
}

// delivered is called before a change is handed over.
func (c *checker) delivered(tx *transaction, i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range tx.expect {
		if e.ordinal == i && e.customer >= 0 {
			c.read++
		}
	}
	c.mostRead = max(c.mostRead, c.read)
}

func (c *checker) published() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = 0
}

// publishing looks at the size of a unit that leaves (I10).
func (c *checker) publishing(u capture.Unit) {
	bytes := u.Bytes()
	// One record more than the bound may be in it, for every partition where it goes to all.
	if limit := c.s.unitBytes + c.s.partitions*2048; bytes > limit {
		c.fail("I10: a unit of %d bytes leaves where %d are allowed", bytes, limit)
	}
}

// memory is asked at the end.
func (c *checker) memory() {
	c.mu.Lock()
	read := c.mostRead
	c.mu.Unlock()
	// Two units and what is on the way between them; no record is smaller than 200 bytes.
	if limit := 3 * (c.s.unitBytes + c.s.partitions*2048) / 200; read > limit {
		c.fail("I10: %d events were read ahead of Kafka where at most %d fit into two units", read, limit)
	}
}

// caughtUp is called when a replica is asked to do what is due: nothing may be, in front of the end that the log had when
// the partition was assigned; a decision might wait there.
func (c *checker) caughtUp(replica string, partition int32, next, end int64) {
	if next >= end || replica == "permuted" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dues[due{replica, partition, next, end}] = true
}

// monitor is what is remembered of a process between two looks at it (I8).
type monitor struct {
	readySince time.Time
	progress   int64
	progressed time.Time
}

// silence bounds how long a process may call itself ready while nothing of what waits for it moves.
const silence = time.Minute

// look remembers whether a process was ready and came forward, and reports whether it has been ready and still for too long.
func (m *monitor) look(ready bool, at int64, behind bool) bool {
	now := time.Now()
	if !ready {
		m.readySince = time.Time{}
		return false
	}
	if m.readySince.IsZero() {
		m.readySince = now
	}
	if at != m.progress || !behind || m.progressed.IsZero() {
		m.progress, m.progressed = at, now
	}
	return now.Sub(m.readySince) > silence && now.Sub(m.progressed) > silence
}

// watch looks at every living process, every few seconds.
func (c *checker) watch(ctx context.Context) {
	last := c.s.crm.last()
	for _, p := range c.s.living() {
		if p.isFrozen() {
			p.monitor = monitor{}
			continue
		}
		if p.pipeline != nil {
			c.watchCapture(p, last)
		}
	}
	for _, r := range c.s.replicas {
		c.watchReplica(ctx, r)
	}
}

func (c *checker) watchCapture(p *process, last capture.Position) {
	st := p.pipeline.Status()
	if p.stops.Load() {
		return
	}
	if st.State == capture.StateGap || st.State == capture.StateStopped {
		c.fail("capture stands at %s (%s: %s) although nothing is lost", st.State, st.Cause, st.Hint)
	}
	if p.monitor.look(st.Ready(), int64(st.LastCommit.End), st.LastCommit.End < last.End) {
		c.fail("I8: %s is ready and silent: it is at %s, the source at %s", p.name, st.LastCommit, last)
		p.monitor = monitor{}
	}
}

// watchReplica looks at the workers of one replica together: which of them has a partition is theirs to know.
func (c *checker) watchReplica(ctx context.Context, r *site) {
	ready := true
	workers := 0
	for _, p := range c.s.living() {
		if p.worker == nil || p.site != r {
			continue
		}
		workers++
		st := p.worker.Status()
		ready = ready && st.Ready && !p.isFrozen() && !p.stops.Load()
		for _, part := range st.Partitions {
			if part.State == sinks.PartitionGap || part.State == sinks.PartitionStopped {
				c.fail("%s: partition %d stands at %s (%s: %s) although nothing is lost", p.name, part.Partition, part.State, part.Cause, part.Hint)
			}
		}
	}
	ends := c.s.endList("lethe.events")
	for i := range ends {
		at := r.db.place(int32(i))
		if r.monitors[i].look(ready && workers > 0, at, at < ends[i]) {
			c.fail("I8: replica %s is ready and silent: partition %d is at %d of %d; %s", r.db.name, i, at, ends[i],
				c.s.owners(ctx, sinkskafka.GroupName("lethe", r.db.name), i))
			r.monitors[i] = monitor{}
		}
	}
}

// describe says of an event what the workload says of it.
func describe(ev *schema.Event, contacts map[schema.ContactRef]string) string {
	switch b := ev.Body.(type) {
	case *schema.SubjectErasure:
		if b.Marker {
			return "erasure by marker"
		}
		return "erasure by state"
	case *schema.ConsentChange:
		point, known := contacts[b.Contact]
		if !known {
			point = "unknown"
		}
		return consentSays(b.Purpose, b.Channel, point, stateNames[b.State], b.LegalBasis, b.ValidUntil)
	case *schema.Objection:
		return objectionSays(b.Scope, b.Raised)
	case *schema.ProcessingRestriction:
		return restrictionSays(b.Imposed, b.Until)
	case *schema.Gap:
		return "gap " + b.Cause
	case *schema.SourceReport:
		return b.Aspect + " at the source"
	case *schema.Heartbeat:
		return "heartbeat"
	default:
		return ev.Body.Type().String()
	}
}

var stateNames = map[schema.ConsentState]string{
	schema.ConsentGiven: "given", schema.ConsentWithdrawn: "withdrawn", schema.ConsentRefused: "refused",
	schema.ConsentUnknown: "unknown", schema.ConsentInvalidated: "invalidated",
}
