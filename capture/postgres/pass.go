package postgres

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"lethe/capture"
	"lethe/internal/pii"
)

var _ capture.Snapshotter = (*Source)(nil)

// markContent is that of a logical message which is there for its place alone; see Watermark.
const markContent = "mark"

// mark is the end of the log, where a message was written that is a transaction of its own.
type mark uint64

// Passed implements capture.Mark. Commits come in the order of their records: with the first one behind the mark, which is
// the message's own at the latest, all before it have come.
func (m mark) Passed(p capture.Position) bool { return p.Commit >= uint64(m) }

// Watermark implements capture.Snapshotter by a logical message.
func (s *Source) Watermark(ctx context.Context) (capture.Mark, error) {
	ctx, cancel := context.WithTimeout(ctx, min(sqlTimeout, s.o.Liveness))
	defer cancel()
	var at uint64
	err := s.readers.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var lsn string
		err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)::text", MessagePrefix, markContent).Scan(&lsn)
		if err != nil {
			return fmt.Errorf("writing a mark into the source's log: %w", pii.DriverError(err))
		}
		parsed, err := pglogrepl.ParseLSN(lsn)
		at = uint64(parsed)
		return err
	})
	return mark(at), err
}

// maxChunk bounds the values of one chunk in memory, in bytes.
const maxChunk = 4 << 20

// chunkWithin bounds the reading of one chunk, without the wait for visibility.
const chunkWithin = 60 * time.Second

// ReadChunk implements capture.Snapshotter. Begin, the snapshot, the rows and the end are one round trip; where the snapshot
// does not see enough, the rows are thrown away and read again.
func (s *Source) ReadChunk(ctx context.Context, c capture.ChunkRequest, fn func(*capture.Change) error) (last [][]byte, done bool, err error) {
	w, err := s.walkOf(ctx, c.Table)
	if err != nil {
		return nil, false, err
	}
	if c.After != nil && len(c.After) != len(w.key) {
		return nil, false, fmt.Errorf("reading %s: %w", c.Table, capture.ErrTableChanged)
	}
	buf := chunks.Get().(*chunkBuffer)
	defer chunks.Put(buf)
	limit := c.Limit
	if most := w.most.Load(); most > 0 {
		limit = min(limit, int(most))
	}
	err = s.awaitVisible(ctx, c.Waits, func() (*snapshot, error) {
		var snap *snapshot
		ctx, cancel := context.WithTimeout(ctx, chunkWithin)
		defer cancel()
		err := s.readers.with(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
			snap, err = w.read(ctx, conn.PgConn(), c.After, limit, buf)
			return err
		})
		return snap, err
	})
	if err != nil {
		return nil, false, s.chunkError(c.Table, err)
	}
	if buf.cut {
		w.most.Store(max(int64(buf.rows)/2, 1))
	}
	return s.give(w, buf, limit, fn)
}

// give hands the rows of a chunk over.
func (s *Source) give(w *walk, buf *chunkBuffer, limit int, fn func(*capture.Change) error) (last [][]byte, done bool, err error) {
	change := capture.Change{Op: capture.OpRead, Table: w.table}
	for i := range buf.rows {
		change.New = buf.row(i, len(w.table.Columns))
		if err := fn(&change); err != nil {
			return nil, false, err
		}
	}
	done = buf.rows < limit && !buf.cut
	if buf.rows == 0 {
		return nil, done, nil
	}
	row := buf.row(buf.rows-1, len(w.table.Columns))
	for _, k := range w.key {
		last = append(last, append([]byte{}, row[k].Text...))
	}
	return last, done, nil
}

// The waits between two looks at what a snapshot sees.
const (
	firstLook   = 2 * time.Millisecond
	longestLook = 100 * time.Millisecond
	// quietFor is how long a wait is kept quiet.
	quietFor = time.Second
)

// awaitVisible calls look until its snapshot sees every transaction that the stream has handed over. A commit that waits for
// a synchronous standby is not seen for as long as it waits.
func (s *Source) awaitVisible(ctx context.Context, waits func(string), look func() (*snapshot, error)) error {
	began, told, upTo := time.Now(), false, s.visible.now()
	for wait := firstLook; ; wait = min(2*wait, longestLook) {
		if s.visible.needsFloor() {
			if err := s.findFloor(ctx); err != nil {
				return err
			}
		}
		snap, err := look()
		if err != nil {
			return err
		}
		all, missing := s.visible.sees(snap, upTo)
		if all {
			return nil
		}
		if !told && waits != nil && time.Since(began) > quietFor {
			told = true
			waits(waitReason(missing))
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

func waitReason(missing int) string {
	if missing == 0 {
		return "transactions of the source that were open when capture began to read its log; the oldest is in pg_stat_activity (backend_xid)"
	}
	return strconv.Itoa(missing) + " transactions that are in the log and that other sessions do not see yet: does their COMMIT wait for a " +
		"synchronous standby (pg_stat_activity, wait_event SyncRep)?"
}

// findFloor takes an xid. What an earlier stream has handed over, in this process or another, had its xid before.
func (s *Source) findFloor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(sqlTimeout, s.o.Liveness))
	defer cancel()
	return s.readers.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var text string
		if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_current_xact_id()::text").Scan(&text); err != nil {
			return fmt.Errorf("asking the source for a transaction's number: %w", pii.DriverError(err))
		}
		xid, err := xid32(text)
		if err == nil {
			s.visible.below(xid)
		}
		return err
	})
}

// At implements capture.Snapshotter. Its questions end when ctx does, on the server too.
func (s *Source) At(ctx context.Context, _ capture.Position, fn func(context.Context, capture.Querier) error) error {
	// Every transaction that was handed over is waited for, and so what lies up to the position.
	return s.readers.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		pg := conn.PgConn()
		err := s.awaitVisible(ctx, nil, func() (*snapshot, error) { return openSnapshot(ctx, pg) })
		if err == nil {
			err = fn(ctx, querier{pg})
		}
		if end := pg.Exec(ctx, "ROLLBACK"); err == nil {
			_, err = end.ReadAll()
			err = pii.DriverError(err)
		} else {
			_, _ = end.ReadAll() // the connection is not used again after an error
		}
		return err
	})
}

// openSnapshot begins a transaction, after the end of the one before, and tells what it sees.
func openSnapshot(ctx context.Context, pg *pgconn.PgConn) (*snapshot, error) {
	if pg.TxStatus() != 'I' {
		if _, err := pg.Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
			return nil, fmt.Errorf("ending a snapshot: %w", pii.DriverError(err))
		}
	}
	results, err := pg.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_catalog.pg_current_snapshot()::text").ReadAll()
	if err != nil {
		return nil, fmt.Errorf("opening a snapshot of the source: %w", pii.DriverError(err))
	}
	if len(results) != 2 || len(results[1].Rows) != 1 || len(results[1].Rows[0]) != 1 {
		return nil, errSnapshot
	}
	return parseSnapshot(string(results[1].Rows[0][0]))
}

// querier implements capture.Querier on a transaction.
type querier struct{ pg *pgconn.PgConn }

// Query implements capture.Querier. Arguments are bound as $1, $2, …; their types are the server's to find.
func (q querier) Query(ctx context.Context, each func([]capture.Value) error, sql string, args ...any) error {
	params := make([][]byte, len(args))
	for i, a := range args {
		var err error
		if params[i], err = textOf(a); err != nil {
			return err
		}
	}
	r := q.pg.ExecParams(ctx, sql, params, nil, nil, nil)
	row := make([]capture.Value, len(r.FieldDescriptions()))
	var failed error
	for r.NextRow() {
		if failed != nil {
			continue // to the end of the answer: the connection is used again
		}
		row = sized(row, len(r.Values()))
		for i, v := range r.Values() {
			row[i] = capture.Value{State: capture.Present, Text: v}
			if v == nil {
				row[i] = capture.Value{State: capture.Null}
			}
		}
		failed = each(row)
	}
	if _, err := r.Close(); err != nil {
		return fmt.Errorf("asking the source: %w", pii.DriverError(err))
	}
	return failed
}

// textOf gives the text form of an argument; nil is NULL.
func textOf(a any) ([]byte, error) {
	switch a := a.(type) {
	case nil:
		return nil, nil
	case []byte:
		return a, nil
	case string:
		return []byte(a), nil
	case bool:
		return strconv.AppendBool(nil, a), nil
	case int:
		return strconv.AppendInt(nil, int64(a), 10), nil
	case int64:
		return strconv.AppendInt(nil, a, 10), nil
	case time.Time:
		return a.UTC().AppendFormat(nil, time.RFC3339Nano), nil
	}
	return nil, fmt.Errorf("asking the source: an argument of type %T", a)
}
