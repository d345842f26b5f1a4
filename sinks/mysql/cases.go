package mysql

import (
	"context"
	"database/sql"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// sqlNextRound is where the next round of attempts starts from; see ledger.MaxAttempts.
const sqlNextRound = `(p.attempts + 2) DIV 3 * 3`

// caseColumns are what scanCase reads.
const caseColumns = `p.ref, p.event_id, p.case_id, p.part, p.attempts, p.committed_at, p.config_digest, p.work,
	p.applied_at IS NOT NULL`

// caseTables are the cases (alias p) of a list of references.
const caseTables = refsTable + ` STRAIGHT_JOIN {p}pending p ON p.ref = UNHEX(v.ref)`

// lockRows ends a SELECT from a list and the table p, whose rows it locks. MariaDB knows no OF, and takes the comment for one; MySQL would lock the list.
const lockRows = ` FOR UPDATE /*!80000 OF p */`

// scanCase reads caseColumns, and more columns behind them into extra.
func scanCase(rows *sql.Rows, extra ...any) (*ledger.OpenedCase, error) {
	var ref, event, id, digest, work sql.RawBytes
	c := &ledger.OpenedCase{}
	into := append([]any{&ref, &event, &id, &c.Part, &c.Attempts, &c.Committed, &digest, &work, &c.Erased}, extra...)
	if err := rows.Scan(into...); err != nil {
		return nil, err
	}
	copy(c.Ref[:], ref)
	copy(c.Event[:], event)
	copy(c.ID[:], id)
	copy(c.Digest[:], digest)
	if len(work) == 0 {
		return c, nil
	}
	return c, json.Unmarshal(work, &c.Work)
}

// collectCases runs a query of caseColumns.
func (r *Replica) collectCases(ctx context.Context, q querier, query string, args ...any) ([]*ledger.OpenedCase, error) {
	var out []*ledger.OpenedCase
	err := eachRow(ctx, q, r.ledger.sql(query), args, func(rows *sql.Rows) error {
		c, err := scanCase(rows)
		out = append(out, c)
		return err
	})
	return out, err
}

// attach loads the subjects of the cases.
func (r *Replica) attach(ctx context.Context, q querier, cases []*ledger.OpenedCase) (*ledger.Set, error) {
	set, err := r.load(ctx, q, ledger.RefsOf(cases))
	if err != nil {
		return nil, err
	}
	for _, c := range cases {
		c.Subject = set.ByRef[c.Ref]
	}
	return set, nil
}

// inParts is the condition that a row of the alias belongs to one of the places. The partitions stand in the text, because
// only then does the server read an index of partition and time from one time to another.
func inParts(alias string, parts []int32) string {
	list := make([]string, len(parts))
	for i, n := range sorted(parts) {
		list[i] = strconv.Itoa(int(n))
	}
	return alias + ".part IN (" + strings.Join(list, ", ") + ")"
}

// nextOf asks when the next row (alias x) of a table is due by one of its columns, if a condition holds: a time of ours.
func (r *Replica) nextOf(ctx context.Context, op, table, column, condition string, places []sinks.Place) (time.Time, error) {
	var seconds *float64
	err := r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`
		SELECT TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), MIN(n.at)) / 1e6 FROM (
			SELECT MIN(x.`+column+`) AS at FROM {p}`+table+` x
			WHERE `+inParts("x", ledger.PartsOf(places))+` AND x.`+column+` < '`+never+`' AND `+condition+` GROUP BY x.part) n`)).Scan(&seconds)
	return ledger.UntilDue(seconds), classify(op, err)
}
