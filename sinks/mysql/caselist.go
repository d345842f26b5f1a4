package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"lethe/sinks/ledger"
)

// sqlRank is the rank of a receipt's state.
var sqlRank = func() string {
	var b strings.Builder
	states, ranks := ledger.ReceiptRanks()
	b.WriteString("CASE r.state")
	for i := range states {
		fmt.Fprintf(&b, " WHEN '%s' THEN %d", states[i], ranks[i])
	}
	return b.String() + " END"
}()

// sqlEffective is the effective receipt of each case: of the highest rank, then the highest attempt. A case that was opened
// again after a cancel has another event: its newest one counts.
var sqlEffective = `
	SELECT x.case_id, x.state, x.made_at FROM (
		SELECT r.case_id, r.state, r.made_at,
			ROW_NUMBER() OVER (PARTITION BY r.case_id ORDER BY ` + sqlRank + ` DESC, r.attempt DESC, r.made_at DESC) AS n
		FROM {p}receipt r JOIN (
			SELECT case_id, event_id, ROW_NUMBER() OVER (PARTITION BY case_id ORDER BY made_at DESC) AS n FROM {p}receipt WHERE case_id IS NOT NULL
		) newest ON newest.n = 1 AND newest.case_id = r.case_id AND newest.event_id = r.event_id) x
	WHERE x.n = 1`

// Cases lists erasures, the newest first; openOnly leaves out those that are proven or cancelled.
func (d *Desk) Cases(ctx context.Context, openOnly bool, limit int) ([]ledger.Case, error) {
	query := `
		SELECT p.case_id, CASE WHEN p.observed THEN 'observed' ELSE p.state END,
			CASE WHEN p.state = 'verified' THEN 'none' WHEN p.held THEN 'held'
				WHEN p.error_code = 'ambiguous' THEN 'review' WHEN NOT p.matched THEN 'no_row' ELSE p.wait END,
			p.opened_at AS since, COALESCE(o.due_at, CASE WHEN p.due_at < '` + never + `' THEN p.due_at END), COALESCE(o.due_at < UTC_TIMESTAMP(6), FALSE), p.attempts, COALESCE(p.error_code, ''), COALESCE(e.state, ''),
			CASE WHEN p.snapshot THEN COALESCE(p.run_id, '') ELSE '' END
		FROM {p}pending p LEFT JOIN (` + sqlEffective + `) e ON e.case_id = p.case_id
		LEFT JOIN (SELECT ref, MIN(due_at) AS due_at FROM {p}review WHERE decided_at IS NULL GROUP BY ref) o ON o.ref = p.ref AND p.error_code = 'ambiguous'`
	if openOnly {
		query += ` WHERE p.state <> 'verified'`
	} else { // what was cancelled has left its receipts only
		query += `
		UNION ALL SELECT e.case_id, 'cancelled', 'none', e.made_at, NULL, FALSE, 0, '', e.state, ''
		FROM (` + sqlEffective + `) e LEFT JOIN {p}pending p ON p.case_id = e.case_id WHERE p.case_id IS NULL`
	}
	var out []ledger.Case
	err := eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(query+` ORDER BY since DESC, 1 LIMIT ?`), []any{limit}, func(rows *sql.Rows) error {
		var c ledger.Case
		var id []byte
		var due sql.NullTime
		err := rows.Scan(&id, &c.State, &c.Wait, &c.Since, &due, &c.Overdue, &c.Attempts, &c.ErrorCode, &c.Receipt, &c.Run)
		copy(c.ID[:], id)
		c.Due = due.Time
		out = append(out, c)
		return err
	})
	if err == nil {
		err = d.addReports(ctx, out)
	}
	return out, classify("listing cases", err)
}

// effectiveReceipts counts the effective receipts of cases by state.
func (r *Replica) effectiveReceipts(ctx context.Context) (map[string]int, error) {
	return r.counts(ctx, "counting receipts", `SELECT e.state, COUNT(*) FROM (`+sqlEffective+`) e GROUP BY e.state`)
}

// counts runs a query of words with numbers.
func (r *Replica) counts(ctx context.Context, op, query string) (map[string]int, error) {
	out := map[string]int{}
	err := eachRow(ctx, r.opts.DB, r.ledger.sql(query), nil, func(rows *sql.Rows) error {
		var key string
		var n int
		err := rows.Scan(&key, &n)
		out[key] = n
		return err
	})
	return out, classify(op, err)
}

// Gaps lists the gaps that this replica was told of, the newest first.
func (d *Desk) Gaps(ctx context.Context) ([]ledger.Gap, error) {
	var out []ledger.Gap
	err := eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT gap_id, MIN(cause), MIN(opened_at) AS opened, CASE WHEN COUNT(closed_at) = COUNT(*) THEN MAX(closed_at) END, COUNT(*), COUNT(closed_at)
		FROM {p}gap GROUP BY gap_id ORDER BY opened DESC`), nil, func(rows *sql.Rows) error {
		var g ledger.Gap
		var closed sql.NullTime
		err := rows.Scan(&g.ID, &g.Cause, &g.OpenedAt, &closed, &g.Known, &g.Closed)
		g.ClosedAt = closed.Time
		out = append(out, g)
		return err
	})
	return out, classify("listing gaps", err)
}
