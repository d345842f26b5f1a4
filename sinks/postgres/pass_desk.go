package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
	"lethe/sinks/ledger"
)

// passes reads how complete the replica is, and what is under way to make it so.
func (d *Desk) passes(ctx context.Context, s *ledger.Status) error {
	const op = "reading passes"
	err := d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`SELECT `+sqlIncomplete+`, (`+sqlUnproven+`),
		(SELECT count(*) FROM {s}.finding WHERE kind = '`+ledger.FindingAbsent+`')`)).Scan(&s.Incomplete, &s.Unproven, &s.Absent)
	if err != nil {
		return classify(op, err)
	}
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT run_id, bool_and(whole), min(began_at), count(*), count(ended_at) FROM {s}.pass WHERE named
		GROUP BY run_id HAVING bool_or(ended_at IS NULL AND compared_at IS NULL) ORDER BY 3`))
	if err != nil {
		return classify(op, err)
	}
	s.Passes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p ledger.RunningPass, err error) {
		err = row.Scan(&p.RunID, &p.Whole, &p.BeganAt, &p.Begun, &p.Ended)
		return p, err
	})
	return classify(op, err)
}

// RunCases tells of the cases that a pass has found and that wait for their release: that of any of them releases all.
func (d *Desk) RunCases(ctx context.Context, run string) (c ledger.RunCases, err error) {
	var ids [][]byte
	err = d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`SELECT count(*), (array_agg(case_id ORDER BY opened_at DESC, ref))[1:1] FROM {s}.pending
		WHERE run_id = $1 AND snapshot AND state = 'suppressed' AND NOT released AND NOT held AND wait <> 'decision' AND due_at < 'infinity'`), run).
		Scan(&c.Waiting, &ids)
	if len(ids) > 0 {
		c.Case = schema.CaseID(ids[0])
	}
	return c, classify("looking for the cases of a pass", err)
}
