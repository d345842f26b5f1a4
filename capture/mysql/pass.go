package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"

	"lethe/capture"
	"lethe/internal/pii"
)

var _ capture.Snapshotter = (*Source)(nil)

// maxChunk bounds the texts of a chunk, in bytes. One row may be larger.
const maxChunk = 4 << 20

// chunks are used again: a pass reads thousands of the same size.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// ReadChunk implements capture.Snapshotter. It reads without locks, in a transaction of its own that ends before fn is called.
func (s *Source) ReadChunk(ctx context.Context, c capture.ChunkRequest, fn func(*capture.Change) error) (last [][]byte, done bool, err error) {
	got, _ := chunks.Get().(*chunk)
	defer chunks.Put(got)
	for range maxAttempts {
		known, err := s.walkOf(ctx, c.Table)
		if err != nil {
			return nil, false, err
		}
		if known.walk.text != known.told {
			return nil, false, changed(c.Table) // an earlier call has said so too
		}
		limit := c.Limit
		if known.limit > 0 {
			limit = min(limit, known.limit)
		}
		err = s.fill(ctx, known.walk, &c, limit, got)
		switch {
		case errors.Is(err, errRemade):
			continue
		case errors.Is(err, errTooLarge):
			s.limit(c.Table, max(got.rows, 1))
			continue
		case err != nil:
			return nil, false, err
		}
		if known.limit > 0 && got.rows == limit {
			s.limit(c.Table, 2*known.limit) // the large ones may lie behind
		}
		if err := got.each(known.walk.table, known.walk.places, fn); err != nil {
			return nil, false, err
		}
		return got.last, got.rows < limit, nil
	}
	return nil, false, fmt.Errorf("reading table %s: its definition changes again and again, or its rows grow; it is tried again", c.Table)
}

// maxAttempts bounds how often a chunk is read anew because the table was altered, or its rows are larger than thought.
const maxAttempts = 8

var (
	// errRemade tells that the table was altered, in a way that the key of the last chunk survives.
	errRemade = errors.New("the table was altered")
	// errTooLarge tells that a chunk does not fit into its memory.
	errTooLarge = errors.New("the chunk is too large")
)

// limit remembers how many rows of a table fit into a chunk.
func (s *Source) limit(table string, rows int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.walks[table]
	known.limit = rows
	s.walks[table] = &known
}

// fill reads a chunk. The table's definition is compared when the rows are read: the transaction holds it as it is from then on.
func (s *Source) fill(ctx context.Context, w *walk, c *capture.ChunkRequest, limit int, into *chunk) error {
	query, args, err := w.query(c.After, limit)
	if err != nil {
		return fmt.Errorf("reading table %s: %w", c.Table, err)
	}
	return s.snapshot(ctx, c.Seen, c.Waits, func(ctx context.Context, r *reading, conn *sql.Conn) error {
		into.reset()
		err := into.read(ctx, r, conn, "SELECT "+query, args, len(w.key))
		switch pii.MySQLNumber(err) {
		case unknownColumn, unknownTable, unknownKey, definitionChanged, databaseDenied, tableDenied, columnDenied:
			return s.altered(ctx, conn, c.Table)
		}
		if err != nil {
			if !errors.Is(err, errTooLarge) {
				err = fmt.Errorf("reading table %s: %w", c.Table, err)
			}
			return err
		}
		database, name, _ := splitTable(c.Table) // the walk was made of it
		in := &inspection{o: s.o, conn: conn}
		made, err := in.definition(ctx, database, name)
		switch {
		case err != nil:
			return fmt.Errorf("reading how table %s is made: %w", c.Table, err)
		case made != w.made:
			return s.altered(ctx, conn, c.Table)
		}
		return nil
	})
}

// Errors of the servers about a table that was altered meanwhile.
const (
	unknownKey        = 1176 // ER_KEY_DOES_NOT_EXITS
	definitionChanged = 1412 // ER_TABLE_DEF_CHANGED
)

// altered makes the table's walk anew, and returns errRemade where it leads the same way.
func (s *Source) altered(ctx context.Context, conn *sql.Conn, table string) error {
	if err := s.remake(ctx, conn, table); err != nil {
		return err
	}
	return errRemade
}

// read takes the whole answer of a query whose first columns are the key.
func (c *chunk) read(ctx context.Context, r *reading, conn *sql.Conn, query string, args []any, key int) error {
	ends := make([]int, key)
	var text []byte
	var forms []readForm
	err := r.eachValueAgain(ctx, conn, query, args, func(rows driver.Rows, values []driver.Value) error {
		if forms == nil {
			forms = formsOf(rows)
		}
		text = text[:0]
		for i, v := range values[:key] {
			form := forms[i]
			if form == readBytes {
				form = readPlain // a key's bytes are its own
			}
			var err error
			if text, _, err = appendRead(text, form, v); err != nil {
				return err
			}
			ends[i] = len(text)
		}
		for i, v := range values[key:] {
			if err := c.add(forms[key+i], v); err != nil {
				return err
			}
		}
		c.rows++
		if len(c.text) > maxChunk && c.rows > 1 {
			c.rows--
			return errTooLarge
		}
		return nil
	})
	if err != nil || c.rows == 0 {
		return err
	}
	at := 0
	for _, end := range ends {
		c.last = append(c.last, text[at:end:end])
		at = end
	}
	return nil
}

// eachValue runs a query as a prepared statement, whose arguments are bound and whose values come as they are stored, and gives
// every row to fn. The values are valid until fn returns. Where fn stops with errTooLarge the connection is given up: the rest
// of the answer may be long.
func eachValue(ctx context.Context, conn *sql.Conn, query string, args []any, fn func(driver.Rows, []driver.Value) error) error {
	return onConn(conn, func(raw any) error {
		statement, err := prepare(ctx, raw, query)
		if err != nil {
			return err
		}
		if err = eachRawValue(ctx, raw, statement, args, fn); errors.Is(err, errTooLarge) {
			return err
		}
		return errors.Join(err, pii.DriverError(statement.Close()))
	})
}

// eachValueAgain is eachValue for a query that is likely to come again on the same connection.
func (r *reading) eachValueAgain(ctx context.Context, conn *sql.Conn, query string, args []any, fn func(driver.Rows, []driver.Value) error) error {
	return onConn(conn, func(raw any) (err error) {
		known := r.known(raw)
		if known.query != query {
			if known.statement != nil {
				if err := known.statement.Close(); err != nil {
					return pii.DriverError(err)
				}
				known.statement, known.query = nil, ""
			}
			if known.statement, err = prepare(ctx, raw, query); err != nil {
				return err
			}
			known.query = query
		}
		return eachRawValue(ctx, raw, known.statement, args, fn)
	})
}

// onConn lends the driver's connection. With errTooLarge it is given up.
func onConn(conn *sql.Conn, fn func(raw any) error) error {
	var outcome error
	err := conn.Raw(func(raw any) error {
		if outcome = fn(raw); errors.Is(outcome, errTooLarge) {
			return driver.ErrBadConn
		}
		return nil
	})
	if outcome != nil {
		return outcome
	}
	return pii.DriverError(err)
}

func prepare(ctx context.Context, raw any, query string) (driver.Stmt, error) {
	preparer, ok := raw.(driver.ConnPrepareContext)
	if !ok {
		return nil, fmt.Errorf("preparing a query: the driver's connection is a %T", raw)
	}
	statement, err := preparer.PrepareContext(ctx, query)
	return statement, pii.DriverError(err)
}

func eachRawValue(ctx context.Context, raw any, statement driver.Stmt, args []any, fn func(driver.Rows, []driver.Value) error) (err error) {
	checker, ok1 := raw.(driver.NamedValueChecker)
	asking, ok2 := statement.(driver.StmtQueryContext)
	if !ok1 || !ok2 {
		return fmt.Errorf("running a query: the driver's connection is a %T, its statement a %T", raw, statement)
	}
	bound := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		bound[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
		if err := checker.CheckNamedValue(&bound[i]); err != nil {
			return fmt.Errorf("binding argument %d of a query: it is a %T", i+1, arg)
		}
	}
	rows, err := asking.QueryContext(ctx, bound)
	if err != nil {
		return pii.DriverError(err)
	}
	defer func() {
		if !errors.Is(err, errTooLarge) {
			err = errors.Join(err, pii.DriverError(rows.Close()))
		}
	}()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(values); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return pii.DriverError(err)
		}
		if err := fn(rows, values); err != nil {
			return err
		}
	}
}

// At implements capture.Snapshotter.
func (s *Source) At(ctx context.Context, seen capture.Position, fn func(ctx context.Context, q capture.Querier) error) error {
	return s.snapshot(ctx, seen, nil, func(ctx context.Context, _ *reading, conn *sql.Conn) error {
		return fn(ctx, &querier{conn: conn})
	})
}

// querier asks within a snapshot.
type querier struct {
	conn *sql.Conn
	text []byte
	row  []capture.Value
	ends []int
}

// Query implements capture.Querier.
func (q *querier) Query(ctx context.Context, each func(row []capture.Value) error, query string, args ...any) error {
	var forms []readForm
	return eachValue(ctx, q.conn, query, args, func(rows driver.Rows, values []driver.Value) error {
		if forms == nil {
			forms = formsOf(rows)
		}
		q.text, q.row, q.ends = q.text[:0], q.row[:0], q.ends[:0]
		for i, v := range values {
			var state capture.ValueState
			var err error
			if q.text, state, err = appendRead(q.text, forms[i], v); err != nil {
				return err
			}
			q.row, q.ends = append(q.row, capture.Value{State: state}), append(q.ends, len(q.text))
		}
		at := 0
		for i, end := range q.ends { // not before all are there: the texts may have moved
			if q.row[i].State == capture.Present {
				q.row[i].Text = q.text[at:end:end]
			}
			at = end
		}
		return each(q.row)
	})
}
