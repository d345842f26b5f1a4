package mysql

import (
	"context"
	"strings"
	"time"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// verifyFollowed reads back objections and restrictions: the columns that follow from the fold say what the fold says
// now, and whoever may not be contacted at all is in no audience.
func (r *Replica) verifyFollowed(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "verifying objections and restrictions"
	list, err := r.collectFollowed(ctx, r.opts.DB, `SELECT `+followedColumns+` FROM {p}readback b
		WHERE `+inParts("b", ledger.PartsOf(places))+` AND b.due_at <= UTC_TIMESTAMP(6) ORDER BY b.due_at, b.event_id LIMIT ?`, ledger.VerifyLimit)
	if err != nil {
		return time.Time{}, classify(op, err)
	}
	if len(list) > 0 {
		remaining, at, err := r.readFollowed(ctx, list)
		if err != nil {
			return time.Time{}, err
		}
		err = r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
			if err := r.lockPlaces(ctx, tx, places); err != nil {
				return err
			}
			return r.concludeFollowed(ctx, tx, list, remaining, at)
		})
		if err != nil || len(list) == ledger.VerifyLimit {
			return time.Now(), err
		}
	}
	return r.nextOf(ctx, op, "readback", "due_at", "TRUE", places)
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
	set, err := r.load(ctx, r.opts.DB, refs)
	if err != nil {
		return nil, at, err
	}
	remaining = make([]int64, len(list))
	err = r.readMapped(ctx, m, func(tx *tx) error {
		at = tx.now
		bySubject := make(map[*ledger.Subject]int64, len(set.List))
		if err := r.countAll(ctx, tx, m, set.List, bySubject); err != nil {
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

// countAll counts, by subject, rows that are not what the fold says, and places in the audience.
func (r *Replica) countAll(ctx context.Context, tx *tx, m *Mapping, list []*ledger.Subject, into map[*ledger.Subject]int64) error {
	if len(m.finds) > 0 {
		return r.countUnfollowedFound(ctx, tx, m, list, into)
	}
	for i := range m.folds {
		if err := m.countUnfollowed(ctx, tx, &m.folds[i], list, into); err != nil {
			return err
		}
	}
	return m.countContactable(ctx, tx, ledger.Uncontactable(r.cfg, list, tx.now), into)
}

// countUnfollowed compares every column of a table that follows from the fold.
func (m *Mapping) countUnfollowed(ctx context.Context, tx *tx, ft *foldTable, list []*ledger.Subject, into map[*ledger.Subject]int64) error {
	a := ledger.Ask(len(ft.columns), func(i int) *ledger.Question { return &ft.columns[i].Question }, list, tx.now)
	if len(a.List) == 0 {
		return nil
	}
	extra, places, values := answerColumns(ft, &a)
	differs := make([]string, len(places))
	for k, c := range places {
		differs[k] = "(" + values[k] + " IS NOT NULL AND NOT t." + ft.columns[c].column.sql() + " <=> " + values[k] + ")"
	}
	who, err := m.who(a.List, extra...)
	if err != nil {
		return err
	}
	from, where, _ := m.reach(ft.join)
	query := "SELECT v.i FROM " + m.tablesOf(who, ft.join, from) + " WHERE " + where + " AND (" + strings.Join(differs, " OR ") + ")"
	return eachPlace(ctx, tx, query, who.args, func(i int) { into[a.List[i]]++ })
}

// countContactable counts the places of subjects in the audience.
func (m *Mapping) countContactable(ctx context.Context, tx *tx, list []*ledger.Subject, into map[*ledger.Subject]int64) error {
	if len(list) == 0 || m.audience == "" {
		return nil
	}
	place := make(map[*ledger.Subject]int, len(list))
	for i, s := range list {
		place[s] = i
	}
	persons, counts := &ledger.PersonKeys{}, make([]int64, len(list))
	err := m.eachPerson(ctx, tx, list, "", func(s *ledger.Subject, key string) { persons.Add(place[s], key) })
	if err != nil || len(persons.Keys) == 0 {
		return err
	}
	b, err := m.newReadback(tx, persons, counts)
	if err != nil {
		return err
	}
	if err := b.audience(ctx); err != nil {
		return err
	}
	for i, n := range counts {
		into[list[i]] += n
	}
	return nil
}

// concludeFollowed writes what the read-back means. Columns that somebody else has changed are written again, up to
// three times; then the event is failed.
func (r *Replica) concludeFollowed(ctx context.Context, tx *tx, list []*ledger.Followed, remaining []int64, at time.Time) error {
	standing, err := r.mayVerify(ctx, tx)
	if err != nil {
		return err
	}
	var again, postponed, done, refs [][]byte
	var receipts []*ledger.Receipt
	for i, f := range list {
		switch {
		case remaining[i] > 0 && f.Attempts+1 < ledger.MaxAttempts:
			again, refs = append(again, f.Event[:]), append(refs, f.Ref[:])
			continue
		case remaining[i] > 0:
			r.log.Error().Stringer("event", f.Event).Msg("an objection or restriction does not hold: somebody else writes its columns")
		case standing.Waits() != "":
			postponed = append(postponed, f.Event[:])
			continue
		}
		done, receipts = append(done, f.Event[:]), append(receipts, r.core.FollowedReceipt(f, remaining[i], standing.Gaps, at))
	}
	if err := r.signAndWrite(ctx, tx, receipts...); err != nil {
		return err
	}
	const events = refsTable + ` STRAIGHT_JOIN {p}readback b ON b.event_id = UNHEX(v.ref)`
	for _, s := range []struct {
		events    [][]byte
		statement string
		args      []any
	}{
		{done, `DELETE b FROM ` + events, nil},
		{postponed, `UPDATE ` + events + ` SET b.error_code = ?, b.due_at = ?`, []any{standing.Waits(), tx.now.Add(ledger.GapRecheck)}},
		{
			again, `UPDATE ` + events + ` SET b.attempts = b.attempts + 1, b.error_code = ?, b.due_at = ?`,
			[]any{ledger.ReasonNotFollowed, tx.now.Add(r.opts.RecheckFirst)},
		},
	} {
		if len(s.events) == 0 {
			continue
		}
		if _, err := r.write(ctx, tx, s.statement, append([]any{refsJSON(s.events)}, s.args...)...); err != nil {
			return err
		}
	}
	if len(refs) == 0 {
		return nil
	}
	return r.refoldAgain(ctx, tx, refs)
}

// refoldAgain writes the columns of some subjects again. Where the replica refuses that, the attempts are counted all the
// same: after the last one the events are failed, and hold up no other.
func (r *Replica) refoldAgain(ctx context.Context, tx *tx, refs [][]byte) error {
	set, err := r.load(ctx, tx, refs)
	if err != nil {
		return err
	}
	err = tx.savepoint(ctx, func() error { return r.refold(ctx, tx, set) })
	if refused := r.reduced("writing columns again", err); sinks.Classify(refused) == sinks.Poison {
		r.log.Error().Str("code", sinks.CodeOf(refused)).Msg("the replica refuses to have objections or restrictions written again")
		return nil
	}
	return err
}
