package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
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
	steps := c.m.erase
	c.m.erase = nil
	for len(steps) > 0 {
		next := slices.IndexFunc(steps, func(s eraseStep) bool { return !hasChildIn(s, steps, keys) })
		if next < 0 {
			c.report(SeverityError, CodeForeignKeyCycle, steps[0].table.label(),
				"foreign keys between the mapped tables form a circle: unlink one of them instead of deleting", "")
			c.m.erase = append(c.m.erase, steps...)
			break
		}
		c.m.erase = append(c.m.erase, steps[next])
		steps = slices.Delete(steps, next, next+1)
	}
	for _, s := range c.m.erase {
		if s.delete {
			c.reportDragged(s, keys)
		}
	}
	return nil
}

// hasChildIn reports whether a remaining step has to run before s because its rows refer to rows of s.
func hasChildIn(s eraseStep, steps []eraseStep, keys []foreignKey) bool {
	if !s.delete {
		// The person's own table is last even when its row stays: the other steps find their rows through it.
		return s.by == nil && slices.ContainsFunc(steps, func(o eraseStep) bool { return o.by != nil })
	}
	for _, k := range keys {
		if k.parentOID != s.table.oid || k.childOID == s.table.oid {
			continue
		}
		if slices.ContainsFunc(steps, func(o eraseStep) bool { return o.table.oid == k.childOID }) {
			return true
		}
	}
	return s.by == nil && slices.ContainsFunc(steps, func(o eraseStep) bool { return o.by != nil })
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
				c.report(SeverityError, CodeForeignKeyBlocks, k.child,
					fmt.Sprintf("foreign key %s forbids the delete in %s: map this table with delete or unlink", k.name, k.parent), "")
			}
		case 'c':
			if child < 0 {
				c.report(SeverityWarning, CodeForeignKeyDrags, k.child,
					fmt.Sprintf("foreign key %s deletes its rows with those of %s: an opt-out kept there would be lost", k.name, k.parent), "")
			}
		}
	}
}

// jsonString quotes a constant of the config as JSON.
func jsonString(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // json.Marshal replaces what is not UTF-8 and fails for no string
		return `""`
	}
	return string(b)
}
