package app

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/internal/mysqlconn"
	"lethe/internal/pii"
)

func readPostgresSource(ctx context.Context, s *config.Source, key []string) ([]ReviewSide, error) {
	conn, err := connectPostgres(ctx, s.Postgres.DSN, s.Postgres.Password)
	if err != nil {
		return nil, err
	}
	defer closePostgres(ctx, conn)
	args := make([]any, len(key))
	for i, k := range key {
		args[i] = k
	}
	var out []ReviewSide
	for _, q := range sideQueries(s) {
		text := q.sql(quoted, func(e string) string { return e + "::text" }, func(n int) string { return "$" + strconv.Itoa(n) })
		rows, err := conn.Query(ctx, text, args...)
		if err != nil {
			return out, pii.DriverError(err)
		}
		raw := make([]*string, len(q.columns))
		into := make([]any, len(raw))
		for i := range raw {
			into[i] = &raw[i]
		}
		_, err = pgx.ForEachRow(rows, into, func() error {
			out = append(out, q.side(raw))
			return nil
		})
		if err != nil {
			return out, pii.DriverError(err)
		}
	}
	return out, nil
}

func readMySQLSource(ctx context.Context, s *config.Source, key []string) ([]ReviewSide, error) {
	pool, err := openMySQL(mysqlconn.Source(s.MySQL))
	if err != nil {
		return nil, err
	}
	defer closeMySQL(pool)
	var out []ReviewSide
	for _, q := range sideQueries(s) {
		sides, err := readMySQLSide(ctx, pool, &q, key)
		out = append(out, sides...)
		if err != nil {
			return out, pii.DriverError(err)
		}
	}
	return out, nil
}

func readMySQLSide(ctx context.Context, pool *sql.DB, q *sideQuery, key []string) ([]ReviewSide, error) {
	args := make([]any, len(key))
	for i, k := range key {
		args[i] = k
	}
	text := q.sql(backquoted, func(e string) string { return "CAST(" + e + " AS CHAR)" }, func(int) string { return "?" })
	rows, err := pool.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // its error is that of Err
	var out []ReviewSide
	raw := make([]*string, len(q.columns))
	into := make([]any, len(raw))
	for i := range raw {
		into[i] = &raw[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return out, err
		}
		out = append(out, q.side(raw))
	}
	return out, rows.Err()
}
