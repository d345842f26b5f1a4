package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"lethe/internal/pii"
)

// sqlTimeout bounds what is asked on the ordinary connection. Without it a server that vanished without a word would be
// waited for as long as TCP sends again, a quarter of an hour.
const sqlTimeout = 15 * time.Second

// ordinary is how many ordinary connections there are at most.
const ordinary = 2

// followEvery is how long an ordinary connection is used, and so how soon it is seen that the DSN leads to another server
// while the one of before goes on answering.
const followEvery = 30 * time.Second

// sessionSettings make an ordinary connection independent of what the server is set to. A statement that waits for a lock
// of the application must not do so for long.
var sessionSettings = map[string]string{
	"sql_mode": "'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'", "lock_wait_timeout": "10", "innodb_lock_wait_timeout": "10",
}

// openSQL opens a pool of at most n connections. settings are session variables beside sessionSettings. parseTime says whether
// dates come as time.Time or as they are stored.
func (s *Source) openSQL(n int, settings map[string]string, parseTime bool) (*sql.DB, error) {
	cfg, err := s.o.Login.Config()
	if err != nil {
		return nil, err
	}
	cfg.ParseTime = parseTime
	bound := min(sqlTimeout, s.o.Liveness)
	cfg.Timeout = min(cfg.Timeout, bound)
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = bound
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = bound
	}
	set := maps.Clone(sessionSettings)
	maps.Copy(set, settings)
	for _, name := range slices.Sorted(maps.Keys(set)) {
		cfg.Params[name] = set[name]
	}
	connector, err := driver.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("preparing the connection to the source: %w", pii.DriverError(err))
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	db.SetConnMaxIdleTime(time.Minute)
	if n > 1 {
		db.SetConnMaxLifetime(followEvery)
	}
	return db, nil
}

// withSQL lends the ordinary connection, opening it where it is missing. The pool replaces one that died since it was used.
func (s *Source) withSQL(ctx context.Context, f func(context.Context, *sql.Conn) error) error {
	db, err := s.pool()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, min(sqlTimeout, s.o.Liveness))
	defer cancel()
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("connecting to the source: %w", pii.DriverError(err))
	}
	return errors.Join(f(ctx, conn), pii.DriverError(conn.Close()))
}

func (s *Source) pool() (*sql.DB, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sql == nil {
		db, err := s.openSQL(ordinary, nil, true)
		if err != nil {
			return nil, err
		}
		s.sql = db
	}
	return s.sql, nil
}

// leave closes the ordinary connections that nobody uses. What reading begins with is asked of the server that the DSN leads
// to by then: one that was demoted goes on answering as before.
func (s *Source) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sql != nil {
		s.sql.SetMaxIdleConns(0)
		s.sql.SetMaxIdleConns(ordinary)
	}
	if s.reading != nil {
		s.reading.db.SetMaxIdleConns(0)
		s.reading.db.SetMaxIdleConns(readers)
	}
}

// mode is how the log is followed.
type mode uint8

const (
	modeMariaDB mode = iota + 1 // GTID, one replication domain
	modeGTID                    // MySQL with gtid_mode=ON
	modeFile                    // MySQL without: file and position, of one server only
)

func (m mode) String() string {
	switch m {
	case modeMariaDB:
		return "mariadb-gtid"
	case modeGTID:
		return "mysql-gtid"
	case modeFile:
		return "mysql-file"
	}
	return "unknown"
}

// serverFacts is what the server says of itself.
type serverFacts struct {
	mode     mode
	version  string
	serverID uint32
	uuid     string // MySQL
	domain   uint32 // MariaDB
	readOnly bool
	logs     bool   // log_bin
	gtidMode string // MySQL
	executed string // where it stands: a GTID set or file:position
	purged   string // MySQL with GTID
	state    string // MariaDB: gtid_binlog_state
}

// systemID names the server. Of MariaDB there is nothing that tells one installation from another for certain.
func (f *serverFacts) systemID() string {
	if f.mode == modeMariaDB {
		return fmt.Sprintf("mariadb-%d", f.serverID)
	}
	return f.uuid
}

// readServer asks for serverFacts.
func readServer(ctx context.Context, conn *sql.Conn) (*serverFacts, error) {
	f := &serverFacts{}
	failed := func(err error) error { return fmt.Errorf("asking the source who it is: %w", pii.DriverError(err)) }
	err := conn.QueryRowContext(ctx, "SELECT VERSION(), @@global.server_id, @@global.read_only, @@global.log_bin").
		Scan(&f.version, &f.serverID, &f.readOnly, &f.logs)
	if err != nil {
		return nil, failed(err)
	}
	if strings.Contains(strings.ToLower(f.version), "mariadb") {
		f.mode = modeMariaDB
		err = conn.QueryRowContext(ctx, "SELECT @@global.gtid_domain_id, @@global.gtid_binlog_pos, @@global.gtid_binlog_state").
			Scan(&f.domain, &f.executed, &f.state)
	} else {
		f.mode = modeGTID
		err = conn.QueryRowContext(ctx, "SELECT @@global.server_uuid, @@global.gtid_mode, @@global.gtid_executed, @@global.gtid_purged").
			Scan(&f.uuid, &f.gtidMode, &f.executed, &f.purged)
	}
	if err != nil {
		return nil, failed(err)
	}
	f.executed, f.purged = unspaced(f.executed), unspaced(f.purged)
	if f.mode == modeGTID && f.gtidMode != "ON" {
		f.mode = modeFile
		if f.executed, err = readFilePlace(ctx, conn); err != nil {
			return nil, failed(err)
		}
	}
	return f, nil
}

// unspaced takes the line breaks out of a GTID set.
func unspaced(set string) string { return strings.Join(strings.Fields(set), "") }

// readFilePlace asks where the server writes. The statement was renamed in MySQL 8.2, and the old name removed in 8.4.
func readFilePlace(ctx context.Context, conn *sql.Conn) (string, error) {
	var file string
	var pos uint64
	var ignore sql.RawBytes
	rows, err := conn.QueryContext(ctx, "SHOW BINARY LOG STATUS")
	if pii.MySQLNumber(err) == syntaxError {
		rows, err = conn.QueryContext(ctx, "SHOW MASTER STATUS")
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	into := []any{&file, &pos}
	for len(into) < len(columns) {
		into = append(into, &ignore)
	}
	if !rows.Next() {
		return "", errors.Join(errors.New("the server writes no binary log"), rows.Err())
	}
	if err := rows.Scan(into...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d", file, pos), rows.Err()
}

// syntaxError is ER_PARSE_ERROR.
const syntaxError = 1064
