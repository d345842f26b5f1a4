package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"lethe/internal/crashpoint"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Apply implements sinks.Applier: one transaction that moves the offsets of all partitions of the batch and does what
// its records ask for. It takes three round trips, four where a subject's row had nothing to change:
//
//  1. begin; compare-and-set the offset rows, which are the locks of everything below them; read the subjects, their
//     facts and the open gaps;
//  2. (facts are compared and folded here, in Go) the mapped rows, set-based; every statement tells which subjects it
//     changed;
//  3. facts, subjects, pending erasures, receipts; commit.
//
// After an error nothing of the batch is in the replica, unless the commit's answer was lost: Assign tells.
func (r *Replica) Apply(ctx context.Context, b *sinks.Batch) (sinks.Outcome, error) {
	const op = "applying batch"
	m, err := r.compiled(ctx)
	if err != nil {
		return sinks.Outcome{}, err
	}
	u, err := r.newUnit(m, b.Records)
	if err != nil {
		return sinks.Outcome{}, err
	}
	// A replica that takes packets and never answers is an error in the end, not a worker that looks busy for hours.
	ctx, cancel := context.WithTimeout(ctx, r.opts.LockTimeout+batchStatements*r.opts.StatementTimeout)
	defer cancel()
	conn, err := r.opts.Pool.Acquire(ctx)
	if err != nil {
		return sinks.Outcome{}, classify(op, err)
	}
	defer conn.Release()
	out, err := u.apply(ctx, conn, b)
	if err != nil {
		rollBack(ctx, func(ctx context.Context) error {
			_, err := conn.Exec(ctx, "ROLLBACK")
			return err
		})
		return sinks.Outcome{}, r.reduced(op, err)
	}
	crashpoint.Hit("sink.after_commit")
	r.metrics.Count(u.Unit)
	return out, nil
}

// batchStatements is how many statements of the longest allowed duration a batch may take as a whole.
const batchStatements = 3

// rollBackTimeout bounds a rollback on a server that does not answer.
const rollBackTimeout = 5 * time.Second

// rollBack runs fn even when ctx has ended. Its error does not matter: the pool throws away a connection that is still in
// a transaction, and the server rolls back what it loses.
func rollBack(ctx context.Context, fn func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollBackTimeout)
	defer cancel()
	_ = fn(ctx)
}

func (u *unit) apply(ctx context.Context, conn *pgxpool.Conn, b *sinks.Batch) (sinks.Outcome, error) {
	moved := ledger.PlacesAfter(b)
	if err := u.begin(ctx, conn, b.From, moved); err != nil {
		return sinks.Outcome{}, err
	}
	if err := u.meet(ctx, conn); err != nil {
		return sinks.Outcome{}, err
	}
	u.Dispatch()
	if !u.m.indexed {
		if _, err := conn.Exec(ctx, sqlPlanFree); err != nil {
			return sinks.Outcome{}, err
		}
	}
	if err := u.effects().run(ctx, conn, u.Set.List); err != nil {
		return sinks.Outcome{}, err
	}
	u.Settle()
	last := &pgx.Batch{}
	if !u.m.indexed {
		last.Queue(sqlPlanBound)
	}
	if err := u.queueAll(last); err != nil {
		return sinks.Outcome{}, err
	}
	var committing time.Time
	last.Queue("SELECT clock_timestamp()").QueryRow(func(row pgx.Row) error { return row.Scan(&committing) })
	last.Queue("COMMIT")
	crashpoint.Hit("sink.before_commit")
	if err := conn.SendBatch(ctx, last).Close(); err != nil {
		return sinks.Outcome{}, err
	}
	for i := range moved {
		moved[i].UpdatedAt = u.Now
	}
	return u.Outcome(moved, committing), nil
}

// sqlMovePlaces is the compare-and-set. A worker that has lost a partition waits here for the new owner's transaction
// and then finds another offset than its own.
const sqlMovePlaces = `
	UPDATE {s}.partition AS p SET next_offset = w.upto, last_event_id = w.event, last_order = w.ord,
		last_committed_at = greatest(p.last_committed_at, w.committed), heartbeat_at = greatest(p.heartbeat_at, w.beat), updated_at = now()
	FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[], $6::timestamptz[], $7::timestamptz[])
		AS w(part, since, upto, event, ord, committed, beat)
	WHERE p.part = w.part AND p.next_offset = w.since`

// sqlSettings bounds the transaction, and says how to plan: once, and by look-ups in indexes. A plan is kept as long as
// its connection, and the ledger tables are empty when the first one is made: reading all of them looks cheapest then, and
// would go on when they hold millions. No subject comes twice in a batch, so that remembering look-ups only costs.
const sqlSettings = `
	SELECT now(), set_config('lock_timeout', $1, true) || set_config('statement_timeout', $2, true) ||
		set_config('plan_cache_mode', 'force_generic_plan', true) || set_config('jit', 'off', true) || ` + lookUps

const lookUps = `set_config('enable_seqscan', 'off', true) || set_config('enable_hashjoin', 'off', true) ||
	set_config('enable_mergejoin', 'off', true) || set_config('enable_bitmapscan', 'off', true) ||
	set_config('enable_memoize', 'off', true)`

// The mapped tables may lack the index (Check warns): then one look-up would read the whole table, and the planner is let
// free for them.
const (
	sqlPlanFree  = `SELECT set_config(n, 'on', true) FROM unnest('{enable_seqscan,enable_hashjoin,enable_mergejoin,enable_bitmapscan}'::text[]) n`
	sqlPlanBound = `SELECT ` + lookUps
)

// begin opens the transaction and reads what the batch needs, in one round trip.
func (u *unit) begin(ctx context.Context, conn *pgxpool.Conn, from, to []sinks.Place) error {
	l, b := u.r.ledger, &pgx.Batch{}
	b.Queue("BEGIN")
	b.Queue(sqlSettings, milliseconds(u.r.opts.LockTimeout), milliseconds(u.r.opts.StatementTimeout))
	n := len(from)
	parts, since, upto := make([]int32, n), make([]int64, n), make([]int64, n)
	events, orders := make([][]byte, n), make([][]byte, n)
	committed, beats := make([]*time.Time, n), make([]*time.Time, n)
	for i := range from {
		parts[i], since[i], upto[i] = from[i].Partition, from[i].NextOffset, to[i].NextOffset
		events[i], orders[i] = to[i].LastEventID[:], to[i].LastOrder[:]
		committed[i], beats[i] = u.LastTimes(from[i].Partition)
	}
	b.Queue(l.sql(sqlMovePlaces), parts, since, upto, events, orders, committed, beats)
	u.queueRead(b)
	results := conn.SendBatch(ctx, b)
	defer func() { _ = results.Close() }()
	if _, err := results.Exec(); err != nil {
		return err
	}
	if err := u.scanNow(results.QueryRow()); err != nil {
		return err
	}
	tag, err := results.Exec()
	if err != nil {
		return err
	}
	if tag.RowsAffected() != int64(n) {
		return fmt.Errorf("moving offsets: %w", sinks.ErrFenced)
	}
	return results.Close()
}

func (u *unit) scanNow(row pgx.Row) error {
	var settings string
	return row.Scan(&u.Now, &settings)
}

// queueRead reads the guards of the replica as a whole, the open gaps and passes, the subjects and their facts.
func (u *unit) queueRead(b *pgx.Batch) {
	l, refs := u.r.ledger, u.Set.Refs()
	b.Queue(l.sql(`SELECT k, v FROM {s}.meta WHERE k IN ('mapping_digest', 'paused')`)).Query(u.scanGuards)
	b.Queue(l.sql(sqlStanding)).Query(u.scanStanding)
	if len(refs) == 0 {
		return
	}
	b.Queue(l.sql(sqlSubjects), refs).Query(func(rows pgx.Rows) error { return scanSubjects(rows, u.Set) })
	if u.Set.NeedContacts {
		l.queueContacts(b, u.Set)
	}
}

// scanGuards refuses to go on under a mapping that Setup has replaced meanwhile, or while an operator holds the replica.
func (u *unit) scanGuards(rows pgx.Rows) error {
	var k, v string
	active, paused := "", false
	for rows.Next() {
		if err := rows.Scan(&k, &v); err != nil {
			return err
		}
		switch k {
		case ledger.MetaDigest:
			active = v
		case ledger.MetaPaused:
			paused = true
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if active != u.r.core.Digest() {
		u.r.forget()
		return ledger.ErrDigestChanged()
	}
	if paused {
		return ledger.ErrPaused(u.r.opts.Name)
	}
	return nil
}
