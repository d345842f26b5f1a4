package mysql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/config"
	"lethe/sinks/ledger"
)

// effects are the statements that bring the mapped rows of some subjects to what their facts ask for. All of them are
// set-based: their number depends on the mapping, not on how many subjects there are. An UPDATE cannot tell which rows it has
// changed, so that each has a SELECT … FOR UPDATE in front of it that says which ones it will.
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
func (e *effects) run(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	list = slices.DeleteFunc(slices.Clone(list), func(x *ledger.Subject) bool { return !x.Touched && !x.Suppress })
	if len(list) == 0 {
		return nil
	}
	return e.m.joining(ctx, tx, func() error {
		if len(e.m.finds) > 0 {
			return e.runFound(ctx, tx, list)
		}
		return e.write(ctx, tx, list)
	})
}

func (e *effects) write(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	if e.cfg.Mode != ledger.ModeObserve {
		var suppressed []*ledger.Subject
		for _, x := range list {
			if x.Suppress {
				suppressed = append(suppressed, x)
			}
		}
		if len(suppressed) > 0 {
			if err := e.readPrior(ctx, tx, suppressed); err != nil {
				return err
			}
			if err := e.suppress(ctx, tx, suppressed); err != nil {
				return err
			}
		}
		if err := e.fold(ctx, tx, list); err != nil {
			return err
		}
	}
	return e.findRows(ctx, tx, list)
}

// findRows looks for a row of those subjects that no statement has shown to have one: the fold says nothing of theirs, or
// they are unmatched.
func (e *effects) findRows(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	list = slices.DeleteFunc(list, func(x *ledger.Subject) bool { return x.Effect.Matched })
	if len(list) == 0 {
		return nil
	}
	who, err := e.m.who(list)
	if err != nil {
		return err
	}
	query := "SELECT v.i FROM " + who.sql + " STRAIGHT_JOIN " + e.m.person.sql() + " AS t WHERE " + e.m.matches("t")
	return eachPlace(ctx, tx, query, who.args, func(i int) { list[i].Effect.Matched = true })
}

// eachPlace runs a query of one integer, the place of a subject.
func eachPlace(ctx context.Context, q querier, query string, args []any, fn func(i int)) error {
	return eachRow(ctx, q, query, args, func(rows *sql.Rows) error {
		var i int
		if err := rows.Scan(&i); err != nil {
			return err
		}
		fn(i)
		return nil
	})
}

// tables are the tables of a statement about the rows (alias t) of some subjects, in the order in which they are read: v
// first, then what is looked up for it.
func (m *Mapping) tablesOf(who part, j join, from string) string {
	return who.sql + from + " STRAIGHT_JOIN " + j.table.sql() + " AS t"
}

// lock ends a SELECT whose rows of t are about to change. MariaDB knows no OF: it locks the person's row too.
func (m *Mapping) lock() string {
	if m.server.mariadb {
		return " FOR UPDATE"
	}
	return " FOR UPDATE OF t"
}

// fold writes the columns that follow from the fold, where they differ.
func (e *effects) fold(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	for i := range e.m.folds {
		ft := &e.m.folds[i]
		a := ledger.Ask(len(ft.columns), func(i int) *ledger.Question { return &ft.columns[i].Question }, list, e.now)
		if len(a.List) == 0 {
			continue
		}
		if err := e.foldTable(ctx, tx, ft, &a); err != nil {
			return err
		}
	}
	return nil
}

// answerColumns are the answers as columns a0… of v; values are their places in ft.columns and the SQL of what the column
// should hold.
func answerColumns(ft *foldTable, a *ledger.Answers) (extra []whoColumn, places []int, values []string) {
	for c := range ft.columns {
		if !a.Used[c] {
			continue
		}
		name, column := "a"+strconv.Itoa(c), a.Values[c]
		extra = append(extra, whoColumn{name: name, typ: "TINYINT", append: func(out []byte, i int) []byte {
			if column[i] == nil {
				return append(out, "null"...)
			}
			return appendBool(out, *column[i])
		}})
		places, values = append(places, c), append(values, ft.columns[c].sql("v."+name))
	}
	return extra, places, values
}

// foldTable writes the columns of one table. Most batches change one row of every subject in them, or of hardly any: where
// the last one did and the key is unique, the UPDATE is tried at once, and the number of rows that it has changed says that
// it was so again. Else it is taken back, and the rows are looked at first.
func (e *effects) foldTable(ctx context.Context, tx *tx, ft *foldTable, a *ledger.Answers) error {
	extra, places, values := answerColumns(ft, a)
	who, err := e.m.who(a.List, extra...)
	if err != nil {
		return err
	}
	var set, same []string
	for k, c := range places {
		col, value := ft.columns[c].column, values[k]
		if a.Holes[c] {
			value = "COALESCE(" + value + ", t." + col.sql() + ")"
		}
		set = append(set, "t."+col.sql()+" = "+value)
		same = append(same, "t."+col.sql()+" <=> "+value)
	}
	for _, col := range ft.now {
		set = append(set, "t."+col.sql()+" = UTC_TIMESTAMP(6)")
	}
	from, where, _ := e.m.reach(ft.join)
	tables, differs := e.m.tablesOf(who, ft.join, from), "NOT ("+strings.Join(same, " AND ")+")"
	update := func() (int64, error) {
		return tx.exec(ctx, "UPDATE "+tables+" SET "+strings.Join(set, ", ")+" WHERE "+where+" AND "+differs, who.args...)
	}
	label, own := ft.table.label(), ft.by == nil && ft.table == e.m.person
	if own && e.m.unique && e.m.changesAll.Load() {
		err := tx.savepoint(ctx, func() error {
			n, err := update()
			if err == nil && n != int64(len(a.List)) {
				err = errNotAll
			}
			return err
		})
		if err == nil {
			for _, x := range a.List {
				x.Effect.Matched = true
				x.Effect.Changed(label, ledger.ActionFold, 1)
			}
			return nil
		}
		if !errors.Is(err, errNotAll) {
			return err
		}
	}
	changes, err := e.lookAt(ctx, tx, "SELECT v.i, "+differs+" FROM "+tables+" WHERE "+where+e.m.lock(), who.args, func(i int, differs bool) {
		a.List[i].Effect.Matched = a.List[i].Effect.Matched || own
		if differs {
			a.List[i].Effect.Changed(label, ledger.ActionFold, 1)
		}
	})
	if own {
		e.m.changesAll.Store(changes == len(a.List))
	}
	if err != nil || changes == 0 {
		return err
	}
	_, err = update()
	return err
}

// errNotAll says that an UPDATE has not changed one row of every subject.
var errNotAll = errors.New("not every subject's row was changed")

// lookAt runs a query of the places of subjects, and whether the row differs from what it should be. It returns how many do.
func (e *effects) lookAt(ctx context.Context, tx *tx, query string, args []any, fn func(i int, differs bool)) (n int, err error) {
	err = eachRow(ctx, tx, query, args, func(rows *sql.Rows) error {
		var i int
		var differs bool
		if err := rows.Scan(&i, &differs); err != nil {
			return err
		}
		if differs {
			n++
		}
		fn(i, differs)
		return nil
	})
	return n, err
}

// readPrior locks the rows that phase 1 will change and notes what their flags were: for a cancel. The person's own
// table comes first, because it says which persons there are.
func (e *effects) readPrior(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	who, err := e.m.who(list)
	if err != nil {
		return err
	}
	columns, order := e.m.undoColumns()
	for _, j := range order {
		own := j.table == e.m.person && j.by == nil
		keys := j.table.primary
		if own {
			keys = []string{e.m.key.name}
		}
		from, where, key := e.m.reach(j)
		name, empty := j.table.config, len(columns[j.table.config]) == 0
		query := "SELECT v.i, " + e.m.key.text(key) + ", " + j.table.textObject("t", keys) + ", " +
			j.table.textObject("t", columns[name]) + " FROM " + e.m.tablesOf(who, j, from) + " WHERE " + where
		if !empty { // else the role needs no privilege that locks
			query += e.m.lock()
		}
		err := eachRow(ctx, tx, query, who.args, func(rows *sql.Rows) error {
			var i int
			var person string
			var rowKey, prior []byte
			if err := rows.Scan(&i, &person, &rowKey, &prior); err != nil {
				return err
			}
			x := list[i]
			if own {
				x.Effect.Matched = true
				x.Effect.Persons = append(x.Effect.Persons, person)
			}
			if empty {
				return nil
			}
			u := ledger.UndoEntry{Table: name}
			if err := json.Unmarshal(rowKey, &u.Key); err != nil {
				return err
			}
			if err := json.Unmarshal(prior, &u.Set); err != nil {
				return err
			}
			x.Effect.Undo = append(x.Effect.Undo, u)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
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
		if !slices.ContainsFunc(order, func(o join) bool { return o.table == j.table }) {
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
func (t *table) textObject(alias string, columns []string) string {
	parts := make([]string, 0, len(columns))
	for _, name := range columns {
		if c := t.column(name); c != nil {
			parts = append(parts, literal(c.name)+", "+c.text(alias+"."+c.sql()))
		}
	}
	return "JSON_OBJECT(" + strings.Join(parts, ", ") + ")"
}

// suppress runs the actions of phase 1.
func (e *effects) suppress(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	for i := range e.m.suppress {
		a := &e.m.suppress[i]
		var err error
		switch {
		case a.insert:
			err = e.insert(ctx, tx, a, list)
		case len(a.set) > 0:
			err = e.suppressSet(ctx, tx, a, list)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *effects) suppressSet(ctx context.Context, tx *tx, a *suppressAction, list []*ledger.Subject) error {
	who, err := e.m.who(list)
	if err != nil {
		return err
	}
	from, where, key := e.m.reach(a.join)
	tables := e.m.tablesOf(who, a.join, from)
	set, differs := assignments(a.set, "t", key), differing(a.set, "t", key)
	query, update := &statement{}, &statement{}
	query.add("SELECT v.i FROM "+tables+" WHERE "+where, who.args...)
	update.add("UPDATE "+tables+" SET ", who.args...)
	update.addParts(set, ", ")
	update.add(" WHERE " + where)
	for _, s := range []*statement{query, update} {
		if len(differs) > 0 {
			s.add(" AND (")
			s.addParts(differs, " OR ")
			s.add(")")
		}
	}
	query.add(e.m.lock())
	label, found := a.table.label(), false
	err = eachPlace(ctx, tx, query.String(), query.args, func(i int) {
		found = true
		list[i].Effect.Changed(label, ledger.ActionSuppress, 1)
	})
	if err != nil || !found {
		return err
	}
	_, err = tx.exec(ctx, update.String(), update.args...)
	return err
}

// assignments are the SET of an UPDATE.
func assignments(set []assignment, row, key string) []part {
	out := make([]part, len(set))
	for k := range set {
		value, args := set[k].value(row, key)
		out[k] = part{row + "." + set[k].column.sql() + " = " + value, args}
	}
	return out
}

// differing are the conditions of which one holds where the assignments would change a row. Those of which nothing can be
// said, as of $now, are left away: none at all means that every row changes.
func differing(set []assignment, row, key string) []part {
	var out []part
	for k := range set {
		if condition, args := set[k].holds(row, key); condition != "" {
			out = append(out, part{"NOT (" + condition + ")", args})
		}
	}
	return out
}

// insert puts a row for each person, unless the very same one is there already: constants and key compared. Where a
// unique index has another one in its place (an opt-out for another reason) that one stays: the erasure must not fail of it.
// A row is ours, and a cancel deletes it, where it was not there before and is there afterwards. If another session has put
// one meanwhile, the numbers differ: then none is called ours, and a cancel leaves them all.
func (e *effects) insert(ctx context.Context, tx *tx, a *suppressAction, list []*ledger.Subject) error {
	missing, err := e.insertRows(ctx, tx, a, list, true)
	if err != nil || len(missing) == 0 {
		return err
	}
	var lacking []*ledger.Subject
	for _, x := range list {
		if missing[x] != nil {
			lacking = append(lacking, x)
		}
	}
	who, err := e.m.who(lacking)
	if err != nil {
		return err
	}
	key := "p." + e.m.key.sql()
	var names []string
	var values []part
	for k := range a.set {
		value, args := a.set[k].value("p", key)
		names, values = append(names, a.set[k].column.sql()), append(values, part{value, args})
	}
	s := &statement{}
	s.add("INSERT INTO " + a.table.sql() + " (" + strings.Join(names, ", ") + ") SELECT ")
	s.addParts(values, ", ")
	s.add(" FROM "+who.sql+" STRAIGHT_JOIN "+e.m.person.sql()+" AS p WHERE "+e.m.matches("p")+" AND NOT EXISTS (", who.args...)
	e.addSame(s, a, key)
	s.add(") ON DUPLICATE KEY UPDATE " + names[0] + " = " + a.table.sql() + "." + names[0])
	inserted, err := tx.exec(ctx, s.String(), s.args...)
	if err != nil || inserted == 0 {
		return err
	}
	there, err := e.insertRows(ctx, tx, a, lacking, false)
	if err != nil {
		return err
	}
	ours := 0
	for x, rows := range there {
		ours += len(rows)
		x.Effect.Changed(a.table.label(), ledger.ActionInsert, int64(len(rows)))
	}
	if int64(ours) != inserted {
		return nil
	}
	for x, rows := range there {
		x.Effect.Undo = append(x.Effect.Undo, rows...)
	}
	return nil
}

// addSame adds the query of the row that an insert would put, for a person whose key is an expression.
func (e *effects) addSame(s *statement, a *suppressAction, key string) {
	s.add("SELECT 1 FROM " + a.table.sql() + " AS x WHERE ")
	s.addParts(sameRow(a, key), " AND ")
}

// sameRow are the conditions that a row (x) is the one that an insert would put.
func sameRow(a *suppressAction, key string) []part {
	var same []part
	for k := range a.set {
		switch a.set[k].kind {
		case ledger.KindConst, ledger.KindKey, ledger.KindNull:
			condition, args := a.set[k].holds("x", key)
			same = append(same, part{condition, args})
		}
	}
	return same
}

// insertRows lists, by subject, the rows that an insert puts: with missing one empty entry for each person that lacks it,
// else those that are there.
func (e *effects) insertRows(ctx context.Context, tx *tx, a *suppressAction, list []*ledger.Subject, missing bool) (map[*ledger.Subject][]ledger.UndoEntry, error) {
	who, err := e.m.who(list)
	if err != nil {
		return nil, err
	}
	key, s := "p."+e.m.key.sql(), &statement{}
	if missing {
		s.add("SELECT v.i, '{}' FROM "+who.sql+" STRAIGHT_JOIN "+e.m.person.sql()+" AS p WHERE "+e.m.matches("p")+" AND NOT EXISTS (", who.args...)
		e.addSame(s, a, key)
		s.add(")")
	} else {
		s.add("SELECT v.i, "+a.table.textObject("x", a.table.primary)+" FROM "+who.sql+" STRAIGHT_JOIN "+e.m.person.sql()+
			" AS p STRAIGHT_JOIN "+a.table.sql()+" AS x WHERE "+e.m.matches("p")+" AND ", who.args...)
		s.addParts(sameRow(a, key), " AND ")
	}
	out := map[*ledger.Subject][]ledger.UndoEntry{}
	err = eachRow(ctx, tx, s.String(), s.args, func(rows *sql.Rows) error {
		var i int
		var rowKey []byte
		if err := rows.Scan(&i, &rowKey); err != nil {
			return err
		}
		u := ledger.UndoEntry{Table: a.table.config, Inserted: true}
		if err := json.Unmarshal(rowKey, &u.Key); err != nil {
			return err
		}
		out[list[i]] = append(out[list[i]], u)
		return nil
	})
	return out, err
}
