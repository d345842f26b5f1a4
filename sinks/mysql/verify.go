package mysql

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"lethe/internal/crashpoint"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// verifyErased reads back what phase 2 has done, on another connection, and calls a case verified when nothing is left:
// no value in a mapped column of any row that the person's keys or the CRM key lead to, and no place in the audience.
func (r *Replica) verifyErased(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "verifying erasures"
	cases, err := r.collectCases(ctx, r.opts.DB, `SELECT `+caseColumns+` FROM {p}pending p
		WHERE `+inParts("p", ledger.PartsOf(places))+` AND p.state = 'applied' AND p.due_at <= UTC_TIMESTAMP(6)
		ORDER BY p.due_at, p.ref LIMIT ?`, ledger.VerifyLimit)
	if err != nil {
		return time.Time{}, classify(op, err)
	}
	if len(cases) > 0 {
		remaining, at, err := r.readBack(ctx, cases)
		if err != nil {
			return time.Time{}, err
		}
		crashpoint.Hit("sink.after_readback")
		err = r.inTx(ctx, op, func(ctx context.Context, tx *tx) error {
			if err := r.lockPlaces(ctx, tx, places); err != nil {
				return err
			}
			return r.conclude(ctx, tx, cases, remaining, at)
		})
		if err != nil || len(cases) == ledger.VerifyLimit {
			return time.Now(), err
		}
	}
	return r.nextOf(ctx, op, "pending", "due_at", "x.state = 'applied'", places)
}

// readTx runs fn in a read-only snapshot on the connections of verification.
func (r *Replica) readTx(ctx context.Context, op string, fn func(tx *tx) error) error {
	tx, err := begin(ctx, r.opts.VerifyDB, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return classify(op, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return r.reduced(op, fn(tx))
}

// readMapped is readTx for who looks for rows of the mapped tables.
func (r *Replica) readMapped(ctx context.Context, m *Mapping, fn func(tx *tx) error) error {
	return r.readTx(ctx, "reading back", func(tx *tx) error {
		return m.joining(ctx, tx, func() error { return fn(tx) })
	})
}

// readBack counts, for each case, the values that can still be read.
func (r *Replica) readBack(ctx context.Context, cases []*ledger.OpenedCase) (remaining []int64, at time.Time, err error) {
	m, err := r.compiledAnew(ctx)
	if err != nil {
		return nil, at, err
	}
	// Lethe's own tables are read through the run role: the login that reads back sees the mapped tables only.
	set, err := r.attach(ctx, r.opts.DB, cases)
	if err != nil {
		return nil, at, err
	}
	remaining = make([]int64, len(cases))
	err = r.readMapped(ctx, m, func(tx *tx) error {
		at = tx.now
		place := make(map[*ledger.Subject]int, len(cases))
		persons := &ledger.PersonKeys{}
		for i, c := range cases {
			place[c.Subject] = i
			for _, p := range c.Work.Persons {
				persons.Add(i, p)
			}
		}
		if len(m.finds) > 0 {
			err = r.readLeft(ctx, tx, m, cases, persons, remaining)
		} else {
			err = m.eachPerson(ctx, tx, set.List, "", func(s *ledger.Subject, key string) { persons.Add(place[s], key) })
		}
		if err != nil || len(persons.Keys) == 0 {
			return err
		}
		b, err := m.newReadback(tx, persons, remaining)
		if err != nil {
			return err
		}
		return b.erased(ctx, cases)
	})
	return remaining, at, err
}

// readback reads what is left of some persons.
type readback struct {
	m         *Mapping
	tx        *tx
	persons   part    // as w(i, k)
	remaining []int64 // by place
}

func (m *Mapping) newReadback(tx *tx, persons *ledger.PersonKeys, remaining []int64) (*readback, error) {
	w, err := m.personsTable(persons.Places, persons.Keys)
	return &readback{m: m, tx: tx, persons: w, remaining: remaining}, err
}

// erased reads back everything that both phases have done for the cases.
func (b *readback) erased(ctx context.Context, cases []*ledger.OpenedCase) error {
	for i := range b.m.erase {
		step, read := &b.m.erase[i], b.step
		if step.hold {
			read = func(ctx context.Context, step *eraseStep) error { return b.held(ctx, step, cases) }
		}
		if err := read(ctx, step); err != nil {
			return err
		}
	}
	for i := range b.m.suppress {
		if err := b.suppressed(ctx, &b.m.suppress[i]); err != nil {
			return err
		}
	}
	for i := range b.m.folds {
		if err := b.closed(ctx, &b.m.folds[i]); err != nil {
			return err
		}
	}
	return b.audience(ctx)
}

// from begins a statement about rows (alias t) of the persons' in a table.
func (b *readback) from(selected string, j join) *statement {
	s := &statement{}
	s.add("SELECT "+selected+" FROM "+b.persons.sql+" STRAIGHT_JOIN "+j.table.sql()+" AS t WHERE "+b.m.owns(j), b.persons.args...)
	return s
}

// count runs a query of place and count, and adds the counts up.
func (b *readback) count(ctx context.Context, s *statement) error {
	s.add(" GROUP BY w.i")
	return eachRow(ctx, b.tx, s.String(), s.args, func(rows *sql.Rows) error {
		var i int
		var n int64
		if err := rows.Scan(&i, &n); err != nil {
			return err
		}
		b.remaining[i] += n
		return nil
	})
}

const countRows = "w.i, COUNT(*)"

// differing adds the condition that a row does not have what the assignments make of it, and reports whether anything can
// be said of it.
func (b *readback) differing(s *statement, set []assignment) bool {
	left := differing(set, "t", b.m.key.fromKey("w.k"))
	if len(left) == 0 {
		return false
	}
	s.add(" AND (")
	s.addParts(left, " OR ")
	s.add(")")
	return true
}

// step counts the rows in which a step of phase 2 has not taken effect.
func (b *readback) step(ctx context.Context, step *eraseStep) error {
	s := b.from(countRows, step.join)
	if !step.delete && !step.unlink && !b.differing(s, step.set) {
		return nil
	}
	return b.count(ctx, s)
}

// held notes rows that are held instead of erased, and until when: what is called verified names them.
func (b *readback) held(ctx context.Context, step *eraseStep, cases []*ledger.OpenedCase) error {
	from := "t." + step.from.sql() // a zero date is none
	s := b.from("w.i, COALESCE(CAST(MAX(CASE WHEN "+from+" >= '1000-01-01' THEN "+from+" END) AS DATETIME(6)), UTC_TIMESTAMP(6))", step.join)
	s.add(" GROUP BY w.i")
	return eachRow(ctx, b.tx, s.String(), s.args, func(rows *sql.Rows) error {
		var i int
		var last time.Time
		if err := rows.Scan(&i, &last); err != nil {
			return err
		}
		cases[i].Held = append(cases[i].Held, schema.Residual{
			Kind: ledger.ActionHold + ":" + step.table.label(), Until: step.keep.After(last.UTC()),
		})
		return nil
	})
}

// suppressed counts persons of whom a suppress action no longer holds. A column that phase 2 sets too is phase 2's.
func (b *readback) suppressed(ctx context.Context, a *suppressAction) error {
	erased := b.m.erasedColumns(a.table)
	if erased == nil {
		return nil // the rows themselves go
	}
	if a.insert {
		s := b.from(countRows, join{table: b.m.person})
		s.add(" AND NOT EXISTS (SELECT 1 FROM " + a.table.sql() + " AS o WHERE " + a.by.refers("o."+a.by.sql(), b.m.key, "t."+b.m.key.sql()) + ")")
		return b.count(ctx, s)
	}
	kept := slices.DeleteFunc(slices.Clone(a.set), func(as assignment) bool { return erased[as.column] })
	s := b.from(countRows, a.join)
	if !b.differing(s, kept) {
		return nil
	}
	return b.count(ctx, s)
}

// erasedColumns are the columns of a table that phase 2 sets; nil where it deletes the rows.
func (m *Mapping) erasedColumns(t *table) map[*column]bool {
	columns := map[*column]bool{}
	for i := range m.erase {
		if m.erase[i].table != t {
			continue
		}
		if m.erase[i].delete {
			return nil
		}
		for k := range m.erase[i].set {
			columns[m.erase[i].set[k].column] = true
		}
	}
	return columns
}

// closed counts rows in which a consent column still says yes.
func (b *readback) closed(ctx context.Context, ft *foldTable) error {
	erased := b.m.erasedColumns(ft.table)
	if erased == nil {
		return nil
	}
	var open []part
	for k := range ft.columns {
		c := &ft.columns[k]
		if (c.Kind == ledger.KindPermitted || c.Kind == ledger.KindReconsentDue) && !erased[c.column] {
			open = append(open, part{sql: c.open("t." + c.column.sql())})
		}
	}
	if len(open) == 0 {
		return nil
	}
	s := b.from(countRows, ft.join)
	s.add(" AND (")
	s.addParts(open, " OR ")
	s.add(")")
	return b.count(ctx, s)
}

// audience counts the persons whom the replica's audience query still returns.
func (b *readback) audience(ctx context.Context) error {
	if b.m.audience == "" {
		return nil
	}
	s := &statement{}
	s.add("SELECT "+countRows+" FROM "+b.persons.sql+" WHERE "+b.m.inAudience(), b.persons.args...)
	return b.count(ctx, s)
}

// conclude writes what the read-back means for each case.
func (r *Replica) conclude(ctx context.Context, tx *tx, cases []*ledger.OpenedCase, remaining []int64, at time.Time) error {
	m, err := r.compiled(ctx)
	if err != nil {
		return err
	}
	standing, err := r.mayVerify(ctx, tx)
	if err != nil {
		return err
	}
	// The owner of other partitions may have seen a restore since and opened all cases again, without the rows of ours: what
	// was read back before that proves nothing.
	refs, err := r.refsOf(ctx, tx, `SELECT p.ref FROM `+caseTables+` WHERE p.state = 'applied'`+lockRows, refsJSON(ledger.RefsOf(cases)))
	if err != nil {
		return err
	}
	still := make(map[ledger.Ref]bool, len(refs))
	for _, ref := range refs {
		still[ledger.Ref(ref)] = true
	}
	undecided, err := r.undecided(ctx, tx, ledger.RefsOf(cases))
	if err != nil {
		return err
	}
	var left, doubtful, clean [][]byte
	var doubts []*ledger.Target
	var receipts []*ledger.Receipt
	wait, code, pause := ledger.Postponed(standing, m.Unmapped)
	for i, c := range cases {
		switch {
		case !still[c.Ref]:
		case remaining[i] > 0:
			left = append(left, c.Ref[:])
		case len(c.Doubts) > 0 || undecided[c.Ref]:
			doubtful, doubts = append(doubtful, c.Ref[:]), append(doubts, c.Doubts...)
		default:
			clean = append(clean, c.Ref[:])
			if pause == 0 {
				receipts = append(receipts, r.core.VerifiedReceipt(c, at))
			}
		}
	}
	if err := r.failAttempts(ctx, tx, left, ledger.ReasonResidual); err != nil {
		return err
	}
	if err := r.leaveDoubtful(ctx, tx, doubtful, doubts); err != nil || len(clean) == 0 {
		return err
	}
	if pause > 0 {
		_, err := r.write(ctx, tx, `UPDATE `+caseTables+` SET p.wait = ?, p.error_code = ?, p.due_at = ?`, refsJSON(clean), wait, code, tx.now.Add(pause))
		return err
	}
	if err := r.signAndWrite(ctx, tx, receipts...); err != nil {
		return err
	}
	return r.closeVerified(ctx, tx, clean, len(m.finds) > 0)
}

// leaveDoubtful opens the reviews of rows that may be those of cases which were read back: until a person has decided nothing of
// them is proven.
func (r *Replica) leaveDoubtful(ctx context.Context, tx *tx, refs [][]byte, doubts []*ledger.Target) error {
	if len(refs) == 0 {
		return nil
	}
	if err := r.openReviews(ctx, tx, doubts); err != nil {
		return err
	}
	_, err := r.write(ctx, tx, `UPDATE `+caseTables+` SET p.error_code = ?, p.due_at = ?`, refsJSON(refs), ledger.ReasonAmbiguous, tx.now.Add(ledger.GapRecheck))
	return err
}

// closeVerified ends cases: of a proven erasure the facts go, and what of them was to be read back. Where persons are found by
// match keys the rows that they were stay known: nothing else would say whose they were.
func (r *Replica) closeVerified(ctx context.Context, tx *tx, refs [][]byte, found bool) error {
	list := refsJSON(refs)
	_, err := r.write(ctx, tx, `UPDATE `+caseTables+` SET p.state = 'verified', p.wait = 'none', p.verified_at = ?, p.work = CASE WHEN ? THEN p.work END,
		p.due_at = NULL, p.error_code = NULL`, list, tx.now, found)
	if err != nil {
		return err
	}
	if _, err = r.write(ctx, tx, `DELETE f FROM `+refsTable+` STRAIGHT_JOIN {p}fact f ON f.ref = UNHEX(v.ref)`, list); err != nil {
		return err
	}
	_, err = r.write(ctx, tx, `UPDATE `+refsTable+` STRAIGHT_JOIN {p}subject s ON s.ref = UNHEX(v.ref)
		SET s.scope = NULL, s.contact_ref = NULL, s.ord = NULL, s.as_of = NULL, s.fact_state = NULL, s.valid_until = NULL, s.event_id = NULL`, list)
	if err != nil {
		return err
	}
	if _, err = r.write(ctx, tx, `DELETE b FROM `+refsTable+` STRAIGHT_JOIN {p}readback b ON b.ref = UNHEX(v.ref)`, list); err != nil {
		return err
	}
	return r.leaveTombstones(ctx, tx, list)
}
