package mysql

import (
	"context"
	"database/sql"

	"lethe/sinks/ledger"
)

// Findings lists what somebody ought to know about subjects, the newest first, and counts what stands in other tables.
func (d *Desk) Findings(ctx context.Context, limit int) ([]ledger.SubjectFinding, error) {
	const op = "reading findings"
	var out []ledger.SubjectFinding
	err := eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT kind, ref, scope, event_id, times, first_at, last_at FROM {p}finding ORDER BY last_at DESC, ref, kind, scope LIMIT ?`),
		[]any{limit}, func(rows *sql.Rows) error {
			f := ledger.SubjectFinding{Ref: &ledger.Ref{}}
			var ref, event sql.RawBytes
			err := rows.Scan(&f.Kind, &ref, &f.Scope, &event, &f.Times, &f.FirstAt, &f.LastAt)
			copy(f.Ref[:], ref)
			copy(f.EventID[:], event)
			out = append(out, f)
			return err
		})
	if err != nil {
		return nil, classify(op, err)
	}
	err = eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT ?, COUNT(*) FROM (SELECT value FROM {p}contact_key WHERE standing = 'live' AND type IN ('email_strict', 'phone_e164', 'postal')
			GROUP BY value HAVING COUNT(DISTINCT ref) > 1) shared
		UNION ALL SELECT ?, COUNT(*) FROM {p}review WHERE decided_at IS NULL
		UNION ALL SELECT ?, COUNT(*) FROM {p}pending WHERE error_code = ?`),
		[]any{ledger.FindingShared, ledger.FindingAmbiguous, ledger.FindingUnmapped, ledger.ReasonUnmapped}, func(rows *sql.Rows) error {
			var f ledger.SubjectFinding
			err := rows.Scan(&f.Kind, &f.Times)
			if f.Times > 0 {
				out = append(out, f)
			}
			return err
		})
	return out, classify(op, err)
}
