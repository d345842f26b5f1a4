package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// sqlNextRound is where the attempts of the next round start from; see ledger.MaxAttempts.
const sqlNextRound = `(p.attempts + 2) / 3 * 3`

// caseColumns are what scanCases reads.
const caseColumns = `p.ref, p.event_id, p.case_id, p.part, p.attempts, p.committed_at, p.config_digest, p.work,
	p.applied_at IS NOT NULL`

// scanCase reads caseColumns, and more columns behind them into extra.
func scanCase(rows pgx.Rows, extra ...any) (c *ledger.OpenedCase, err error) {
	var ref, event, id, digest []byte
	var work *ledger.CaseWork
	c = &ledger.OpenedCase{}
	into := append([]any{&ref, &event, &id, &c.Part, &c.Attempts, &c.Committed, &digest, &work, &c.Erased}, extra...)
	if err := rows.Scan(into...); err != nil {
		return nil, err
	}
	c.Ref = ledger.Ref(ref)
	copy(c.Event[:], event)
	copy(c.ID[:], id)
	copy(c.Digest[:], digest)
	if work != nil {
		c.Work = *work
	}
	return c, nil
}

// collectCases runs a query of caseColumns.
func collectCases(ctx context.Context, q querier, sql string, args ...any) ([]*ledger.OpenedCase, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*ledger.OpenedCase
	for rows.Next() {
		c, err := scanCase(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// attach loads the subjects of the cases.
func (r *Replica) attach(ctx context.Context, tx runner, cases []*ledger.OpenedCase) (*ledger.Set, error) {
	set, err := r.load(ctx, tx, ledger.RefsOf(cases))
	if err != nil {
		return nil, err
	}
	for _, c := range cases {
		c.Subject = set.ByRef[c.Ref]
	}
	return set, nil
}

// nextOf asks when the next row of a query is due: a number of seconds by the replica's clock, or NULL.
func (r *Replica) nextOf(ctx context.Context, op, sql string, args ...any) (time.Time, error) {
	var seconds *float64
	err := r.opts.Pool.QueryRow(ctx, r.ledger.sql(sql), args...).Scan(&seconds)
	return ledger.UntilDue(seconds), classify(op, err)
}

// send runs a batch that returns nothing.
func send(ctx context.Context, tx pgx.Tx, b *pgx.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}
