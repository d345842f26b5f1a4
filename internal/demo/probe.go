package demo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// prober measures, for each erasure of the day, the time from its COMMIT's return until each replica shows the person's
// copy as unusable. It asks the replica for all that are outstanding at once, on a connection of its own.
type prober struct {
	look probeQuery

	mu          sync.Mutex
	outstanding map[int64]time.Time
	waited      []time.Duration
}

// probeQuery finds those of the CRM's keys whose copy is unusable by now.
type probeQuery struct{ table, key, unusable string }

var (
	probeMarketing = probeQuery{"contact", "crm_id", "blocked"}
	probeReporting = probeQuery{"dim_customer", "customer_nk", "not usable"}
)

const probeEvery = 2 * time.Millisecond

func newProber(look probeQuery) *prober {
	return &prober{look: look, outstanding: map[int64]time.Time{}}
}

// expect is told of an erasure; ids whose copy is not in the replica yet are the caller's to leave out.
func (p *prober) expect(id int64, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outstanding[id] = at
}

// run probes until ctx ends.
func (p *prober) run(ctx context.Context, db DB) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := p.probe(ctx, db); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func (p *prober) probe(ctx context.Context, db DB) error {
	p.mu.Lock()
	ids := make([]int64, 0, len(p.outstanding))
	for id := range p.outstanding {
		ids = append(ids, id)
	}
	p.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	var (
		done []int64
		id   int64
	)
	among, args := db.dialect().oneOf(p.look.key, ids)
	sql := "select " + p.look.key + " from " + p.look.table + " where " + among + " and " + p.look.unusable
	if err := db.query(ctx, sql, args, []any{&id}, func() error { done = append(done, id); return nil }); err != nil {
		return fmt.Errorf("probing a replica: %w", err)
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range done {
		p.waited = append(p.waited, now.Sub(p.outstanding[id]))
		delete(p.outstanding, id)
	}
	return nil
}

// latencies returns what was measured so far, sorted.
func (p *prober) latencies() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := slices.Clone(p.waited)
	slices.Sort(out)
	return out
}

// quantile returns the q-quantile of sorted, or 0 when there is nothing.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
