package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"lethe/internal/pii"
)

// catalogTable is a mapped table as the catalog has it.
type catalogTable struct {
	oid      uint32
	schema   string
	name     string
	kind     string // r, p, or what cannot be captured
	unlogged bool
	identity string // relreplident: d, n, f, i
	columns  []catalogColumn
	indexes  []catalogIndex
	leaves   []*catalogTable // of a partitioned table
}

type catalogColumn struct {
	name      string
	notNull   bool
	generated bool
}

type catalogIndex struct {
	name     string
	columns  []string
	primary  bool
	identity bool
	// plain is a unique index that can be a replica identity, but for columns that may be NULL: whole table, no expressions,
	// not deferrable, valid.
	plain bool
	valid bool
}

// full is the name as in the config.
func (t *catalogTable) full() string { return t.schema + "." + t.name }

func (t *catalogTable) quoted() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

func (t *catalogTable) column(name string) *catalogColumn {
	for i := range t.columns {
		if t.columns[i].name == name {
			return &t.columns[i]
		}
	}
	return nil
}

// columnNames are those that can be published.
func (t *catalogTable) columnNames() []string {
	var names []string
	for _, c := range t.columns {
		if !c.generated {
			names = append(names, c.name)
		}
	}
	return names
}

func (t *catalogTable) primaryKey() []string {
	for _, i := range t.indexes {
		if i.primary {
			return i.columns
		}
	}
	return nil
}

// identityColumns are those that the old image of an UPDATE or DELETE carries.
func (t *catalogTable) identityColumns() []string {
	switch t.identity {
	case "f":
		return t.columnNames()
	case "i":
		for _, i := range t.indexes {
			if i.identity {
				return i.columns
			}
		}
	case "d":
		return t.primaryKey()
	}
	return nil
}

// canIdentify reports whether PostgreSQL takes i as replica identity.
func (t *catalogTable) canIdentify(i catalogIndex) bool {
	if !i.plain {
		return false
	}
	for _, name := range i.columns {
		if c := t.column(name); c == nil || !c.notNull {
			return false
		}
	}
	return true
}

// readTable returns nil where there is no such table.
func readTable(ctx context.Context, conn *pgx.Conn, name string) (*catalogTable, error) {
	schema, table := splitTable(name)
	var oid uint32
	err := conn.QueryRow(ctx, `SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, schema, table).Scan(&oid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("reading the catalog about %s: %w", name, pii.DriverError(err))
	}
	t, err := readTableByOID(ctx, conn, oid)
	if err == nil && t.kind == "p" {
		err = readLeaves(ctx, conn, t)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the catalog about %s: %w", name, pii.DriverError(err))
	}
	return t, nil
}

func readLeaves(ctx context.Context, conn *pgx.Conn, root *catalogTable) error {
	r, err := conn.Query(ctx, "SELECT relid::oid FROM pg_catalog.pg_partition_tree($1) WHERE isleaf ORDER BY 1", root.oid)
	if err != nil {
		return err
	}
	oids, err := pgx.CollectRows(r, pgx.RowTo[uint32])
	if err != nil {
		return err
	}
	for _, oid := range oids {
		leaf, err := readTableByOID(ctx, conn, oid)
		if err != nil {
			return err
		}
		root.leaves = append(root.leaves, leaf)
	}
	return nil
}

func readTableByOID(ctx context.Context, conn *pgx.Conn, oid uint32) (*catalogTable, error) {
	t := &catalogTable{oid: oid}
	err := conn.QueryRow(ctx, `SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence <> 'p', c.relreplident::text
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, oid).
		Scan(&t.schema, &t.name, &t.kind, &t.unlogged, &t.identity)
	if err != nil {
		return nil, err
	}
	r, err := conn.Query(ctx, `SELECT attname, attnotnull, attgenerated <> '' FROM pg_catalog.pg_attribute
		WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, oid)
	if err != nil {
		return nil, err
	}
	var c catalogColumn
	if _, err = pgx.ForEachRow(r, []any{&c.name, &c.notNull, &c.generated}, func() error {
		t.columns = append(t.columns, c)
		return nil
	}); err != nil {
		return nil, err
	}
	r, err = conn.Query(ctx, `SELECT x.relname, i.indisprimary, i.indisreplident, i.indisvalid AND i.indisready,
			i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid AND i.indisready,
			array(SELECT a.attname FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY k(num, place)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num ORDER BY k.place)::text[]
		FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = $1 ORDER BY x.relname`, oid)
	if err != nil {
		return nil, err
	}
	var i catalogIndex
	_, err = pgx.ForEachRow(r, []any{&i.name, &i.primary, &i.identity, &i.valid, &i.plain, &i.columns}, func() error {
		i.columns = slices.Clone(i.columns)
		t.indexes = append(t.indexes, i)
		return nil
	})
	return t, err
}
