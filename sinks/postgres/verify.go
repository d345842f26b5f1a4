package postgres

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/internal/crashpoint"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// verifyErased reads back what phase 2 has done, on another connection, and calls a case verified when nothing is left:
// no value in a mapped column of any row that the person's keys or the CRM key lead to, and no place in the audience.
func (r *Replica) verifyErased(ctx context.Context, places []sinks.Place) (time.Time, error) {
	const op = "verifying erasures"
	cases, err := collectCases(ctx, r.opts.Pool, r.ledger.sql(`SELECT `+caseColumns+` FROM {s}.pending p
		WHERE part = ANY ($1) AND state = 'applied' AND due_at <= now() ORDER BY due_at, ref LIMIT $2`), ledger.PartsOf(places), ledger.VerifyLimit)
	if err != nil {
		return time.Time{}, classify(op, err)
	}
	if len(cases) > 0 {
		remaining, at, err := r.readBack(ctx, cases)
		if err != nil {
			return time.Time{}, err
		}
		crashpoint.Hit("sink.after_readback")
		err = r.inTx(ctx, op, func(ctx context.Context, tx pgx.Tx) error {
			if err := r.lockPlaces(ctx, tx, places); err != nil {
				return err
			}
			return r.conclude(ctx, tx, cases, remaining, at)
		})
		if err != nil || len(cases) == ledger.VerifyLimit {
			return time.Now(), err
		}
	}
	return r.nextOf(ctx, op, `SELECT extract(epoch FROM min(due_at) - now())::float8 FROM {s}.pending
		WHERE part = ANY ($1) AND state = 'applied'`, ledger.PartsOf(places))
}

// readTx runs fn in a read-only snapshot on the verification pool.
func (r *Replica) readTx(ctx context.Context, op string, fn func(tx pgx.Tx) error) error {
	tx, err := r.opts.VerifyPool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return classify(op, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing was written
	if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, milliseconds(r.opts.StatementTimeout)); err != nil {
		return classify(op, err)
	}
	return r.reduced(op, fn(tx))
}

// readBack counts, for each case, the values that can still be read.
func (r *Replica) readBack(ctx context.Context, cases []*ledger.OpenedCase) (remaining []int64, at time.Time, err error) {
	m, err := r.compiledAnew(ctx)
	if err != nil {
		return nil, at, err
	}
	// Lethe's own tables are read through the run role: the login that reads back sees the mapped tables only.
	set, err := r.attach(ctx, r.opts.Pool, cases)
	if err != nil {
		return nil, at, err
	}
	remaining = make([]int64, len(cases))
	err = r.readTx(ctx, "reading back", func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "SELECT now()").Scan(&at); err != nil {
			return err
		}
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
			err = m.addPersons(ctx, tx, set.List, persons, func(s *ledger.Subject) int { return place[s] })
		}
		if err != nil {
			return err
		}
		b := &pgx.Batch{}
		for i := range m.erase {
			m.queueReadErased(b, &m.erase[i], persons, remaining)
			m.queueReadHeld(b, &m.erase[i], persons, cases)
		}
		for i := range m.suppress {
			m.queueReadSuppressed(b, &m.suppress[i], persons, remaining)
		}
		for i := range m.folds {
			m.queueReadClosed(b, &m.folds[i], persons, remaining)
		}
		m.queueReadAudience(b, persons, remaining)
		return send(ctx, tx, b)
	})
	return remaining, at, err
}

// persons adds the keys of some persons to a statement as w(i, k).
func (s *statement) persons(p *ledger.PersonKeys) string {
	return "unnest(" + s.arg(p.Places) + "::int[], " + s.arg(p.Keys) + "::text[]) AS w(i, k)"
}

// addPersons looks up the persons that the subjects' CRM keys lead to now: a row that came back counts too.
func (m *Mapping) addPersons(ctx context.Context, tx pgx.Tx, list []*ledger.Subject, into *ledger.PersonKeys, place func(*ledger.Subject) int) error {
	return m.eachPerson(ctx, tx, list, "", func(s *ledger.Subject, key string) { into.Add(place(s), key) })
}

// owns returns the condition that a row of a table (alias t) belongs to a person of w.
func (m *Mapping) owns(j join) string {
	col := m.key
	if j.by != nil {
		col = j.by
	}
	return "t." + col.sql() + " = w.k::" + col.typ
}

// queueCount queues a query of (place, count) and adds the counts up.
func queueCount(b *pgx.Batch, s *statement, remaining []int64) {
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var i int32
			var n int64
			if err := rows.Scan(&i, &n); err != nil {
				return err
			}
			remaining[i] += n
		}
		return rows.Err()
	})
}

// queueReadErased counts the rows in which a step of phase 2 has not taken effect.
func (m *Mapping) queueReadErased(b *pgx.Batch, step *eraseStep, persons *ledger.PersonKeys, remaining []int64) {
	if step.hold {
		return
	}
	s := &statement{}
	from := s.persons(persons)
	where := m.owns(step.join)
	if !step.delete && !step.unlink {
		left := s.unequal(step.set)
		if left == "" {
			return
		}
		where += " AND " + left
	}
	s.WriteString("SELECT w.i, count(*) FROM " + step.table.sql() + " AS t, " + from + " WHERE " + where + " GROUP BY w.i")
	queueCount(b, s, remaining)
}

// queueReadHeld notes rows that are held instead of erased, and until when: what is called verified names them.
func (m *Mapping) queueReadHeld(b *pgx.Batch, step *eraseStep, persons *ledger.PersonKeys, cases []*ledger.OpenedCase) {
	if !step.hold {
		return
	}
	s := &statement{}
	from, col := s.persons(persons), "t."+step.from.sql()
	s.WriteString("SELECT w.i, coalesce(max(" + col + ") FILTER (WHERE isfinite(" + col + ")), now())::timestamptz FROM " + step.table.sql() +
		" AS t, " + from + " WHERE " + m.owns(step.join) + " GROUP BY w.i")
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		var i int32
		var last time.Time
		for rows.Next() {
			if err := rows.Scan(&i, &last); err != nil {
				return err
			}
			cases[i].Held = append(cases[i].Held, schema.Residual{Kind: ledger.ActionHold + ":" + step.table.label(), Until: step.keep.After(last.UTC())})
		}
		return rows.Err()
	})
}

// unequal returns the condition that a row (alias t) of a person (w) differs from what the assignments make of it; empty
// where nothing can be said. Every assignment is idempotent, so that applying it once more shows whether it was applied.
func (s *statement) unequal(set []assignment) string {
	var parts []string
	for k := range set {
		a := &set[k]
		col := "t." + a.column.sql()
		switch a.kind {
		case ledger.KindToken:
			pattern := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, "{random}", "%").Replace(a.args[0].(string))
			parts = append(parts, "("+col+" IS NULL OR "+col+"::text NOT LIKE "+s.arg(pattern)+")")
		case ledger.KindNow:
		case ledger.KindKey:
			parts = append(parts, col+" IS DISTINCT FROM "+s.value(a, "t", "w.k"))
		case "json":
			parts = append(parts, col+"::jsonb IS DISTINCT FROM ("+s.value(a, "t", "NULL")+")::jsonb")
		default:
			parts = append(parts, a.column.comparable(col)+" IS DISTINCT FROM "+a.column.comparable(s.value(a, "t", "NULL")))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "(" + strings.Join(parts, " OR ") + ")"
}

// queueReadSuppressed counts persons of whom a suppress action no longer holds. A column that phase 2 sets too is
// phase 2's.
func (m *Mapping) queueReadSuppressed(b *pgx.Batch, a *suppressAction, persons *ledger.PersonKeys, remaining []int64) {
	erased := m.erasedColumns(a.table)
	if erased == nil {
		return // the rows themselves go
	}
	s := &statement{}
	from := s.persons(persons)
	if a.insert {
		s.WriteString("SELECT w.i, count(*) FROM " + from + ", " + m.person.sql() + " AS p WHERE p." + m.key.sql() + " = w.k::" + m.key.typ +
			" AND NOT EXISTS (SELECT FROM " + a.table.sql() + " AS t WHERE " + m.owns(a.join) + ") GROUP BY w.i")
		queueCount(b, s, remaining)
		return
	}
	kept := slices.DeleteFunc(slices.Clone(a.set), func(as assignment) bool { return erased[as.column.name] })
	left := s.unequal(kept)
	if left == "" {
		return
	}
	s.WriteString("SELECT w.i, count(*) FROM " + a.table.sql() + " AS t, " + from + " WHERE " + m.owns(a.join) + " AND " + left + " GROUP BY w.i")
	queueCount(b, s, remaining)
}

// erasedColumns are the columns of a table that phase 2 sets; nil where it deletes the rows.
func (m *Mapping) erasedColumns(t *table) map[string]bool {
	columns := map[string]bool{}
	for i := range m.erase {
		if m.erase[i].table.oid != t.oid {
			continue
		}
		if m.erase[i].delete {
			return nil
		}
		for k := range m.erase[i].set {
			columns[m.erase[i].set[k].column.name] = true
		}
	}
	return columns
}

// queueReadClosed counts rows in which a consent column still says yes.
func (m *Mapping) queueReadClosed(b *pgx.Batch, ft *foldTable, persons *ledger.PersonKeys, remaining []int64) {
	erased := m.erasedColumns(ft.table)
	if erased == nil {
		return
	}
	var open []string
	for k := range ft.columns {
		c := &ft.columns[k]
		if c.Kind != ledger.KindPermitted && c.Kind != ledger.KindReconsentDue || erased[c.column.name] {
			continue
		}
		op := " = true"
		if c.asNumber {
			op = " <> 0" // whatever an owner counts with: only 0 is no
		}
		open = append(open, "t."+c.column.sql()+op)
	}
	if len(open) == 0 {
		return
	}
	s := &statement{}
	from := s.persons(persons)
	s.WriteString("SELECT w.i, count(*) FROM " + ft.table.sql() + " AS t, " + from + " WHERE " + m.owns(ft.join) +
		" AND (" + strings.Join(open, " OR ") + ") GROUP BY w.i")
	queueCount(b, s, remaining)
}

// queueReadAudience counts the persons whom the replica's audience query still returns.
func (m *Mapping) queueReadAudience(b *pgx.Batch, persons *ledger.PersonKeys, remaining []int64) {
	if m.audience == "" {
		return
	}
	s := &statement{}
	from := s.persons(persons)
	s.WriteString("SELECT w.i, count(*) FROM (" + m.audience + ") AS a(k), " + from + " WHERE a.k::text = w.k GROUP BY w.i")
	queueCount(b, s, remaining)
}

// conclude writes what the read-back means for each case.
func (r *Replica) conclude(ctx context.Context, tx pgx.Tx, cases []*ledger.OpenedCase, remaining []int64, at time.Time) error {
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
	rows, err := tx.Query(ctx, r.ledger.sql(`SELECT ref FROM {s}.pending WHERE ref = ANY ($1) AND state = 'applied' FOR UPDATE`), ledger.RefsOf(cases))
	if err != nil {
		return err
	}
	refs, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return err
	}
	still := make(map[ledger.Ref]bool, len(refs))
	for _, ref := range refs {
		still[ledger.Ref(ref)] = true
	}
	reviews, err := r.openReviews(ctx, tx, ledger.RefsOf(cases))
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	var done []*ledger.OpenedCase
	wait, code, pause := ledger.Postponed(standing, m.Unmapped)
	for i, c := range cases {
		switch {
		case !still[c.Ref]:
		case remaining[i] > 0:
			if err := r.failAttempt(ctx, tx, c, false, ledger.ReasonResidual); err != nil {
				return err
			}
		case len(c.Doubts) > 0 || reviews[c.Ref]:
			r.queueReviews(b, c.Doubts)
			b.Queue(r.ledger.sql(`UPDATE {s}.pending SET error_code = $2, due_at = now() + make_interval(secs => $3) WHERE ref = $1`),
				c.Ref[:], ledger.ReasonAmbiguous, ledger.GapRecheck.Seconds())
		case pause > 0:
			b.Queue(r.ledger.sql(`UPDATE {s}.pending SET wait = $2, error_code = $3, due_at = now() + make_interval(secs => $4) WHERE ref = $1`),
				c.Ref[:], wait, code, pause.Seconds())
		default:
			done = append(done, c)
		}
	}
	for _, c := range done {
		if err := r.queueReceipt(b, r.core.VerifiedReceipt(c, at)); err != nil {
			return err
		}
	}
	if len(done) > 0 {
		b.Queue(r.ledger.sql(`UPDATE {s}.pending SET state = 'verified', wait = 'none', verified_at = now(), work = CASE WHEN $2 THEN work END, undo = NULL, due_at = NULL,
			error_code = NULL WHERE ref = ANY ($1)`), ledger.RefsOf(done), len(m.finds) > 0)
		b.Queue(r.ledger.sql(`DELETE FROM {s}.fact WHERE ref = ANY ($1)`), ledger.RefsOf(done))
		b.Queue(r.ledger.sql(`DELETE FROM {s}.readback WHERE ref = ANY ($1)`), ledger.RefsOf(done))
		r.queueTombstones(b, ledger.RefsOf(done))
	}
	return send(ctx, tx, b)
}
