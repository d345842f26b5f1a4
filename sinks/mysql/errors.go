package mysql

import (
	"context"
	"errors"
	"strings"

	driver "github.com/go-sql-driver/mysql"

	"lethe/internal/pii"
	"lethe/sinks"
)

// classify makes a *sinks.Error of what a statement on the replica returned. The driver's error is reduced to number and
// class on the way: its message quotes values. A sinks.Error and context errors pass as they are.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *sinks.Error
	if errors.As(err, &known) || errors.Is(err, sinks.ErrFenced) {
		return err
	}
	reduced := pii.DriverError(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &sinks.Error{Class: sinks.Transient, Op: op, Code: "canceled", Err: reduced}
	}
	out := &sinks.Error{Class: sinks.Transient, Op: op, Code: "connection", Err: reduced}
	if n := pii.MySQLNumber(err); n != 0 {
		out.Code = pii.Code(reduced)
		out.Class, out.Hint = classOf(n, stateOf(err))
	}
	return out
}

// stateOf is the SQLSTATE of a server's error; empty where there is none.
func stateOf(err error) string {
	var server *driver.MySQLError
	if errors.As(err, &server) && server.SQLState != [5]byte{} {
		return string(server.SQLState[:])
	}
	return ""
}

// classOf classifies the number of a server's error, and what it does not name by its SQLSTATE. What neither tells is tried
// again, loudly: an unknown error is no reason to skip an event or to stop for good.
func classOf(number uint16, state string) (sinks.Class, string) {
	switch number {
	case 1054, 1064, 1072, 1109, 1146, 1267, 1271, 1305, 1356:
		return sinks.Permanent, "the replica's tables are not those of the mapping: run `lethe check`"
	case 1044, 1142, 1143, 1227, 1370:
		return sinks.Permanent, "a privilege is missing: `lethe check --fix-sql` prints the GRANT"
	case 1045, 1049, 1130, 1251, 1698, 1820, 1862, 3118, 3159, 4151:
		return sinks.Permanent, "the replica refuses the login: check dsn and password"
	case 1290, 1792, 1836:
		return sinks.Transient, "the server is read-only: is it a replica after a failover?"
	case 1205:
		return sinks.Transient, "another session holds locks on the mapped rows for long"
	case 1213:
		return sinks.Transient, "" // deadlock: the next attempt meets the rows at another moment
	case 1665:
		return sinks.Permanent, "the server logs statements, which it takes of nobody who reads what is committed: set binlog_format to ROW or MIXED"
	case 1969, 3024:
		return sinks.Transient, "a statement took too long: is an index missing? run `lethe check`"
	case 1021, 1114:
		return sinks.Transient, "the replica's disk is full"
	case 1048, 1062, 1169, 1264, 1265, 1292, 1364, 1366, 1406, 1411, 1441, 1451, 1452, 1467, 1525, 1644, 1690, 3140, 3141, 3156, 3819, 4025, 4078:
		return sinks.Poison, "the replica refuses a value: `lethe dead-letters list` shows the event"
	}
	if strings.HasPrefix(state, "22") || strings.HasPrefix(state, "23") || strings.HasPrefix(state, "45") || state == "44000" {
		return sinks.Poison, "the replica refuses a value: `lethe dead-letters list` shows the event"
	}
	return sinks.Transient, ""
}
