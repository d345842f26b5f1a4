package demo

import (
	"context"
	"fmt"
	"time"

	"lethe/schema"
)

// Bounds of the day.
const (
	tellEvery    = 2 * time.Second
	followWithin = 90 * time.Second
	followCheck  = 250 * time.Millisecond
)

// play plays the day, waits until everything has followed, and sums up.
func (s *stage) play(ctx context.Context) (*Summary, error) {
	if err := s.catchUp(ctx); err != nil {
		return nil, err
	}
	hero := s.hero()
	before, err := s.portrait(ctx, hero)
	if err != nil {
		return nil, err
	}
	s.say.line("the day begins: %d transactions a second for %s", s.o.Rate, s.o.For)
	d := newDay(&s.fill, s.on, s.erased)
	if err := s.hours(ctx, d, hero); err != nil {
		return nil, err
	}
	s.counts = d.counts
	s.say.line("the day is over; waiting until every copy has followed and is proven")
	open, followErr := s.follow(ctx)
	if followErr != nil {
		return nil, followErr
	}
	summary, err := s.sumUp(ctx, open)
	if err != nil {
		return nil, err
	}
	after, err := s.portrait(ctx, hero)
	if err != nil {
		return nil, err
	}
	receipts, err := s.receiptsOf(ctx, hero)
	if err != nil {
		return nil, err
	}
	s.say.block(story(hero, before, after, receipts))
	if !summary.ok() {
		return summary, ErrNotFollowed
	}
	return summary, nil
}

// erased is told of an erasure and sets the probes on it; a customer whom the ETL has not brought yet has no copy to
// wait for.
func (s *stage) erased(id int64, at time.Time) {
	if s.fill.late[id] {
		return
	}
	s.marketProbe.expect(id, at)
	s.reportProbe.expect(id, at)
}

// hero is the customer whose story is told: a marked one who is in the replicas from the beginning.
func (s *stage) hero() int64 {
	for i := range s.fill.people {
		if id := s.fill.people[i].id; id%markEvery == 0 && !s.fill.late[id] {
			return id
		}
	}
	return 1
}

// hours plays the day at its rate.
func (s *stage) hours(ctx context.Context, d *day, hero int64) error {
	begin := time.Now()
	every := time.Second / time.Duration(s.o.Rate)
	told := begin
	tick := time.NewTicker(max(every, time.Millisecond))
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		since := time.Since(begin)
		if since >= s.o.For {
			break
		}
		for ; time.Duration(n)*every < since; n++ {
			if err := d.step(ctx); err != nil {
				return err
			}
		}
		if !d.erased[hero] && since > s.o.For/4 {
			if err := d.erase(ctx, hero); err != nil {
				return err
			}
			s.say.line("customer %d asks to be forgotten; the back office runs the procedure", hero)
		}
		if time.Since(told) >= tellEvery {
			told = time.Now()
			s.tell(d.counts)
		}
	}
	return d.finishETL(ctx)
}

// tell writes where everybody stands.
func (s *stage) tell(c Counts) {
	snap := s.app.Snapshot()
	if snap.Capture == nil {
		return
	}
	line := fmt.Sprintf("%d transactions, %d erasures | source lag %.1fs, %d events", c.Transactions, c.Erasures,
		snap.Capture.Lag.Seconds(), sum(snap.Capture.Events))
	for _, sink := range snap.Sinks {
		line += fmt.Sprintf(" | %s: %d behind", sink.Replica, sink.LagEvents)
	}
	if waited := s.marketProbe.latencies(); len(waited) > 0 {
		line += fmt.Sprintf(" | commit to unusable p50 %d ms, p99 %d ms", quantile(waited, 0.5).Milliseconds(), quantile(waited, 0.99).Milliseconds())
	}
	s.say.line("%s", line)
}

func sum[K comparable](counts map[K]uint64) (n uint64) {
	for _, v := range counts {
		n += v
	}
	return n
}

// catchUp waits until the filling of the CRM has arrived in the replicas.
func (s *stage) catchUp(ctx context.Context) error {
	s.say.line("Lethe catches up with the filling")
	var consents uint64
	if err := s.on.CRM.query(ctx, "select count(*) from consent", nil, []any{&consents}, oneRow); err != nil {
		return fmt.Errorf("counting consents: %w", err)
	}
	return s.until(ctx, followWithin, func() (bool, error) {
		snap := s.app.Snapshot()
		if snap.Capture == nil || snap.Capture.Events[schema.TypeConsentChange] < consents {
			return false, nil
		}
		for _, sink := range snap.Sinks {
			if !sink.Ready || sink.LagEvents > 0 {
				return false, nil
			}
		}
		return true, nil
	})
}

// until polls done; running out of time is no error: what is missing shows in the summary.
func (s *stage) until(ctx context.Context, within time.Duration, done func() (bool, error)) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(followCheck)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline.C:
			return nil
		case <-tick.C:
		}
	}
}

// follow waits until the replicas are what the CRM asks for and every erasure is verified in each. It returns what is
// still different.
func (s *stage) follow(ctx context.Context) (open []string, err error) {
	err = s.until(ctx, followWithin, func() (bool, error) {
		if open, err = Differences(ctx, s.on); err != nil || len(open) > 0 {
			return false, err
		}
		proven, err := s.proven(ctx)
		if err != nil {
			return false, err
		}
		if proven < len(databases[1:])*s.counts.Erasures {
			open = []string{fmt.Sprintf("%d of %d erasures are verified", proven, len(databases[1:])*s.counts.Erasures)}
			return false, nil
		}
		return true, nil
	})
	return open, err
}

// proven counts the erasures that are verified, over both replicas.
func (s *stage) proven(ctx context.Context) (n int, err error) {
	for _, db := range s.replicas() {
		var one int
		sql := "select count(distinct case_id) from " + db.dialect().ledger("receipt") + " where state = 'verified' and case_id is not null"
		if err := db.query(ctx, sql, nil, []any{&one}, oneRow); err != nil {
			return 0, fmt.Errorf("counting receipts: %w", err)
		}
		n += one
	}
	return n, nil
}

// oneRow is for queries whose only row has been scanned already.
func oneRow() error { return nil }
