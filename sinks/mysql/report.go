package mysql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"

	"lethe/sinks/ledger"
)

// reportTables hold what the source was found to say about cases, a part of migration2. The newest order counts; standing is
// where the gate stands, for the aspect gate of a case that waits for it.
var reportTables = []string{
	`
CREATE TABLE IF NOT EXISTS {p}source_report (
  ref          VARBINARY(32) NOT NULL,
  aspect       VARCHAR(32) NOT NULL CHECK (aspect IN ('completeness', 'gate', 'request', 'revived')),
  part         INT NOT NULL,
  satisfied    TINYINT(1) NOT NULL,
  missing      LONGTEXT NOT NULL,
  standing     VARCHAR(16) CHECK (standing IN ('waiting', 'hold', 'proceed')),
  received_at  DATETIME(6),
  legal_due_at DATETIME(6),
  checked_at   DATETIME(6),
  ord          VARBINARY(64) NOT NULL,
  PRIMARY KEY (ref, aspect)
) {t}`,
}

// notGated is the condition that the gate keeps no case (of an alias) from phase 2. A record that was joined into another one
// waits as that does.
func notGated(alias string) string {
	return ` AND NOT EXISTS (SELECT 1 FROM {p}source_report g WHERE g.ref = ` + alias + `.ref AND g.aspect = 'gate' AND g.standing IN ('waiting', 'hold'))
	AND NOT EXISTS (SELECT 1 FROM {p}alias a STRAIGHT_JOIN {p}source_report g ON g.ref = a.ref
		WHERE a.absorbed = ` + alias + `.ref AND g.aspect = 'gate' AND g.standing IN ('waiting', 'hold'))`
}

// gated is notGated where this replica waits for the gate, and nothing elsewhere.
func (r *Replica) gated(alias string) string {
	if ledger.Gated(r.cfg) {
		return notGated(alias)
	}
	return ""
}

// writeReports writes what the source was found to say.
func (r *Replica) writeReports(ctx context.Context, tx *tx, u *ledger.Unit) error {
	rows, err := u.ReportRows()
	if err != nil || len(rows) == 0 {
		return err
	}
	run := func(statement string, args ...any) {
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(statement), args...)
		}
	}
	opened := rowsOf("ref", typeKey, "ord", typeKey)
	opens := 0
	for i := range rows {
		if rows[i].Opens {
			opens++
			opened.add(rows[i].Ref[:], rows[i].Order[:])
		}
	}
	if opens > 0 {
		run(`DELETE r FROM `+opened.table()+` STRAIGHT_JOIN {p}source_report r ON r.ref = UNHEX(v.ref) WHERE r.ord < UNHEX(v.ord)`, opened.arg())
	}
	for i := range rows {
		row := &rows[i]
		switch {
		case row.Opens && row.Standing == "":
		case row.Ends:
			run(`UPDATE {p}source_report SET satisfied = 1, missing = ?, ord = ? WHERE ref = ? AND aspect = ? AND ord < ?`,
				string(row.Missing), row.Order[:], row.Ref[:], row.Aspect, row.Order[:])
		case row.Fills:
			run(`INSERT INTO {p}source_report (ref, aspect, part, satisfied, missing, standing, ord) VALUES (?, ?, ?, ?, ?, ?, ?)
				ON DUPLICATE KEY UPDATE standing = COALESCE(standing, VALUES(standing))`,
				row.Ref[:], row.Aspect, row.Part, row.Satisfied, string(row.Missing), row.Standing, row.Order[:])
		default: // ord is compared by each of the columns, and so is set last
			run(`INSERT INTO {p}source_report (ref, aspect, part, satisfied, missing, standing, received_at, legal_due_at, checked_at, ord)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
				ON DUPLICATE KEY UPDATE part = IF(ord < VALUES(ord), VALUES(part), part), satisfied = IF(ord < VALUES(ord), VALUES(satisfied), satisfied),
					missing = IF(ord < VALUES(ord), VALUES(missing), missing),
					standing = IF(ord < VALUES(ord), COALESCE(VALUES(standing), standing), standing),
					received_at = IF(ord < VALUES(ord), VALUES(received_at), received_at),
					legal_due_at = IF(ord < VALUES(ord), VALUES(legal_due_at), legal_due_at),
					checked_at = IF(ord < VALUES(ord), VALUES(checked_at), checked_at), ord = GREATEST(ord, VALUES(ord))`,
				row.Ref[:], row.Aspect, row.Part, row.Satisfied, string(row.Missing), textArg(row.Standing), timeArg(row.ReceivedAt),
				timeArg(row.LegalDueAt), timeArg(row.CheckedAt), row.Order[:])
		}
	}
	return own(err)
}

// addReports puts what the source says into cases.
func (d *Desk) addReports(ctx context.Context, cases []ledger.Case) error {
	ids := make([]string, len(cases))
	for i := range cases {
		ids[i] = hex.EncodeToString(cases[i].ID[:])
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	reports := ledger.CaseReports{}
	err = eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT p.case_id, r.aspect, r.satisfied, r.missing, COALESCE(r.standing, ''), r.received_at, r.legal_due_at, r.checked_at
		FROM JSON_TABLE(?, '$[*]' COLUMNS (id VARCHAR(64) PATH '$')) v STRAIGHT_JOIN {p}pending p ON p.case_id = UNHEX(v.id)
		STRAIGHT_JOIN {p}source_report r ON r.ref = p.ref ORDER BY p.case_id, r.aspect`), []any{string(list)}, func(rows *sql.Rows) error {
		var id []byte
		var r ledger.Report
		var received, due, checked sql.NullTime
		if err := rows.Scan(&id, &r.Aspect, &r.Satisfied, &r.Missing, &r.Standing, &received, &due, &checked); err != nil {
			return err
		}
		r.ReceivedAt, r.LegalDueAt, r.CheckedAt = received.Time, due.Time, checked.Time
		reports.Add(id, r)
		return nil
	})
	if err != nil {
		return err
	}
	return reports.Into(cases, ledger.Gated(d.r.cfg))
}
