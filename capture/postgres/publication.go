package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"lethe/capture"
	"lethe/internal/pii"
)

// publication is what the catalog says of a publication: Check reports on it, and a running Source compares it with what
// it was at its start.
type publication struct {
	oid       uint32
	allTables bool
	viaRoot   bool
	ops       map[string]bool // insert, update, delete, truncate
	tables    map[string]publishedTable
}

// publishedTable is a table as the publication sends it: the root where viaRoot is set.
type publishedTable struct {
	columns []string // that are sent
	list    bool     // they are a list of the publication's own: a new column is not in it
	filter  string   // row filter
}

// readPublication returns nil where there is no such publication.
func readPublication(ctx context.Context, conn *pgx.Conn, name string) (*publication, error) {
	p := &publication{tables: map[string]publishedTable{}}
	var insert, update, del, truncate bool
	err := conn.QueryRow(ctx, `SELECT oid, puballtables, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate
		FROM pg_catalog.pg_publication WHERE pubname = $1`, name).
		Scan(&p.oid, &p.allTables, &p.viaRoot, &insert, &update, &del, &truncate)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	if err != nil {
		return nil, fmt.Errorf("reading publication %s: %w", name, pii.DriverError(err))
	}
	p.ops = map[string]bool{"insert": insert, "update": update, "delete": del, "truncate": truncate}
	r, err := conn.Query(ctx, `SELECT t.schemaname || '.' || t.tablename, t.attnames::text[], r.prattrs IS NOT NULL, coalesce(t.rowfilter, '')
		FROM pg_catalog.pg_publication_tables t
		JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
		JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
		LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = $2 AND r.prrelid = c.oid
		WHERE t.pubname = $1`, name, p.oid)
	if err != nil {
		return nil, fmt.Errorf("reading the tables of publication %s: %w", name, pii.DriverError(err))
	}
	var table string
	var t publishedTable
	_, err = pgx.ForEachRow(r, []any{&table, &t.columns, &t.list, &t.filter}, func() error {
		p.tables[table] = publishedTable{columns: slices.Clone(t.columns), list: t.list, filter: t.filter}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tables of publication %s: %w", name, pii.DriverError(err))
	}
	return p, nil
}

// lacks reports the tables of needs that p does not send, and the columns of the others that it does not.
func (p *publication) lacks(needs map[string]TableNeeds) (tables, columns []string) {
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		t, ok := p.tables[name]
		if !ok {
			if !needs[name].Optional {
				tables = append(tables, name)
			}
			continue
		}
		for _, col := range needs[name].Columns {
			if !slices.Contains(t.columns, col) {
				columns = append(columns, name+"."+col)
			}
		}
	}
	return tables, columns
}

// changedFrom lists how p differs from what it was, as far as changes of mapped tables may have been lost by it. now may
// be nil. Columns that were added to or dropped from a table without a column list are the stream's business: it sees
// them in their place in the log.
func (p *publication) changedFrom(now *publication, needs map[string]TableNeeds) []string {
	if now == nil {
		return []string{"it was dropped"}
	}
	var what []string
	if now.oid != p.oid {
		what = append(what, "it was dropped and made again")
	}
	if now.viaRoot != p.viaRoot {
		what = append(what, "publish_via_partition_root was changed")
	}
	for _, op := range []string{"insert", "update", "delete", "truncate"} {
		if p.ops[op] != now.ops[op] {
			what = append(what, "its operation "+op+" was changed")
		}
	}
	for _, table := range slices.Sorted(maps.Keys(needs)) {
		was, ok := p.tables[table]
		is, still := now.tables[table]
		switch {
		case ok && !still:
			what = append(what, "table "+table+" was taken out")
		case was.filter != is.filter:
			what = append(what, "the row filter of "+table+" was changed")
		case was.list != is.list || was.list && !slices.Equal(was.columns, is.columns):
			what = append(what, "the column list of "+table+" was changed")
		}
	}
	return what
}

// checkPublication refuses to start on a publication that is missing or lacks something mapped. PostgreSQL 18 only warns of
// a missing one, in its own log, and sends nothing.
func (s *Source) checkPublication(ctx context.Context) error {
	var p *publication
	var dropped []string
	err := s.withSQL(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		dropped = nil
		if p, err = readPublication(ctx, conn, s.o.Publication); p == nil || err != nil {
			return err
		}
		tables, columns := p.lacks(s.o.Needs)
		for _, table := range tables {
			gone, err := droppedTable(ctx, conn, map[string]TableNeeds{table: {}})
			if err != nil {
				return err
			}
			if gone == "" {
				return &SetupError{
					What: fmt.Sprintf("table %s is not in publication %s", table, s.o.Publication),
					Hint: "`lethe check --fix-sql` prints the statement that adds it",
				}
			}
		}
		dropped = append(tables, columns...)
		return nil
	})
	if err != nil {
		return err
	}
	if p == nil {
		return &SetupError{
			What: fmt.Sprintf("publication %s does not exist", s.o.Publication),
			Hint: "`lethe setup` makes it, `lethe check --fix-sql` prints the statement",
		}
	}
	if len(dropped) != 0 {
		// No reason to refuse: the log before a DROP or RENAME can only be read under the old mapping. The stream stops at
		// the first change without a mapped column, and Watch tells of a table that is gone.
		s.o.Log.Error().Strs("objects", dropped).Msg("mapped tables or columns do not exist any more, or columns are not published: " +
			"the log before that is read, capture stops at the first change without them")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// What was edited stays an alarm when the stream starts again: only a person's restart, which checks it, ends that.
	if s.published == nil || s.published.changedFrom(p, s.o.Needs) == nil {
		s.published = p
	}
	return nil
}

// watchPublication compares the publication with what it was when the first stream started.
func (s *Source) watchPublication(ctx context.Context, conn *pgx.Conn) error {
	if s.published == nil {
		return nil // no stream yet
	}
	dropped, err := droppedTable(ctx, conn, s.o.Needs)
	if err != nil {
		return err
	}
	if dropped != "" {
		return &capture.GapError{
			Cause: capture.GapDropped, Object: dropped,
			Hint: fmt.Sprintf("mapped table %s was dropped; that erases nobody: take it out of the mapping, or put it back and run a pass", dropped),
		}
	}
	now, err := readPublication(ctx, conn, s.o.Publication)
	if err != nil {
		return err
	}
	what := s.published.changedFrom(now, s.o.Needs)
	if what == nil {
		return nil
	}
	return &PublicationError{Publication: s.o.Publication, What: what}
}

// droppedTable returns the first mapped table that does not exist.
func droppedTable(ctx context.Context, conn *pgx.Conn, needs map[string]TableNeeds) (string, error) {
	for _, table := range slices.Sorted(maps.Keys(needs)) {
		var there bool
		schema, name := splitTable(table)
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
			ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)`, schema, name).Scan(&there)
		if err != nil {
			return "", fmt.Errorf("looking for table %s: %w", table, pii.DriverError(err))
		}
		if !there && !needs[table].Optional {
			return table, nil
		}
	}
	return "", nil
}
