package postgres

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// verifyFollowed reads back objections and restrictions: the columns that follow from the fold say what the fold says
// now, and whoever may not be contacted at all is in no audience.
func (r *Replica) verifyFollowed(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "verifying objections and restrictions"
	list, err := r.dueFollowed(ctx, ledger.PartsOf(places))
	if err != nil {
		return time.Time{}, classify(op, err)
	}
	if len(list) > 0 {
		remaining, at, err := r.readFollowed(ctx, list)
		if err != nil {
			return time.Time{}, err
		}
		err = r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
			if err := r.lockPlaces(ctx, tx, places); err != nil {
				return err
			}
			return r.concludeFollowed(ctx, tx, list, remaining, at)
		})
		if err != nil || len(list) == ledger.VerifyLimit {
			return time.Now(), err
		}
	}
	return r.nextOf(ctx, op, `SELECT extract(epoch FROM min(due_at) - now())::float8 FROM {s}.readback
		WHERE part = ANY ($1) AND due_at < 'infinity'`, ledger.PartsOf(places))
}

func (r *Replica) dueFollowed(ctx context.Context, parts []int32) ([]*ledger.Followed, error) {
	rows, err := r.opts.Pool.Query(ctx, r.ledger.sql(`
		SELECT event_id, ref, part, kind, committed_at, config_digest, attempts FROM {s}.readback
		WHERE part = ANY ($1) AND due_at <= now() ORDER BY due_at, event_id LIMIT $2`), parts, ledger.VerifyLimit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*ledger.Followed, error) {
		var event, ref, digest []byte
		var kind string
		f := &ledger.Followed{}
		if err := row.Scan(&event, &ref, &f.Part, &kind, &f.Committed, &digest, &f.Attempts); err != nil {
			return nil, err
		}
		copy(f.Event[:], event)
		copy(f.Digest[:], digest)
		f.Ref = ledger.Ref(ref)
		f.Kind, err = schema.ParseType(kind)
		return f, err
	})
}

// readFollowed counts, for each event, rows that are not what the fold says, and places in the audience.
func (r *Replica) readFollowed(ctx context.Context, list []*ledger.Followed) (remaining []int64, at time.Time, err error) {
	m, err := r.compiled(ctx)
	if err != nil {
		return nil, at, err
	}
	refs := make([][]byte, len(list))
	for i, f := range list {
		refs[i] = f.Ref[:]
	}
	set, err := r.load(ctx, r.opts.Pool, refs)
	if err != nil {
		return nil, at, err
	}
	remaining = make([]int64, len(list))
	err = r.readTx(ctx, "reading back", func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "SELECT now()").Scan(&at); err != nil {
			return err
		}
		bySubject := make(map[*ledger.Subject]int64, len(set.List))
		if err := r.countUnfollowed(ctx, tx, m, set.List, bySubject, at); err != nil {
			return err
		}
		for i, f := range list {
			f.Subject = set.ByRef[f.Ref]
			remaining[i] = bySubject[f.Subject]
		}
		return nil
	})
	return remaining, at, err
}

// countUnfollowed compares every column that follows from the fold.
func (r *Replica) countUnfollowed(ctx context.Context, tx pgx.Tx, m *Mapping, list []*ledger.Subject, into map[*ledger.Subject]int64, now time.Time) error {
	e := &effects{r: r, m: m, cfg: r.cfg, now: now}
	if len(m.finds) > 0 {
		return r.countUnfollowedFound(ctx, tx, m, list, into, e)
	}
	b := &pgx.Batch{}
	for i := range m.folds {
		m.queueUnfollowed(b, e, &m.folds[i], list, func(x *ledger.Subject, n int64) { into[x] += n })
	}
	closed, persons := ledger.Uncontactable(r.cfg, list, now), &ledger.PersonKeys{}
	if len(closed) > 0 && m.audience != "" {
		index := make(map[*ledger.Subject]int, len(closed))
		for i, x := range closed {
			index[x] = i
		}
		if err := m.addPersons(ctx, tx, closed, persons, func(x *ledger.Subject) int { return index[x] }); err != nil {
			return err
		}
		counts := make([]int64, len(closed))
		m.queueReadAudience(b, persons, counts)
		defer func() {
			for i, n := range counts {
				into[closed[i]] += n
			}
		}()
	}
	return send(ctx, tx, b)
}

// queueUnfollowed counts the rows of one table that are not what the fold says.
func (m *Mapping) queueUnfollowed(b *pgx.Batch, e *effects, ft *foldTable, list []*ledger.Subject, tell func(x *ledger.Subject, n int64)) {
	f := e.ask(ft, list)
	if len(f.List) == 0 {
		return
	}
	s := &statement{}
	extra, places, values := answerColumns(ft, &f)
	var differs []string
	for k, c := range places {
		name := "v.a" + strconv.Itoa(c)
		differs = append(differs, "("+name+" IS NOT NULL AND t."+ft.columns[c].column.sql()+" IS DISTINCT FROM "+values[k]+")")
	}
	who := s.who(m, f.List, extra...)
	from, where, _ := m.reach(ft.join)
	s.WriteString("SELECT v.i, count(*) FROM " + ft.table.sql() + " AS t, " + who + from + " WHERE " + where +
		" AND (" + strings.Join(differs, " OR ") + ") GROUP BY v.i")
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		var i int32
		var n int64
		_, err := pgx.ForEachRow(rows, []any{&i, &n}, func() error {
			tell(f.List[i], n)
			return nil
		})
		return err
	})
}

// concludeFollowed writes what the read-back means. Columns that somebody else has changed are written again, up to
// three times; then the event is failed.
func (r *Replica) concludeFollowed(ctx context.Context, tx pgx.Tx, list []*ledger.Followed, remaining []int64, at time.Time) error {
	standing, err := r.mayVerify(ctx, tx)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	var again [][]byte
	for i, f := range list {
		switch {
		case remaining[i] > 0 && f.Attempts+1 < ledger.MaxAttempts:
			again = append(again, f.Ref[:])
			b.Queue(r.ledger.sql(`UPDATE {s}.readback SET attempts = attempts + 1, error_code = $2,
				due_at = now() + make_interval(secs => $3) WHERE event_id = $1`), f.Event[:], ledger.ReasonNotFollowed, r.opts.RecheckFirst.Seconds())
			continue
		case remaining[i] > 0:
			r.log.Error().Stringer("event", f.Event).Msg("an objection or restriction does not hold: somebody else writes its columns")
		case standing.Waits() != "":
			b.Queue(r.ledger.sql(`UPDATE {s}.readback SET error_code = $2, due_at = now() + make_interval(secs => $3) WHERE event_id = $1`),
				f.Event[:], standing.Waits(), ledger.GapRecheck.Seconds())
			continue
		}
		if err := r.queueReceipt(b, r.core.FollowedReceipt(f, remaining[i], standing.Gaps, at)); err != nil {
			return err
		}
		b.Queue(r.ledger.sql(`DELETE FROM {s}.readback WHERE event_id = $1`), f.Event[:])
	}
	if err := send(ctx, tx, b); err != nil || len(again) == 0 {
		return err
	}
	set, err := r.load(ctx, tx, again)
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return r.refold(ctx, tx, set, nil) })
	if refused := r.reduced("writing columns again", err); sinks.Classify(refused) == sinks.Poison {
		// The attempts are counted all the same: after the last one the events are failed, and hold up no other.
		r.log.Error().Str("code", sinks.CodeOf(refused)).Msg("the replica refuses to have objections or restrictions written again")
		return nil
	}
	return err
}
