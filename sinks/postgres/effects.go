package postgres

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/config"
	"lethe/sinks/ledger"
)

// effects are the statements that bring the mapped rows of some subjects to what their facts ask for. All of them are
// set-based: their number depends on the mapping, not on how many subjects there are.
type effects struct {
	r   *Replica
	m   *Mapping
	cfg *config.Replica
	now time.Time // by the replica's clock
	// settles says that reviews which have become needless are closed too.
	settles bool
}

// run writes the fold of every touched subject and phase 1 of every one to be suppressed, and finds out which of them
// have a row. In mode observe it only finds out. A failed statement fails the transaction.
func (e *effects) run(ctx context.Context, tx runner, list []*ledger.Subject) error {
	list = slices.DeleteFunc(slices.Clone(list), func(x *ledger.Subject) bool { return !x.Touched && !x.Suppress })
	if len(list) == 0 {
		return nil
	}
	if len(e.m.finds) > 0 {
		return e.runFound(ctx, tx, list)
	}
	b := &pgx.Batch{}
	if e.cfg.Mode != ledger.ModeObserve {
		suppressed := make([]*ledger.Subject, 0, len(list))
		for _, x := range list {
			if x.Suppress {
				suppressed = append(suppressed, x)
			}
		}
		if len(suppressed) > 0 {
			e.queuePrior(b, suppressed)
			e.queueSuppress(b, suppressed)
		}
		for i := range e.m.folds {
			e.queueFold(b, &e.m.folds[i], list)
		}
	}
	if b.Len() > 0 {
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
	}
	return e.findRows(ctx, tx, list)
}

// batcher is a transaction or a connection.
type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// findRows looks for a row of those subjects that no statement has shown to have one: nothing of theirs had to change,
// or they are unmatched.
func (e *effects) findRows(ctx context.Context, tx batcher, list []*ledger.Subject) error {
	list = slices.DeleteFunc(list, func(x *ledger.Subject) bool { return x.Effect.Matched })
	if len(list) == 0 {
		return nil
	}
	s := &statement{}
	who := s.who(e.m, list)
	s.WriteString("SELECT v.i FROM " + who + " WHERE EXISTS (SELECT FROM " + e.m.person.sql() + " AS t WHERE " +
		e.m.matches("t") + ")")
	b := &pgx.Batch{}
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		return eachPlace(rows, func(i int) { list[i].Effect.Matched = true })
	})
	return tx.SendBatch(ctx, b).Close()
}

// eachPlace reads rows of one integer, the place of a subject.
func eachPlace(rows pgx.Rows, fn func(i int)) error {
	var i int32
	for rows.Next() {
		if err := rows.Scan(&i); err != nil {
			return err
		}
		fn(int(i))
	}
	return rows.Err()
}

// ask asks the fold for every column of one table.
func (e *effects) ask(ft *foldTable, list []*ledger.Subject) ledger.Answers {
	return ledger.Ask(len(ft.columns), func(i int) *ledger.Question { return &ft.columns[i].Question }, list, e.now)
}

// answerColumns are the arrays of the used columns: for each its place in ft.columns and the SQL of its value, which is NULL
// where the fold says nothing.
func answerColumns(ft *foldTable, f *ledger.Answers) (extra []whoColumn, places []int, sql []string) {
	for c := range ft.columns {
		if !f.Used[c] {
			continue
		}
		name := "a" + strconv.Itoa(c)
		extra = append(extra, whoColumn{name: name, typ: "bool[]", values: pgtype.FlatArray[*bool](f.Values[c])})
		value := "v." + name
		if ft.columns[c].asNumber {
			value += "::int"
		}
		places, sql = append(places, c), append(sql, value+"::"+ft.columns[c].column.typ)
	}
	return extra, places, sql
}

// queueFold writes the columns of one table that follow from the fold, where they differ.
func (e *effects) queueFold(b *pgx.Batch, ft *foldTable, list []*ledger.Subject) {
	f := e.ask(ft, list)
	if len(f.List) == 0 {
		return
	}
	s := &statement{}
	e.foldStatement(s, ft, &f)
	label := ft.table.label()
	own := ft.by == nil && ft.table.oid == e.m.person.oid
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		return eachPlace(rows, func(i int) {
			f.List[i].Effect.Changed(label, ledger.ActionFold, 1)
			if own {
				f.List[i].Effect.Matched = true
			}
		})
	})
}

func (e *effects) foldStatement(s *statement, ft *foldTable, f *ledger.Answers) {
	var set, differs []string
	extra, places, values := answerColumns(ft, f)
	for k, c := range places {
		col, value := ft.columns[c].column, values[k]
		if f.Holes[c] {
			value = "coalesce(" + value + ", t." + col.sql() + ")"
		}
		set = append(set, col.sql()+" = "+value)
		differs = append(differs, "t."+col.sql()+" IS DISTINCT FROM "+value)
	}
	for _, col := range ft.now {
		set = append(set, col.sql()+" = now()::"+col.typ)
	}
	who := s.who(e.m, f.List, extra...)
	from, where, _ := e.m.reach(ft.join)
	s.WriteString("UPDATE " + ft.table.sql() + " AS t SET " + strings.Join(set, ", ") + " FROM " + who + from +
		" WHERE " + where + " AND (" + strings.Join(differs, " OR ") + ") RETURNING v.i")
}

// queuePrior locks the rows that phase 1 will change and notes what their flags were: for a cancel. The person's own
// table comes first, because it says which persons there are.
func (e *effects) queuePrior(b *pgx.Batch, list []*ledger.Subject) {
	columns, order := e.m.undoColumns()
	for _, j := range order {
		own := j.table.oid == e.m.person.oid && j.by == nil
		keys := j.table.primary
		if own {
			keys = []string{e.m.key.name}
		}
		s := &statement{}
		who := s.who(e.m, list)
		from, where, key := e.m.reach(j)
		s.WriteString("SELECT v.i, " + key + "::text, " + textObject("t", keys) + ", " +
			textObject("t", columns[j.table.config]) + " FROM " + j.table.sql() + " AS t, " + who + from + " WHERE " + where)
		name, empty := j.table.config, len(columns[j.table.config]) == 0
		if !empty { // else the role needs no privilege that locks
			s.WriteString(" FOR UPDATE OF t")
		}
		b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
			var i int32
			var person string
			for rows.Next() {
				u := ledger.UndoEntry{Table: name}
				if err := rows.Scan(&i, &person, &u.Key, &u.Set); err != nil {
					return err
				}
				x := list[i]
				if own {
					x.Effect.Matched = true
					x.Effect.Persons = append(x.Effect.Persons, person)
				}
				if !empty {
					x.Effect.Undo = append(x.Effect.Undo, u)
				}
			}
			return rows.Err()
		})
	}
}

// undoColumns says which columns of which tables phase 1 may change: those of the suppress actions, and the consent
// columns that the fold closes.
func (m *Mapping) undoColumns() (columns map[string][]string, order []join) {
	columns = map[string][]string{}
	order = []join{{table: m.person}}
	add := func(j join, name string) {
		t := j.table.config
		if !slices.Contains(columns[t], name) {
			columns[t] = append(columns[t], name)
		}
		if !slices.ContainsFunc(order, func(o join) bool { return o.table.oid == j.table.oid }) {
			order = append(order, j)
		}
	}
	for _, a := range m.suppress {
		for _, as := range a.set {
			if !a.insert {
				add(a.join, as.column.name)
			}
		}
	}
	for _, f := range m.folds {
		for _, c := range f.columns {
			if c.Kind == ledger.KindPermitted || c.Kind == ledger.KindReconsentDue {
				add(f.join, c.column.name)
			}
		}
	}
	return columns, order
}

// textObject returns the SQL of a JSON object with the columns of a row in text form.
func textObject(alias string, columns []string) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = literal(c) + ", " + alias + "." + quote(c) + "::text"
	}
	return "jsonb_build_object(" + strings.Join(parts, ", ") + ")"
}

// literal quotes a name from the catalog as a string constant.
func literal(name string) string { return "'" + strings.ReplaceAll(name, "'", "''") + "'" }

// queueSuppress runs the actions of phase 1.
func (e *effects) queueSuppress(b *pgx.Batch, list []*ledger.Subject) {
	for i := range e.m.suppress {
		a := &e.m.suppress[i]
		if a.insert {
			e.queueInsert(b, a, list)
			continue
		}
		if len(a.set) == 0 {
			continue
		}
		s := &statement{}
		who := s.who(e.m, list)
		from, where, key := e.m.reach(a.join)
		var set, differs []string
		for k := range a.set {
			value := s.value(&a.set[k], "t", key)
			set = append(set, a.set[k].column.sql()+" = "+value)
			if col := a.set[k].column; a.set[k].kind != ledger.KindNow {
				differs = append(differs, col.comparable("t."+col.sql())+" IS DISTINCT FROM "+col.comparable(value))
			}
		}
		s.WriteString("UPDATE " + a.table.sql() + " AS t SET " + strings.Join(set, ", ") + " FROM " + who + from + " WHERE " + where)
		if len(differs) > 0 {
			s.WriteString(" AND (" + strings.Join(differs, " OR ") + ")")
		}
		s.WriteString(" RETURNING v.i")
		label := a.table.label()
		b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
			return eachPlace(rows, func(i int) { list[i].Effect.Changed(label, ledger.ActionSuppress, 1) })
		})
	}
}

// queueInsert puts a row for each person, unless the very same one is there already: constants and key compared. Where a
// unique index has another one in its place (an opt-out for another reason) that one stays: the erasure must not fail of it.
func (e *effects) queueInsert(b *pgx.Batch, a *suppressAction, list []*ledger.Subject) {
	s := &statement{}
	who := s.who(e.m, list)
	var names, values, same []string
	key := "p." + e.m.key.sql()
	for k := range a.set {
		as := &a.set[k]
		value := s.value(as, "p", key)
		names = append(names, as.column.sql())
		values = append(values, value)
		switch as.kind {
		case ledger.KindConst, ledger.KindKey: // an equality, so that an index is used
			same = append(same, as.column.comparable("x."+as.column.sql())+" = "+as.column.comparable(value))
		case ledger.KindNull:
			same = append(same, "x."+as.column.sql()+" IS NULL")
		}
	}
	s.WriteString("INSERT INTO " + a.table.sql() + " AS t (" + strings.Join(names, ", ") + ") SELECT " + strings.Join(values, ", ") +
		" FROM " + who + ", " + e.m.person.sql() + " AS p WHERE " + e.m.matches("p") +
		" AND NOT EXISTS (SELECT FROM " + a.table.sql() + " AS x WHERE " + strings.Join(same, " AND ") + ") ON CONFLICT DO NOTHING RETURNING t." +
		a.by.sql() + "::text, " + textObject("t", a.table.primary))
	label, name := a.table.label(), a.table.config
	b.Queue(s.String(), s.args...).Query(func(rows pgx.Rows) error {
		byPerson := map[string]*ledger.Subject{}
		for _, x := range list {
			for _, p := range x.Effect.Persons {
				byPerson[p] = x
			}
		}
		var person string
		for rows.Next() {
			u := ledger.UndoEntry{Table: name, Inserted: true}
			if err := rows.Scan(&person, &u.Key); err != nil {
				return err
			}
			if x := byPerson[person]; x != nil {
				x.Effect.Changed(label, ledger.ActionInsert, 1)
				x.Effect.Undo = append(x.Effect.Undo, u)
			}
		}
		return rows.Err()
	})
}
