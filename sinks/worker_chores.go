package sinks

import (
	"context"
	"time"

	"lethe/internal/crashpoint"
	"lethe/schema"
)

// choreGap is the least time between two calls of RunDue when the replica asks for the next one at once: batches of
// prohibitions get their turn in between.
const choreGap = 5 * time.Millisecond

// chores runs what is due in the replica, for the partitions that are caught up. It shares the goroutine of the batches:
// chores compare the same places, and would otherwise find them moved by this very worker.
func (s *session) chores(ctx context.Context) error {
	if time.Now().Before(s.nextChore) {
		return nil
	}
	s.nextChore = time.Now().Add(s.w.o.ChoreInterval)
	places := s.caughtUp()
	if len(places) == 0 {
		return nil
	}
	answered := s.w.asks(2 * s.w.o.Silence)
	next, err := s.w.o.Replica.RunDue(s.finish, places) //nolint:contextcheck // what was begun outlives ctx, within StopTimeout
	answered()
	switch class := Classify(err); {
	case err == nil:
		if s.choreFailed {
			s.choreFailed = false
			s.w.setState(StateRunning, "", "")
		}
		s.choreRetry.reset()
		if !next.IsZero() && next.Before(s.nextChore) {
			s.nextChore = next
		}
		if least := time.Now().Add(choreGap); s.nextChore.Before(least) {
			s.nextChore = least
		}
		s.wakeOutbox()
	case class == Fenced:
		return err
	case ctx.Err() != nil:
		return errOver
	default:
		s.choreFailed = true
		s.w.metrics.results.WithLabelValues(class.String()).Inc()
		wait := s.choreRetry.next(class)
		s.nextChore = time.Now().Add(wait)
		s.trouble("running due work", err, wait)
	}
	return nil
}

// caughtUp returns the places of the partitions in which everything that was in the log at the assignment, and after a
// standstill, is applied. A cancel that waits in the log is seen before phase 2 of its case may run: nothing else makes a
// late worker safe. Heartbeats may still be pending, they change nothing.
func (s *session) caughtUp() []Place {
	if s.work {
		return nil
	}
	var places []Place
	for _, n := range s.order {
		p := s.parts[n]
		p.late = p.late && p.seen < s.g.End(n)
		if p.state == PartitionRunning && p.seen >= p.bounds.End && !p.late {
			places = append(places, p.place)
		}
	}
	return places
}

func (s *session) wakeOutbox() {
	select {
	case s.receipts <- struct{}{}:
	default:
	}
}

// outboxPace is the least time between two looks into the outbox, outboxBatch the most receipts of one message to Kafka.
const (
	outboxPace  = 200 * time.Millisecond
	outboxBatch = 500
)

// sendReceipts publishes stored receipts and then marks them: a crash in between sends them twice, and their ids are the
// same. It has a goroutine of its own, because Kafka may be down for hours while the replica is applied to from what was
// fetched before. While Kafka is down receipts wait in the replica.
func (s *session) sendReceipts(ctx context.Context) {
	r := newRetry(&s.w.o)
	for ctx.Err() == nil {
		n, err := s.sendOnce(ctx)
		var wait time.Duration
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = r.next(Classify(err))
			s.w.metrics.receiptErrors.Inc()
			s.w.log.Warn().Str("class", Classify(err).String()).Str("code", CodeOf(err)).Dur("retry_in", wait).
				Msg("receipts wait in the replica: they could not be sent")
			if !pause(ctx, wait) {
				return
			}
			continue
		case n == outboxBatch:
			r.reset()
			continue
		}
		r.reset()
		idle := time.NewTimer(s.w.o.ReceiptInterval)
		select {
		case <-s.receipts:
			pause(ctx, outboxPace)
		case <-idle.C:
		case <-ctx.Done():
		}
		idle.Stop()
	}
}

func (s *session) sendOnce(ctx context.Context) (int, error) {
	rs, err := s.w.o.Replica.Unsent(ctx, s.order, outboxBatch)
	if err != nil || len(rs) == 0 {
		return 0, err
	}
	if err := s.w.o.Sender.Send(ctx, rs); err != nil {
		return 0, err
	}
	crashpoint.Hit("sink.after_receipts_sent")
	ids := make([]schema.ReceiptID, len(rs))
	for i := range rs {
		ids[i] = rs[i].ID
	}
	if err := s.w.o.Replica.MarkSent(ctx, ids); err != nil {
		return 0, err
	}
	s.w.metrics.receipts.Add(float64(len(rs)))
	return len(rs), nil
}
