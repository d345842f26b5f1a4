package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"lethe/sinks"
)

const (
	// gaugesEvery is how often the ledger tables are counted.
	gaugesEvery = 15 * time.Second
	// gaugesShare bounds what counting costs the replica: after a count that took a second the next one is 50 s later.
	gaugesShare = 50
	// gaugesPatience bounds counting the receipts: batches wait meanwhile, and years of receipts take long.
	gaugesPatience = time.Second
)

// gauges are what the ledger tables of a whole replica say, as of the last count. Every process with a sink of the replica
// exports the same numbers: take the maximum, not the sum.
type gauges struct {
	descReceipts, descUnproven, descParked, descGaps, descPending *prometheus.Desc

	mu       sync.Mutex
	next     time.Time
	known    bool
	at       time.Time // of oldest
	oldest   time.Duration
	parked   int
	gaps     int
	receipts map[string]int
	pending  map[[2]string]int
}

func newGauges(replica string) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, prometheus.Labels{"replica": replica})
	}
	return &gauges{
		descReceipts: desc("lethe_receipts", "Cases of the whole replica by the state of their effective receipt.", "state"),
		descUnproven: desc("lethe_oldest_unproven_erasure_seconds", "Age of the oldest case that is not verified; 0 where there is none."),
		descParked:   desc("lethe_parked_events", "Events that the replica refused, and those that wait behind them."),
		descGaps:     desc("lethe_gaps_open", "Gaps of the source's log that the replica knows to be open."),
		descPending:  desc("lethe_pending", "Cases of the whole replica by state and by what they wait for.", "state", "wait"),
	}
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.descReceipts, g.descUnproven, g.descParked, g.descGaps, g.descPending} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	states, _ := receiptRanks()
	for _, s := range states {
		gauge(g.descReceipts, float64(g.receipts[s]), s)
	}
	for k, n := range g.pending {
		gauge(g.descPending, float64(n), k[0], k[1])
	}
	age := 0.0
	if g.oldest > 0 {
		age = (g.oldest + time.Since(g.at)).Seconds()
	}
	gauge(g.descUnproven, age)
	gauge(g.descParked, float64(g.parked))
	gauge(g.descGaps, float64(g.gaps))
}

// refreshGauges counts the ledger tables now and then.
func (r *Replica) refreshGauges(ctx context.Context, _ []sinks.Place) (time.Time, error) {
	g := r.gauges
	g.mu.Lock()
	next := g.next
	g.mu.Unlock()
	if time.Now().Before(next) {
		return next, nil
	}
	started := time.Now()
	fresh, err := r.countLedger(ctx)
	if err != nil {
		return time.Time{}, err
	}
	took := time.Since(started)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.known, g.at, g.next = true, started, time.Now().Add(max(gaugesEvery, gaugesShare*took))
	g.oldest, g.parked, g.gaps, g.pending = fresh.oldest, fresh.parked, fresh.gaps, fresh.pending
	if fresh.receipts != nil {
		g.receipts = fresh.receipts
	}
	return g.next, nil
}

// countLedger counts; receipts are nil where that would have taken too long.
func (r *Replica) countLedger(ctx context.Context) (*gauges, error) {
	const op = "counting Lethe's tables"
	g := &gauges{pending: map[[2]string]int{}}
	var oldest *float64
	err := r.opts.Pool.QueryRow(ctx, r.ledger.sql(`
		SELECT (SELECT extract(epoch FROM now() - min(opened_at))::float8 FROM {s}.pending WHERE state <> 'verified'),
			(SELECT count(*) FROM {s}.parked WHERE done_at IS NULL), (SELECT count(DISTINCT gap_id) FROM {s}.gap WHERE closed_at IS NULL)`)).
		Scan(&oldest, &g.parked, &g.gaps)
	if err != nil {
		return nil, classify(op, err)
	}
	g.oldest = seconds(oldest)
	rows, err := r.opts.Pool.Query(ctx, r.ledger.sql(`SELECT state, wait, count(*) FROM {s}.pending GROUP BY 1, 2`))
	if err != nil {
		return nil, classify(op, err)
	}
	var state, wait string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &wait, &n}, func() error {
		g.pending[[2]string{state, wait}] = n
		return nil
	})
	if err != nil {
		return nil, classify(op, err)
	}
	bounded, cancel := context.WithTimeout(ctx, gaugesPatience)
	defer cancel()
	g.receipts, err = r.effectiveReceipts(bounded)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		r.log.Warn().Dur("patience", gaugesPatience).Msg("lethe_receipts keeps its last values: counting the receipts takes too long")
		return g, nil
	}
	return g, err
}
