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

// The states of the log behind our position, as BinlogStatus.State has them.
const (
	StateReserved = "reserved" // the server keeps it
	StateExpiring = "expiring" // it is older than the server promises to keep: the next purge takes it
	StateLost     = "lost"
)

// BinlogStatus is how the server's binary log stands to what is acknowledged.
type BinlogStatus struct {
	// Active is set while somebody, this process or another, holds the named lock.
	Active bool
	// State is StateReserved, StateExpiring or StateLost; empty where nothing was acknowledged yet.
	State string
	// LagBytes is how much log is not acknowledged; -1 where it is not known, because no stream of this Source runs.
	LagBytes int64
	// LagTransactions is how many transactions are not acknowledged; -1 where it is not known.
	LagTransactions int64
	// RetainedBytes is the size of all the binary logs that the server keeps; -1 where the login may not ask.
	RetainedBytes int64
	// SafeFor is the time until the server may purge log that is not acknowledged; -1 where it purges nothing by itself.
	SafeFor time.Duration
	// OverLimit is set where LagBytes exceeds Options.MaxBinlogLag.
	OverLimit    bool
	Acknowledged string // GTID set or file position; empty: nothing yet
	Current      string // where the server writes
}

// Watch reads how far the log behind our position is from being purged, for metrics and alarms. Together with the status it
// returns a *capture.GapError for log that is lost. It takes a few milliseconds on the server; every ten seconds is enough. A command that does not stream gives the checkpoint's position to Acknowledge
// before.
func (s *Source) Watch(ctx context.Context) (BinlogStatus, error) {
	st := BinlogStatus{LagBytes: -1, LagTransactions: -1, RetainedBytes: -1, SafeFor: -1}
	err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
		return s.watch(ctx, conn, &st)
	})
	s.publish(&st)
	return st, err
}

// EmitHeartbeat changes the one row of the heartbeat table; the change comes back through the stream as OpMessage with the
// time of writing, in milliseconds since 1970, in decimal. MySQL has no messages in its log.
func (s *Source) EmitHeartbeat(ctx context.Context) error {
	if s.o.Heartbeat == "" {
		return nil
	}
	return s.withSQL(ctx, s.beat)
}

// beat changes the row of the heartbeat table.
func (s *Source) beat(ctx context.Context, conn *sql.Conn) error {
	statement := "UPDATE " + quoteTable(s.o.Heartbeat) + " SET " + heartbeatColumn + " = ?, beat = beat + 1 WHERE id = 1" //nolint:gosec // quoted
	res, err := conn.ExecContext(ctx, statement, time.Now().UnixMilli())
	if err != nil {
		return fmt.Errorf("writing a heartbeat into %s: %w", s.o.Heartbeat, pii.DriverError(err))
	}
	if n, err := res.RowsAffected(); err == nil && n == 0 {
		return &SetupError{What: "table " + s.o.Heartbeat + " has no row", Hint: "`lethe setup` makes it"}
	}
	return nil
}

// heartbeatColumn holds the time of the last heartbeat.
const heartbeatColumn = "emitted_ms"

// heartbeatSQL makes the heartbeat table and its row. beat makes each UPDATE a change: the server writes no row event for
// one that changes nothing.
func heartbeatSQL(table string) []string {
	return []string{
		"CREATE TABLE IF NOT EXISTS " + quoteTable(table) + " (id TINYINT UNSIGNED NOT NULL PRIMARY KEY, " + heartbeatColumn +
			" BIGINT UNSIGNED NOT NULL, beat BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB",
		"INSERT IGNORE INTO " + quoteTable(table) + " (id, " + heartbeatColumn + ", beat) VALUES (1, 0, 0)",
	}
}

// Identity reads who the server is now. Its SystemID is the server's uuid on MySQL and its id and replication domain on
// MariaDB, Slot says how the log is followed, Start is where a reader that has no position yet begins.
func (s *Source) Identity(ctx context.Context) (capture.Identity, error) {
	var id capture.Identity
	err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
		facts, err := readServer(ctx, conn)
		if err != nil {
			return err
		}
		id = facts.identity()
		return nil
	})
	return id, err
}

// emptySet is the Start of a server that has executed nothing yet, as where GTIDs were turned on just now. Without one a reader
// would begin where the log stands when it comes to reading.
const emptySet = ","

func (f *serverFacts) identity() capture.Identity {
	id := capture.Identity{SystemID: f.systemID(), Epoch: firstEpoch, Slot: f.mode.String(), SlotGeneration: f.mode.String(), Start: f.executed}
	if id.Start == "" {
		id.Start = emptySet
	}
	if f.mode == modeMariaDB {
		id.SlotGeneration += "/" + strconv.FormatUint(uint64(f.domain), 10)
	}
	return id
}

// filePlace is where the stream stands in the server's files.
type filePlace struct {
	file string
	pos  uint64 // behind the last transaction that was handed over
	// committedAt is when that was committed; zero where it is not known.
	committedAt time.Time
}

func (s *Source) watch(ctx context.Context, conn *sql.Conn, st *BinlogStatus) error {
	facts, err := readServer(ctx, conn)
	if err != nil {
		return err
	}
	st.Current = facts.executed
	s.mu.Lock()
	acked, at := s.acked, s.place
	s.mu.Unlock()
	st.Acknowledged = acked.GTID
	var holder sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT IS_USED_LOCK(?)", s.lockName()).Scan(&holder); err != nil {
		return fmt.Errorf("looking at the named lock: %w", pii.DriverError(err))
	}
	st.Active = holder.Valid
	return s.watchFiles(ctx, conn, facts, at, st)
}

// watchFiles compares our place with the files that the server keeps.
func (s *Source) watchFiles(ctx context.Context, conn *sql.Conn, facts *serverFacts, at filePlace, st *BinlogStatus) error {
	files, err := readFiles(ctx, conn)
	if err != nil {
		return err
	}
	if files != nil {
		st.RetainedBytes = 0
	}
	known := false
	for _, f := range files {
		st.RetainedBytes += f.size
		switch {
		case f.name == at.file:
			known, st.LagBytes = true, max(f.size-int64(at.pos), 0) //nolint:gosec // a file's size
		case known:
			st.LagBytes += f.size
		}
	}
	st.OverLimit = s.o.MaxBinlogLag > 0 && st.LagBytes > s.o.MaxBinlogLag
	if st.Acknowledged == "" {
		return nil
	}
	return s.watchPurge(ctx, conn, facts, files, at, st)
}
