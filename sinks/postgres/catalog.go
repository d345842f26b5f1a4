package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// column is a column of a mapped table as the catalog has it.
type column struct {
	name     string
	number   int16
	typ      string // quoted, with its schema and without length: casting to it never cuts a value
	category byte   // pg_type.typcategory of the type below any domain
	base     string // name of the type below any domain
	notNull  bool
	fixed    bool // generated, or an identity column that is always generated
}

func (c *column) sql() string { return quote(c.name) }

// comparable casts an expression of the column's type to one that the server can compare.
func (c *column) comparable(expression string) string {
	switch c.base {
	case "json":
		return "(" + expression + ")::jsonb"
	case "xml", "point", "polygon", "path":
		return "(" + expression + ")::text"
	}
	return expression
}

// keepsPerson reports whether the column may hold what names, reaches or describes a person, and no flag or code.
func (c *column) keepsPerson() bool {
	switch c.category {
	case 'B', 'E':
		return false
	case 'N', 'D', 'S':
		return ledger.LooksPersonal(c.name)
	}
	return true // documents, arrays, addresses
}

// table is a table of the replica as the catalog has it.
type table struct {
	oid     uint32
	schema  string
	name    string
	config  string // as the config writes it
	columns []*column
	primary []string   // columns of the primary key, in its order
	unique  [][]string // columns of each complete unique index (the primary key's too)
	indexed map[string]bool
	// triggers counts user triggers, which Lethe neither knows nor disables.
	triggers []string
}

func (t *table) sql() string { return quote(t.schema) + "." + quote(t.name) }

// label is what findings and receipts call the table.
func (t *table) label() string { return t.schema + "." + t.name }

func (t *table) column(name string) *column {
	for _, c := range t.columns {
		if c.name == name {
			return c
		}
	}
	return nil
}

// isUnique reports whether a unique index consists of exactly these columns.
func (t *table) isUnique(columns ...string) bool {
	for _, u := range t.unique {
		if sameSet(u, columns) {
			return true
		}
	}
	return false
}

func sameSet(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		found := false
		for _, y := range b {
			found = found || x == y
		}
		if !found {
			return false
		}
	}
	return true
}

// foreignKey is a constraint that leads from child to parent.
type foreignKey struct {
	name                string
	childOID, parentOID uint32
	child, parent       string // schema.table
	childColumns        []string
	onDelete            byte // a: no action, r: restrict, c: cascade, n: set null, d: set default
}

// errNoTable says that the catalog has no such table, or that the role cannot see it.
var errNoTable = errors.New("no such table")

// loadTable reads one table. name is table or schema.table, every segment taken literally: a table without schema is
// looked up along the role's search_path, as the server does it.
func loadTable(ctx context.Context, q querier, name string) (*table, error) {
	segments := strings.Split(name, ".")
	if len(segments) > 2 {
		return nil, fmt.Errorf("reading table %s: %w", name, errNoTable)
	}
	t := &table{config: name, indexed: map[string]bool{}}
	err := q.QueryRow(ctx, `
		SELECT c.oid, n.nspname, c.relname
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p', 'f')`,
		pgx.Identifier(segments).Sanitize()).Scan(&t.oid, &t.schema, &t.name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("reading table %s: %w", name, errNoTable)
	}
	if err != nil {
		return nil, classify("reading catalog", err)
	}
	if err := t.loadColumns(ctx, q); err != nil {
		return nil, err
	}
	if err := t.loadIndexes(ctx, q); err != nil {
		return nil, err
	}
	return t, t.loadTriggers(ctx, q)
}

func (t *table) loadColumns(ctx context.Context, q querier) error {
	rows, err := q.Query(ctx, `
		WITH RECURSIVE base AS (
			SELECT a.attnum, a.atttypid AS declared, a.atttypid AS typ FROM pg_catalog.pg_attribute a
			WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL
			SELECT b.attnum, b.declared, y.typbasetype FROM base b JOIN pg_catalog.pg_type y ON y.oid = b.typ
			WHERE y.typtype = 'd')
		SELECT a.attname, a.attnum, quote_ident(dn.nspname) || '.' || quote_ident(d.typname), y.typcategory::text, y.typname,
			a.attnotnull OR d.typnotnull, a.attgenerated <> '' OR a.attidentity = 'a'
		FROM pg_catalog.pg_attribute a
		JOIN pg_catalog.pg_type d ON d.oid = a.atttypid
		JOIN pg_catalog.pg_namespace dn ON dn.oid = d.typnamespace
		JOIN base b ON b.attnum = a.attnum
		JOIN pg_catalog.pg_type y ON y.oid = b.typ AND y.typtype <> 'd'
		WHERE a.attrelid = $1 ORDER BY a.attnum`, t.oid)
	if err != nil {
		return classify("reading catalog", err)
	}
	defer rows.Close()
	for rows.Next() {
		c := &column{}
		var category string
		if err := rows.Scan(&c.name, &c.number, &c.typ, &category, &c.base, &c.notNull, &c.fixed); err != nil {
			return classify("reading catalog", err)
		}
		c.category = category[0]
		t.columns = append(t.columns, c)
	}
	return classify("reading catalog", rows.Err())
}

func (t *table) loadIndexes(ctx context.Context, q querier) error {
	rows, err := q.Query(ctx, `
		SELECT i.indisprimary, i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL,
			(SELECT coalesce(array_agg(a.attname::text ORDER BY k.n), '{}')
			 FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, n)
			 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
			 WHERE k.n <= i.indnkeyatts),
			i.indpred IS NULL AND am.amname IN ('btree', 'hash')
		FROM pg_catalog.pg_index i
		JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
		JOIN pg_catalog.pg_am am ON am.oid = x.relam
		WHERE i.indrelid = $1 AND i.indisvalid`, t.oid)
	if err != nil {
		return classify("reading catalog", err)
	}
	defer rows.Close()
	for rows.Next() {
		var primary, unique, usable bool
		var columns []string
		if err := rows.Scan(&primary, &unique, &columns, &usable); err != nil {
			return classify("reading catalog", err)
		}
		if primary {
			t.primary = columns
		}
		if unique {
			t.unique = append(t.unique, columns)
		}
		if usable && len(columns) > 0 {
			t.indexed[columns[0]] = true
		}
	}
	return classify("reading catalog", rows.Err())
}

func (t *table) loadTriggers(ctx context.Context, q querier) error {
	rows, err := q.Query(ctx, `
		SELECT tgname FROM pg_catalog.pg_trigger
		WHERE tgrelid = $1 AND NOT tgisinternal AND tgenabled IN ('O', 'A') ORDER BY tgname`, t.oid)
	if err != nil {
		return classify("reading catalog", err)
	}
	t.triggers, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return classify("reading catalog", err)
}

// loadForeignKeys reads every foreign key that leads from or to one of the tables.
func loadForeignKeys(ctx context.Context, q querier, oids []uint32) ([]foreignKey, error) {
	rows, err := q.Query(ctx, `
		SELECT k.conname, k.conrelid, k.confrelid,
			cn.nspname || '.' || c.relname, pn.nspname || '.' || p.relname,
			(SELECT array_agg(a.attname::text ORDER BY x.n) FROM unnest(k.conkey) WITH ORDINALITY x(num, n)
			 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.num),
			k.confdeltype::text
		FROM pg_catalog.pg_constraint k
		JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
		JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = ANY ($1) OR k.confrelid = ANY ($1))
		ORDER BY k.conname, k.conrelid`, oids)
	if err != nil {
		return nil, classify("reading catalog", err)
	}
	defer rows.Close()
	var out []foreignKey
	for rows.Next() {
		var k foreignKey
		var action string
		err := rows.Scan(&k.name, &k.childOID, &k.parentOID, &k.child, &k.parent, &k.childColumns, &action)
		if err != nil {
			return nil, classify("reading catalog", err)
		}
		k.onDelete = action[0]
		out = append(out, k)
	}
	return out, classify("reading catalog", rows.Err())
}
