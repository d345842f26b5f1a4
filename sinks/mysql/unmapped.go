package mysql

import (
	"context"
	"slices"

	"lethe/sinks/ledger"
)

// unmappedColumns lists columns of the person's table, and of every table with a foreign key to it, that look personal
// and that phase 2 does not touch. A person's data outlives an erasure there.
func unmappedColumns(ctx context.Context, q querier, m *Mapping) ([]string, error) {
	tables := []*table{m.person}
	add := func(t *table) {
		if !slices.ContainsFunc(tables, func(o *table) bool { return o.label() == t.label() }) {
			tables = append(tables, t)
		}
	}
	for i := range m.erase {
		add(m.erase[i].table)
	}
	for _, k := range m.keys {
		if k.parent != m.person.label() || slices.ContainsFunc(tables, func(t *table) bool { return t.label() == k.child }) {
			continue
		}
		t, err := loadTableOf(ctx, q, k.childSchema, k.childName)
		if err != nil {
			return nil, err
		}
		add(t)
	}
	var out []string
	for _, t := range tables {
		for _, c := range t.columns {
			if ledger.LooksPersonal(c.name) && c.category != categoryBool && c.category != categoryEnum && !m.handles(t, c) {
				out = append(out, t.label()+"."+c.name)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// handles reports whether the mapping says what becomes of the column: it is erased, held, kept as the key, or driven
// by the fold.
func (m *Mapping) handles(t *table, c *column) bool {
	if c == m.key || slices.Contains(m.crm, c) {
		return true
	}
	for _, s := range m.erase {
		if s.table.label() != t.label() {
			continue
		}
		if s.delete || s.hold || s.by == c {
			return true
		}
		if slices.ContainsFunc(s.set, func(a assignment) bool { return a.column == c }) {
			return true
		}
	}
	for _, f := range m.folds {
		if slices.ContainsFunc(f.columns, func(x foldColumn) bool { return x.column == c }) {
			return true
		}
	}
	return false
}
