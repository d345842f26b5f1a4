package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// Findings lists what somebody ought to know about subjects, the newest first, and counts what stands in other tables.
func (d *Desk) Findings(ctx context.Context, limit int) ([]ledger.SubjectFinding, error) {
	const op = "reading findings"
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT kind, ref, scope, event_id, times, first_at, last_at FROM {s}.finding ORDER BY last_at DESC, ref, kind, scope LIMIT $1`), limit)
	if err != nil {
		return nil, classify(op, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f ledger.SubjectFinding, err error) {
		var ref, event []byte
		f.Ref = &ledger.Ref{}
		err = row.Scan(&f.Kind, &ref, &f.Scope, &event, &f.Times, &f.FirstAt, &f.LastAt)
		copy(f.Ref[:], ref)
		copy(f.EventID[:], event)
		return f, err
	})
	if err != nil {
		return nil, classify(op, err)
	}
	counts, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT $1, count(*) FROM (SELECT FROM {s}.contact_key WHERE standing = 'live' AND type IN ('email_strict', 'phone_e164', 'postal')
			GROUP BY value HAVING count(DISTINCT ref) > 1) shared
		UNION ALL SELECT $2, count(*) FROM {s}.review WHERE decided_at IS NULL
		UNION ALL SELECT $3, count(*) FROM {s}.pending WHERE error_code = $4`),
		ledger.FindingShared, ledger.FindingAmbiguous, ledger.FindingUnmapped, ledger.ReasonUnmapped)
	if err != nil {
		return nil, classify(op, err)
	}
	var f ledger.SubjectFinding
	_, err = pgx.ForEachRow(counts, []any{&f.Kind, &f.Times}, func() error {
		if f.Times > 0 {
			out = append(out, f)
		}
		return nil
	})
	return out, classify(op, err)
}
