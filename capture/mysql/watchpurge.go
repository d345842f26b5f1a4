package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"lethe/capture"
	"lethe/internal/pii"
)

// logFile is one binary log of the server.
type logFile struct {
	name string
	size int64
}

// mayNotAsk is ER_SPECIFIC_ACCESS_DENIED_ERROR.
const mayNotAsk = 1227

// readFiles lists the binary logs; nil where the login may not ask (MariaDB wants BINLOG MONITOR).
func readFiles(ctx context.Context, conn *sql.Conn) ([]logFile, error) {
	rows, err := conn.QueryContext(ctx, "SHOW BINARY LOGS")
	if pii.MySQLNumber(err) == mayNotAsk {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the source's binary logs: %w", pii.DriverError(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	columns, err := rows.Columns()
	if err != nil {
		return nil, fmt.Errorf("listing the source's binary logs: %w", pii.DriverError(err))
	}
	var list []logFile
	for rows.Next() {
		var f logFile
		into := []any{&f.name, &f.size}
		for len(into) < len(columns) {
			into = append(into, new(sql.RawBytes))
		}
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("listing the source's binary logs: %w", pii.DriverError(err))
		}
		list = append(list, f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("listing the source's binary logs: %w", pii.DriverError(err))
	}
	return list, nil
}

// readExpiry asks after how long the server purges a binary log by itself; 0: never.
func readExpiry(ctx context.Context, conn *sql.Conn) (time.Duration, error) {
	rows, err := conn.QueryContext(ctx, "SHOW GLOBAL VARIABLES LIKE 'binlog_expire_logs%'")
	if err != nil {
		return 0, fmt.Errorf("reading binlog_expire_logs_seconds: %w", pii.DriverError(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	var expiry time.Duration
	auto := true
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return 0, fmt.Errorf("reading binlog_expire_logs_seconds: %w", pii.DriverError(err))
		}
		switch name {
		case "binlog_expire_logs_seconds":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading binlog_expire_logs_seconds: %w", err)
			}
			expiry = time.Duration(n) * time.Second
		case "binlog_expire_logs_auto_purge":
			auto = value == "ON"
		}
	}
	if !auto {
		expiry = 0
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("reading binlog_expire_logs_seconds: %w", pii.DriverError(err))
	}
	return expiry, nil
}

// watchPurge tells how far a purge is from what is acknowledged.
func (s *Source) watchPurge(ctx context.Context, conn *sql.Conn, facts *serverFacts, files []logFile, at filePlace, st *BinlogStatus) error {
	st.State = StateReserved
	expiry, err := readExpiry(ctx, conn)
	if err != nil {
		return err
	}
	if expiry > 0 && !at.committedAt.IsZero() {
		st.SafeFor = max(expiry-time.Since(at.committedAt), 0)
		if st.SafeFor == 0 {
			st.State = StateExpiring
		}
	}
	lost := false
	switch facts.mode {
	case modeGTID:
		if lost, err = s.watchSet(facts, st); err != nil {
			return err
		}
	case modeMariaDB:
		acked, err1 := parseDomainSet(st.Acknowledged)
		now, err2 := parseDomainSet(facts.executed)
		if err1 != nil || err2 != nil {
			return fmt.Errorf("comparing positions: %w", errGTID)
		}
		a, _ := acked.of(facts.domain)
		n, _ := now.of(facts.domain)
		st.LagTransactions = int64(max(n.number, a.number) - a.number) //nolint:gosec // below 2^63
		lost = fileGone(files, at.file)
	case modeFile:
		p, err := parseFilePlace(st.Acknowledged)
		if err != nil {
			return fmt.Errorf("comparing positions: %w", err)
		}
		lost = fileGone(files, p.file)
	}
	if !lost {
		return nil
	}
	st.State = StateLost
	return &capture.GapError{Cause: capture.GapPurged, Hint: purgedHint}
}

const purgedHint = "the source purged binary log that was not read yet: raise binlog_expire_logs_seconds; `lethe gap resume " +
	"--accept-loss` goes on from where the log stands then: compare the CRM's erasures of that time with `lethe cases`"

// watchSet compares GTID sets: what is purged must not be missing from ours.
func (s *Source) watchSet(facts *serverFacts, st *BinlogStatus) (lost bool, err error) {
	acked, err1 := parseGTIDs(st.Acknowledged)
	executed, err2 := parseGTIDs(facts.executed)
	purged, err3 := parseGTIDs(facts.purged)
	if err1 != nil || err2 != nil || err3 != nil {
		return false, fmt.Errorf("comparing positions: %w", errGTID)
	}
	st.LagTransactions = int64(executed.minus(acked).count()) //nolint:gosec // below 2^63
	return len(purged.minus(acked)) > 0, nil
}

// fileGone reports whether files, where they are known, begin behind the one named.
func fileGone(files []logFile, name string) bool {
	if name == "" || len(files) == 0 {
		return false
	}
	for _, f := range files {
		if f.name == name {
			return false
		}
	}
	return true
}

// publish sets the gauges.
func (s *Source) publish(st *BinlogStatus) {
	s.metrics.retained.Set(float64(st.RetainedBytes))
	s.metrics.lag.Set(float64(st.LagBytes))
	s.metrics.safe.Set(-1)
	if st.SafeFor >= 0 {
		s.metrics.safe.Set(st.SafeFor.Seconds())
	}
	s.metrics.streaming.Set(0)
	if st.Active {
		s.metrics.streaming.Set(1)
	}
}
