package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// reportTables hold what the source was found to say about cases, a part of migration2. The newest order counts; standing is
// where the gate stands, for the aspect gate of a case that waits for it.
const reportTables = `
CREATE TABLE {s}.source_report (
  ref          bytea NOT NULL,
  aspect       text NOT NULL CHECK (aspect IN ('completeness', 'gate', 'request', 'revived')),
  part         integer NOT NULL,
  satisfied    boolean NOT NULL,
  missing      jsonb NOT NULL,
  standing     text CHECK (standing IN ('waiting', 'hold', 'proceed')),
  received_at  timestamptz,
  legal_due_at timestamptz,
  checked_at   timestamptz,
  ord          bytea NOT NULL,
  PRIMARY KEY (ref, aspect)
);
`

// notGated is the condition that the gate keeps no case (p) from phase 2. A record that was joined into another one waits as that does.
const notGated = ` AND NOT EXISTS (SELECT FROM {s}.source_report g WHERE g.ref = p.ref AND g.aspect = 'gate' AND g.standing IN ('waiting', 'hold'))
	AND NOT EXISTS (SELECT FROM {s}.alias a JOIN {s}.source_report g ON g.ref = a.ref WHERE a.absorbed = p.ref AND g.aspect = 'gate' AND g.standing IN ('waiting', 'hold'))`

// gated is notGated where this replica waits for the gate, and nothing elsewhere.
func (r *Replica) gated() string {
	if ledger.Gated(r.cfg) {
		return notGated
	}
	return ""
}

// queueReports writes what the source was found to say.
func (u *unit) queueReports(b *pgx.Batch) error {
	rows, err := u.ReportRows()
	if err != nil || len(rows) == 0 {
		return err
	}
	var refs, orders [][]byte
	for i := range rows {
		if rows[i].Opens {
			refs, orders = append(refs, rows[i].Ref[:]), append(orders, rows[i].Order[:])
		}
	}
	if len(refs) > 0 {
		b.Queue(u.r.ledger.sql(`DELETE FROM {s}.source_report r USING unnest($1::bytea[], $2::bytea[]) k(ref, ord)
			WHERE r.ref = k.ref AND r.ord < k.ord`), refs, orders)
	}
	for i := range rows {
		row := &rows[i]
		switch {
		case row.Opens && row.Standing == "":
		case row.Ends:
			b.Queue(u.r.ledger.sql(`UPDATE {s}.source_report SET satisfied = true, missing = $4, ord = $3 WHERE ref = $1 AND aspect = $2 AND ord < $3`),
				row.Ref[:], row.Aspect, row.Order[:], row.Missing)
		case row.Fills:
			b.Queue(u.r.ledger.sql(`
				INSERT INTO {s}.source_report AS r (ref, aspect, part, satisfied, missing, standing, ord) VALUES ($1, $2, $3, $4, $5, $6, $7)
				ON CONFLICT (ref, aspect) DO UPDATE SET standing = excluded.standing WHERE r.standing IS NULL`),
				row.Ref[:], row.Aspect, row.Part, row.Satisfied, row.Missing, row.Standing, row.Order[:])
		default:
			b.Queue(u.r.ledger.sql(`
				INSERT INTO {s}.source_report AS r (ref, aspect, part, satisfied, missing, standing, received_at, legal_due_at, checked_at, ord)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
				ON CONFLICT (ref, aspect) DO UPDATE SET part = excluded.part, satisfied = excluded.satisfied, missing = excluded.missing,
					standing = coalesce(excluded.standing, r.standing), received_at = excluded.received_at,
					legal_due_at = excluded.legal_due_at, checked_at = excluded.checked_at, ord = excluded.ord
				WHERE r.ord < excluded.ord`),
				row.Ref[:], row.Aspect, row.Part, row.Satisfied, row.Missing, textOrNull(row.Standing), timeOrNull(row.ReceivedAt),
				timeOrNull(row.LegalDueAt), timeOrNull(row.CheckedAt), row.Order[:])
		}
	}
	return nil
}

// addReports puts what the source says into cases.
func (d *Desk) addReports(ctx context.Context, cases []ledger.Case) error {
	ids := make([][]byte, len(cases))
	for i := range cases {
		ids[i] = cases[i].ID[:]
	}
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT p.case_id, r.aspect, r.satisfied, r.missing::text, coalesce(r.standing, ''), r.received_at, r.legal_due_at, r.checked_at
		FROM {s}.source_report r JOIN {s}.pending p ON p.ref = r.ref WHERE p.case_id = ANY ($1) ORDER BY p.case_id, r.aspect`), ids)
	if err != nil {
		return err
	}
	var id []byte
	var r ledger.Report
	var missing string
	var received, due, checked *time.Time
	reports := ledger.CaseReports{}
	_, err = pgx.ForEachRow(rows, []any{&id, &r.Aspect, &r.Satisfied, &missing, &r.Standing, &received, &due, &checked}, func() error {
		r.Missing, r.ReceivedAt, r.LegalDueAt, r.CheckedAt = []byte(missing), timeOf(received), timeOf(due), timeOf(checked)
		reports.Add(id, r)
		return nil
	})
	if err != nil {
		return err
	}
	return reports.Into(cases, ledger.Gated(d.r.cfg))
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
