package capture

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"lethe/internal/crashpoint"
)

// Backoff between two attempts at the same unit. The longest wait bounds how long capture stays behind after an outage.
const (
	firstResend   = 50 * time.Millisecond
	longestResend = 5 * time.Second
)

// A unit waits the longer for company the more commits the one before it had: with a commit in each, which is a quiet
// source, not at all; from about 5,000 transactions a second on it is longestLinger, and the broker has a tenth of the
// requests. Latency under such a load is dominated by the load.
const (
	lingerPerCommit = 200 * time.Microsecond
	longestLinger   = 10 * time.Millisecond
	lingerFrom      = 4 // commits
)

// poke never blocks: a channel of capacity 1 remembers that somebody knocked.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send publishes shipment after shipment. While one is in flight the next gathers, so that units grow with the load; when
// nothing is in flight a unit leaves at its first commit.
func (s *session) send(ctx context.Context) error {
	for {
		sh := s.take()
		if sh == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-s.wake:
			}
			continue
		}
		if sh.filled {
			if err := s.publish(ctx, sh.unit); err != nil {
				return err
			}
		}
		commits := sh.commits
		s.acknowledged(sh)
		s.linger(ctx, commits)
	}
}

// linger lets the next unit gather. A full one, or a stop, ends it at once.
func (s *session) linger(ctx context.Context, commits int) {
	if commits < lingerFrom {
		return
	}
	select {
	case <-s.hurry: // of the unit that has been sent
	default:
	}
	s.mu.Lock()
	now := s.gathering.ripe || s.stopping
	s.mu.Unlock()
	if now {
		return
	}
	t := time.NewTimer(min(time.Duration(commits)*lingerPerCommit, longestLinger))
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.hurry:
	case <-ctx.Done():
	}
}

// take hands the gathering shipment to the sender when there is something to gain: a commit in it, a unit's worth of a
// transaction that is still coming, or somebody who waits for what is in it.
func (s *session) take() *shipment {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.gathering
	if !sh.mark.set && (!sh.ripe || !sh.filled) && len(sh.notes) == 0 {
		if s.drained != nil {
			close(s.drained)
			s.drained = nil
		}
		return nil
	}
	s.gathering, s.spare = s.spare, nil
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
	return sh
}

// publish sends a unit until Kafka has acknowledged all of it. After any error the whole unit goes again in order: some
// of its batches may be in the topic and some not, and only the sinks' order guard tells.
func (s *session) publish(ctx context.Context, u Unit) error {
	retry := backoff.ExponentialBackOff{
		InitialInterval: firstResend, RandomizationFactor: 0.2, Multiplier: 2, MaxInterval: longestResend,
	}
	retry.Reset()
	for attempt := 0; ; attempt++ {
		crashpoint.Hit("capture.before_publish")
		err := s.p.o.Publisher.Publish(ctx, u)
		if err == nil {
			crashpoint.Hit("capture.after_publish")
			if attempt > 0 {
				s.p.update(func(st *Status) { st.Failing = "" })
				s.p.log.Info().Int("attempts", attempt+1).Msg("Kafka acknowledges again")
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.p.totals.publishFailures.Add(1)
		if IsPermanent(err) {
			return fmt.Errorf("publishing a unit: %w", err)
		}
		s.p.update(func(st *Status) { st.Failing = err.Error() })
		if attempt == 0 {
			s.p.log.Warn().Err(err).Msg("Kafka does not acknowledge; the unit is sent again until it does")
		}
		if !sleep(ctx, retry.NextBackOff()) {
			return ctx.Err()
		}
	}
}

// acknowledged makes the shipment's commit checkpointable and gives its buffers back.
func (s *session) acknowledged(sh *shipment) {
	t := &s.p.totals
	if sh.filled {
		t.units.Add(1)
		t.bytes.Add(uint64(sh.unit.Bytes())) //nolint:gosec // a size
		for i, n := range sh.events {
			if n > 0 {
				t.events[i].Add(uint64(n))
			}
		}
	}
	if sh.mark.set {
		s.ackMu.Lock()
		s.acked.advance(&sh.mark)
		s.dirty = true
		s.ackMu.Unlock()
	}
	s.p.update(func(st *Status) {
		st.LastAck = time.Now()
		if sh.mark.set {
			st.LastCommit, st.LastCommitAt = sh.mark.position, sh.mark.committedAt
		}
	})
	for _, note := range sh.notes {
		close(note)
	}
	sh.reset()
	s.mu.Lock()
	s.spare = sh
	s.mu.Unlock()
}

// note returns a channel that is closed when Kafka has acknowledged all that was put so far.
func (s *session) note() <-chan struct{} {
	done := make(chan struct{})
	s.mu.Lock()
	s.gathering.notes = append(s.gathering.notes, done)
	s.mu.Unlock()
	poke(s.wake)
	return done
}

// advance moves m to a later commit and keeps the gaps of the earlier ones.
func (m *mark) advance(to *mark) {
	gaps := mergeGaps(m.gaps, to.gaps)
	*m = *to
	m.gaps = gaps
}

// mergeGaps appends what old does not hold yet. It never writes into old's array.
func mergeGaps(old, more []OpenGap) []OpenGap {
	if len(more) == 0 {
		return old
	}
	list := append([]OpenGap(nil), old...)
	for _, g := range more {
		known := false
		for i := range list {
			known = known || list[i].ID == g.ID
		}
		if !known {
			list = append(list, g)
		}
	}
	return list
}
