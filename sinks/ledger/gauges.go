package ledger

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lethe/schema"
)

const (
	// gaugesEvery is how often the ledger tables are counted.
	gaugesEvery = 15 * time.Second
	// gaugesShare bounds what counting costs the replica: after a count that took a second the next one is 50 s later.
	gaugesShare = 50
	// GaugesPatience bounds counting the receipts: batches wait meanwhile, and years of receipts take long.
	GaugesPatience = time.Second
)

// Counts are what the ledger tables of a whole replica say.
type Counts struct {
	Oldest   time.Duration // age of the oldest case that is not verified; 0: none
	Parked   int
	Gaps     int
	Absent   int               // subjects that the last whole pass did not show
	Reviews  int               // rows of which a person has to say whether they are a subject
	Overdue  int               // those of them that should have been decided
	Unproven bool              // nothing is called verified before a whole pass has ended; see Standing.Incomplete
	Pending  map[[2]string]int // cases by state and what they wait for
	Receipts map[string]int    // cases by the state of their effective receipt; nil: as at the last count
}

// Gauges export the last count. Every process with a sink of the replica exports the same numbers: take the maximum, not
// the sum. Safe for concurrent use.
type Gauges struct {
	descReceipts, descUnproven, descParked, descGaps, descPending, descAbsent, descIncomplete *prometheus.Desc
	descReviews, descOverdue                                                                  *prometheus.Desc

	mu    sync.Mutex
	next  time.Time
	known bool
	at    time.Time // of the count
	last  Counts
}

// NewGauges makes the gauges of one replica. They export nothing until the first Refresh.
func NewGauges(replica string) *Gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, prometheus.Labels{"replica": replica})
	}
	return &Gauges{
		descReceipts: desc("lethe_receipts", "Cases of the whole replica by the state of their effective receipt.", "state"),
		descUnproven: desc("lethe_oldest_unproven_erasure_seconds", "Age of the oldest case that is not verified; 0 where there is none."),
		descParked:   desc("lethe_parked_events", "Events that the replica refused, and those that wait behind them."),
		descGaps:     desc("lethe_gaps_open", "Gaps of the source's log that the replica knows to be open."),
		descPending:  desc("lethe_pending", "Cases of the whole replica by state and by what they wait for.", "state", "wait"),
		descAbsent:   desc("lethe_absent_subjects", "Subjects that the last whole pass over the source did not show. Nothing is erased because of it."),
		descReviews:  desc("lethe_reviews_open", "Rows of which a person has to say whether they are a subject (lethe review list)."),
		descOverdue:  desc("lethe_reviews_overdue", "Open reviews whose due date has passed: like erasures that are overdue."),
		descIncomplete: desc("lethe_replica_incomplete",
			"1 while nothing is called verified because no whole pass over the source has ended in every partition."),
	}
}

// Describe implements prometheus.Collector.
func (g *Gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.descReceipts, g.descUnproven, g.descParked, g.descGaps, g.descPending, g.descAbsent, g.descIncomplete, g.descReviews, g.descOverdue} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *Gauges) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	states, _ := ReceiptRanks()
	for _, s := range states {
		gauge(g.descReceipts, float64(g.last.Receipts[s]), s)
	}
	for k, n := range g.last.Pending {
		gauge(g.descPending, float64(n), k[0], k[1])
	}
	age := 0.0
	if g.last.Oldest > 0 {
		age = (g.last.Oldest + time.Since(g.at)).Seconds()
	}
	gauge(g.descUnproven, age)
	gauge(g.descParked, float64(g.last.Parked))
	gauge(g.descGaps, float64(g.last.Gaps))
	gauge(g.descAbsent, float64(g.last.Absent))
	gauge(g.descReviews, float64(g.last.Reviews))
	gauge(g.descOverdue, float64(g.last.Overdue))
	incomplete := 0.0
	if g.last.Unproven {
		incomplete = 1
	}
	gauge(g.descIncomplete, incomplete)
}

// Refresh counts where it is time to, and returns when it is next. It is not called by two at once.
func (g *Gauges) Refresh(count func() (Counts, error)) (time.Time, error) {
	g.mu.Lock()
	next := g.next
	g.mu.Unlock()
	if time.Now().Before(next) {
		return next, nil
	}
	started := time.Now()
	fresh, err := count()
	if err != nil {
		return time.Time{}, err
	}
	took := time.Since(started)
	g.mu.Lock()
	defer g.mu.Unlock()
	if fresh.Receipts == nil {
		fresh.Receipts = g.last.Receipts
	}
	g.known, g.at, g.last, g.next = true, started, fresh, time.Now().Add(max(gaugesEvery, gaugesShare*took))
	return g.next, nil
}

// Incomplete reports whether the last count found that nothing may be called verified before a whole pass has ended.
func (g *Gauges) Incomplete() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last.Unproven
}

// Expire makes the next Refresh count, whenever it is.
func (g *Gauges) Expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next = time.Time{}
}

// Patiently runs a count of receipts for at most GaugesPatience; slow says that it was given up, which is no error.
func Patiently(ctx context.Context, count func(ctx context.Context) (map[string]int, error)) (receipts map[string]int, slow bool, err error) {
	bounded, cancel := context.WithTimeout(ctx, GaugesPatience)
	defer cancel()
	receipts, err = count(bounded)
	if err != nil && errors.Is(bounded.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, true, nil
	}
	return receipts, false, err
}

// ReceiptRanks are the states of receipts with their ranks, as two slices for SQL: the receipt of the highest rank, then
// of the highest attempt, is the effective one of a case.
func ReceiptRanks() (states []string, ranks []int32) {
	for s := schema.ReceiptPlanned; s <= schema.ReceiptCancelled; s++ {
		states, ranks = append(states, s.String()), append(ranks, int32(s.Rank())) //nolint:gosec // eleven states
	}
	return states, ranks
}
