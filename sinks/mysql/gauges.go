package mysql

import (
	"context"
	"database/sql"
	"time"

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
	var oldest sql.NullFloat64
	err := r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`SELECT (SELECT `+ageOf("MIN(opened_at)")+` FROM {p}pending WHERE state <> 'verified'),
		(SELECT COUNT(*) FROM {p}parked WHERE done_at IS NULL), (SELECT COUNT(DISTINCT gap_id) FROM {p}gap WHERE closed_at IS NULL),
		(SELECT COUNT(*) FROM {p}finding WHERE kind = '`+ledger.FindingAbsent+`'), (`+sqlUnproven+`), `+sqlReviews)).
		Scan(&oldest, &c.Parked, &c.Gaps, &c.Absent, &c.Unproven, &c.Reviews, &c.Overdue)
	if err != nil {
		return c, classify(op, err)
	}
	c.Oldest = seconds(oldest)
	err = eachRow(ctx, r.opts.DB, r.ledger.sql(`SELECT state, wait, COUNT(*) FROM {p}pending GROUP BY state, wait`), nil, func(rows *sql.Rows) error {
		var state, wait string
		var n int
		err := rows.Scan(&state, &wait, &n)
		c.Pending[[2]string{state, wait}] = n
		return err
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

// sqlReviews counts the open reviews, and those of them that are overdue.
const sqlReviews = `(SELECT COUNT(*) FROM {p}review WHERE decided_at IS NULL), (SELECT COUNT(*) FROM {p}review WHERE decided_at IS NULL AND due_at < UTC_TIMESTAMP(6))`

// ageOf is the SQL of how many seconds ago a time is by the replica's clock.
func ageOf(at string) string {
	return "TIMESTAMPDIFF(MICROSECOND, " + at + ", UTC_TIMESTAMP(6)) / 1000000"
}

func seconds(v sql.NullFloat64) time.Duration { return time.Duration(v.Float64 * float64(time.Second)) }
