package demo

import (
	"context"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

type postgresDB struct{ conn *pgx.Conn }

// OnPostgres is a database on PostgreSQL. The connection stays the caller's.
func OnPostgres(conn *pgx.Conn) DB { return postgresDB{conn} }

func (postgresDB) dialect() *dialect { return postgresDialect }

func (p postgresDB) exec(ctx context.Context, sql string, args ...any) error {
	_, err := p.conn.Exec(ctx, sql, args...)
	return err
}

func (p postgresDB) query(ctx context.Context, sql string, args, dest []any, f func() error) error {
	rows, err := p.conn.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, dest, f)
	return err
}

func (p postgresDB) insert(ctx context.Context, table string, columns []string, rows [][]any) error {
	_, err := p.conn.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromRows(rows))
	return err
}

// dump writes bytes in hexadecimal, which the canary's scanner knows.
func (p postgresDB) dump(ctx context.Context, table string, to io.Writer) error {
	_, err := p.conn.PgConn().CopyTo(ctx, to, "copy "+table+" to stdout")
	return err
}

// postgresScript runs a script of many statements on a connection.
func postgresScript(ctx context.Context, dsn, script string) error {
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, script).ReadAll()
	return err
}
