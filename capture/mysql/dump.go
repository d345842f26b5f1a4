package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog" //nolint:depguard // the library takes no other, and is given one that says nothing
	"strings"
	"sync"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
	"lethe/internal/pii"
)

// dumpSettings is said on the connection before the log is asked for. A Handler without room stops our reading, and the
// server would end a connection that takes nothing after net_write_timeout (60 s). It may do so after an hour: then a process
// that froze holds no file back from being purged any more, and one that waits for Kafka begins a new session.
const dumpSettings = "SET SESSION net_write_timeout = 3600, net_read_timeout = 3600"

// fatalReading is ER_MASTER_FATAL_ERROR_READING_BINLOG.
const fatalReading = 1236

// serverID is what we call ourselves. Two captures of one source have the same one: only one of them reads.
func (s *Source) serverID(f *serverFacts) uint32 {
	if s.o.ServerID != 0 {
		return s.o.ServerID
	}
	id := crc32.ChecksumIEEE([]byte("lethe:"+s.o.Name+":"+f.systemID())) | 1<<31
	if id == f.serverID {
		id--
	}
	return id
}

// aloneUnderID refuses a server id that another replica has: the server would end that one's connection for ours, and ours
// for that one's, without an end. A connection of our own that the server has not yet given up is no other replica. A login
// that may not ask (MariaDB wants REPLICATION MASTER ADMIN) goes without.
func (s *Source) aloneUnderID(ctx context.Context, conn *sql.Conn, f *serverFacts) error {
	statement := "SHOW REPLICAS"
	if f.mode == modeMariaDB {
		statement = "SHOW SLAVE HOSTS"
	}
	rows, err := conn.QueryContext(ctx, statement)
	if n := pii.MySQLNumber(err); n == mayNotAsk || n == syntaxError {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing the source's replicas: %w", pii.DriverError(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	columns, err := rows.Columns()
	if err != nil {
		return fmt.Errorf("listing the source's replicas: %w", pii.DriverError(err))
	}
	for rows.Next() {
		var id uint32
		var host string
		into := []any{&id, &host}
		for len(into) < len(columns) {
			into = append(into, new(sql.RawBytes))
		}
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("listing the source's replicas: %w", pii.DriverError(err))
		}
		if id == s.serverID(f) && host != s.localName() {
			return fmt.Errorf("starting to read as server %d: %w", id, errServerID)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("listing the source's replicas: %w", pii.DriverError(err))
	}
	return nil
}

// syncer makes the library's reader, in its raw mode: it takes packets apart and verifies checksums, and hands every event
// on undecoded, from one goroutine, one at a time.
func (s *Source) syncer(start *startPoint, w *wire, h replication.EventHandler) (*replication.BinlogSyncer, error) {
	login, err := s.o.Login.Config()
	if err != nil {
		return nil, err
	}
	flavor := gomysql.MySQLFlavor
	if start.facts.mode == modeMariaDB {
		flavor = gomysql.MariaDBFlavor
	}
	w.network = login.Net
	cfg := replication.BinlogSyncerConfig{
		ServerID: s.serverID(start.facts), Flavor: flavor, Host: login.Addr, User: login.User, Password: login.Passwd,
		Localhost: s.localName(), RawModeEnabled: true, VerifyChecksum: true, HeartbeatPeriod: s.o.Liveness / 3,
		DisableRetrySync: true, DiscardGTIDSet: true, EventCacheCount: 1, PayloadDecoderConcurrency: 1,
		SynchronousEventHandler: h, Dialer: w.dial,
		// Its words hold row data, and what matters comes as an error.
		Logger: slog.New(slog.DiscardHandler),
		Option: func(c *client.Conn) error {
			_, err := c.Execute(dumpSettings)
			return err
		},
	}
	if start.tls {
		cfg.TLSConfig = login.TLS
	}
	return replication.NewBinlogSyncer(cfg), nil
}

// localName is how we appear among the server's replicas. Servers keep 60 bytes of it.
func (s *Source) localName() string {
	name := "lethe-" + s.o.Name
	return name[:min(len(name), 60)]
}

// dump asks for the log from start.at on.
func (st *stream) dump(b *replication.BinlogSyncer, start *startPoint) (*replication.BinlogStreamer, error) {
	var streamer *replication.BinlogStreamer
	var err error
	if start.facts.mode == modeFile {
		at := start.history.at
		if at.pos >= 1<<32 {
			return nil, &capture.GapError{
				Cause: capture.GapPurged,
				Hint: fmt.Sprintf("%s lies beyond 4 GB, where a log without GTIDs cannot be read from: turn GTIDs on, then `lethe gap resume "+
					"--accept-loss`", at),
			}
		}
		streamer, err = b.StartSync(gomysql.Position{Name: at.file, Pos: uint32(at.pos)})
	} else {
		flavor := gomysql.MySQLFlavor
		if start.facts.mode == modeMariaDB {
			flavor = gomysql.MariaDBFlavor
		}
		set, parseErr := gomysql.ParseGTIDSet(flavor, start.at)
		if parseErr != nil {
			return nil, &DecodeError{At: start.at, Err: errGTID}
		}
		streamer, err = b.StartSyncGTID(set)
	}
	if err != nil {
		return nil, st.dumpError(err)
	}
	return streamer, nil
}

// refusedError is a server's refusal to go on from where we are. What it means was in the server's words.
type refusedError struct {
	purged bool
	err    error
}

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// dumpError reduces what the library says: its words hold row data. Of the server's words on 1236 it is only looked which of
// the known cases they are.
func (st *stream) dumpError(err error) error {
	reduced := fmt.Errorf("reading the source's log: %w", pii.DriverError(err))
	var server *gomysql.MyError
	if !errors.As(err, &server) || server.Code != fatalReading {
		if errors.Is(err, replication.ErrChecksumMismatch) || strings.Contains(err.Error(), replication.ErrChecksumMismatch.Error()) {
			return errChecksum
		}
		return reduced
	}
	words := strings.ToLower(server.Message)
	for _, clash := range []string{"same server_uuid", "same server_id", "same server id"} {
		if strings.Contains(words, clash) {
			return fmt.Errorf("reading the source's log: %w", errServerID)
		}
	}
	for _, gone := range []string{"purged", "could not find first log", "not find gtid state", "could not open log file", "not in the master's binlog"} {
		if strings.Contains(words, gone) {
			return &refusedError{purged: !strings.Contains(words, "not in the master"), err: reduced}
		}
	}
	if strings.Contains(words, "anonymous") {
		return &capture.GapError{
			Cause: capture.GapModeChanged,
			Hint: "GTIDs were turned off for a while (gtid_mode), and what was written then has none: `lethe gap resume --accept-loss` goes on from where " +
				"the log stands now; compare the CRM's erasures of that time with `lethe cases`",
		}
	}
	if st.history.mode == modeFile && st.history.verify != nil {
		// A place that was the end of a transaction is in the middle of an event, or behind the file's end.
		return &refusedError{err: reduced}
	}
	return reduced
}

// errChecksum is returned for an event that was damaged on its way or on the server's disk; it is read again.
var errChecksum = errors.New("reading the source's log: an event's checksum does not match; it is read again")

// refused makes a gap of a refusal.
func refused(r *refusedError, at string) error {
	if r.purged {
		return &capture.GapError{Cause: capture.GapPurged, Hint: purgedHint}
	}
	return forked("the server does not know " + at)
}

// run takes the lock, compares, and streams until something ends it.
func (s *Source) run(ctx context.Context, from *capture.Checkpoint, h capture.Handler) error {
	l, err := s.takeLock(ctx)
	if err != nil {
		return err
	}
	defer l.close(ctx)
	defer s.leave()
	s.begin(from)
	start, err := s.prepare(ctx, from)
	if err != nil {
		return err
	}
	reading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var others sync.WaitGroup
	others.Go(func() { cancel(l.keep(reading)) })
	others.Go(func() { cancel(s.attend(reading, start)) })
	err = s.streamFrom(reading, start, from, h)
	if cause := context.Cause(reading); ctx.Err() == nil && cause != nil {
		err = fmt.Errorf("reading the source: %w", cause)
	}
	cancel(nil)
	others.Wait()
	return err
}

// streamFrom streams from before the checkpoint's own transaction, or from behind it where the log does not have it any more.
func (s *Source) streamFrom(ctx context.Context, start *startPoint, from *capture.Checkpoint, h capture.Handler) error {
	err := s.stream(ctx, start, h)
	var refusal *refusedError
	if !errors.As(err, &refusal) {
		return err
	}
	if start.again == "" || !refusal.purged {
		return refused(refusal, start.at)
	}
	s.o.Log.Info().Msg("the log no longer holds the checkpoint's own transaction: reading starts behind it")
	if err := start.startAtCheckpoint(from); err != nil {
		return err
	}
	if err = s.stream(ctx, start, h); errors.As(err, &refusal) {
		return refused(refusal, start.at)
	}
	return err
}

// attendEvery is how often the server is compared with what was read.
const attendEvery = 5 * time.Second

// attend compares the server with what was read for as long as ctx lives, and returns a *capture.GapError when it was reset:
// the server sends nothing more of its new log then, for ever, and calls the connection well. It returns another error where
// the DSN leads to another server by now, or this one is the primary no longer: a server that was left may go on answering,
// and no change comes to it any more.
func (s *Source) attend(ctx context.Context, start *startPoint) error {
	tick := time.NewTicker(s.attendEvery)
	defer tick.Stop()
	var earlier []string // what was read up to the last looks; see unsettledLooks
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := &startPoint{}
		now.history.domain = start.history.domain
		err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			now.facts, err = readServer(ctx, conn)
			return err
		})
		switch {
		case err != nil:
			continue // the stream has its own ways of noticing
		case now.facts.readOnly:
			return ErrNotPrimary
		case now.facts.systemID() != start.facts.systemID():
			return errMoved
		}
		s.mu.Lock()
		earlier = append(earlier, s.read)
		s.mu.Unlock()
		if len(earlier) <= unsettledLooks {
			continue
		}
		read := earlier[0]
		earlier = earlier[1:]
		if read == "" || now.facts.mode != start.facts.mode {
			continue
		}
		err = now.holds(&capture.Checkpoint{Identity: capture.Identity{SystemID: start.facts.systemID()}}, read, false)
		if errors.As(err, new(*capture.GapError)) {
			return err
		}
	}
}

// endDump ends the server's side of a stream that we have left: it would notice only at its next heartbeat, and keep its
// log file from being purged until then. It is a courtesy.
func (s *Source) endDump(ctx context.Context, id uint32) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, fmt.Sprintf("KILL %d", id))
		return err
	})
}
