package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

const opScan = "reading the rows that persons are found by"

// The stages of a scan. The rows of a table are read by its key, or those that have changed by the column that says so; a
// scan of the whole table then looks for rows that have vanished.
const (
	scanIdle    = "idle"
	scanRows    = "rows"
	scanChanged = "changed"
	scanGone    = "gone"
)

// The sizes of a scan.
const (
	scanPoll  = 200 * time.Millisecond // how soon phase 2 comes back that waits for one
	scanChunk = 5000                   // rows of one transaction
	scanSlice = 250 * time.Millisecond // how long one call of the chore goes on
	// scanWhole is how often a table is read as a whole whose changed rows are known: rows that vanish are in no change.
	scanWhole = 24 * time.Hour
	// scanOverlap is how far behind the newest change the next scan begins: a change has the time of its statement, and is
	// seen from its commit on.
	scanOverlap = "interval '5 minutes'"
)

// scanPartition is the partition whose owner scans: what is read belongs to no subject yet.
const scanPartition = 0

// scanState is a row of the table scan.
type scanState struct {
	basis   []byte // what the keys were made with; another one makes everything be read anew
	run     int64
	stage   string
	after   []byte  // the last row read, as a canonical key; nil: none yet
	mark    *string // the newest change that a scan which has ended has seen
	wanted  bool    // an erasure waits for it
	started time.Time
	full    *time.Time // when the last scan of the whole table that has ended began
	fresh   *time.Time // when the last scan that has ended began: what was there then is in row_key
	now     time.Time
}

// scanTables keeps row_key current: by the first scan, then every find.scan, and as soon as an erasure waits for it. Scans are
// resumed where they were. They lock no row of a mapped table, take a slice of the time, and leave as much again between two
// of them, unless somebody waits.
func (r *Replica) scanTables(ctx context.Context, places []sinks.Place) (time.Time, error) {
	m, err := r.compiled(ctx)
	if err != nil || len(m.finds) == 0 {
		return time.Time{}, err
	}
	if !slices.ContainsFunc(places, func(p sinks.Place) bool { return p.Partition == scanPartition }) {
		return time.Time{}, nil
	}
	began := time.Now()
	for {
		next, urgent, err := r.scanOnce(ctx, m)
		if err != nil || next.After(time.Now()) {
			return next, err
		}
		if took := time.Since(began); took >= scanSlice {
			if urgent {
				return time.Now(), nil
			}
			return time.Now().Add(took), nil
		}
	}
}

// scanOnce reads the next chunk of the first table that is due, and returns when there is something to do again. urgent says
// that somebody waits for it.
func (r *Replica) scanOnce(ctx context.Context, m *Mapping) (next time.Time, urgent bool, err error) {
	for i := range m.finds {
		ft := &m.finds[i]
		var due time.Time
		var pressing bool
		err := r.inTx(ctx, opScan, func(ctx context.Context, tx pgx.Tx) error {
			// What a crash takes of the index, it takes of scan too.
			if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
				return err
			}
			s, err := r.scanOf(ctx, tx, ft.table.config)
			if err != nil {
				return err
			}
			due, pressing, err = r.scanTable(ctx, tx, m, ft, s)
			return err
		})
		if err != nil {
			return time.Time{}, false, err
		}
		if !due.After(time.Now()) {
			return due, pressing, nil
		}
		next = ledger.Sooner(next, due)
	}
	return next, false, nil
}

// scanOf reads the state of a table's scan, and locks it: two workers never read the same chunk. nil: there is none yet.
func (r *Replica) scanOf(ctx context.Context, tx pgx.Tx, table string) (*scanState, error) {
	s := &scanState{}
	err := tx.QueryRow(ctx, r.ledger.sql(`SELECT basis, run, stage, after_pk, watermark, wanted, started_at, full_at, fresh_at, now()
		FROM {s}.scan WHERE tbl = $1 FOR UPDATE`), table).
		Scan(&s.basis, &s.run, &s.stage, &s.after, &s.mark, &s.wanted, &s.started, &s.full, &s.fresh, &s.now)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return s, err
}

// scanTable does the next step of one table's scan, if one is under way or due.
func (r *Replica) scanTable(ctx context.Context, tx pgx.Tx, m *Mapping, ft *findTable, s *scanState) (due time.Time, urgent bool, err error) {
	basis := r.basisOf(m, ft)
	now := time.Now()
	if s == nil || !bytes.Equal(s.basis, basis) {
		return now, true, r.beginScan(ctx, tx, ft, basis, scanRows, true)
	}
	switch s.stage {
	case scanIdle:
		due = now.Add(s.started.Add(r.cfg.Find.Scan).Sub(s.now))
		if due.After(now) && !s.wanted {
			return due, false, nil
		}
		stage := scanRows
		if ft.changed != nil && s.mark != nil && s.full != nil && s.now.Before(s.full.Add(max(scanWhole, r.cfg.Find.Scan))) {
			stage = scanChanged
		}
		return now, s.wanted, r.beginScan(ctx, tx, ft, basis, stage, false)
	case scanGone:
		err = r.sweepChunk(ctx, tx, ft, s)
	default:
		err = r.scanRows(ctx, tx, m, ft, s)
	}
	return now, s.wanted || s.fresh == nil, err
}

// basisOf is a digest of what decides the keys of a table: the mapping, the key of its rows, and the match keys with their
// rules, by the example of a person who does not exist.
func (r *Replica) basisOf(m *Mapping, ft *findTable) []byte {
	h := sha256.New()
	h.Write(r.opts.MappingDigest[:])
	for _, c := range ft.key {
		h.Write([]byte(c.name + "\x00" + c.typ + "\x00"))
	}
	h.Write([]byte(m.key.name + "\x00" + m.key.typ))
	for _, k := range r.core.RowKeys(&ledger.RowTexts{
		Emails: []string{"a.person+tag@gmail.com"}, Phones: []string{"+33612345678"}, Name: []string{"A", "Person"}, BirthDate: "1970-01-01",
		Postal: []string{"1 A Street", "75001", "Paris"},
	}) {
		h.Write(k.Value[:])
	}
	return h.Sum(nil)
}

// beginScan begins a scan. Its first transaction is the time from which on it sees what is there.
func (r *Replica) beginScan(ctx context.Context, tx pgx.Tx, ft *findTable, basis []byte, stage string, anew bool) error {
	var mark *string
	if ft.changed != nil {
		query := "SELECT max(t." + ft.changed.sql() + ")::text FROM " + ft.table.sql() + " AS t"
		if err := tx.QueryRow(ctx, query).Scan(&mark); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, r.ledger.sql(`
		INSERT INTO {s}.scan AS s (tbl, basis, stage, next_mark, started_at) VALUES ($1, $2, $3, $4, now())
		ON CONFLICT (tbl) DO UPDATE SET basis = excluded.basis, run = s.run + 1, stage = excluded.stage, after_pk = NULL,
			next_mark = excluded.next_mark, started_at = now(), seen = 0, full_at = CASE WHEN NOT $5 THEN s.full_at END,
			fresh_at = CASE WHEN NOT $5 THEN s.fresh_at END, watermark = CASE WHEN NOT $5 THEN s.watermark END`),
		ft.table.config, basis, stage, mark, anew)
	return err
}

// scanRows reads the next rows and makes row_key hold their keys. The rows are read as they were committed last, without a
// lock: whoever changes one meanwhile is seen by the next scan, and a row is read again before anything is decided by it.
func (r *Replica) scanRows(ctx context.Context, tx pgx.Tx, m *Mapping, ft *findTable, s *scanState) error {
	list, last, err := ft.read(ctx, tx, m, s, r.scanChunk)
	if err != nil {
		return err
	}
	pks := make(byteArray, len(list))
	for i := range list {
		pks[i] = list[i].id()
	}
	keys := r.keysOf(list, pks)
	added, err := r.setKeys(ctx, tx, ft.table.config, pks, keys, s.run == 1)
	if err != nil {
		return err
	}
	if err := r.touchFound(ctx, tx, added); err != nil {
		return err
	}
	stage := s.stage
	if len(list) < r.scanChunk {
		last = nil
		if stage = scanIdle; s.stage == scanRows && s.run > 1 {
			stage = scanGone
		}
	}
	_, err = tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.scan SET stage = $2, after_pk = $3, seen = seen + $4 WHERE tbl = $1`),
		ft.table.config, stage, last, len(list))
	if err != nil || stage != scanIdle {
		return err
	}
	return r.endScan(ctx, tx, ft, s.stage == scanRows)
}

// touchFound asks for a look at the subjects that hold keys which have come up: a row may be theirs, and before this nobody knew.
func (r *Replica) touchFound(ctx context.Context, tx pgx.Tx, added []rowKey) error {
	if len(added) == 0 {
		return nil
	}
	var anybody bool
	err := tx.QueryRow(ctx, r.ledger.sql(`SELECT EXISTS (SELECT FROM {s}.contact_key)`)).Scan(&anybody)
	if err != nil || !anybody {
		return err
	}
	values := make(byteArray, len(added))
	for i := range added {
		values[i] = added[i].value[:]
	}
	_, err = tx.Exec(ctx, r.ledger.sql(sqlTouchHolders), values, ledger.TouchRow)
	return err
}

// endScan notes that a scan has seen everything that was there when it began.
func (r *Replica) endScan(ctx context.Context, tx pgx.Tx, ft *findTable, whole bool) error {
	_, err := tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.scan SET stage = 'idle', after_pk = NULL, watermark = coalesce(next_mark, watermark), wanted = false,
		ended_at = now(), fresh_at = started_at, full_at = CASE WHEN $2 THEN started_at ELSE full_at END WHERE tbl = $1`), ft.table.config, whole)
	return err
}

// read reads the next rows of a scan in their order, and returns the last one's place in it.
func (ft *findTable) read(ctx context.Context, tx pgx.Tx, m *Mapping, s *scanState, limit int) (list []rowRef, last []byte, err error) {
	order := ft.key
	if s.stage == scanChanged {
		order = append([]*column{ft.changed}, ft.key...)
	}
	q := &statement{}
	where, err := ft.behind(q, order, s)
	if err != nil {
		return nil, nil, err
	}
	names := make([]string, len(order))
	for i, c := range order {
		names[i] = "t." + c.sql()
	}
	q.WriteString("SELECT " + names[0] + "::text, " + ft.selected(m) + " FROM " + ft.table.sql() + " AS t" + where + " ORDER BY " +
		strings.Join(names, ", ") + " LIMIT " + q.arg(limit))
	// The order of the key is that of its index; a sort of the whole table for each chunk would look cheaper once in a while.
	if _, err := tx.Exec(ctx, `SET LOCAL enable_sort = off`); err != nil {
		return nil, nil, err
	}
	rows, err := tx.Query(ctx, q.String(), q.args...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	list = make([]rowRef, 0, limit)
	var first *string
	reader := newRowReader(ft, &first)
	for rows.Next() {
		list = append(list, rowRef{})
		if err := reader.scan(rows, &list[len(list)-1]); err != nil {
			return nil, nil, err
		}
	}
	if err := rows.Err(); err != nil || len(list) == 0 {
		return nil, nil, err
	}
	row := &list[len(list)-1]
	if s.stage == scanChanged {
		return list, (&rowRef{key: append([]string{*first}, row.key...)}).id(), nil
	}
	return list, row.id(), nil
}

// behind is the condition of the rows that a scan still has to read.
func (ft *findTable) behind(q *statement, order []*column, s *scanState) (string, error) {
	switch {
	case s.after != nil:
		parts, err := schema.SplitKey(s.after)
		if err != nil || len(parts) != len(order) {
			return "", errRowKey()
		}
		names, values := make([]string, len(order)), make([]string, len(order))
		for i, c := range order {
			names[i], values[i] = "t."+c.sql(), q.arg(parts[i])+"::text::"+c.typ
		}
		return " WHERE (" + strings.Join(names, ", ") + ") > (" + strings.Join(values, ", ") + ")", nil
	case s.stage != scanChanged:
		return "", nil
	}
	since := q.arg(*s.mark) + "::text::" + ft.changed.typ
	if ft.changed.isTime() {
		since = "(" + since + " - " + scanOverlap + ")"
	}
	return " WHERE t." + ft.changed.sql() + " >= " + since, nil
}

// errRowKey says that the key of a row in Lethe's own table is none of the mapped table's: its key has another type by now.
func errRowKey() error {
	return &sinks.Error{
		Class: sinks.Transient, Op: opScan, Code: "row_key_type", Hint: "the key of a mapped table has changed its type: the table is read anew",
	}
}

// sweepChunk takes the keys of rows that have vanished out of row_key: of the next ones by row_key's own order.
func (r *Replica) sweepChunk(ctx context.Context, tx pgx.Tx, ft *findTable, s *scanState) error {
	after := s.after
	if after == nil {
		after = []byte{}
	}
	rows, err := tx.Query(ctx, r.ledger.sql(`SELECT DISTINCT pk FROM {s}.row_key WHERE tbl = $1 AND pk > $2 ORDER BY pk LIMIT $3`),
		ft.table.config, after, r.scanChunk)
	if err != nil {
		return err
	}
	pks, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return err
	}
	gone, err := ft.vanished(ctx, tx, pks)
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		if _, err := tx.Exec(ctx, r.ledger.sql(`DELETE FROM {s}.row_key WHERE tbl = $1 AND pk = ANY ($2)`), ft.table.config, gone); err != nil {
			return err
		}
	}
	if len(pks) < r.scanChunk {
		return r.endScan(ctx, tx, ft, true)
	}
	_, err = tx.Exec(ctx, r.ledger.sql(`UPDATE {s}.scan SET after_pk = $2 WHERE tbl = $1`), ft.table.config, pks[len(pks)-1])
	return err
}

// vanished are those of some row keys of which the table has no row.
func (ft *findTable) vanished(ctx context.Context, tx pgx.Tx, pks [][]byte) ([][]byte, error) {
	parts := make([]textArray, len(ft.key))
	var gone, asked [][]byte
	for _, pk := range pks {
		key, err := schema.SplitKey(pk)
		if err != nil || len(key) != len(ft.key) {
			gone = append(gone, pk) // of another key than the table's
			continue
		}
		asked = append(asked, pk)
		for i := range key {
			parts[i] = append(parts[i], key[i])
		}
	}
	if len(asked) == 0 {
		return gone, nil
	}
	q := &statement{}
	arrays, names, equal := make([]string, len(ft.key)), make([]string, len(ft.key)), make([]string, len(ft.key))
	for i, c := range ft.key {
		arrays[i], names[i] = q.arg(parts[i])+"::text[]", fmt.Sprintf("k%d", i)
		equal[i] = "t." + c.sql() + " = v." + names[i] + "::" + c.typ
	}
	q.WriteString("SELECT v.n FROM unnest(" + strings.Join(arrays, ", ") + ") WITH ORDINALITY AS v(" + strings.Join(names, ", ") + ", n) WHERE NOT EXISTS (SELECT FROM " +
		ft.table.sql() + " AS t WHERE " + strings.Join(equal, " AND ") + ")")
	rows, err := tx.Query(ctx, q.String(), q.args...)
	if err != nil {
		return nil, err
	}
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&n}, func() error {
		gone = append(gone, asked[n-1])
		return nil
	})
	return gone, err
}
