package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"lethe/capture"
	"lethe/internal/crashpoint"
	"lethe/internal/pii"
)

const (
	// statusEvery is how often the server is told the acknowledged position, where wal_sender_timeout does not ask for more.
	statusEvery = time.Second
	// clockEvery is after how many messages of one filled buffer the clock is read: a slow Handler must not keep the
	// status back until the buffer is empty.
	clockEvery = 64
	// writeTimeout bounds the sending of a status.
	writeTimeout = 10 * time.Second
	// farewell bounds the last words on a connection.
	farewell = time.Second
)

// stream is one replication connection. One goroutine owns it: it reads, answers keep-alives and sends the status; what
// others have to tell it (acknowledged positions) crosses by an atomic.
type stream struct {
	src      *Source
	h        capture.Handler
	throttle capture.Throttle // nil where h has none
	wire     *coalescer
	conn     net.Conn
	fe       *pgproto3.Frontend
	dec      *decoder
	history  timelines

	verify *capture.Checkpoint // until its commit has passed; nothing is handed over before

	tx         *capture.Transaction // nil between transactions
	begun      bool                 // h knows of tx
	passing    bool                 // tx is re-read on the way to the checkpoint: not handed over
	lastCommit uint64

	base      uint64 // what the slot, or the passed checkpoint, already confirms
	handed    uint64 // end of the last transaction that h has whole
	told      uint64 // flush position of the last status
	every     time.Duration
	nextTick  time.Time
	lastWire  time.Time
	seenFills uint64
	seenBytes uint64
	messages  uint
	status    []byte
	// writeWithin bounds the sending of a status.
	writeWithin time.Duration
}

// start begins replication and takes the connection over. On an error conn is still the caller's.
func (s *Source) start(ctx context.Context, conn *replicationConn, start startPoint, h capture.Handler) (*stream, error) {
	timeout, err := scalar(ctx, conn.PgConn, "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'")
	if err != nil {
		return nil, fmt.Errorf("reading wal_sender_timeout: %w", pii.DriverError(err))
	}
	ms, err := strconv.Atoi(timeout)
	if err != nil {
		return nil, fmt.Errorf("reading wal_sender_timeout: %w", err)
	}
	// Position 0: the server starts where the slot stands. Any other would make it skip what lies between.
	err = pglogrepl.StartReplication(ctx, conn.PgConn, s.o.Slot, 0, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '1'", "messages 'true'",
			"publication_names '" + strings.ReplaceAll(quoteIdentifier(s.o.Publication), "'", "''") + "'",
		},
	})
	if err != nil {
		return nil, s.startError(err)
	}
	hc, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("taking the replication connection over: %w", pii.DriverError(err))
	}
	now := time.Now()
	st := &stream{
		src: s, h: h, wire: conn.wire, conn: hc.Conn, fe: hc.Frontend, dec: newDecoder(s.o.Needs),
		history: start.history, verify: start.verify, base: start.confirmed, handed: start.confirmed, told: start.confirmed,
		every: interval(time.Duration(ms) * time.Millisecond), lastWire: now, writeWithin: writeTimeout,
	}
	st.throttle, _ = h.(capture.Throttle)
	s.visible.begins()
	if f, ok := h.(capture.Follower); ok {
		f.Follows()
	}
	// What an earlier Run acknowledged may be of a history that is no more.
	s.acked.Store(0)
	return st, nil
}

// startError tells the ways in which START_REPLICATION is refused apart.
func (s *Source) startError(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "55006": // object_in_use
			return fmt.Errorf("starting replication from slot %s: %w", s.o.Slot, ErrSlotInUse)
		case "55000": // object_not_in_prerequisite_state: the slot was lost since we looked
			return &capture.GapError{
				Cause: capture.GapSlotLost,
				Hint: fmt.Sprintf("the server cannot read from slot %s any more: drop and make it again with `lethe setup`, "+
					"then `lethe gap resume --accept-loss`", s.o.Slot),
			}
		}
	}
	return fmt.Errorf("starting replication from slot %s: %w", s.o.Slot, pii.DriverError(err))
}

// interval is how often to send the status: well under a third of wal_sender_timeout (0: none).
func interval(timeout time.Duration) time.Duration {
	every := statusEvery
	if timeout > 0 && timeout/4 < every {
		every = timeout / 4
	}
	return every
}

// run reads until ctx ends or something fails.
func (st *stream) run(ctx context.Context) error {
	st.wire.start(ctx)
	// A deadline in the past wakes the read. It cannot be lost: tick sets the next deadline first and looks at ctx then.
	wake := context.AfterFunc(ctx, func() { _ = st.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer wake()
	if err := st.tick(ctx, time.Now()); err != nil {
		return err
	}
	for {
		if err := st.watchClock(ctx); err != nil {
			return err
		}
		msg, err := st.fe.Receive()
		if err != nil {
			if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
				return fmt.Errorf("reading the replication stream: %w", pii.DriverError(err))
			}
			if err := st.tick(ctx, time.Now()); err != nil {
				return err
			}
			continue
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			if err := st.copyData(ctx, m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("reading the replication stream: %w", pii.DriverError(pgconn.ErrorResponseToPgError(m)))
		case *pgproto3.CopyDone:
			return errors.New("reading the replication stream: the server ended it")
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return fmt.Errorf("reading the replication stream: unexpected message %T", msg)
		}
	}
}

// watchClock reads the clock when the socket gave something new, and now and then within a full buffer.
func (st *stream) watchClock(ctx context.Context) error {
	st.messages++
	if st.wire.fills == st.seenFills && st.messages%clockEvery != 0 {
		return nil
	}
	now := time.Now()
	if st.wire.fills != st.seenFills {
		st.seenFills = st.wire.fills
		st.lastWire = now
	}
	if now.Before(st.nextTick) {
		return nil
	}
	return st.tick(ctx, now)
}

// tick sends the status, sets the deadline of the next one and takes a silent connection for dead.
func (st *stream) tick(ctx context.Context, now time.Time) error {
	st.nextTick = now.Add(st.every)
	if err := st.conn.SetReadDeadline(st.nextTick); err != nil {
		return fmt.Errorf("reading the replication stream: %w", pii.DriverError(err))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	silent := now.Sub(st.lastWire)
	if silent > st.src.o.Liveness {
		return fmt.Errorf("reading the replication stream for %s: %w", silent.Round(time.Second), errSilent)
	}
	st.flushCounts()
	return st.sendStatus(now, silent > st.src.o.Liveness/3)
}

// sendStatus tells the server what is acknowledged. With ping it is asked to answer.
func (st *stream) sendStatus(now time.Time, ping bool) error {
	flush := st.acknowledged()
	if flush != st.told {
		crashpoint.Hit("capture.before_slot_ack")
	}
	b := append(st.status[:0], pglogrepl.StandbyStatusUpdateByteID)
	for range 3 { // written, flushed, applied
		b = binary.BigEndian.AppendUint64(b, flush)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMicro()-epoch2000)) //nolint:gosec // after 2000
	b = append(b, 0)
	if ping {
		b[len(b)-1] = 1
	}
	st.status = b
	if err := st.conn.SetWriteDeadline(now.Add(st.writeWithin)); err != nil {
		return fmt.Errorf("sending the status to the source: %w", pii.DriverError(err))
	}
	st.fe.Send(&pgproto3.CopyData{Data: b})
	if err := st.fe.Flush(); err != nil {
		return fmt.Errorf("sending the status to the source: %w", pii.DriverError(err))
	}
	if flush != st.told {
		st.told = flush
		crashpoint.Hit("capture.after_slot_ack")
	}
	return nil
}

// acknowledged is the position that may be told: never beyond what was handed over and acknowledged, never before what the
// slot has, never 0, and never the server's own position.
func (st *stream) acknowledged() uint64 {
	return max(st.base, min(st.src.acked.Load(), st.handed))
}

func (st *stream) copyData(ctx context.Context, b []byte) error {
	if len(b) == 0 {
		return &DecodeError{Err: errShort}
	}
	switch b[0] {
	case pglogrepl.XLogDataByteID:
		if len(b) < 25 {
			return &DecodeError{Err: errShort}
		}
		return st.message(ctx, binary.BigEndian.Uint64(b[1:]), b[25:])
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		if len(b) != 18 {
			return &DecodeError{Err: errShort}
		}
		return st.keepAlive(binary.BigEndian.Uint64(b[1:]), b[17] != 0)
	}
	return &DecodeError{Err: fmt.Errorf("unknown replication message 0x%02x", b[0])}
}

// keepAlive answers where an answer is asked for. The position in it is how far the server has decoded; it is used for one
// thing only: once it is past the checkpoint, the checkpoint's commit will not come any more.
func (st *stream) keepAlive(decoded uint64, reply bool) error {
	if st.verify != nil && decoded >= st.verify.Position.End {
		return st.notPassed()
	}
	if !reply {
		return nil
	}
	return st.sendStatus(time.Now(), false)
}

func (st *stream) notPassed() error {
	return forked(fmt.Sprintf("the log does not hold the checkpoint's own commit %s", lsnText(st.verify.Position.Commit)))
}

func (st *stream) message(ctx context.Context, lsn uint64, msg []byte) error {
	k, err := st.dec.decode(msg)
	if err != nil {
		return st.decodeError(lsn, err)
	}
	switch k {
	case kindNothing:
	case kindBegin:
		return st.begin(lsn)
	case kindChange:
		if st.passing {
			return nil
		}
		return st.hand(ctx, lsn, &st.dec.change)
	case kindTruncate:
		return st.truncate(ctx, lsn)
	case kindMessage:
		m := &st.dec.message
		if !m.transactional || string(m.prefix) != MessagePrefix || st.passing || string(m.content) == markContent {
			return nil // a mark is there for its place alone: its commit is handed over
		}
		return st.hand(ctx, lsn, &capture.Change{Op: capture.OpMessage, Message: m.content})
	case kindCommit:
		return st.commit(lsn)
	}
	return nil
}

// decodeError gives the position to what the decoder found. A transaction that is only passed on the way to the checkpoint
// was handled before, in the shape that it has.
func (st *stream) decodeError(lsn uint64, err error) error {
	var column *ColumnError
	var identity *IdentityError
	shape := errors.As(err, &column) || errors.As(err, &identity)
	if shape && st.passing {
		return nil
	}
	at := lsn
	if st.tx != nil {
		at = st.tx.Position.Commit
	}
	switch {
	case column != nil:
		return &ColumnError{Table: column.Table, Column: column.Column, LSN: at}
	case identity != nil:
		return &IdentityError{Table: identity.Table, Columns: identity.Columns, LSN: at}
	}
	return &DecodeError{LSN: lsn, Err: err}
}

func (st *stream) begin(lsn uint64) error {
	b := &st.dec.begin
	if st.tx != nil || b.commitLSN <= st.lastCommit {
		return &DecodeError{LSN: lsn, Err: errors.New("transactions out of order")}
	}
	st.lastCommit = b.commitLSN
	st.begun, st.passing = false, false
	st.tx = &capture.Transaction{
		Position:    capture.Position{Epoch: st.history.at(b.commitLSN), Commit: b.commitLSN},
		XID:         b.xid,
		CommittedAt: timeOf(b.committedAt),
	}
	if st.verify != nil {
		return st.pass()
	}
	return nil
}

// pass looks at a transaction that lies before the checkpoint, or is it.
func (st *stream) pass() error {
	want := st.verify
	st.passing = true
	switch {
	case st.tx.Position.Commit < want.Position.Commit:
		return nil
	case st.tx.Position.Commit > want.Position.Commit:
		return st.notPassed()
	case st.tx.XID != want.XID || st.tx.CommittedAt.UnixMilli() != want.CommittedAt.UnixMilli():
		return forked(fmt.Sprintf("another transaction has the place of the checkpoint's commit %s", lsnText(want.Position.Commit)))
	}
	st.src.o.Log.Info().Str("lsn", lsnText(want.Position.Commit)).Msg("the log holds the checkpoint's commit: history connects")
	st.base = max(st.base, want.Position.End)
	st.handed = st.base
	st.verify = nil
	return nil
}

// hand gives a change to the Handler. Begin is called with the first one, so that a shape that does not fit, which is
// found at the first change of its table, stops a transaction before anything of it is handed over.
func (st *stream) hand(ctx context.Context, lsn uint64, c *capture.Change) error {
	if st.tx == nil {
		return &DecodeError{LSN: lsn, Err: errors.New("change outside of a transaction")}
	}
	if !st.begun {
		if err := st.h.Begin(st.tx); err != nil {
			return err
		}
		st.begun = true
	}
	if err := st.waitForRoom(ctx); err != nil {
		return err
	}
	return st.h.Change(c)
}

func (st *stream) truncate(ctx context.Context, lsn uint64) error {
	if st.passing {
		return nil
	}
	for _, rel := range st.dec.truncated {
		if err := st.hand(ctx, lsn, &capture.Change{Op: capture.OpTruncate, Table: rel.table}); err != nil {
			return err
		}
	}
	return nil
}

// commit ends a transaction. One without a change for us is handed over too: its position can be acknowledged.
func (st *stream) commit(lsn uint64) error {
	tx := st.tx
	if tx == nil || st.dec.commit.commitLSN != tx.Position.Commit {
		return &DecodeError{LSN: lsn, Err: errors.New("commit of another transaction than was begun")}
	}
	st.tx = nil
	st.src.visible.commits(tx.XID)
	if st.passing {
		st.passing = false
		return nil
	}
	tx.Position.End = st.dec.commit.endLSN
	if !st.begun {
		if err := st.h.Begin(tx); err != nil {
			return err
		}
	}
	if err := st.h.Commit(tx); err != nil {
		return err
	}
	st.handed = tx.Position.End
	return nil
}

// waitForRoom reads nothing while the Handler is full, and keeps the connection alive. A reader that blocks in a plain send
// instead dies of wal_sender_timeout.
func (st *stream) waitForRoom(ctx context.Context) error {
	if st.throttle == nil {
		return nil
	}
	room := st.throttle.Full()
	if room == nil {
		return nil
	}
	ticker := time.NewTicker(st.every)
	defer ticker.Stop()
	for room != nil {
		select {
		case <-room:
			room = st.throttle.Full()
		case now := <-ticker.C:
			st.lastWire = now // nobody read: silence says nothing about the server
			if err := st.tick(ctx, now); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	st.lastWire = time.Now()
	return nil
}

// close tells the server the last acknowledged position and leaves, so that the slot is free for the next reader at once.
func (st *stream) close() {
	st.flushCounts()
	st.writeWithin = farewell
	if st.sendStatus(time.Now(), false) == nil {
		st.fe.Send(&pgproto3.Terminate{})
		_ = st.fe.Flush() // the connection ends either way
	}
	_ = st.conn.Close() // nothing of ours is in it
	st.wire.stop()
}

// closeConn leaves a connection that was not hijacked.
func closeConn(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	_ = conn.Close(ctx) // nothing of ours is in it
}
