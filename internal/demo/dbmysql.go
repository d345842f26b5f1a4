package demo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
)

type mysqlDB struct{ conn *sql.Conn }

// OnMySQL is a database on MySQL or MariaDB. The connection stays the caller's; that its driver puts parameters into the
// text (interpolateParams) saves a round trip for each statement.
func OnMySQL(conn *sql.Conn) DB { return mysqlDB{conn} }

func (mysqlDB) dialect() *dialect { return mysqlDialect }

func (m mysqlDB) exec(ctx context.Context, sql string, args ...any) error {
	sql, args = positional(sql, args)
	_, err := m.conn.ExecContext(ctx, sql, args...)
	return err
}

func (m mysqlDB) query(ctx context.Context, sql string, args, dest []any, f func() error) error {
	sql, args = positional(sql, args)
	rows, err := m.conn.QueryContext(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
	}
	return rows.Err()
}

// insertRows is how many rows one statement inserts.
const insertRows = 500

func (m mysqlDB) insert(ctx context.Context, table string, columns []string, rows [][]any) error {
	marks := "(" + strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", ") + ")"
	for len(rows) > 0 {
		n := min(len(rows), insertRows)
		var args []any
		for _, row := range rows[:n] {
			args = append(args, row...)
		}
		//nolint:gosec // the demo's own names
		sql := "insert into " + table + " (" + strings.Join(columns, ", ") + ") values " + strings.TrimSuffix(strings.Repeat(marks+", ", n), ", ")
		if _, err := m.conn.ExecContext(ctx, sql, args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

func (m mysqlDB) dump(ctx context.Context, table string, to io.Writer) error {
	rows, err := m.conn.QueryContext(ctx, "select * from "+table) //nolint:gosec // the demo's own names
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	values, dest := make([]sql.RawBytes, len(names)), make([]any, len(names))
	for i := range values {
		dest[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		for _, v := range values {
			if _, err := fmt.Fprintf(to, "%s\t", v); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}

var numbered = regexp.MustCompile(`\$\d+`)

// positional makes ? of $1, with the arguments in the order of their use.
func positional(sql string, args []any) (string, []any) {
	var used []any
	sql = numbered.ReplaceAllStringFunc(sql, func(mark string) string {
		n, err := strconv.Atoi(mark[1:])
		if err != nil || n > len(args) {
			return mark // the server will refuse it
		}
		used = append(used, args[n-1])
		return "?"
	})
	return sql, used
}

// openMySQL connects; change may alter how.
func openMySQL(dsn string, change func(*mysql.Config)) (*sql.DB, error) {
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	c.InterpolateParams = true
	c.Logger = &mysql.NopLogger{} // what goes wrong comes back as an error
	if change != nil {
		change(c)
	}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// mysqlScript runs a script of many statements on a connection.
func mysqlScript(ctx context.Context, dsn, script string) (err error) {
	pool, err := openMySQL(dsn, func(c *mysql.Config) { c.MultiStatements = true })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	_, err = pool.ExecContext(ctx, script)
	return err
}
