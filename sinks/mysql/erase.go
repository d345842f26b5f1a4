package mysql

import (
	"context"
	"fmt"
	"slices"
	"strings"

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
			c.fault(ledger.CodeNoJoin, j.table.label(), "unlink clears the column of by, and there is none", "")
		}
		if step.unlink && j.by != nil && j.by.notNull {
			c.fault(ledger.CodeNotNull, j.table.label()+"."+j.by.name, "unlink sets it to NULL: allow that, or delete the rows", "")
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
		if from != nil && (from.category != categoryDate || from.base == "time") {
			c.fault(ledger.CodeColumnType, j.table.label()+"."+from.name, "the time of a hold runs from a date, the column is "+from.typ, "")
		}
		c.m.erase = append(c.m.erase, eraseStep{join: j, hold: true, from: from, keep: h.For})
	}
}

// checkKeys refuses to erase person.key, by which phase 2 is read back, and notes whether the CRM key goes.
func (c *compiler) checkKeys(step *eraseStep) {
	if step.table != c.m.person {
		return
	}
	for i := range step.set {
		col := step.set[i].column
		if col == c.m.key {
			c.fault(ledger.CodeUnsupported, step.table.label()+"."+col.name,
				"person.key cannot be erased: the read-back would look for nobody, and prove nothing; delete the row, or use another key", "")
		}
		c.m.crmErased = c.m.crmErased || slices.Contains(c.m.crm, col)
	}
}

// compileOrder sorts the steps of phase 2 so that no foreign key is in the way, and names the tables outside the
// mapping that would block a delete or go with it.
func (c *compiler) compileOrder(ctx context.Context) error {
	var list []*table
	for _, name := range ledger.SortedKeys(c.m.tables) {
		if !slices.Contains(list, c.m.tables[name]) {
			list = append(list, c.m.tables[name])
		}
	}
	var err error
	if c.m.keys, err = loadForeignKeys(ctx, c.q, list); err != nil {
		return err
	}
	steps := make([]ledger.Step, len(c.m.erase))
	for i, s := range c.m.erase {
		steps[i] = ledger.Step{Table: s.table.label(), Direct: s.by == nil, Delete: s.delete, Unlink: s.unlink}
	}
	keys := make([]ledger.Key, len(c.m.keys))
	for i, k := range c.m.keys {
		keys[i] = ledger.Key{Child: k.child, Parent: k.parent}
	}
	order, circle := ledger.Order(steps, keys)
	if circle >= 0 {
		c.fault(ledger.CodeForeignKeyCycle, steps[circle].Table,
			"foreign keys between the mapped tables form a circle: unlink one of them instead of deleting", "")
	}
	sorted := make([]eraseStep, len(order))
	for i, at := range order {
		sorted[i] = c.m.erase[at]
	}
	c.m.erase = sorted
	for i := range c.m.erase {
		if c.m.erase[i].delete {
			c.reportDragged(&c.m.erase[i])
		}
	}
	return nil
}

func (c *compiler) reportDragged(s *eraseStep) {
	for _, k := range c.m.keys {
		if k.parent != s.table.label() {
			continue
		}
		child := slices.IndexFunc(c.m.erase, func(o eraseStep) bool { return o.table.label() == k.child })
		cleared := child >= 0 && (c.m.erase[child].delete || c.m.erase[child].unlink && k.child != k.parent)
		switch k.onDelete {
		case "NO ACTION", "RESTRICT":
			if !cleared {
				c.fault(ledger.CodeForeignKeyBlocks, k.child,
					fmt.Sprintf("foreign key %s forbids the delete in %s: map this table with delete or unlink", k.name, k.parent), "")
			}
		case "CASCADE":
			if child < 0 {
				c.report(ledger.SeverityWarning, ledger.CodeForeignKeyDrags, k.child,
					fmt.Sprintf("foreign key %s deletes its rows with those of %s: an opt-out kept there would be lost", k.name, k.parent), "")
			}
		}
	}
}
