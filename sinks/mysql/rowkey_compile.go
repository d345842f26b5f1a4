package mysql

import (
	"fmt"
	"slices"
	"strings"

	"lethe/sinks/ledger"
)

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
	switch col.category {
	case categoryText, categoryNumber, categoryEnum:
	case categoryDate:
		if kind == ledger.FindBirthDate && col.base != "time" {
			break
		}
		fallthrough
	default:
		c.fault(ledger.CodeColumnType, ft.table.label()+"."+col.name, "nobody is found by a column of type "+col.typ+": text is needed, or a date of birth", "")
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
	if !col.isInteger() && col.base != "datetime" && col.base != "timestamp" && col.base != "date" {
		c.fault(ledger.CodeColumnType, object, "find.changed has to grow with every change: a time or a whole number, the column is "+col.typ, "")
		return
	}
	if !ft.table.indexed[col.name] {
		c.report(ledger.SeverityWarning, ledger.CodeKeyNotIndexed, object, "without an index each scan for changed rows reads the whole table",
			fmt.Sprintf("ALTER TABLE %s ADD INDEX (%s);", ft.table.sql(), col.sql()))
	}
	ft.changed = col
}

// findKey says how the rows of the table are told apart.
func (c *compiler) findKey(ft *findTable) {
	names := ft.table.primary
	if len(names) == 0 && ft.by == nil {
		names = []string{c.m.key.name}
	}
	if len(names) == 0 {
		c.fault(ledger.CodeNoUndoKey, ft.table.label(), "people are found by this table, and its rows cannot be told apart: it has no primary key", "")
		return
	}
	longest := 0
	for _, name := range names {
		col := ft.table.column(name)
		ft.key = append(ft.key, col)
		longest += max(4*col.length, 32)
	}
	if longest > longestRowKey && slices.ContainsFunc(ft.key, func(col *column) bool { return col.length > longestKey }) {
		c.fault(ledger.CodeColumnType, ft.table.label(), fmt.Sprintf("people are found by this table, and its primary key may be longer than %d bytes", longestRowKey), "")
		ft.key = nil
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
		return s.table == t && !s.hold && (s.delete || s.unlink || slices.ContainsFunc(s.set, func(a assignment) bool { return a.column == col }))
	})
}
