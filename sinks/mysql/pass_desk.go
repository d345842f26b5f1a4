package mysql

import (
	"context"
	"database/sql"

	"lethe/schema"
	"lethe/sinks/ledger"
)

// passes reads how complete the replica is, and what is under way to make it so.
func (d *Desk) passes(ctx context.Context, s *ledger.Status) error {
	const op = "reading passes"
	err := d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT `+sqlIncomplete+`, (`+sqlUnproven+`),
		(SELECT COUNT(*) FROM {p}finding WHERE kind = '`+ledger.FindingAbsent+`')`)).Scan(&s.Incomplete, &s.Unproven, &s.Absent)
	if err != nil {
		return classify(op, err)
	}
	err = eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT run_id, MIN(whole), MIN(began_at) AS began, COUNT(*), COUNT(ended_at) FROM {p}pass WHERE named
		GROUP BY run_id HAVING MAX(ended_at IS NULL AND compared_at IS NULL) ORDER BY began`), nil, func(rows *sql.Rows) error {
		var p ledger.RunningPass
		err := rows.Scan(&p.RunID, &p.Whole, &p.BeganAt, &p.Begun, &p.Ended)
		s.Passes = append(s.Passes, p)
		return err
	})
	return classify(op, err)
}

// RunCases tells of the cases that a pass has found and that wait for their release: that of any of them releases all.
func (d *Desk) RunCases(ctx context.Context, run string) (c ledger.RunCases, err error) {
	const waiting = `FROM {p}pending WHERE run_id = ? AND snapshot AND state = 'suppressed' AND NOT released AND NOT held AND wait <> 'decision'
		AND due_at < '` + never + `'`
	var id []byte
	err = d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT (SELECT COUNT(*) `+waiting+`),
		(SELECT case_id `+waiting+` ORDER BY opened_at DESC, ref LIMIT 1)`), run, run).Scan(&c.Waiting, &id)
	if len(id) > 0 {
		c.Case = schema.CaseID(id)
	}
	return c, classify("looking for the cases of a pass", err)
}
