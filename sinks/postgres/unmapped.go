package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// personalTypes are the type categories that can hold such a value: text, number, date, network address, user-defined
// (json, citext) and array.
const personalTypes = "SNDIUA"

// unmappedColumns lists columns of the person's table, and of every table with a foreign key to it, that look personal
// and that phase 2 does not touch. A person's data outlives an erasure there.
func unmappedColumns(ctx context.Context, q querier, m *Mapping, ledgerSchema string) ([]string, error) {
	tables := []*table{m.person}
	for _, k := range m.keys {
		if k.parentOID != m.person.oid || k.childOID == m.person.oid {
			continue
		}
		if slices.ContainsFunc(tables, func(t *table) bool { return t.oid == k.childOID }) {
			continue
		}
		t, err := tableByOID(ctx, q, k.childOID)
		if err != nil {
			return nil, err
		}
		if t.schema != ledgerSchema {
			tables = append(tables, t)
		}
	}
	for _, s := range m.erase {
		if !slices.ContainsFunc(tables, func(t *table) bool { return t.oid == s.table.oid }) {
			tables = append(tables, s.table)
		}
	}
	var out []string
	for _, t := range tables {
		for _, c := range t.columns {
			if ledger.LooksPersonal(c.name) && slices.Contains([]byte(personalTypes), c.category) && !m.handles(t, c) {
				out = append(out, t.label()+"."+c.name)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

func tableByOID(ctx context.Context, q querier, oid uint32) (*table, error) {
	t := &table{oid: oid, indexed: map[string]bool{}}
	err := q.QueryRow(ctx, `
		SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, oid).Scan(&t.schema, &t.name)
	if err != nil {
		return nil, classify("reading catalog", err)
	}
	t.config = pgx.Identifier{t.schema, t.name}.Sanitize()
	return t, t.loadColumns(ctx, q)
}

// handles reports whether the mapping says what becomes of the column: it is erased, held, kept as the key, or driven
// by the fold.
func (m *Mapping) handles(t *table, c *column) bool {
	if t.oid == m.person.oid && (c.name == m.key.name || slices.ContainsFunc(m.crm, func(k *column) bool { return k.name == c.name })) {
		return true
	}
	for _, s := range m.erase {
		if s.table.oid != t.oid {
			continue
		}
		if s.delete || s.hold || s.by != nil && s.by.name == c.name {
			return true
		}
		if slices.ContainsFunc(s.set, func(a assignment) bool { return a.column.name == c.name }) {
			return true
		}
	}
	for _, f := range m.folds {
		if f.table.oid == t.oid && slices.ContainsFunc(f.columns, func(x foldColumn) bool { return x.column.name == c.name }) {
			return true
		}
	}
	return false
}
