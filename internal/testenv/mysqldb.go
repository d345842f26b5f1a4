package testenv

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/go-sql-driver/mysql"
)

// open returns a pool as root; change may alter how the driver connects.
func (m *MySQL) open(db string, change func(*mysql.Config)) (*sql.DB, error) {
	c := m.driverConfig(db)
	c.Logger = &mysql.NopLogger{} // a server that is starting, or was killed, is no news
	if change != nil {
		change(c)
	}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("connecting to test database: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// Open returns a pool as root that is closed at the test's end. Times are read
// as text, as the session's time zone, +05:30, shows them.
func (m *MySQL) Open(tb testing.TB, db string) *sql.DB {
	tb.Helper()
	pool, err := m.open(db, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = pool.Close() }) // the server may be gone by the test's intent
	return pool
}

// Exec runs statements as root on one connection of its own, so that what one
// sets the next one finds. Each string may hold several statements.
func (m *MySQL) Exec(tb testing.TB, db string, statements ...string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := m.exec(ctx, db, statements...); err != nil {
		tb.Fatal(err)
	}
}

func (m *MySQL) exec(ctx context.Context, db string, statements ...string) (err error) {
	pool, err := m.open(db, func(c *mysql.Config) { c.MultiStatements = true })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	pool.SetMaxOpenConns(1)
	for _, statement := range statements {
		if _, err := pool.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("running test statement %q: %w", statement, err)
		}
	}
	return nil
}

// NewDatabase makes an empty database for one test and returns its name. At
// the test's end it is dropped, and the connections that still use it are
// killed: an open transaction would keep its tables.
func (m *MySQL) NewDatabase(tb testing.TB) string {
	tb.Helper()
	name := UniqueName("t")
	m.Exec(tb, "", "CREATE DATABASE "+name)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := m.dropDatabase(ctx, name); err != nil {
			tb.Errorf("dropping database %s: %v", name, err)
		}
	})
	return name
}

func (m *MySQL) dropDatabase(ctx context.Context, name string) (err error) {
	if m.down() {
		return nil // a private server that the test left stopped
	}
	pool, err := m.open("", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	pool.SetMaxOpenConns(1)
	// A test may have made the server refuse writes, or left it a replica.
	if _, err := pool.ExecContext(ctx, "SET SESSION lock_wait_timeout = 1"); err != nil {
		return err
	}
	return poll(ctx, func() error {
		if err := killUsers(ctx, pool, name); err != nil {
			return err
		}
		_, err := pool.ExecContext(ctx, "DROP DATABASE IF EXISTS "+name)
		return err
	})
}

// killUsers kills the connections that have a database as their own.
func killUsers(ctx context.Context, pool *sql.DB, name string) error {
	rows, err := pool.QueryContext(ctx, "SELECT id FROM information_schema.processlist WHERE db = ? AND id <> connection_id()", name)
	if err != nil {
		return err
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return err
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, id := range ids {
		const gone = 1094 // ER_NO_SUCH_THREAD: it went by itself
		var refused *mysql.MySQLError
		_, err := pool.ExecContext(ctx, fmt.Sprintf("KILL %d", id))
		if err != nil && (!errors.As(err, &refused) || refused.Number != gone) {
			return err
		}
	}
	return nil
}
