package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// refreshGauges counts the ledger tables now and then.
func (r *Replica) refreshGauges(ctx context.Context, _ []sinks.Place) (time.Time, error) {
	return r.gauges.Refresh(func() (ledger.Counts, error) { return r.countLedger(ctx) })
}

// countLedger counts; receipts are nil where that would have taken too long.
func (r *Replica) countLedger(ctx context.Context) (ledger.Counts, error) {
	const op = "counting Lethe's tables"
	c := ledger.Counts{Pending: map[[2]string]int{}}
	var oldest *float64
	err := r.opts.Pool.QueryRow(ctx, r.ledger.sql(`
		SELECT (SELECT extract(epoch FROM now() - min(opened_at))::float8 FROM {s}.pending WHERE state <> 'verified'),
			(SELECT count(*) FROM {s}.parked WHERE done_at IS NULL), (SELECT count(DISTINCT gap_id) FROM {s}.gap WHERE closed_at IS NULL),
			(SELECT count(*) FROM {s}.finding WHERE kind = '`+ledger.FindingAbsent+`'), (`+sqlUnproven+`), `+sqlReviews)).
		Scan(&oldest, &c.Parked, &c.Gaps, &c.Absent, &c.Unproven, &c.Reviews, &c.Overdue)
	if err != nil {
		return c, classify(op, err)
	}
	c.Oldest = seconds(oldest)
	rows, err := r.opts.Pool.Query(ctx, r.ledger.sql(`SELECT state, wait, count(*) FROM {s}.pending GROUP BY 1, 2`))
	if err != nil {
		return c, classify(op, err)
	}
	var state, wait string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &wait, &n}, func() error {
		c.Pending[[2]string{state, wait}] = n
		return nil
	})
	if err != nil {
		return c, classify(op, err)
	}
	var slow bool
	if c.Receipts, slow, err = ledger.Patiently(ctx, r.effectiveReceipts); slow {
		r.log.Warn().Dur("patience", ledger.GaugesPatience).Msg("lethe_receipts keeps its last values: counting the receipts takes too long")
	}
	return c, err
}
