package postgres

import (
	"context"
	"fmt"
	"slices"

	"lethe/sinks/ledger"
)

// compileOrder sorts the steps of phase 2 so that no foreign key is in the way, and names the tables outside the
// mapping that would block a delete or go with it.
func (c *compiler) compileOrder(ctx context.Context) error {
	var oids []uint32
	for _, t := range c.m.tables {
		oids = append(oids, t.oid)
	}
	slices.Sort(oids)
	keys, err := loadForeignKeys(ctx, c.q, oids)
	if err != nil {
		return err
	}
	c.m.keys = keys
	steps := make([]ledger.Step, len(c.m.erase))
	for i, s := range c.m.erase {
		steps[i] = ledger.Step{Table: s.table.label(), Direct: s.by == nil, Delete: s.delete, Unlink: s.unlink}
	}
	links := make([]ledger.Key, len(keys))
	for i, k := range keys {
		links[i] = ledger.Key{Child: k.child, Parent: k.parent}
	}
	order, circle := ledger.Order(steps, links)
	if circle >= 0 {
		c.report(ledger.SeverityError, ledger.CodeForeignKeyCycle, steps[circle].Table,
			"foreign keys between the mapped tables form a circle: unlink one of them instead of deleting", "")
	}
	given := c.m.erase
	c.m.erase = make([]eraseStep, len(order))
	for i, place := range order {
		c.m.erase[i] = given[place]
	}
	for _, s := range c.m.erase {
		if s.delete {
			c.reportDragged(s, keys)
		}
	}
	return nil
}

func (c *compiler) reportDragged(s eraseStep, keys []foreignKey) {
	for _, k := range keys {
		if k.parentOID != s.table.oid {
			continue
		}
		child := slices.IndexFunc(c.m.erase, func(o eraseStep) bool { return o.table.oid == k.childOID })
		cleared := child >= 0 && (c.m.erase[child].delete || c.m.erase[child].unlink && k.childOID != s.table.oid)
		switch k.onDelete {
		case 'a', 'r':
			if !cleared {
				c.report(ledger.SeverityError, ledger.CodeForeignKeyBlocks, k.child,
					fmt.Sprintf("foreign key %s forbids the delete in %s: map this table with delete or unlink", k.name, k.parent), "")
			}
		case 'c':
			if child < 0 {
				c.report(ledger.SeverityWarning, ledger.CodeForeignKeyDrags, k.child,
					fmt.Sprintf("foreign key %s deletes its rows with those of %s: an opt-out kept there would be lost", k.name, k.parent), "")
			}
		}
	}
}
