package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
)

// maxAttempts is how often phase 2 is run before the case is failed and left to a person. Attempts are never counted from
// the start again, because a receipt's id holds the attempt: the proof of a second round (after a release, a restore, a
// larger mapping) would have the id of the first, and be dropped. A round ends at each multiple of maxAttempts, and
// sqlNextRound is where the next one starts from.
const (
	maxAttempts  = 3
	sqlNextRound = `(p.attempts + 2) / 3 * 3`
)

// Reasons and error codes of cases.
const (
	reasonBreaker     = "breaker"          // more new cases than the replica's breaker allows
	reasonSnapshot    = "snapshot"         // erasures of a pass wait for one release
	reasonGone        = "no_row"           // searched, no row: looked up again until the recheck ends
	reasonResidual    = "residual_values"  // a value was still readable after phase 2
	reasonDecision    = "decision"         // an operator's
	reasonGap         = "gap_open"         // nothing is called verified while a part of the log is lost
	reasonUnmapped    = "unmapped_columns" // a column that looks personal has no mapping
	reasonNotFollowed = "not_followed"     // an objection's or restriction's columns are not what the fold says
)

// openedCase is a row of lethe.pending while a transaction works on it.
type openedCase struct {
	ref       refKey
	event     schema.EventID
	id        schema.CaseID
	part      int32
	attempts  int
	committed time.Time
	digest    [32]byte
	work      caseWork
	erased    bool // phase 2 has run once: what it destroyed does not come back by a decision
	subject   *subject
	held      []schema.Residual // what verification found to be held, and until when

	burst    int // cases opened within the breaker's window around this one
	released bool
	snapshot bool
}

// caseWork is what phase 2 leaves for verification: which persons the subject was found as. It holds the replica's own
// keys, and goes when the case is verified.
type caseWork struct {
	Persons []string `json:"persons,omitempty"` // person.key in text form
}

// caseColumns are what scanCases reads.
const caseColumns = `p.ref, p.event_id, p.case_id, p.part, p.attempts, p.committed_at, p.config_digest, p.work,
	p.applied_at IS NOT NULL`

// scanCase reads caseColumns, and more columns behind them into extra.
func scanCase(rows pgx.Rows, extra ...any) (c *openedCase, err error) {
	var ref, event, id, digest []byte
	var work *caseWork
	c = &openedCase{}
	into := append([]any{&ref, &event, &id, &c.part, &c.attempts, &c.committed, &digest, &work, &c.erased}, extra...)
	if err := rows.Scan(into...); err != nil {
		return nil, err
	}
	c.ref = refKey(ref)
	copy(c.event[:], event)
	copy(c.id[:], id)
	copy(c.digest[:], digest)
	if work != nil {
		c.work = *work
	}
	return c, nil
}

// collectCases runs a query of caseColumns.
func collectCases(ctx context.Context, q querier, sql string, args ...any) ([]*openedCase, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*openedCase
	for rows.Next() {
		c, err := scanCase(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

func refsOf(cases []*openedCase) [][]byte {
	out := make([][]byte, len(cases))
	for i, c := range cases {
		out[i] = c.ref[:]
	}
	return out
}

// attach loads the subjects of the cases.
func (r *Replica) attach(ctx context.Context, tx querier, cases []*openedCase) (*subjects, error) {
	set, err := r.load(ctx, tx, refsOf(cases))
	if err != nil {
		return nil, err
	}
	for _, c := range cases {
		c.subject = set.byRef[c.ref]
	}
	return set, nil
}

// caseReceipt is the receipt of a case in a state. attempt 0 is phase 1 and what waits; phase 2 counts from 1.
func (r *Replica) caseReceipt(c *openedCase, state schema.ReceiptState, attempt int, reason string, gaps []string, now time.Time) *storedReceipt {
	rc := r.newReceipt(c.event, schema.TypeSubjectErasure, state, uint32(attempt)) //nolint:gosec // attempts are few
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest, rc.MadeAt = c.id, c.committed, c.digest, now
	rc.Reason, rc.Gaps, rc.ref, rc.part = reason, gaps, c.ref[:], c.part
	return rc
}

// nextOf asks when the next row of a query is due: a number of seconds by the replica's clock, or NULL.
func (r *Replica) nextOf(ctx context.Context, op, sql string, args ...any) (time.Time, error) {
	var seconds *float64
	err := r.opts.Pool.QueryRow(ctx, r.ledger.sql(sql), args...).Scan(&seconds)
	return untilDue(seconds), classify(op, err)
}

// send runs a batch that returns nothing.
func send(ctx context.Context, tx pgx.Tx, b *pgx.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, b).Close()
}
