package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	driversql "github.com/go-sql-driver/mysql"

	"lethe/internal/pii"
)

// Session is how every connection of a pool is set up.
type Session struct {
	LockTimeout      time.Duration // wait for a row or table that another session holds; whole seconds, at least one; default 5s
	StatementTimeout time.Duration // of one statement (MySQL bounds reading ones only); default 60s
}

// connections is how many a pool may open: a batch, a chore, the receipts, and one to spare.
const connections = 4

// Open makes a pool on the settings of a login (internal/mysqlconn). It connects to nothing yet; the caller closes it.
// Whatever the server's own defaults are, its sessions read what is committed, refuse values that do not fit, and hold
// times in UTC.
func Open(c *driversql.Config, s Session) (*sql.DB, error) {
	connector, err := newConnector(c, s)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

func newConnector(c *driversql.Config, s Session) (*connector, error) {
	if s.LockTimeout == 0 {
		s.LockTimeout = defaultLockTimeout
	}
	if s.StatementTimeout == 0 {
		s.StatementTimeout = defaultStatementTimeout
	}
	c = c.Clone()
	c.ParseTime, c.Loc, c.InterpolateParams, c.MultiStatements, c.ClientFoundRows = true, time.UTC, false, false, false
	inner, err := driversql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("preparing connections: %w", pii.DriverError(err))
	}
	return &connector{Connector: inner, setup: sessionSQL(s)}, nil
}

// sqlMode refuses what does not fit and divides by no zero, but lets zero dates stand where an owner has them. What changes
// how a statement is read (ANSI_QUOTES, PIPES_AS_CONCAT, NO_BACKSLASH_ESCAPES) is off, whatever the server's default.
const sqlMode = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"

// sessionSQL are the statements that set up a session. Where a server's own completion_type chains, a connection would go back
// to the pool inside the next transaction; its sql_select_limit would leave rows away, and say nothing. The comments hold what
// only one of the two servers knows: MariaDB bounds every statement, MySQL those that only read.
func sessionSQL(s Session) []string {
	lock := max(1, int((s.LockTimeout+time.Second-1)/time.Second))
	return []string{
		"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
		fmt.Sprintf("SET SESSION time_zone = '+00:00', sql_mode = '%s', autocommit = 1, completion_type = 0, "+
			"sql_select_limit = 18446744073709551615, sql_safe_updates = 0, foreign_key_checks = 1, "+
			"unique_checks = 1, innodb_lock_wait_timeout = %d, lock_wait_timeout = %d "+
			"/*M! , max_statement_time = %.3f */ /*!80000 , max_execution_time = %d */",
			sqlMode, lock, lock, s.StatementTimeout.Seconds(), s.StatementTimeout.Milliseconds()),
		byLookUps,
	}
}

// How tables are joined. By look-ups in indexes: of a small table the server would rather read all rows, and wait there for
// those of other partitions that another worker has locked. By one look at all rows, where there is no index.
const (
	byLookUps = `SET SESSION /*M! join_cache_level = 0 */ /*!80000 optimizer_switch = 'block_nested_loop=off' */`
	byScans   = `SET SESSION /*M! join_cache_level = 2 */ /*!80000 optimizer_switch = 'block_nested_loop=on' */`
)

// joining runs fn, whose statements look for rows of the mapped tables. Check warns where they lack an index: then each
// look-up would read the whole table, and it is read once for all of them instead.
func (m *Mapping) joining(ctx context.Context, tx *tx, fn func() error) error {
	if m.indexed {
		return fn()
	}
	if _, err := tx.ExecContext(ctx, byScans); err != nil {
		return err
	}
	err := fn()
	if _, back := tx.ExecContext(ctx, byLookUps); err == nil {
		err = back
	}
	return err
}

// connector opens connections that are set up and remember their statements.
type connector struct {
	driver.Connector
	setup []string
}

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := inner.(mysqlConn)
	if !ok {
		return nil, errors.Join(errors.New("preparing a connection: the driver's connections are not what Lethe knows"), inner.Close())
	}
	for _, statement := range c.setup {
		if _, err := full.ExecContext(ctx, statement, nil); err != nil {
			_ = inner.Close() // the error that matters is the statement's
			return nil, err
		}
	}
	return &conn{mysqlConn: full, prepared: map[string]preparedStmt{}}, nil
}

// mysqlConn is what the driver's connections can do.
type mysqlConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// preparedStmt is what the driver's statements can do.
type preparedStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedLimit bounds how many statements one connection remembers; there are fewer, unless the mapping changes often.
const preparedLimit = 256

// conn is a connection that prepares a statement with parameters once. Without it database/sql would prepare, run and close
// one each time it is used: three messages for one. A query's rows are read before the connection is used again, so that
// no statement is run twice at once.
type conn struct {
	mysqlConn
	prepared map[string]preparedStmt
}

func (c *conn) prepare(ctx context.Context, query string) (preparedStmt, error) {
	if s := c.prepared[query]; s != nil {
		return s, nil
	}
	if len(c.prepared) >= preparedLimit {
		c.forgetPrepared()
	}
	s, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	full, ok := s.(preparedStmt)
	if !ok {
		return nil, errors.Join(errors.New("preparing a statement: the driver's statements are not what Lethe knows"), s.Close())
	}
	c.prepared[strings.Clone(query)] = full
	return full, nil
}

// failed closes a statement whose run has failed, because its tables may have changed under it.
func (c *conn) failed(query string) {
	if s := c.prepared[query]; s != nil {
		delete(c.prepared, query)
		_ = s.Close() // the error that matters is the run's
	}
}

func (c *conn) forgetPrepared() {
	for query := range c.prepared {
		c.failed(query)
	}
}

// ExecContext implements driver.ExecerContext.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if len(args) == 0 {
		return c.mysqlConn.ExecContext(ctx, query, nil)
	}
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	result, err := s.ExecContext(ctx, args)
	if err != nil {
		c.failed(query)
	}
	return result, err
}

// QueryContext implements driver.QueryerContext.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if len(args) == 0 {
		return c.mysqlConn.QueryContext(ctx, query, nil)
	}
	s, err := c.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, args)
	if err != nil {
		c.failed(query)
	}
	return rows, err
}
