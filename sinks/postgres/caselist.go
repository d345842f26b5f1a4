package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// sqlEffective is the effective receipt of each case: of the highest rank, then the highest attempt. A case that was opened
// again after a cancel has another event: its newest one counts.
const sqlEffective = `
	SELECT DISTINCT ON (r.case_id) r.case_id, r.state, r.made_at FROM {s}.receipt r
	JOIN unnest($1::text[], $2::int[]) k(state, rank) ON k.state = r.state
	JOIN (SELECT DISTINCT ON (case_id) case_id, event_id FROM {s}.receipt WHERE case_id IS NOT NULL ORDER BY case_id, made_at DESC) newest
		ON newest.case_id = r.case_id AND newest.event_id = r.event_id
	ORDER BY r.case_id, k.rank DESC, r.attempt DESC, r.made_at DESC`

// Cases lists erasures, the newest first; openOnly leaves out those that are proven or cancelled.
func (d *Desk) Cases(ctx context.Context, openOnly bool, limit int) ([]ledger.Case, error) {
	const op = "listing cases"
	states, ranks := ledger.ReceiptRanks()
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		WITH effective AS (`+sqlEffective+`)
		SELECT coalesce(p.case_id, e.case_id), CASE WHEN p.observed THEN 'observed' ELSE coalesce(p.state, 'cancelled') END,
			CASE WHEN p.case_id IS NULL OR p.state = 'verified' THEN 'none' WHEN p.held THEN 'held'
				WHEN p.error_code = 'ambiguous' THEN 'review' WHEN NOT p.matched THEN 'no_row' ELSE p.wait END,
			coalesce(p.opened_at, e.made_at), coalesce(o.due_at, CASE WHEN p.due_at < 'infinity' THEN p.due_at END), coalesce(o.due_at < now(), false), coalesce(p.attempts, 0),
			coalesce(p.error_code, ''), coalesce(e.state, ''), CASE WHEN p.snapshot THEN coalesce(p.run_id, '') ELSE '' END
		FROM {s}.pending p FULL JOIN effective e ON e.case_id = p.case_id
		LEFT JOIN (SELECT ref, min(due_at) AS due_at FROM {s}.review WHERE decided_at IS NULL GROUP BY ref) o ON o.ref = p.ref AND p.error_code = 'ambiguous'
		WHERE NOT $3 OR p.state <> 'verified' ORDER BY 4 DESC, 1 LIMIT $4`), states, ranks, openOnly, limit)
	if err != nil {
		return nil, classify(op, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c ledger.Case, err error) {
		var id []byte
		var due *time.Time
		err = row.Scan(&id, &c.State, &c.Wait, &c.Since, &due, &c.Overdue, &c.Attempts, &c.ErrorCode, &c.Receipt, &c.Run)
		copy(c.ID[:], id)
		if due != nil {
			c.Due = *due
		}
		return c, err
	})
	if err == nil {
		err = d.addReports(ctx, out)
	}
	return slices.Clip(out), classify(op, err)
}

// effectiveReceipts counts the effective receipts of cases by state.
func (r *Replica) effectiveReceipts(ctx context.Context) (map[string]int, error) {
	states, ranks := ledger.ReceiptRanks()
	rows, err := r.opts.Pool.Query(ctx, r.ledger.sql(`SELECT state, count(*) FROM (`+sqlEffective+`) e GROUP BY 1`), states, ranks)
	if err != nil {
		return nil, classify("counting receipts", err)
	}
	out := map[string]int{}
	var state string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		out[state] = n
		return nil
	})
	return out, classify("counting receipts", err)
}

// Gaps lists the gaps that this replica was told of, the newest first.
func (d *Desk) Gaps(ctx context.Context) ([]ledger.Gap, error) {
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT gap_id, min(cause), min(opened_at), CASE WHEN bool_and(closed_at IS NOT NULL) THEN max(closed_at) END, count(*), count(closed_at)
		FROM {s}.gap GROUP BY gap_id ORDER BY 3 DESC`))
	if err != nil {
		return nil, classify("listing gaps", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g ledger.Gap, err error) {
		var closed *time.Time
		err = row.Scan(&g.ID, &g.Cause, &g.OpenedAt, &closed, &g.Known, &g.Closed)
		if closed != nil {
			g.ClosedAt = *closed
		}
		return g, err
	})
	return out, classify("listing gaps", err)
}
