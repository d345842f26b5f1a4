package demo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// prober measures, for each erasure of the day, the time from its COMMIT's return until each replica shows the person's
// copy as unusable. It asks the replica for all that are outstanding at once, on a connection of its own.
type prober struct {
	query string // $1: the CRM keys outstanding → those that are unusable by now

	mu          sync.Mutex
	outstanding map[int64]time.Time
	waited      []time.Duration
}

const (
	probeMarketing = "select crm_id from contact where crm_id = any($1) and blocked"
	probeReporting = "select customer_nk from dim_customer where customer_nk = any($1) and not usable"
	probeEvery     = 2 * time.Millisecond
)

func newProber(query string) *prober {
	return &prober{query: query, outstanding: map[int64]time.Time{}}
}

// expect is told of an erasure; ids whose copy is not in the replica yet are the caller's to leave out.
func (p *prober) expect(id int64, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outstanding[id] = at
}

// run probes until ctx ends.
func (p *prober) run(ctx context.Context, conn *pgx.Conn) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := p.probe(ctx, conn); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

func (p *prober) probe(ctx context.Context, conn *pgx.Conn) error {
	p.mu.Lock()
	ids := make([]int64, 0, len(p.outstanding))
	for id := range p.outstanding {
		ids = append(ids, id)
	}
	p.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, p.query, ids)
	if err != nil {
		return fmt.Errorf("probing a replica: %w", err)
	}
	done, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
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
