package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"lethe/capture"
	"lethe/internal/pii"
)

// A transaction is in the log, and so in the stream, before others can see it: until the log is synchronised, and with
// semi-synchronous replication until a replica has answered. What can be seen is told in three ways.
//
//   - MySQL with GTIDs counts a transaction among gtid_executed when its engine has committed it: WAIT_FOR_EXECUTED_GTID_SET.
//   - MariaDB takes a consistent snapshot between two commits, and tells the place in the log that belongs to it
//     (binlog_snapshot_file and _position). Its gtid_binlog_pos is of no use: it moves when the log is written.
//   - MySQL without GTIDs tells nothing, but commits in the order of the log (binlog_order_commits). A heartbeat of our own is
//     put behind everything that was streamed: when its commit returns all that came before it can be seen.

const (
	// readers is how many connections read at most.
	readers = 8
	// seePause is the time between two snapshots of MariaDB while one that is new enough is waited for.
	seePause = 20 * time.Millisecond
	// tellAfter is how long a wait is kept quiet.
	tellAfter = time.Second
)

// reading is the pool of the connections that read tables. They know no lock, give up a statement before the connection is
// given up, and take every stored value as it is.
type reading struct {
	db   *sql.DB
	mode mode

	mu    sync.Mutex
	conns map[any]*readConn // by the driver's connection
}

// readConn is what is known of one connection. Whoever has the connection uses it.
type readConn struct {
	server    string // that it leads to, as long as it lives
	query     string // of statement
	statement driver.Stmt
}

// known returns what is known of a connection. Those that are closed meanwhile are forgotten now and then.
func (r *reading) known(raw any) *readConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.conns[raw]
	if c == nil {
		if len(r.conns) > 4*readers {
			clear(r.conns)
		}
		c = &readConn{}
		r.conns[raw] = c
	}
	return c
}

// serverOf asks a connection, once, to which server it leads.
func (r *reading) serverOf(ctx context.Context, conn *sql.Conn) (string, error) {
	var known *readConn
	err := conn.Raw(func(raw any) error {
		known = r.known(raw)
		return nil
	})
	if err != nil || known.server != "" {
		return known.name(), pii.DriverError(err)
	}
	facts := &serverFacts{mode: r.mode}
	if r.mode == modeMariaDB {
		err = conn.QueryRowContext(ctx, "SELECT @@global.server_id").Scan(&facts.serverID)
	} else {
		err = conn.QueryRowContext(ctx, "SELECT @@global.server_uuid").Scan(&facts.uuid)
	}
	if err != nil {
		return "", fmt.Errorf("asking the source who it is: %w", pii.DriverError(err))
	}
	known.server = facts.systemID()
	return known.server, nil
}

func (c *readConn) name() string {
	if c == nil {
		return ""
	}
	return c.server
}

// openReading returns the pool, opening it where it is missing.
func (s *Source) openReading(ctx context.Context) (*reading, error) {
	s.mu.Lock()
	open := s.reading
	s.mu.Unlock()
	if open != nil {
		return open, nil
	}
	var facts *serverFacts
	err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		facts, err = readServer(ctx, conn)
		return err
	})
	if err != nil {
		return nil, err
	}
	within := min(sqlTimeout, s.o.Liveness) * 2 / 3
	settings := map[string]string{"sql_mode": "'ALLOW_INVALID_DATES'", "transaction_isolation": "'REPEATABLE-READ'"}
	if facts.mode == modeMariaDB {
		delete(settings, "transaction_isolation")
		settings["tx_isolation"] = "'REPEATABLE-READ'"
		settings["max_statement_time"] = strconv.FormatFloat(within.Seconds(), 'f', 3, 64)
	} else {
		settings["max_execution_time"] = strconv.FormatInt(within.Milliseconds(), 10)
	}
	db, err := s.openSQL(readers, settings, false)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reading != nil { // another call was quicker
		return s.reading, pii.DriverError(db.Close())
	}
	s.reading = &reading{db: db, mode: facts.mode, conns: map[any]*readConn{}}
	return s.reading, nil
}

// snapshot calls fn within a read-only transaction that sees everything up to seen.
func (s *Source) snapshot(ctx context.Context, seen capture.Position, waits func(string), fn func(context.Context, *reading, *sql.Conn) error) (err error) {
	r, err := s.openReading(ctx)
	if err != nil {
		return err
	}
	conn, err := r.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the source: %w", pii.DriverError(err))
	}
	defer func() {
		s.endSnapshot(ctx, conn)
		_ = conn.Close() // nothing of ours is in it
	}()
	look := &look{src: s, conn: conn, seen: seen, waits: waits, began: time.Now()}
	if r.mode != modeGTID { // there a set of GTIDs says all
		if look.server, err = r.serverOf(ctx, conn); err == nil {
			err = s.sameServer(look.server)
		}
		if err != nil {
			return err
		}
	}
	switch r.mode {
	case modeMariaDB:
		err = look.mariaDB(ctx)
	case modeGTID:
		err = look.gtid(ctx)
	case modeFile:
		err = look.file(ctx)
	}
	if err != nil {
		return err
	}
	return fn(ctx, r, conn)
}

// endSnapshot gives the snapshot up, and with it what it keeps from being purged. A connection on which that fails is closed.
func (s *Source) endSnapshot(ctx context.Context, conn *sql.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := conn.ExecContext(ctx, "ROLLBACK"); err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // says what it is told
	}
}

// look opens one snapshot.
type look struct {
	src   *Source
	conn  *sql.Conn
	seen  capture.Position
	waits func(string)
	began time.Time
	// server is the one that is asked; empty where that does not matter.
	server string
}

// visible is up to where snapshots of a MariaDB were found to see.
type visible struct {
	server string
	set    domainSet
}

const beginSnapshot = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"

func (l *look) begin(ctx context.Context) error {
	if _, err := l.conn.ExecContext(ctx, beginSnapshot); err != nil {
		return fmt.Errorf("opening a snapshot: %w", pii.DriverError(err))
	}
	return nil
}

// tell says once that it takes long.
func (l *look) tell(why string) {
	if l.waits != nil && time.Since(l.began) >= tellAfter {
		l.waits(why)
		l.waits = nil
	}
}

func (l *look) gtid(ctx context.Context) error {
	set, err := parseGTIDs(l.seen.GTID) // and no word else is put into the statement
	if err != nil {
		return fmt.Errorf("waiting until %s can be seen: %w", l.seen, err)
	}
	ask := "SELECT WAIT_FOR_EXECUTED_GTID_SET('" + set.String() + "', 1)"
	for {
		var late sql.NullBool
		if err := l.conn.QueryRowContext(ctx, ask).Scan(&late); err != nil {
			return fmt.Errorf("waiting until what was streamed can be seen: %w", pii.DriverError(err))
		}
		if late.Valid && !late.Bool {
			return l.begin(ctx)
		}
		l.tell("the server has sent transactions that it has not committed yet: one may wait for a semi-synchronous replica")
	}
}

func (l *look) file(ctx context.Context) error {
	if err := ordered(ctx, l.conn); err != nil {
		return fmt.Errorf("waiting until what was streamed can be seen: %w", err)
	}
	if l.src.o.Heartbeat == "" {
		return errors.New("waiting until what was streamed can be seen: without gtid_mode=ON that takes a heartbeat; set source.mysql.heartbeat_table")
	}
	if err := l.src.beat(ctx, l.conn); err != nil {
		return fleeting(err)
	}
	return l.begin(ctx)
}

func (l *look) mariaDB(ctx context.Context) error {
	tick := time.NewTicker(seePause)
	defer tick.Stop()
	for {
		if err := l.begin(ctx); err != nil {
			return err
		}
		if done, err := l.holds(ctx); err != nil || done {
			return err
		}
		l.tell("the server has sent a transaction that others cannot see yet: it may wait for a semi-synchronous replica")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// holds reports whether MariaDB's snapshot in hand has what was seen. The stream's place in the file is compared; the GTID
// only where the stream has not handed a commit over yet, since the server finds that by reading the file.
func (l *look) holds(ctx context.Context) (bool, error) {
	s := l.src
	s.mu.Lock()
	place, read, known := s.place, s.read, s.visible
	s.mu.Unlock()
	set, err := parseDomainSet(l.seen.GTID)
	if err != nil {
		return false, fmt.Errorf("waiting until %s can be seen: %w", l.seen, err)
	}
	if known.server == l.server && known.set.covers(set) {
		return true, nil
	}
	var at filePlace
	err = eachRow(ctx, l.conn, "SHOW STATUS LIKE 'binlog_snapshot_%'", func(row []sql.NullString) {
		switch row[0].String {
		case "Binlog_snapshot_file":
			at.file = row[1].String
		case "Binlog_snapshot_position":
			at.pos, _ = strconv.ParseUint(row[1].String, 10, 64) // 0 is before everything
		}
	})
	if err != nil {
		return false, fmt.Errorf("asking which place in the log a snapshot has: %w", err)
	}
	if handed, err := parseDomainSet(read); err == nil && place.file != "" && handed.covers(set) {
		now, err1 := at.number()
		then, err2 := place.number()
		if err := errors.Join(err1, err2); err != nil {
			return false, fmt.Errorf("comparing places in the log: %w", err)
		}
		if now < then {
			return false, nil
		}
		l.found(handed)
		return true, nil
	}
	var text sql.NullString
	if err := l.conn.QueryRowContext(ctx, "SELECT BINLOG_GTID_POS(?, ?)", at.file, at.pos).Scan(&text); err != nil {
		return false, fmt.Errorf("asking which GTIDs a snapshot has: %w", pii.DriverError(err))
	}
	now, err := parseDomainSet(text.String)
	if err != nil || !now.covers(set) {
		return false, nil //nolint:nilerr // a place that the server does not know is not far enough
	}
	l.found(now)
	return true, nil
}

// found remembers what a snapshot sees: every later one sees it too.
func (l *look) found(set domainSet) {
	l.src.mu.Lock()
	defer l.src.mu.Unlock()
	l.src.visible = visible{server: l.server, set: set}
}

// sameServer refuses a snapshot of another server than the one that is read: what that has seen is not known.
func (s *Source) sameServer(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams != "" && s.streams != id {
		return fmt.Errorf("opening a snapshot: %w", errMoved)
	}
	return nil
}
