package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"lethe/capture"
	"lethe/internal/pii"
)

// walk is how a table is read in the order of a key.
type walk struct {
	table *capture.Table
	key   []int // columns of table
	form  string
	oid   uint32
	types []uint32 // by column of table; of a domain the base type
	first string   // the statement for the first chunk, for $1 the number of rows
	next  string   // …and for the others, with the key of the last row in front
	most  atomic.Int64
}

// keyColumn is a column of the index that a table is read along.
type keyColumn struct {
	name, typeName, collation string
	plain                     bool // ascending, by the order that the type has by itself
}

// PassTable implements capture.Snapshotter.
func (s *Source) PassTable(ctx context.Context, table string) (capture.PassTable, error) {
	var w *walk
	rows := int64(-1)
	err := s.withSQL(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		if w, err = s.planWalk(ctx, conn, table); err != nil {
			return err
		}
		rows, err = estimate(ctx, conn, w.oid)
		return err
	})
	if err != nil {
		return capture.PassTable{}, err
	}
	s.walkMu.Lock()
	if known := s.walks[table]; known != nil && known.form == w.form && sameShape(known.table, w.table) && known.oid == w.oid {
		w = known // rules compile against the pointer
	}
	s.walks[table] = w
	s.walkMu.Unlock()
	how := capture.PassTable{Walk: w.form, Rows: rows}
	for _, k := range w.key {
		how.Key = append(how.Key, w.table.Columns[k].Name)
	}
	return how, nil
}

// walkOf returns what PassTable found last.
func (s *Source) walkOf(ctx context.Context, table string) (*walk, error) {
	s.walkMu.Lock()
	w := s.walks[table]
	s.walkMu.Unlock()
	if w != nil {
		return w, nil
	}
	if _, err := s.PassTable(ctx, table); err != nil {
		return nil, err
	}
	return s.walkOf(ctx, table)
}

// forgetWalk makes the next reader look at the catalog again.
func (s *Source) forgetWalk(table string) {
	s.walkMu.Lock()
	defer s.walkMu.Unlock()
	delete(s.walks, table)
}

func refused(table, cause, format string, args ...any) error {
	return &capture.TableRefusedError{Table: table, Cause: cause, Hint: fmt.Sprintf(format, args...)}
}

// planWalk reads the catalog.
func (s *Source) planWalk(ctx context.Context, conn *pgx.Conn, name string) (*walk, error) {
	t, err := readTable(ctx, conn, name)
	if err != nil {
		return nil, err
	}
	switch {
	case t == nil:
		return nil, refused(name, capture.RefusedMissing, "the table does not exist in this database; correct the mapping, or mark it optional")
	case t.kind != "r" && t.kind != "p":
		return nil, refused(name, capture.RefusedKind, "it is not a table: map the tables that it is made of")
	}
	needs := s.o.Needs[name]
	for _, col := range needs.Columns {
		if t.column(col) == nil {
			return nil, refused(name, capture.RefusedShape, "the mapped column %s does not exist; correct the mapping", col)
		}
	}
	key, err := walkKey(ctx, conn, t)
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, refused(name, capture.RefusedNoKey, "it has neither a primary key nor a unique index over columns that are NOT NULL, "+
			"so that it cannot be read in parts: give it one, for example ALTER TABLE %s ADD PRIMARY KEY (…)", t.quoted())
	}
	columns := slices.Clone(needs.Columns)
	for _, k := range key {
		columns = append(columns, k.name)
	}
	// The identity goes with them: rows are told apart by it as they are in the stream.
	identity := t.identityColumns()
	if t.identity != "f" {
		columns = append(columns, identity...)
	}
	slices.Sort(columns)
	columns = slices.Compact(columns)
	w := &walk{table: &capture.Table{Name: name}, oid: t.oid}
	switch {
	case t.identity == "f":
		w.table.OldRow = capture.OldRowFull
	case len(identity) > 0:
		w.table.OldRow = capture.OldRowKey
	}
	if err := w.describe(ctx, conn, columns, identity); err != nil {
		return nil, fmt.Errorf("reading the catalog about %s: %w", name, pii.DriverError(err))
	}
	if err := readable(ctx, conn, t, columns); err != nil {
		return nil, err
	}
	w.write(t, key)
	return w, nil
}

// walkKey chooses the index: the primary key, else that of the replica identity, else any that is unique without NULL. Its
// order has to be the one that the comparison of its columns gives.
func walkKey(ctx context.Context, conn *pgx.Conn, t *catalogTable) ([]keyColumn, error) {
	rank := func(i catalogIndex) int {
		switch {
		case i.primary:
			return 0
		case i.identity:
			return 1
		}
		return 2
	}
	candidates := slices.DeleteFunc(slices.Clone(t.indexes), func(i catalogIndex) bool { return !i.primary && !t.canIdentify(i) })
	slices.SortStableFunc(candidates, func(a, b catalogIndex) int { return rank(a) - rank(b) })
	for _, i := range candidates {
		r, err := conn.Query(ctx, `SELECT a.attname, pg_catalog.format_type(a.atttypid, -1),
				CASE WHEN co.oid IS NULL THEN '' ELSE pg_catalog.format('%I.%I', cn.nspname, co.collname) END, o.opcdefault AND k.option = 0
			FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid,
				unnest(i.indkey::int2[], i.indcollation::oid[], i.indclass::oid[], i.indoption::int2[]) WITH ORDINALITY k(num, coll, class, option, place)
				JOIN pg_catalog.pg_opclass o ON o.oid = k.class
				LEFT JOIN pg_catalog.pg_collation co ON co.oid = k.coll LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace,
				pg_catalog.pg_attribute a
			WHERE i.indrelid = $1 AND x.relname = $2 AND k.place <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.num
			ORDER BY k.place`, t.oid, i.name)
		if err != nil {
			return nil, fmt.Errorf("reading the catalog about %s: %w", t.full(), pii.DriverError(err))
		}
		var key []keyColumn
		var c keyColumn
		plain := true
		if _, err = pgx.ForEachRow(r, []any{&c.name, &c.typeName, &c.collation, &c.plain}, func() error {
			key, plain = append(key, c), plain && c.plain
			return nil
		}); err != nil {
			return nil, fmt.Errorf("reading the catalog about %s: %w", t.full(), pii.DriverError(err))
		}
		if len(key) > 0 && (plain || i.primary) {
			return key, nil
		}
	}
	return nil, nil //nolint:nilnil // absence is an answer here
}

// describe finds the columns' types, with the names that they have in the stream: a domain has its base type's.
func (w *walk) describe(ctx context.Context, conn *pgx.Conn, columns, identity []string) error {
	r, err := conn.Query(ctx, `SELECT a.attname, b.oid, CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname || '.' END || b.typname
		FROM pg_catalog.pg_attribute a, LATERAL (
			WITH RECURSIVE base(oid, of) AS (
				SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
				UNION ALL SELECT t.oid, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.of)
			SELECT t.oid, t.typname, t.typnamespace FROM base JOIN pg_catalog.pg_type t ON t.oid = base.oid WHERE base.of = 0) b
			JOIN pg_catalog.pg_namespace n ON n.oid = b.typnamespace
		WHERE a.attrelid = $1 AND a.attname = ANY ($2) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, w.oid, columns)
	if err != nil {
		return err
	}
	var base uint32
	var name, typeName string
	_, err = pgx.ForEachRow(r, []any{&name, &base, &typeName}, func() error {
		if known := builtinTypes[base]; known != "" {
			typeName = known
		}
		w.table.Columns = append(w.table.Columns, capture.Column{Name: name, Type: typeName, Key: slices.Contains(identity, name)})
		w.types = append(w.types, base) // as answers describe it
		return nil
	})
	return err
}

// readable looks whether Lethe's login may read all of the rows.
func readable(ctx context.Context, conn *pgx.Conn, t *catalogTable, columns []string) error {
	var schema, rows bool
	var missing []string
	err := conn.QueryRow(ctx, `SELECT has_schema_privilege($2, 'USAGE'), row_security_active($1::oid),
			array(SELECT c FROM unnest($3::text[]) c WHERE NOT has_column_privilege($1::oid, c, 'SELECT'))`, t.oid, t.schema, columns).
		Scan(&schema, &rows, &missing)
	if err != nil {
		return fmt.Errorf("reading the privileges on %s: %w", t.full(), pii.DriverError(err))
	}
	role := quoteIdentifier(conn.Config().User)
	switch {
	case !schema || len(missing) > 0:
		return refused(t.full(), capture.RefusedGrant, "Lethe's login may not read it: %s", strings.Join(t.grants(columns, role), "; "))
	case rows:
		return refused(t.full(), capture.RefusedGrant, "row level security would hide rows from Lethe's login: ALTER ROLE %s BYPASSRLS", role)
	}
	return nil
}

// grants are the statements that let a role read columns.
func (t *catalogTable) grants(columns []string, role string) []string {
	return []string{
		"GRANT USAGE ON SCHEMA " + quoteIdentifier(t.schema) + " TO " + role,
		"GRANT SELECT (" + quotedList(columns) + ") ON " + t.quoted() + " TO " + role,
	}
}

// write makes the statements. The rows are compared as the index orders them: column by column, each under its collation.
func (w *walk) write(t *catalogTable, key []keyColumn) {
	var columns, order, behind, form []string
	for _, c := range w.table.Columns {
		columns = append(columns, "t."+quoteIdentifier(c.Name))
	}
	for i, k := range key {
		w.key = append(w.key, w.table.Index(k.name))
		column := "t." + quoteIdentifier(k.name)
		if k.collation != "" {
			column += " COLLATE " + k.collation
		}
		order = append(order, column)
		behind = append(behind, "$"+strconv.Itoa(i+2)+"::"+k.typeName)
		form = append(form, k.name+" "+k.typeName+" "+k.collation)
	}
	w.form = strings.Join(form, ", ")
	from := " FROM "
	if t.kind == "r" {
		from += "ONLY " // what inherits from it is published under its own name
	}
	from += t.quoted() + " t"
	w.first = "SELECT " + strings.Join(columns, ", ") + from
	tail := " ORDER BY " + strings.Join(order, ", ") + " LIMIT $1::int8"
	w.next = w.first + " WHERE (" + strings.Join(order, ", ") + ") > (" + strings.Join(behind, ", ") + ")" + tail
	w.first += tail
}

// read reads one chunk into buf and tells what its snapshot sees.
func (w *walk) read(ctx context.Context, pg *pgconn.PgConn, after [][]byte, limit int, buf *chunkBuffer) (*snapshot, error) {
	buf.reset()
	sql, params := w.first, [][]byte{strconv.AppendInt(nil, int64(limit), 10)}
	if after != nil {
		sql, params = w.next, append(params, after...)
	}
	batch := &pgconn.Batch{}
	batch.ExecParams("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", nil, nil, nil, nil)
	batch.ExecParams("SELECT pg_catalog.pg_current_snapshot()::text", nil, nil, nil, nil)
	batch.ExecParams(sql, params, nil, nil, nil)
	batch.ExecParams("COMMIT", nil, nil, nil, nil)
	results := pg.ExecBatch(ctx, batch)
	var text string
	var failed error
	for i := 0; failed == nil && results.NextResult(); i++ {
		r := results.ResultReader()
		switch i {
		case 1:
			for r.NextRow() {
				text = string(r.Values()[0])
			}
		case 2:
			failed = w.take(r, buf)
		}
	}
	if buf.cut || failed != nil {
		// The rest of the answer is not worth its way: the connection ends.
		closeConn(ctx, pg)
		if failed != nil {
			return nil, failed
		}
	} else if err := results.Close(); err != nil {
		return nil, err
	}
	return parseSnapshot(text)
}

// take copies the rows of an answer, until maxChunk.
func (w *walk) take(r *pgconn.ResultReader, buf *chunkBuffer) error {
	for i, f := range r.FieldDescriptions() {
		if i >= len(w.types) || f.DataTypeOID != w.types[i] || f.TableOID != w.oid {
			return errOtherShape
		}
	}
	for r.NextRow() {
		buf.add(r.Values())
		if buf.bytes() > maxChunk {
			buf.cut = true
			return nil
		}
	}
	return nil
}

// errOtherShape says that the table is not the one that was planned for.
var errOtherShape = errors.New("the table was changed")

// chunkError makes of what the server says about a chunk what the pass understands. After a change of the table it asks
// again how it is read: then that says what is wrong with it.
func (s *Source) chunkError(table string, err error) error {
	code := ""
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		code = pg.Code
	}
	switch {
	case errors.Is(err, errOtherShape), code == "42P01", code == "42703", code == "42883", code == "42501", code == "3F000", code == "42804":
		s.forgetWalk(table)
		return fmt.Errorf("reading %s: %w", table, capture.ErrTableChanged)
	}
	return fmt.Errorf("reading %s: %w", table, pii.DriverError(err))
}

// estimate is what the statistics say; a partitioned table has what its parts have.
func estimate(ctx context.Context, conn *pgx.Conn, oid uint32) (rows int64, err error) {
	err = conn.QueryRow(ctx, `SELECT coalesce(CASE WHEN bool_and(c.reltuples >= 0) THEN sum(c.reltuples) END, -1)::int8
		FROM pg_catalog.pg_class c WHERE c.oid = $1 AND c.relkind <> 'p'
			OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid) WHERE isleaf)`, oid).Scan(&rows)
	if err != nil {
		return -1, fmt.Errorf("asking how many rows there are: %w", pii.DriverError(err))
	}
	return rows, nil
}

// chunkBuffer holds the rows of one chunk.
type chunkBuffer struct {
	text   []byte
	fields []field
	rows   int
	cut    bool // there are more rows than maxChunk has room for
	values []capture.Value
}

type field struct {
	end  int // in text
	null bool
}

var chunks = sync.Pool{New: func() any { return new(chunkBuffer) }}

func (b *chunkBuffer) reset() { b.text, b.fields, b.rows, b.cut = b.text[:0], b.fields[:0], 0, false }

func (b *chunkBuffer) bytes() int { return len(b.text) + len(b.fields)*16 }

func (b *chunkBuffer) add(values [][]byte) {
	for _, v := range values {
		b.text = append(b.text, v...)
		b.fields = append(b.fields, field{end: len(b.text), null: v == nil})
	}
	b.rows++
}

// row gives the values of a row; they are valid until the next call.
func (b *chunkBuffer) row(i, columns int) []capture.Value {
	b.values = b.values[:0]
	start := 0
	if i > 0 && columns > 0 {
		start = b.fields[i*columns-1].end
	}
	for _, f := range b.fields[i*columns : (i+1)*columns] {
		v := capture.Value{State: capture.Null}
		if !f.null {
			v = capture.Value{State: capture.Present, Text: b.text[start:f.end:f.end]}
		}
		b.values = append(b.values, v)
		start = f.end
	}
	return b.values
}
