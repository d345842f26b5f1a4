package mysql

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"slices"
	"time"

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

// The sizes of a scan: rows of one transaction, and how long one call of the chore goes on.
const (
	scanChunk = 2000
	scanSlice = 250 * time.Millisecond
	scanPoll  = 200 * time.Millisecond // how soon phase 2 comes back that waits for one
	// scanWhole is how often a table is read as a whole whose changed rows are known: rows that vanish are in no change.
	scanWhole = 24 * time.Hour
	// scanOverlap is how far behind the newest change the next scan begins: a change has the time of its statement, and is
	// seen from its commit on.
	scanOverlap = "INTERVAL 5 MINUTE"
)

// scanPartition is the partition whose owner scans: what is read belongs to no subject yet.
const scanPartition = 0

// scanState is a row of the table scan.
type scanState struct {
	known   bool
	basis   []byte // what the keys were made with; another one makes everything be read anew
	run     int64
	stage   string
	after   []byte         // the last row read, as a canonical key; nil: none yet
	mark    sql.NullString // the newest change that a scan which has ended has seen
	next    sql.NullString // of the scan under way
	wanted  bool           // an erasure waits for it
	started time.Time
	full    sql.NullTime // when the last scan of the whole table that has ended began
	fresh   sql.NullTime // when the last scan that has ended began: what was there then is in row_key
}

const scanColumns = `s.basis, s.run, s.stage, s.after_pk, s.watermark, s.next_mark, s.wanted, s.started_at, s.full_at, s.fresh_at`

func (s *scanState) scan(rows *sql.Rows) error {
	s.known = true
	return rows.Scan(&s.basis, &s.run, &s.stage, &s.after, &s.mark, &s.next, &s.wanted, &s.started, &s.full, &s.fresh)
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
		err := r.inTx(ctx, opScan, func(ctx context.Context, tx *tx) error {
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

// scanOf reads the state of a table's scan, and locks it: two workers never read the same chunk.
func (r *Replica) scanOf(ctx context.Context, tx *tx, table string) (*scanState, error) {
	s := &scanState{}
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT `+scanColumns+` FROM {p}scan s WHERE s.tbl = ? FOR UPDATE`), []any{table}, s.scan)
	return s, err
}

// scanTable does the next step of one table's scan, if one is under way or due.
func (r *Replica) scanTable(ctx context.Context, tx *tx, m *Mapping, ft *findTable, s *scanState) (due time.Time, urgent bool, err error) {
	basis := r.basisOf(m, ft)
	now := time.Now()
	if !s.known || !bytes.Equal(s.basis, basis) {
		return now, true, r.beginScan(ctx, tx, m, ft, s, basis, scanRows)
	}
	if s.stage == scanIdle {
		due = now.Add(s.started.Add(r.cfg.Find.Scan).Sub(tx.now))
		if due.After(now) && !s.wanted {
			return due, false, nil
		}
		stage := scanRows
		if ft.changed != nil && s.mark.Valid && s.full.Valid && tx.now.Before(s.full.Time.Add(max(scanWhole, r.cfg.Find.Scan))) {
			stage = scanChanged
		}
		return now, s.wanted, r.beginScan(ctx, tx, m, ft, s, basis, stage)
	}
	if s.stage == scanGone {
		err = r.sweepChunk(ctx, tx, m, ft, s)
	} else {
		err = r.scanChunk(ctx, tx, m, ft, s)
	}
	return now, s.wanted || !s.fresh.Valid, err
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
func (r *Replica) beginScan(ctx context.Context, tx *tx, m *Mapping, ft *findTable, s *scanState, basis []byte, stage string) error {
	var mark sql.NullString
	if ft.changed != nil {
		query := "SELECT " + ft.changed.keyText("MAX(t."+ft.changed.sql()+")") + " FROM " + ft.table.sql() + " AS t"
		if err := tx.QueryRowContext(ctx, query).Scan(&mark); err != nil {
			return err
		}
	}
	if !s.known {
		_, err := r.write(ctx, tx, `INSERT INTO {p}scan (tbl, basis, run, stage, next_mark, started_at) VALUES (?, ?, 1, ?, ?, ?)`,
			ft.table.config, basis, stage, mark, tx.now)
		return err
	}
	anew := !bytes.Equal(s.basis, basis)
	_, err := r.write(ctx, tx, `UPDATE {p}scan s SET s.basis = ?, s.run = s.run + 1, s.stage = ?, s.after_pk = NULL, s.next_mark = ?, s.started_at = ?, s.seen = 0,
		s.full_at = CASE WHEN ? THEN NULL ELSE s.full_at END, s.fresh_at = CASE WHEN ? THEN NULL ELSE s.fresh_at END,
		s.watermark = CASE WHEN ? THEN NULL ELSE s.watermark END WHERE s.tbl = ?`,
		basis, stage, mark, tx.now, anew, anew, anew, ft.table.config)
	return err
}

// scanChunk reads the next rows and makes row_key hold their keys. The rows are read as they were committed last, without a
// lock: whoever changes one meanwhile is seen by the next scan, and a row is read again before anything is decided by it.
func (r *Replica) scanChunk(ctx context.Context, tx *tx, m *Mapping, ft *findTable, s *scanState) error {
	list, last, err := ft.read(ctx, tx, m, s, r.chunk)
	if err != nil {
		return err
	}
	pks := pksOf(list)
	added, err := r.setKeys(ctx, tx, ft.table.config, pks, r.keysOf(list), s.run == 1)
	if err != nil {
		return err
	}
	if err := r.touchFound(ctx, tx, added); err != nil {
		return err
	}
	if len(list) == r.chunk {
		_, err := r.write(ctx, tx, `UPDATE {p}scan s SET s.after_pk = ?, s.seen = s.seen + ? WHERE s.tbl = ?`, last, len(list), ft.table.config)
		return err
	}
	if s.stage == scanRows && s.run > 1 {
		_, err := r.write(ctx, tx, `UPDATE {p}scan s SET s.stage = ?, s.after_pk = NULL, s.seen = s.seen + ? WHERE s.tbl = ?`, scanGone, len(list), ft.table.config)
		return err
	}
	if _, err := r.write(ctx, tx, `UPDATE {p}scan s SET s.seen = s.seen + ? WHERE s.tbl = ?`, len(list), ft.table.config); err != nil {
		return err
	}
	return r.endScan(ctx, tx, ft, s.stage == scanRows)
}

// touchLimit is how many subjects one chunk asks a look at: a placeholder that thousands hold leads nowhere.
const touchLimit = 20_000

// touchFound asks for a look at the subjects that hold keys which have come up, if there is anything to be applied to a row of
// theirs: before this nobody knew that it might be.
func (r *Replica) touchFound(ctx context.Context, tx *tx, added []rowKey) error {
	if len(added) == 0 {
		return nil
	}
	values := make([][]byte, len(added))
	for i := range added {
		values[i] = added[i].value[:]
	}
	_, err := r.write(ctx, tx, `INSERT INTO {p}touch (ref, part, reason, at)
		SELECT DISTINCT s.ref, s.part, '`+ledger.TouchRow+`', ? FROM `+valuesTable+`
		STRAIGHT_JOIN {p}contact_key k FORCE INDEX (by_value) ON k.value = UNHEX(v.value) AND k.standing <> 'revived'
		STRAIGHT_JOIN {p}subject s ON s.ref = k.ref
		WHERE s.state <> 'erased' AND (s.state <> 'live' OR s.scope IS NOT NULL
			OR EXISTS (SELECT 1 FROM {p}due d WHERE d.ref = s.ref AND d.recheck_at IS NOT NULL) OR EXISTS (SELECT 1 FROM {p}fact f WHERE f.ref = s.ref))
		LIMIT ?`, tx.now, valuesJSON(nil, values), touchLimit)
	return err
}

// endScan notes that a scan has seen everything that was there when it began.
func (r *Replica) endScan(ctx context.Context, tx *tx, ft *findTable, whole bool) error {
	_, err := r.write(ctx, tx, `UPDATE {p}scan s SET s.stage = ?, s.after_pk = NULL, s.watermark = COALESCE(s.next_mark, s.watermark), s.wanted = FALSE,
		s.ended_at = ?, s.fresh_at = s.started_at, s.full_at = CASE WHEN ? THEN s.started_at ELSE s.full_at END WHERE s.tbl = ?`,
		scanIdle, tx.now, whole, ft.table.config)
	return err
}

// read reads the next rows of a scan in their order, and returns the last one's place in it.
func (ft *findTable) read(ctx context.Context, q querier, m *Mapping, s *scanState, limit int) (list []rowRef, last []byte, err error) {
	order, person := ft.key, m.key.text("t."+m.key.sql())
	query := &statement{}
	if s.stage == scanChanged {
		order = append([]*column{ft.changed}, ft.key...)
	}
	from := ft.table.sql() + " AS t"
	if s.stage == scanRows && len(ft.table.primary) > 0 {
		from += " FORCE INDEX (PRIMARY)" // it is the order: the planner would rather sort
	}
	if ft.by != nil {
		person = m.key.text("p." + m.key.sql())
		from += " STRAIGHT_JOIN " + m.person.sql() + " AS p ON " + ft.by.refers("t."+ft.by.sql(), m.key, "p."+m.key.sql())
	}
	query.add("SELECT " + order[0].keyText("t."+order[0].sql()) + ", " + person + ", " + ft.selected() + " FROM " + from)
	where, err := ft.behind(order, s)
	if err != nil {
		return nil, nil, err
	}
	if where.sql != "" {
		query.add(" WHERE "+where.sql, where.args...)
	}
	query.add(" ORDER BY "+ordered(order)+" LIMIT ?", limit)
	list = make([]rowRef, 0, limit)
	var first, key string
	reader := newRowReader(ft, &first, &key)
	err = eachRow(ctx, q, query.String(), query.args, func(rows *sql.Rows) error {
		var row rowRef
		if err := reader.scan(rows, &row); err != nil {
			return err
		}
		row.person = key
		list = append(list, row)
		return nil
	})
	if err != nil || len(list) == 0 {
		return nil, nil, err
	}
	row := &list[len(list)-1]
	if s.stage == scanChanged {
		return list, (&rowRef{key: append([]string{first}, row.key...)}).id(), nil
	}
	return list, row.id(), nil
}

// behind is the condition of the rows that a scan still has to read.
func (ft *findTable) behind(order []*column, s *scanState) (part, error) {
	if s.after != nil {
		parts, err := schema.SplitKey(s.after)
		if err != nil || len(parts) != len(order) {
			return part{}, errRowKey()
		}
		return beyond(order, parts)
	}
	if s.stage != scanChanged {
		return part{}, nil
	}
	own := "t." + ft.changed.sql()
	if ft.changed.category == categoryDate && ft.changed.base != "time" {
		return part{own + " >= DATE_SUB(CAST(? AS DATETIME(6)), " + scanOverlap + ")", []any{s.mark.String}}, nil
	}
	value, arg, err := ft.changed.keyArg(s.mark.String)
	return part{own + " >= " + value, []any{arg}}, err
}

// sweepChunk takes the keys of rows that have vanished out of row_key: of the next ones by row_key's own order.
func (r *Replica) sweepChunk(ctx context.Context, tx *tx, m *Mapping, ft *findTable, s *scanState) error {
	after := s.after
	if after == nil {
		after = []byte{}
	}
	pks, err := column1[[]byte](ctx, tx, r.ledger.sql(`SELECT DISTINCT k.pk FROM {p}row_key k WHERE k.tbl = ? AND k.pk > ? ORDER BY k.pk LIMIT ?`),
		ft.table.config, after, r.chunk)
	if err != nil {
		return err
	}
	gone, err := m.vanished(ctx, tx, ft, pks)
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		_, err := r.write(ctx, tx, `DELETE k FROM `+pksTable+` STRAIGHT_JOIN {p}row_key k ON k.tbl = ? AND k.pk = UNHEX(v.pk)`, refsJSON(gone), ft.table.config)
		if err != nil {
			return err
		}
	}
	if len(pks) < r.chunk {
		return r.endScan(ctx, tx, ft, true)
	}
	_, err = r.write(ctx, tx, `UPDATE {p}scan s SET s.after_pk = ? WHERE s.tbl = ?`, pks[len(pks)-1], ft.table.config)
	return err
}

// vanished are those of some row keys of which the table has no row.
func (m *Mapping) vanished(ctx context.Context, q querier, ft *findTable, pks [][]byte) ([][]byte, error) {
	there := make(map[string]bool, len(pks))
	var keys [][]string
	for _, pk := range pks {
		parts, err := schema.SplitKey(pk)
		if err == nil && len(parts) == len(ft.key) {
			keys = append(keys, parts)
		}
	}
	for chunk := range slices.Chunk(keys, lookUps) {
		for n := len(chunk); n&(n-1) != 0; n++ { // few lengths, so that few statements are prepared
			chunk = append(chunk[:n:n], chunk[n-1])
		}
		query, args, err := ft.lookUp(chunk)
		if errors.Is(err, errNoKeys) {
			continue
		}
		if err != nil {
			return nil, err
		}
		reader := newRowReader(&findTable{key: ft.key})
		err = eachRow(ctx, q, query, args, func(rows *sql.Rows) error {
			var row rowRef
			if err := reader.scan(rows, &row); err != nil {
				return err
			}
			there[string(row.id())] = true
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(pks), func(pk []byte) bool { return there[string(pk)] }), nil
}

// lookUps is how many rows one statement looks for by their keys.
const lookUps = 512

// errNoKeys says that none of some row keys can be one of the table's.
var errNoKeys = errors.New("no row can have such a key")

// lookUp is a query of the keys of those rows that have one of some keys. Comparing is the table's own: what comes back in
// another spelling is another row key.
func (ft *findTable) lookUp(keys [][]string) (query string, args []any, err error) {
	s := &statement{}
	names := make([]part, len(ft.key))
	for i, c := range ft.key {
		names[i] = part{sql: c.keyText("t." + c.sql())}
	}
	s.add("SELECT ")
	s.addParts(names, ", ")
	s.add(" FROM " + ft.table.sql() + " AS t WHERE ")
	n := 0
	for _, key := range keys {
		parts := make([]part, len(ft.key))
		usable := true
		for i, c := range ft.key {
			value, arg, err := c.keyArg(key[i])
			usable = usable && err == nil
			parts[i] = part{"t." + c.sql() + " = " + value, []any{arg}}
		}
		if !usable {
			continue
		}
		if n > 0 {
			s.add(" OR ")
		}
		n++
		s.add("(")
		s.addParts(parts, " AND ")
		s.add(")")
	}
	if n == 0 {
		return "", nil, errNoKeys
	}
	return s.String(), s.args, nil
}
