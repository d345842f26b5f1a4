package postgres

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lethe/config"
	"lethe/sinks/ledger"
)

func (c *compiler) compileErase() {
	for _, name := range ledger.SortedKeys(c.cfg.Erase.Tables) {
		e := c.cfg.Erase.Tables[name]
		j, ok := c.joined(name, e.By)
		if !ok {
			continue
		}
		step := eraseStep{join: j, delete: e.Delete, unlink: e.Unlink}
		for _, columnName := range ledger.SortedKeys(e.Set) {
			if as, ok := c.assign(j.table, columnName, e.Set[columnName]); ok {
				step.set = append(step.set, as)
			}
		}
		for _, columnName := range ledger.SortedKeys(e.JSON) {
			if as, ok := c.assignJSON(j.table, columnName, e.JSON[columnName]); ok {
				step.set = append(step.set, as)
			}
		}
		c.checkKeys(&step)
		if step.unlink && j.by == nil {
			c.report(ledger.SeverityError, ledger.CodeNoJoin, j.table.label(), "unlink clears the column of by, and there is none", "")
		}
		if step.unlink && j.by != nil && j.by.notNull {
			c.report(ledger.SeverityError, ledger.CodeNotNull, j.table.label()+"."+j.by.name, "unlink sets it to NULL", dropNotNull(j.table, j.by))
		}
		c.m.erase = append(c.m.erase, step)
	}
	for _, name := range ledger.SortedKeys(c.cfg.Hold) {
		h := c.cfg.Hold[name]
		j, ok := c.joined(name, h.By)
		if !ok {
			continue
		}
		from := c.resolve(j.table, strings.TrimPrefix(h.From, name+"."))
		if from != nil && from.base != "date" && from.base != "timestamp" && from.base != "timestamptz" {
			c.report(ledger.SeverityError, ledger.CodeColumnType, j.table.label()+"."+from.name, "the time of a hold runs from a date, the column is "+from.base, "")
		}
		c.m.erase = append(c.m.erase, eraseStep{join: j, hold: true, from: from, keep: h.For})
	}
}

// checkKeys refuses to erase person.key, by which phase 2 is read back, and notes whether the CRM key goes.
func (c *compiler) checkKeys(step *eraseStep) {
	if step.table.oid != c.m.person.oid {
		return
	}
	for i := range step.set {
		col := step.set[i].column
		if col == c.m.key {
			c.report(ledger.SeverityError, ledger.CodeUnsupported, step.table.label()+"."+col.name,
				"person.key cannot be erased: the read-back would look for nobody, and prove nothing; delete the row, or use another key", "")
		}
		c.m.crmErased = c.m.crmErased || slices.Contains(c.m.crm, col)
	}
}

func dropNotNull(t *table, col *column) string {
	return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL;", t.sql(), col.sql())
}

// assign compiles one value for one column.
func (c *compiler) assign(t *table, name string, v config.Value) (assignment, bool) {
	col := c.writable(t, name)
	if col == nil {
		return assignment{}, false
	}
	object := t.label() + "." + name
	as := assignment{column: col, kind: v.Kind}
	switch v.Kind {
	case ledger.KindNull:
		as.sql = "NULL"
		if col.notNull {
			c.report(ledger.SeverityError, ledger.CodeNotNull, object, "null is mapped: map a constant or a token, or allow NULL",
				dropNotNull(t, col))
		}
	case ledger.KindConst:
		as.sql, as.args = "$1::text::"+col.typ, []any{ledger.ConstText(v.Const)}
		if t.isUnique(name) {
			c.report(ledger.SeverityError, ledger.CodeUnique, object,
				`the column is UNIQUE and every person would get the same value: map a token with {random}`, "")
		}
	case ledger.KindToken:
		as.sql, as.args = "replace($1::text, '{random}', replace(gen_random_uuid()::text, '-', ''))::"+col.typ, []any{v.Token}
		if col.category != 'S' {
			c.report(ledger.SeverityError, ledger.CodeColumnType, object, "a token is text, the column is "+col.base, "")
		}
	case ledger.KindTruncate:
		as.sql = "left({row}." + col.sql() + "::text, " + strconv.Itoa(v.Truncate) + ")::" + col.typ
		if col.category != 'S' {
			c.report(ledger.SeverityError, ledger.CodeColumnType, object, "truncate keeps characters, the column is "+col.base, "")
		}
	case ledger.KindGeneralise:
		return c.generalise(t, col, v, as)
	case ledger.KindKey:
		as.sql = "{key}::text::" + col.typ
	case ledger.KindNow:
		as.sql = "now()::" + col.typ
		if col.category != 'D' {
			c.report(ledger.SeverityError, ledger.CodeColumnType, object, "$now is a time, the column is "+col.base, "")
		}
	default:
		c.report(ledger.SeverityError, ledger.CodeUnsupported, object, "$"+v.Kind+" follows from the fold: it belongs under consent, "+
			"objection or restricted", "")
		return assignment{}, false
	}
	return as, true
}

func (c *compiler) generalise(t *table, col *column, v config.Value, as assignment) (assignment, bool) {
	object := t.label() + "." + col.name
	if v.Generalise == "year" || v.Generalise == "month" {
		as.sql = "date_trunc('" + v.Generalise + "', {row}." + col.sql() + ")::" + col.typ
		if col.category != 'D' {
			c.report(ledger.SeverityError, ledger.CodeColumnType, object, "generalise to "+v.Generalise+" needs a date, the column is "+col.base, "")
		}
		return as, true
	}
	as.sql, as.args = "(floor({row}."+col.sql()+"::numeric / $1::text::numeric) * $1::text::numeric)::"+col.typ, []any{v.Generalise}
	if _, err := strconv.ParseFloat(v.Generalise, 64); err != nil || col.category != 'N' {
		c.report(ledger.SeverityError, ledger.CodeColumnType, object, "generalise is year or month for dates, a number for numbers", "")
	}
	return as, true
}

// assignJSON compiles the values for paths of one json or jsonb column into one expression. A path that a row does not
// have stays away.
func (c *compiler) assignJSON(t *table, name string, paths map[string]config.Value) (assignment, bool) {
	col := c.writable(t, name)
	if col == nil {
		return assignment{}, false
	}
	object := t.label() + "." + name
	if col.base != "json" && col.base != "jsonb" {
		c.report(ledger.SeverityError, ledger.CodeColumnType, object, "json paths need a json or jsonb column, it is "+col.base, "")
		return assignment{}, false
	}
	as := assignment{column: col, kind: "json", sql: "{row}." + col.sql() + "::jsonb"}
	for _, path := range ledger.SortedKeys(paths) {
		v := paths[path]
		as.args = append(as.args, strings.Split(path, "."))
		at := len(as.args)
		switch v.Kind {
		case ledger.KindNull:
			as.sql = fmt.Sprintf("jsonb_set(%s, $%d::text[], 'null'::jsonb, false)", as.sql, at)
		case ledger.KindConst:
			as.args = append(as.args, ledger.ConstJSON(v.Const))
			as.sql = fmt.Sprintf("jsonb_set(%s, $%d::text[], $%d::text::jsonb, false)", as.sql, at, at+1)
		default:
			c.report(ledger.SeverityError, ledger.CodeUnsupported, object, "a json path takes null or a constant", "")
		}
	}
	as.sql = "(" + as.sql + ")::" + col.typ
	return as, true
}
