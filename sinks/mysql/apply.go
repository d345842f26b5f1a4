package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"lethe/internal/crashpoint"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Apply implements sinks.Applier: one transaction that moves the offsets of all partitions of the batch and does what
// its records ask for:
//
//  1. begin; compare-and-set the offset rows, which are the locks of everything below them; read the guards, the open gaps,
//     the subjects and their facts;
//  2. (facts are compared and folded here, in Go) the mapped rows, set-based: what differs is looked for and locked, then
//     written;
//  3. facts, subjects, pending erasures, receipts; commit.
//
// The driver sends one statement at a time, so that each costs a round trip; there are about ten, however many records.
// After an error nothing of the batch is in the replica, unless the commit's answer was lost: Assign tells.
func (r *Replica) Apply(ctx context.Context, b *sinks.Batch) (sinks.Outcome, error) {
	const op = "applying batch"
	m, err := r.compiled(ctx)
	if err != nil {
		return sinks.Outcome{}, err
	}
	u, err := r.core.NewUnit(len(m.crm), b.Records)
	if err != nil {
		return sinks.Outcome{}, err
	}
	// A replica that takes packets and never answers is an error in the end, not a worker that looks busy for hours.
	ctx, cancel := context.WithTimeout(ctx, batchStatements*r.opts.StatementTimeout)
	defer cancel()
	moved := ledger.PlacesAfter(b)
	var out sinks.Outcome
	err = r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		u.Now = tx.now
		if err := r.movePlaces(ctx, tx, u, b.From, moved); err != nil {
			return err
		}
		if err := r.applyUnit(ctx, tx, m, u); err != nil {
			return err
		}
		for i := range moved {
			moved[i].UpdatedAt = u.Now
		}
		out = u.Outcome(moved, tx.clock())
		crashpoint.Hit("sink.before_commit")
		return nil
	})
	if err != nil {
		return sinks.Outcome{}, err
	}
	crashpoint.Hit("sink.after_commit")
	r.metrics.Count(u)
	return out, nil
}

// batchStatements is how many statements of the longest allowed duration a batch may take as a whole.
const batchStatements = 3

// applyUnit does what the records of a unit ask for. Offsets are the caller's.
func (r *Replica) applyUnit(ctx context.Context, tx *tx, m *Mapping, u *ledger.Unit) error {
	if err := r.readUnit(ctx, tx, u); err != nil {
		return err
	}
	if err := r.meet(ctx, tx, u, u.Wanted()); err != nil {
		return err
	}
	u.Dispatch()
	if err := r.effects(m, u.Now).run(ctx, tx, u.Set.List); err != nil {
		return err
	}
	u.Settle()
	return r.writeAll(ctx, tx, u)
}

// effects makes the statements of a transaction; now is by the replica's clock.
func (r *Replica) effects(m *Mapping, now time.Time) *effects {
	return &effects{r: r, m: m, cfg: r.cfg, now: now}
}

// movePlaces is the compare-and-set. A worker that has lost a partition waits here for the new owner's transaction and then
// finds another offset than its own.
func (r *Replica) movePlaces(ctx context.Context, tx *tx, u *ledger.Unit, from, to []sinks.Place) error {
	rows := rowsOf("part", typeInt, "since", typeInt, "upto", typeInt, "event", typeKey, "ord", typeKey, "committed", typeTime, "beat", typeTime)
	for i := range from {
		committed, beat := u.LastTimes(from[i].Partition)
		rows.add(from[i].Partition, from[i].NextOffset, to[i].NextOffset, to[i].LastEventID[:], to[i].LastOrder[:], timeOf(committed), timeOf(beat))
	}
	n, err := tx.exec(ctx, r.ledger.sql(`
		UPDATE `+rows.table()+` STRAIGHT_JOIN {p}partition p
		SET p.next_offset = v.upto, p.last_event_id = UNHEX(v.event), p.last_order = UNHEX(v.ord), p.updated_at = ?,
			p.last_committed_at = GREATEST(COALESCE(p.last_committed_at, v.committed), COALESCE(v.committed, p.last_committed_at)),
			p.heartbeat_at = GREATEST(COALESCE(p.heartbeat_at, v.beat), COALESCE(v.beat, p.heartbeat_at))
		WHERE p.part = v.part AND p.next_offset = v.since`), rows.arg(), tx.now)
	if err != nil {
		return own(err)
	}
	if n != int64(len(from)) {
		return fmt.Errorf("moving offsets: %w", sinks.ErrFenced)
	}
	return nil
}

func timeOf(t *time.Time) any {
	if t == nil {
		return nil
	}
	return *t
}

// readUnit reads the guards of the replica as a whole, the open gaps and passes, the subjects and their facts. The guards refuse to go
// on under a mapping that Setup has replaced meanwhile, or while an operator holds the replica.
func (r *Replica) readUnit(ctx context.Context, tx *tx, u *ledger.Unit) error {
	active, paused := "", false
	err := eachRow(ctx, tx, r.ledger.sql(sqlGuards), nil, func(rows *sql.Rows) error {
		var k, v string
		var p ledger.Pass
		if err := rows.Scan(&k, &v, &p.Part, &p.Whole, &p.Named, &p.Ended); err != nil {
			return err
		}
		switch k {
		case ledger.MetaDigest:
			active = v
		case ledger.MetaPaused:
			paused = true
		case "gap":
			u.Gaps[v] = true
		default:
			p.RunID = v
			u.Passes = append(u.Passes, p)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case active != r.core.Digest():
		r.forget()
		return ledger.ErrDigestChanged()
	case paused:
		return ledger.ErrPaused(r.opts.Name)
	}
	if len(u.Set.List) == 0 {
		return nil
	}
	if err := r.read(ctx, tx, sqlSubjects, u.Set.Refs(), u.Set); err != nil || !u.Set.NeedContacts {
		return err
	}
	return r.readContacts(ctx, tx, u.Set)
}
