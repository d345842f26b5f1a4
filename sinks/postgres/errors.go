package postgres

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"lethe/internal/pii"
	"lethe/sinks"
)

// classify makes a *sinks.Error of what a statement on the replica returned. The driver's error is reduced to code and
// class on the way: its message and detail may quote a row. A sinks.Error and context errors pass as they are.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *sinks.Error
	if errors.As(err, &known) || errors.Is(err, sinks.ErrFenced) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &sinks.Error{Class: sinks.Transient, Op: op, Code: "canceled", Err: pii.DriverError(err)}
	}
	out := &sinks.Error{Class: sinks.Transient, Op: op, Code: "connection", Err: pii.DriverError(err)}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		out.Code = pg.Code
		out.Class, out.Hint = classOf(pg.Code)
	}
	return out
}

// classOf classifies a SQLSTATE. What is not named here is tried again, loudly: an unknown code is no reason to skip an
// event or to stop for good.
func classOf(code string) (sinks.Class, string) {
	switch code {
	case "42703", "42P01", "42804", "42883", "3F000":
		return sinks.Permanent, "the replica's tables are not those of the mapping: run `lethe check`"
	case "42501":
		return sinks.Permanent, "a privilege is missing: `lethe check --fix-sql` prints the GRANT"
	case "28P01", "28000", "3D000":
		return sinks.Permanent, "the replica refuses the login: check dsn and password"
	case "25006":
		return sinks.Transient, "the server is read-only: is it a standby after a failover?"
	case "55P03":
		return sinks.Transient, "another session holds locks on the mapped rows for long"
	case "53100":
		return sinks.Transient, "the replica's disk is full"
	}
	switch {
	case strings.HasPrefix(code, "22"), strings.HasPrefix(code, "23"), strings.HasPrefix(code, "P0"),
		code == "44000", code == "54000":
		return sinks.Poison, "the replica refuses a value: `lethe dead-letters list` shows the event"
	}
	return sinks.Transient, ""
}
