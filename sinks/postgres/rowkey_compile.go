package postgres

import (
	"fmt"
	"slices"
	"strings"

	"lethe/sinks/ledger"
)

// findTable is a table with columns by which persons are found where the CRM key is missing: the person's own, or one that
// erase.tables or hold joins to it.
type findTable struct {
	join
	key     []*column // tells its rows apart: the primary key; of the person's own table person.key where there is none
	columns []findColumn
	changed *column // grows when a row changes; nil: the whole table is read each time
	held    bool    // its rows are held instead of erased: they go on saying who the person is
}

// findColumn is one column that says something of a person.
type findColumn struct {
	*column
	kind string // ledger.FindEmail …
}

// compileFind resolves the columns by which persons are found, table by table.
func (c *compiler) compileFind() {
	f := c.cfg.Find
	if f == nil {
		return
	}
	for _, name := range f.Tables() {
		h, held := c.cfg.Hold[name]
		held = held && c.cfg.Erase.Tables[name] == nil
		by := ""
		if held {
			by = h.By
		}
		j, ok := c.joined(name, by)
		if !ok {
			continue
		}
		ft := findTable{join: j, held: held}
		for _, list := range []struct {
			kind  string
			names []string
		}{
			{ledger.FindEmail, f.Email},
			{ledger.FindPhone, f.Phone},
			{ledger.FindName, f.Name},
			{ledger.FindBirthDate, []string{f.BirthDate}},
			{ledger.FindPostal, f.Postal},
		} {
			for _, full := range list.names {
				if column, ok := strings.CutPrefix(full, name+"."); ok && !strings.Contains(column, ".") {
					c.findColumn(&ft, list.kind, column)
				}
			}
		}
		if column := f.ChangedColumn(name); column != "" {
			c.findChanged(&ft, column)
		}
		if c.findKey(&ft); len(ft.key) > 0 {
			c.m.finds = append(c.m.finds, ft)
		}
	}
}

func (c *compiler) findColumn(ft *findTable, kind, name string) {
	col := c.resolve(ft.table, name)
	if col == nil {
		return
	}
	if col.category != 'S' && col.category != 'N' && col.category != 'E' && (col.category != 'D' || kind != ledger.FindBirthDate) {
		c.report(ledger.SeverityError, ledger.CodeColumnType, ft.table.label()+"."+col.name,
			"nobody is found by a column of type "+col.base+": text is needed, or a date of birth", "")
	}
	ft.columns = append(ft.columns, findColumn{col, kind})
}

// findChanged takes the column by which changed rows are read alone. Without an index each scan would read everything all the
// same, and sort it.
func (c *compiler) findChanged(ft *findTable, name string) {
	col := c.resolve(ft.table, name)
	if col == nil {
		return
	}
	object := ft.table.label() + "." + col.name
	if !col.isTime() && col.base != "int2" && col.base != "int4" && col.base != "int8" {
		c.report(ledger.SeverityError, ledger.CodeColumnType, object, "find.changed has to grow with every change: a time or a whole number, the column is "+col.base, "")
		return
	}
	if !ft.table.indexed[col.name] {
		c.report(ledger.SeverityWarning, ledger.CodeKeyNotIndexed, object, "without an index each scan for changed rows reads the whole table",
			fmt.Sprintf("CREATE INDEX CONCURRENTLY ON %s (%s);", ft.table.sql(), col.sql()))
	}
	ft.changed = col
}

// isTime reports whether the column is a day or a time on one.
func (c *column) isTime() bool {
	return c.base == "timestamptz" || c.base == "timestamp" || c.base == "date"
}

// findKey says how the rows of the table are told apart.
func (c *compiler) findKey(ft *findTable) {
	names := ft.table.primary
	if len(names) == 0 && ft.by == nil && c.m.key != nil {
		names = []string{c.m.key.name}
	}
	if len(names) == 0 {
		c.report(ledger.SeverityError, ledger.CodeNoUndoKey, ft.table.label(),
			"people are found by this table, and its rows cannot be told apart: it has no primary key", "")
		return
	}
	for _, name := range names {
		ft.key = append(ft.key, ft.table.column(name))
	}
}

// checkFound reports columns by which a person would still be found after phase 2: it would never be called verified.
func (c *compiler) checkFound() {
	severity := ledger.SeverityWarning
	if c.cfg.Mode == ledger.ModeErase {
		severity = ledger.SeverityError
	}
	for i := range c.m.finds {
		ft := &c.m.finds[i]
		for _, col := range ft.columns {
			if ft.held || c.m.erases(ft.table, col.column) {
				continue
			}
			c.report(severity, ledger.CodeFoundAgain, ft.table.label()+"."+col.name,
				"people are found by this column, and phase 2 leaves it as it is: say in erase.tables what becomes of it", "")
		}
	}
}

// erases reports whether phase 2 changes a column, or deletes or unlinks its rows.
func (m *Mapping) erases(t *table, col *column) bool {
	return slices.ContainsFunc(m.erase, func(s eraseStep) bool {
		return s.table.oid == t.oid && (s.delete || s.unlink || slices.ContainsFunc(s.set, func(a assignment) bool { return a.column.name == col.name }))
	})
}
