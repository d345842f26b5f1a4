package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/sinks/ledger"
	"lethe/sinks/match"
)

// runFound is run in a replica that finds persons by match keys: the statements write the rows that were found, each for all
// the subjects that claim it, and what nobody can decide is put before a person.
func (e *effects) runFound(ctx context.Context, tx runner, list []*ledger.Subject) error {
	writes := e.cfg.Mode != ledger.ModeObserve
	f := &finding{r: e.r, m: e.m, own: tx, mapped: tx, lock: writes}
	targets, err := f.find(ctx, list, nil)
	if err != nil {
		return err
	}
	ledger.NoteTargets(targets)
	standIns := ledger.StandIns(targets)
	b := &pgx.Batch{}
	if writes && len(standIns) > 0 {
		if opening := chosenOf(standIns, func(x *ledger.Subject) bool {
			return slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return !t.Rival && t.Subject.Suppress })
		}); len(opening) > 0 {
			e.queuePrior(b, opening)
		}
		if suppressed := chosenOf(standIns, func(x *ledger.Subject) bool { return x.Suppress }); len(suppressed) > 0 {
			e.queueSuppress(b, suppressed)
		}
		for i := range e.m.folds {
			e.queueFold(b, &e.m.folds[i], standIns)
		}
	}
	e.r.queueReviews(b, targets)
	if e.settles {
		e.r.queueObsolete(b, list, targets)
		e.r.queueRivals(b, targets)
	}
	if b.Len() > 0 {
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
	}
	ledger.Credit(standIns)
	return nil
}

// chosenOf are some of the rows.
func chosenOf(standIns []*ledger.Subject, want func(*ledger.Subject) bool) []*ledger.Subject {
	return slices.DeleteFunc(slices.Clone(standIns), func(x *ledger.Subject) bool { return !want(x) })
}

// queueReviews opens the reviews that targets ask for. One that is there stays, unless it closed by itself, or an erasure has
// come where a permission was.
func (r *Replica) queueReviews(b *pgx.Batch, targets []*ledger.Target) {
	for _, row := range r.core.Reviews(targets) {
		b.Queue(r.ledger.sql(`
			INSERT INTO {s}.review AS r (id, ref, part, kind, person, evidence, due_at) VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))
			ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, evidence = excluded.evidence, opened_at = now(), due_at = excluded.due_at,
				decided_at = NULL, decided_by = NULL, decision = NULL
			WHERE r.decision = 'obsolete' OR r.decided_at IS NULL AND r.kind = 'permission' AND excluded.kind = 'erasure'`),
			row.ID, row.Ref[:], row.Part, row.Kind, row.Person, row.Evidence, row.Due.Seconds())
	}
}

// queueObsolete closes the reviews of subjects that nobody has to decide any more: the row is gone, says something else by now,
// or says enough.
func (r *Replica) queueObsolete(b *pgx.Batch, list []*ledger.Subject, targets []*ledger.Target) {
	refs := make(byteArray, 0, len(list))
	for _, s := range list {
		refs = append(refs, s.Ref[:])
	}
	kept, persons := byteArray{}, textArray{}
	for _, t := range targets {
		if t.Review && !t.Rival {
			kept, persons = append(kept, t.Subject.Ref[:]), append(persons, t.Person)
		}
	}
	b.Queue(r.ledger.sql(`
		UPDATE {s}.review r SET decided_at = now(), decided_by = $4, decision = 'obsolete'
		WHERE r.ref = ANY ($1) AND r.decided_at IS NULL
			AND NOT EXISTS (SELECT FROM unnest($2::bytea[], $3::text[]) AS v(ref, person) WHERE v.ref = r.ref AND v.person = r.person)`),
		refs, kept, persons, ledger.ReviewByLethe)
}

// queueRivals asks for a look at the others who claim rows that were decided to be somebody else's: what phase 1 did to such a row
// is taken back, and what they have said since is to hold.
func (r *Replica) queueRivals(b *pgx.Batch, targets []*ledger.Target) {
	dismissed := map[string]bool{}
	for _, t := range targets {
		if t.Dismissed {
			dismissed[t.Person] = true
		}
	}
	for _, t := range targets {
		if t.Rival && dismissed[t.Person] {
			b.Queue(r.ledger.sql(`INSERT INTO {s}.touch (ref, part, reason) VALUES ($1, $2, $3)`), t.Subject.Ref[:], t.Subject.Part, ledger.TouchRow)
		}
	}
}

// openReviews are those of some subjects of whom a person still has to decide about a row.
func (r *Replica) openReviews(ctx context.Context, q querier, refs [][]byte) (map[ledger.Ref]bool, error) {
	rows, err := q.Query(ctx, r.ledger.sql(`SELECT DISTINCT ref FROM {s}.review WHERE ref = ANY ($1) AND decided_at IS NULL AND kind = 'erasure'`), refs)
	if err != nil {
		return nil, err
	}
	out := map[ledger.Ref]bool{}
	var ref []byte
	_, err = pgx.ForEachRow(rows, []any{&ref}, func() error {
		out[ledger.Ref(ref)] = true
		return nil
	})
	return out, err
}

// eraseFound is phase 2 in a replica that finds persons by match keys: of the rows that certainly are the cases' subjects. What
// may be theirs is suppressed once more, and left to a person.
func (r *Replica) eraseFound(ctx context.Context, tx pgx.Tx, m *Mapping, e *effects, cases []*ledger.OpenedCase) error {
	list := make([]*ledger.Subject, len(cases))
	for i, c := range cases {
		list[i] = c.Subject
	}
	f := &finding{r: r, m: m, own: tx, mapped: tx, lock: true}
	targets, search, err := f.search(ctx, list, knownOf(cases))
	if err != nil {
		return err
	}
	ledger.NoteTargets(targets)
	standIns := ledger.StandIns(targets)
	var whole, erasing []*ledger.Subject
	for _, x := range standIns {
		x.Effect.Persons = x.Key
		if slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return !t.Rival && t.Reach == match.Whole }) {
			whole = append(whole, x)
		}
		if slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return !t.Rival && t.Certain }) {
			erasing = append(erasing, x)
		}
	}
	b := &pgx.Batch{}
	if len(whole) > 0 {
		e.queueSuppress(b, whole)
	}
	for i := range m.folds {
		e.queueFold(b, &m.folds[i], standIns)
	}
	if len(erasing) > 0 {
		for i := range m.erase {
			m.queueErase(b, &m.erase[i], erasing)
		}
		r.queueForget(b, search, erasing)
	}
	r.queueReviews(b, targets)
	r.queueObsolete(b, list, targets)
	if err := send(ctx, tx, b); err != nil {
		return err
	}
	ledger.Credit(standIns)
	return nil
}

// knownOf adds the rows that cases were found as before.
func knownOf(cases []*ledger.OpenedCase) func(*ledger.Search) {
	return func(s *ledger.Search) {
		for i, c := range cases {
			for _, person := range c.Work.Persons {
				s.Known(i, person)
			}
		}
	}
}

// queueForget takes the keys of rows that are erased out of the index. Those that only the index still has go with the next scan.
func (r *Replica) queueForget(b *pgx.Batch, search *ledger.Search, erased []*ledger.Subject) {
	var values byteArray
	var persons textArray
	for _, x := range erased {
		for _, v := range search.Said(x.Key[0]) {
			values, persons = append(values, v), append(persons, x.Key[0])
		}
	}
	if len(values) == 0 {
		return
	}
	b.Queue(r.ledger.sql(`DELETE FROM {s}.row_key k USING unnest($1::bytea[], $2::text[]) AS v(value, person) WHERE k.value = v.value AND k.person = v.person`),
		values, persons)
}

// readLeft finds, after phase 2, the persons that cases still lead to, adds them to those that are read back, and counts the keys
// that their rows still say. What a person has to decide about is noted with the case.
func (r *Replica) readLeft(ctx context.Context, tx pgx.Tx, m *Mapping, cases []*ledger.OpenedCase, persons *ledger.PersonKeys, remaining []int64) error {
	list, place := make([]*ledger.Subject, len(cases)), make(map[*ledger.Subject]int, len(cases))
	for i, c := range cases {
		list[i], place[c.Subject] = c.Subject, i
	}
	f := &finding{r: r, m: m, own: r.opts.Pool, mapped: tx, leftOnly: true}
	targets, err := f.find(ctx, list, knownOf(cases))
	if err != nil {
		return err
	}
	for _, t := range targets {
		i, ours := place[t.Subject]
		switch {
		case !ours:
		case t.Certain:
			persons.Add(i, t.Person)
			remaining[i] += int64(t.Keys.Count())
		case t.Review:
			cases[i].Doubts = append(cases[i].Doubts, t)
		}
	}
	return nil
}

// countUnfollowedFound is countUnfollowed for the rows that subjects were found as.
func (r *Replica) countUnfollowedFound(ctx context.Context, tx pgx.Tx, m *Mapping, list []*ledger.Subject, into map[*ledger.Subject]int64, e *effects) error {
	f := &finding{r: r, m: m, own: r.opts.Pool, mapped: tx}
	targets, err := f.find(ctx, list, nil)
	if err != nil {
		return err
	}
	standIns := ledger.StandIns(targets)
	counts := make([]int64, len(standIns))
	index := make(map[*ledger.Subject]int, len(standIns))
	for i, x := range standIns {
		index[x] = i
	}
	b := &pgx.Batch{}
	for i := range m.folds {
		m.queueUnfollowed(b, e, &m.folds[i], standIns, func(x *ledger.Subject, n int64) { counts[index[x]] += n })
	}
	closed := map[*ledger.Subject]bool{}
	for _, x := range ledger.Uncontactable(r.cfg, list, e.now) {
		closed[x] = true
	}
	persons := &ledger.PersonKeys{}
	for i, x := range standIns {
		if slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return closed[t.Subject] && t.Reach == match.Whole }) {
			persons.Add(i, x.Key[0])
		}
	}
	if len(persons.Keys) > 0 {
		m.queueReadAudience(b, persons, counts)
	}
	if err := send(ctx, tx, b); err != nil {
		return err
	}
	for i, x := range standIns {
		for _, t := range x.Claims {
			if !t.Rival {
				into[t.Subject] += counts[i]
			}
		}
	}
	return nil
}

// sqlScanned is the condition that everything which was there when a case (p) was suppressed is in the index: a scan of every
// table has begun since, and has ended. $5 are the tables by which persons are found.
const sqlScanned = `(SELECT count(*) FROM {s}.scan s WHERE s.tbl = ANY ($5) AND s.fresh_at >= p.suppressed_at) = cardinality($5::text[])`

// findTableNames are the tables by which persons are found, as the config calls them; empty: none.
func (m *Mapping) findTableNames() []string {
	out := make([]string, len(m.finds))
	for i := range m.finds {
		out[i] = m.finds[i].table.config
	}
	return out
}

// wantScans asks for the scans that due cases wait for, and reports whether there are any.
func (r *Replica) wantScans(ctx context.Context, places pgtype.FlatArray[int32], m *Mapping) (waiting bool, err error) {
	if len(m.finds) == 0 {
		return false, nil
	}
	err = r.opts.Pool.QueryRow(ctx, r.ledger.sql(`
		WITH late AS (SELECT max(p.suppressed_at) AS at FROM {s}.pending p
			WHERE p.part = ANY ($1) AND p.state = 'suppressed' AND p.matched AND NOT p.observed AND NOT p.held AND p.wait IN ('none', 'cool_off')
				AND p.due_at <= now() AND NOT EXISTS (SELECT FROM {s}.decision d WHERE d.ref = p.ref AND d.done_at IS NULL)),
		wanted AS (UPDATE {s}.scan s SET wanted = true FROM late
			WHERE s.tbl = ANY ($2) AND (s.fresh_at IS NULL OR s.fresh_at < late.at) AND NOT s.wanted)
		SELECT late.at IS NOT NULL AND (SELECT count(*) FROM {s}.scan s WHERE s.tbl = ANY ($2) AND s.fresh_at >= late.at) < cardinality($2::text[]) FROM late`),
		places, m.findTableNames()).Scan(&waiting)
	return waiting, classify("asking for scans", err)
}
