package mysql

import (
	"context"
	"database/sql"
	"slices"
	"strconv"
	"strings"

	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/match"
)

// runFound is run in a replica that finds persons by match keys: the statements write the rows that were found, each for all
// the subjects that claim it, and what nobody can decide is put before a person.
func (e *effects) runFound(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	writes := e.cfg.Mode != ledger.ModeObserve
	f := &finding{r: e.r, m: e.m, own: tx, mapped: tx, lock: writes}
	targets, err := f.find(ctx, list, nil)
	if err != nil {
		return err
	}
	ledger.NoteTargets(targets)
	standIns := ledger.StandIns(targets)
	if writes && len(standIns) > 0 {
		if err := e.writeFound(ctx, tx, standIns); err != nil {
			return err
		}
	}
	if err := e.r.openReviews(ctx, tx, targets); err != nil {
		return err
	}
	if e.settles {
		if err := e.r.closeReviews(ctx, tx, list, targets); err != nil {
			return err
		}
		if err := e.r.touchRivals(ctx, tx, targets); err != nil {
			return err
		}
	}
	ledger.Credit(standIns)
	return nil
}

// writeFound does phase 1 for the rows that it is to be done for, noting what they were, and writes the folds.
func (e *effects) writeFound(ctx context.Context, tx *tx, standIns []*ledger.Subject) error {
	opening := chosenOf(standIns, func(x *ledger.Subject) bool {
		return slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return !t.Rival && t.Subject.Suppress })
	})
	if len(opening) > 0 {
		if err := e.readPrior(ctx, tx, opening); err != nil {
			return err
		}
	}
	if suppressed := chosenOf(standIns, func(x *ledger.Subject) bool { return x.Suppress }); len(suppressed) > 0 {
		if err := e.suppress(ctx, tx, suppressed); err != nil {
			return err
		}
	}
	return e.fold(ctx, tx, standIns)
}

// chosenOf are some of the rows.
func chosenOf(standIns []*ledger.Subject, want func(*ledger.Subject) bool) []*ledger.Subject {
	return slices.DeleteFunc(slices.Clone(standIns), func(x *ledger.Subject) bool { return !want(x) })
}

// touchRivals asks for a look at the others who claim rows that were decided to be somebody else's: what phase 1 did to such a row
// is taken back, and what they have said since is to hold.
func (r *Replica) touchRivals(ctx context.Context, tx *tx, targets []*ledger.Target) error {
	dismissed := map[string]bool{}
	for _, t := range targets {
		if t.Dismissed {
			dismissed[t.Person] = true
		}
	}
	for _, t := range targets {
		if !t.Rival || !dismissed[t.Person] {
			continue
		}
		_, err := r.write(ctx, tx, `INSERT INTO {p}touch (ref, part, reason, at) VALUES (?, ?, ?, ?)`, t.Subject.Ref[:], t.Subject.Part, ledger.TouchRow, tx.now)
		if err != nil {
			return err
		}
	}
	return nil
}

// openReviews opens the reviews that targets ask for. One that is there stays, unless it closed by itself, or an erasure has
// come where a permission was.
func (r *Replica) openReviews(ctx context.Context, tx *tx, targets []*ledger.Target) error {
	// MySQL assigns from left to right, and what stands behind sees what stands before: so the columns of the condition come last.
	const again = `({p}review.decision <=> 'obsolete' OR {p}review.decided_at IS NULL AND {p}review.kind = 'permission' AND VALUES(kind) = 'erasure')`
	var set []string
	for _, c := range [][2]string{
		{"evidence", "VALUES(evidence)"},
		{"opened_at", "VALUES(opened_at)"},
		{"due_at", "VALUES(due_at)"},
		{"decided_by", "NULL"},
	} {
		set = append(set, c[0]+" = IF("+again+", "+c[1]+", {p}review."+c[0]+")")
	}
	for _, row := range r.core.Reviews(targets) {
		_, err := r.write(ctx, tx, `INSERT INTO {p}review (id, ref, part, kind, person, evidence, opened_at, due_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON DUPLICATE KEY UPDATE `+strings.Join(set, ", ")+`, kind = IF({p}review.decided_at IS NULL OR {p}review.decision = 'obsolete',
				IF({p}review.kind = 'erasure' AND {p}review.decided_at IS NULL, 'erasure', VALUES(kind)), {p}review.kind),
				decided_at = IF({p}review.decision <=> 'obsolete', NULL, {p}review.decided_at),
				decision = NULLIF({p}review.decision, 'obsolete')`,
			row.ID, row.Ref[:], row.Part, row.Kind, row.Person, row.Evidence, tx.now, tx.now.Add(row.Due))
		if err != nil {
			return err
		}
	}
	return nil
}

// closeReviews closes the reviews of subjects that nobody has to decide any more: the row is gone, says something else by now,
// or says enough.
func (r *Replica) closeReviews(ctx context.Context, tx *tx, list []*ledger.Subject, targets []*ledger.Target) error {
	kept := map[string]bool{}
	for _, t := range targets {
		if t.Review && !t.Rival {
			kept[r.core.ReviewID(t.Subject.Ref, t.Person)] = true
		}
	}
	refs := make([][]byte, len(list))
	for i, s := range list {
		refs[i] = s.Ref[:]
	}
	open, err := column1[string](ctx, tx, r.ledger.sql(`SELECT r.id FROM `+refsTable+` STRAIGHT_JOIN {p}review r ON r.ref = UNHEX(v.ref) WHERE r.decided_at IS NULL`),
		refsJSON(refs))
	if err != nil {
		return err
	}
	for _, id := range open {
		if kept[id] {
			continue
		}
		_, err := r.write(ctx, tx, `UPDATE {p}review r SET r.decided_at = ?, r.decided_by = ?, r.decision = ? WHERE r.id = ? AND r.decided_at IS NULL`,
			tx.now, ledger.ReviewByLethe, ledger.ReviewObsolete, id)
		if err != nil {
			return err
		}
	}
	return nil
}

// undecided are those of some subjects of whom a person still has to decide about a row.
func (r *Replica) undecided(ctx context.Context, q querier, refs [][]byte) (map[ledger.Ref]bool, error) {
	list, err := r.refsOf(ctx, q, `SELECT DISTINCT r.ref FROM `+refsTable+` STRAIGHT_JOIN {p}review r ON r.ref = UNHEX(v.ref)
		WHERE r.decided_at IS NULL AND r.kind = 'erasure'`, refsJSON(refs))
	out := make(map[ledger.Ref]bool, len(list))
	for _, ref := range list {
		out[ledger.Ref(ref)] = true
	}
	return out, err
}

// destroyFound is phase 2 in a replica that finds persons by match keys: of the rows that certainly are the cases' subjects. What
// may be theirs is suppressed once more, and left to a person.
func (r *Replica) destroyFound(ctx context.Context, tx *tx, m *Mapping, cases []*ledger.OpenedCase) error {
	list := subjectsOf(cases)
	f := &finding{r: r, m: m, own: tx, mapped: tx, lock: true}
	targets, err := f.find(ctx, list, knownOf(cases))
	if err != nil {
		return err
	}
	ledger.NoteTargets(targets)
	standIns := ledger.StandIns(targets)
	var whole, erasing []*ledger.Subject
	var persons []string
	for _, x := range standIns {
		x.Effect.Persons = x.Key
		if slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return !t.Rival && t.Reach == match.Whole }) {
			whole = append(whole, x)
		}
		if slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return !t.Rival && t.Certain }) {
			erasing, persons = append(erasing, x), append(persons, x.Key[0])
		}
	}
	e := r.effects(m, tx.now)
	if len(whole) > 0 {
		if err := e.suppress(ctx, tx, whole); err != nil {
			return err
		}
	}
	if err := e.fold(ctx, tx, standIns); err != nil {
		return err
	}
	if len(erasing) > 0 {
		err := r.reindexing(ctx, tx, m, persons, func() error {
			for i := range m.erase {
				if err := m.eraseRows(ctx, tx, &m.erase[i], erasing); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := r.openReviews(ctx, tx, targets); err != nil {
		return err
	}
	if err := r.closeReviews(ctx, tx, list, targets); err != nil {
		return err
	}
	ledger.Credit(standIns)
	return nil
}

func subjectsOf(cases []*ledger.OpenedCase) []*ledger.Subject {
	list := make([]*ledger.Subject, len(cases))
	for i, c := range cases {
		list[i] = c.Subject
	}
	return list
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

// reindexing runs fn, which changes the rows of some persons, and makes the index say what they say then: of an erased person it
// must not hold a key until the next scan.
func (r *Replica) reindexing(ctx context.Context, tx *tx, m *Mapping, persons []string, fn func() error) error {
	before := make([][][]byte, len(m.finds))
	for i := range m.finds {
		list, err := m.readPersons(ctx, tx, &m.finds[i], persons, nil, false)
		if err != nil {
			return err
		}
		before[i] = pksOf(list)
	}
	if err := fn(); err != nil {
		return err
	}
	for i := range m.finds {
		list, err := m.readPersons(ctx, tx, &m.finds[i], persons, nil, false)
		if err != nil {
			return err
		}
		if _, err := r.setKeys(ctx, tx, m.finds[i].table.config, before[i], r.keysOf(list), false); err != nil {
			return err
		}
	}
	return nil
}

// readLeft finds, after phase 2, the persons that cases still lead to, adds them to those that are read back, and counts the keys
// that their rows still say. What a person has to decide about is noted with the case.
func (r *Replica) readLeft(ctx context.Context, tx *tx, m *Mapping, cases []*ledger.OpenedCase, persons *ledger.PersonKeys, remaining []int64) error {
	place := make(map[*ledger.Subject]int, len(cases))
	for i, c := range cases {
		place[c.Subject] = i
	}
	f := &finding{r: r, m: m, own: r.opts.DB, mapped: tx, leftOnly: true}
	targets, err := f.find(ctx, subjectsOf(cases), knownOf(cases))
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

// countUnfollowedFound counts, by subject, rows that subjects were found as and that are not what the fold says, and places in
// the audience.
func (r *Replica) countUnfollowedFound(ctx context.Context, tx *tx, m *Mapping, list []*ledger.Subject, into map[*ledger.Subject]int64) error {
	f := &finding{r: r, m: m, own: r.opts.DB, mapped: tx}
	targets, err := f.find(ctx, list, nil)
	if err != nil {
		return err
	}
	standIns := ledger.StandIns(targets)
	byRow := make(map[*ledger.Subject]int64, len(standIns))
	for i := range m.folds {
		if err := m.countUnfollowed(ctx, tx, &m.folds[i], standIns, byRow); err != nil {
			return err
		}
	}
	closed := map[*ledger.Subject]bool{}
	for _, x := range ledger.Uncontactable(r.cfg, list, tx.now) {
		closed[x] = true
	}
	persons, counts := &ledger.PersonKeys{}, make([]int64, len(standIns))
	for i, x := range standIns {
		if slices.ContainsFunc(x.Claims, func(t *ledger.Target) bool { return closed[t.Subject] && t.Reach == match.Whole }) {
			persons.Add(i, x.Key[0])
		}
	}
	if len(persons.Keys) > 0 {
		b, err := m.newReadback(tx, persons, counts)
		if err != nil {
			return err
		}
		if err := b.audience(ctx); err != nil {
			return err
		}
	}
	for i, x := range standIns {
		for _, t := range x.Claims {
			if !t.Rival {
				into[t.Subject] += counts[i] + byRow[x]
			}
		}
	}
	return nil
}

// scanned is the condition that everything which was there when a case (p) was suppressed is in the index: a scan of every
// table has begun since, and has ended.
func (m *Mapping) scanned() string {
	if len(m.finds) == 0 {
		return "TRUE"
	}
	return `(SELECT COUNT(*) FROM {p}scan s WHERE s.tbl IN (` + m.findTables() + `) AND s.fresh_at >= p.suppressed_at) = ` + strconv.Itoa(len(m.finds))
}

// findTables lists the tables by which persons are found, as the config calls them, for IN.
func (m *Mapping) findTables() string {
	names := make([]string, len(m.finds))
	for i := range m.finds {
		names[i] = literal(m.finds[i].table.config)
	}
	return strings.Join(names, ", ")
}

// wantScans asks for the scans that due cases wait for, and reports whether there are any.
func (r *Replica) wantScans(ctx context.Context, places []sinks.Place, m *Mapping) (waiting bool, err error) {
	const op = "asking for scans"
	if len(m.finds) == 0 {
		return false, nil
	}
	var late sql.NullTime
	err = r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`SELECT MAX(p.suppressed_at) FROM {p}pending p WHERE `+inParts("p", ledger.PartsOf(places))+
		` AND `+dueCase+` AND p.due_at <= UTC_TIMESTAMP(6) AND NOT EXISTS (SELECT 1 FROM {p}decision d WHERE d.ref = p.ref AND d.done_at IS NULL)`)).Scan(&late)
	if err != nil || !late.Valid {
		return false, classify(op, err)
	}
	var n int
	err = r.opts.DB.QueryRowContext(ctx, r.ledger.sql(`SELECT COUNT(*) FROM {p}scan s WHERE s.tbl IN (`+m.findTables()+`) AND s.fresh_at >= ?`), late.Time).Scan(&n)
	if err != nil || n == len(m.finds) {
		return false, classify(op, err)
	}
	return true, r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
		_, err := r.write(ctx, tx, `UPDATE {p}scan s SET s.wanted = TRUE
			WHERE s.tbl IN (`+m.findTables()+`) AND (s.fresh_at IS NULL OR s.fresh_at < ?) AND NOT s.wanted`, late.Time)
		return err
	})
}
