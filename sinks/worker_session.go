package sinks

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"lethe/schema"
)

// session is a worker's work on one generation. One goroutine owns it, except for outbox, which has its own.
type session struct {
	w     *Worker
	g     Generation
	parts map[int32]*part
	order []int32

	// finish outlives the generation's context by StopTimeout: what was taken is finished under it.
	finish context.Context //nolint:containedctx // the session is the call

	pending    []Record // admitted, in no order between partitions
	work       bool     // pending holds more than heartbeats
	lastCommit time.Time

	paused      bool
	nextPause   time.Time
	nextChore   time.Time
	choreRetry  *retry
	choreFailed bool

	receipts chan struct{} // capacity 1: there may be receipts to send
}

// part is a partition of the generation.
type part struct {
	place  Place
	seen   int64 // the offset that the next record must have, pending ones included
	bounds Bounds
	state  PartitionState
	cause  string
	hint   string
	// stopAt is the offset at which a partition that does not run stopped; what was admitted in front of it is applied.
	stopAt int64
	// late: this worker has stood still (a pause, a replica that was down) while the log went on. No chore runs here until it
	// has been at the end of the log again: a cancel may wait in what is not read yet.
	late bool
	// oldest is the commit time at the source of the first pending record; zero: none is pending.
	oldest time.Time
	// last is the commit time at the source of the newest event seen.
	last time.Time
}

func (p *part) runs() bool { return p.state == PartitionRunning || p.state == PartitionRestored }

// wants reports whether a record that was admitted is to be applied.
func (p *part) wants(offset int64) bool {
	return offset >= p.place.NextOffset && (p.runs() || offset < p.stopAt)
}

func newSession(w *Worker, g Generation) *session {
	s := &session{
		w: w, g: g, parts: map[int32]*part{}, order: slices.Clone(g.Partitions()),
		choreRetry: newRetry(&w.o), receipts: make(chan struct{}, 1), lastCommit: time.Now(),
	}
	slices.Sort(s.order)
	return s
}

// run works until the generation ends. Its error is ErrFenced in a chain when it was given up, else errOver.
func (s *session) run(ctx context.Context) error {
	if len(s.order) == 0 {
		s.w.setState(StateStandby, "", "")
		<-ctx.Done()
		return errOver
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	s.w.setState(StateRunning, "", "")
	var outbox sync.WaitGroup
	defer outbox.Wait()
	sending, stop := context.WithCancel(ctx)
	defer stop()
	if s.w.o.Sender != nil {
		outbox.Go(func() { s.sendReceipts(sending) })
	}
	for ctx.Err() == nil {
		if err := s.step(ctx); err != nil {
			return err
		}
	}
	return errOver
}

// step is one turn: take what there is, apply it, run the chores that are due.
func (s *session) step(ctx context.Context) error {
	if s.holds(ctx) {
		pause(ctx, s.w.o.PauseCheck)
		return nil
	}
	s.gather(ctx)
	if ctx.Err() != nil {
		// Nothing new is begun: what is pending was not applied, and its next owner reads it again.
		return errOver
	}
	if s.work || len(s.pending) > 0 && s.heartbeatsDue() {
		if err := s.applyPending(ctx); err != nil {
			return err
		}
	}
	s.publishStatus()
	if ctx.Err() != nil {
		return errOver
	}
	return s.chores(ctx)
}

func (s *session) heartbeatsDue() bool {
	return len(s.pending) >= s.w.o.MaxBatch || time.Since(s.lastCommit) >= s.w.o.HeartbeatCommit
}

// gather admits records: the first ones as soon as they come, more of them until the batch is full or has waited Linger.
// It returns early without any when a chore or a commit of heartbeats is due.
func (s *session) gather(ctx context.Context) {
	wait := time.Until(s.nextChore)
	if len(s.pending) > 0 {
		wait = min(wait, s.w.o.HeartbeatCommit-time.Since(s.lastCommit))
	}
	if s.w.o.Pauser != nil {
		wait = min(wait, time.Until(s.nextPause))
	}
	wait = max(min(wait, s.w.o.ChoreInterval), 0)
	until := time.Time{}
	for len(s.pending) < s.w.o.MaxBatch {
		recs, err := s.g.Poll(ctx, wait, s.w.o.MaxBatch-len(s.pending))
		if err != nil {
			return // the context ended: step sees it
		}
		s.admit(recs)
		if !s.work || s.w.o.Linger < 0 {
			return
		}
		if until.IsZero() {
			until = time.Now().Add(s.w.o.Linger)
		}
		if wait = time.Until(until); wait <= 0 {
			return
		}
	}
}

// admit takes records that continue their partition; anything else stops the partition.
func (s *session) admit(recs []Record) {
	for i := range recs {
		r := &recs[i]
		p := s.parts[r.Partition]
		switch {
		case p == nil || !p.runs():
			continue
		case r.Err != nil && errors.Is(r.Err, ErrGap):
			s.stopPartition(r.Partition, p.seen, PartitionGap, CodeOf(r.Err), gapHint(r.Err))
			continue
		case r.Offset != p.seen:
			s.stopPartition(r.Partition, p.seen, PartitionGap, "records_missing", gapHint(nil))
			continue
		}
		p.seen++
		if r.Event != nil {
			if p.oldest.IsZero() {
				p.oldest = r.Event.CommittedAt
			}
			if r.Event.CommittedAt.After(p.last) {
				p.last = r.Event.CommittedAt
			}
		}
		if !isHeartbeat(r) {
			s.work = true
		}
		s.pending = append(s.pending, *r)
	}
}

func isHeartbeat(r *Record) bool {
	return r.Event != nil && r.Event.Body.Type() == schema.TypeHeartbeat
}

// gapHint is what an operator does about lost records: there is no way on without making good for them first.
func gapHint(err error) string {
	if h := HintOf(err); h != "" {
		return h
	}
	return "events of this partition are lost to this replica and nothing is jumped over: raise the retention of the events topic, " +
		"make good for the lost window, then delete the partition's row in the ledger table \"partition\" and the group's offset"
}

// stopPartition leaves one partition in front of an offset, loudly, until the next assignment; the others go on.
func (s *session) stopPartition(n int32, at int64, state PartitionState, cause, hint string) {
	p := s.parts[n]
	if p == nil || !p.runs() {
		return
	}
	p.state, p.cause, p.hint, p.stopAt = state, cause, hint, at
	s.w.log.Error().Int32("partition", n).Int64("offset", at).Str("state", string(state)).
		Str("cause", cause).Str("hint", hint).Msg("partition stopped")
	s.publishStatus()
}

// holds reports whether an operator holds this replica. Nothing is applied then, and no chore runs; the log waits in Kafka.
func (s *session) holds(ctx context.Context) bool {
	if s.w.o.Pauser == nil || time.Now().Before(s.nextPause) {
		return s.paused
	}
	s.nextPause = time.Now().Add(s.w.o.PauseCheck)
	answered := s.w.asks(s.w.o.Silence)
	paused, err := s.w.o.Pauser.Paused(ctx)
	answered()
	if err != nil {
		// What it was still holds; a replica that cannot be asked cannot be written either, and that is reported there.
		return s.paused
	}
	if paused != s.paused {
		s.paused = paused
		s.w.log.Info().Bool("paused", paused).Msg("replica paused or resumed by an operator")
		if paused {
			s.w.setState(StatePaused, "paused", "an operator paused this replica: `lethe resume` lets it go on")
		} else {
			s.stoodStill()
			s.w.setState(StateRunning, "", "")
		}
	}
	return paused
}

// stoodStill keeps chores away from all partitions until they are at the end of the log again.
func (s *session) stoodStill() {
	for _, p := range s.parts {
		p.late = true
	}
}
