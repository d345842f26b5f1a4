package mysql

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"sync"
	"time"

	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
)

// stream is one reading of the log. The library calls HandleEvent from one goroutine, which owns everything here; it waits
// in there while the Handler has no room, and reads nothing meanwhile.
type stream struct {
	src      *Source
	ctx      context.Context //nolint:containedctx // the library's handler has no other way to learn that its owner is leaving
	h        capture.Handler
	throttle capture.Throttle    // nil where h has none
	keeper   capture.EpochKeeper // nil where h has none
	wire     *wire
	dec      *rowDecoder
	history  history
	fold     bool

	at    filePlace // behind the event in hand
	begin filePlace // of the transaction
	state txState
	tx    capture.Transaction
	begun bool // h knows of tx

	handRow func(*capture.Change) error // row, once made
	warned  bool                        // of statements that change rows
	zip     payload

	lastHanded time.Time
	lastFlush  time.Time
	seenBytes  uint64

	failure error // what ended the stream, whatever the library makes of it
}

// txState is where in a transaction the log is.
type txState struct {
	open       bool
	standalone bool // MariaDB: ends with its one statement
	statement  bool // BEGIN came, or is not needed: what comes is inside
	prepared   bool // XA: its rows are not committed yet
	lost       map[string]bool
}

// emptyEvery is how often a transaction without anything for us is handed over, so that the position moves. Handing over
// each would cost more than reading it.
const emptyEvery = 200 * time.Millisecond

func (s *Source) stream(ctx context.Context, start *startPoint, h capture.Handler) error {
	needs := s.o.Needs
	if s.o.Heartbeat != "" {
		needs = maps.Clone(needs)
		if needs == nil {
			needs = map[string]TableNeeds{}
		}
		needs[s.o.Heartbeat] = TableNeeds{Columns: []string{heartbeatColumn}}
	}
	st := &stream{
		src: s, ctx: ctx, h: h, wire: newWire(ctx, s.o.Liveness), history: start.history, fold: start.fold,
		dec: newRowDecoder(rowOptions{Needs: needs, Charsets: start.charsets, MariaDB: start.facts.mode == modeMariaDB}),
	}
	st.throttle, _ = h.(capture.Throttle)
	st.keeper, _ = h.(capture.EpochKeeper)
	st.handRow = st.row
	if start.facts.mode == modeFile {
		st.at = start.history.at
	}
	defer st.zip.close()
	b, err := s.syncer(start, st.wire, st)
	if err != nil {
		return err
	}
	// Everything that the library waits for ends when its connections do.
	stop := context.AfterFunc(ctx, st.wire.abort)
	closing := sync.OnceFunc(func() {
		stop()
		st.wire.abort()
		b.Close()
	})
	defer closing()
	s.setPlace(filePlace{}, start.history.position())
	s.setStreams(start.facts.systemID())
	defer s.setStreams("")
	streamer, err := st.dump(b, start)
	if err == nil {
		if f, ok := h.(capture.Follower); ok {
			f.Follows()
		}
		_, err = streamer.GetEvent(ctx) // nothing but the end comes this way
		err = st.dumpError(err)
	}
	closing() // waits for the library's goroutine: what it left in st may be read from here on
	st.flushCounts()
	s.setPlace(filePlace{}, "")
	if id := b.LastConnectionID(); id != 0 {
		s.endDump(ctx, id)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case st.failure != nil:
		return st.failure
	}
	return err
}

func (s *Source) setPlace(p filePlace, read string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.place, s.read = p, read
}

// setStreams remembers which server is streamed. What a snapshot of another one had says nothing.
func (s *Source) setStreams(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams, s.visible = id, visible{}
}

// errStopped is what the library is told when we stop; it is not looked at again.
var errStopped = errors.New("stopped")

// HandleEvent implements replication.EventHandler.
func (st *stream) HandleEvent(e *replication.BinlogEvent) (err error) {
	defer func() {
		if v := recover(); v != nil {
			st.failure = &DecodeError{At: st.place(), Err: errors.New(panicText(v))}
			err = errStopped
		}
	}()
	if err := st.event(e); err != nil {
		st.failure = err
		return errStopped
	}
	return nil
}

// panicText keeps the runtime's own errors, which speak of sizes only.
func panicText(v any) string {
	if e, ok := v.(runtime.Error); ok {
		return "panic: " + e.Error()
	}
	return fmt.Sprintf("panic with a value of type %v", reflect.TypeOf(v))
}

// place is where an error is met.
func (st *stream) place() string {
	if st.state.open {
		switch st.history.mode {
		case modeMariaDB:
			return st.history.pending.domain.String()
		case modeGTID:
			return fmt.Sprintf("%s:%d", st.history.pending.origin, st.history.pending.number)
		case modeFile:
			return st.begin.String()
		}
	}
	return "after " + st.history.position()
}

func (st *stream) event(e *replication.BinlogEvent) error {
	if err := st.ctx.Err(); err != nil {
		return err
	}
	begin := st.at
	st.move(e)
	switch x := e.Event.(type) {
	case *replication.RotateEvent:
		st.at = filePlace{file: string(x.NextLogName), pos: x.Position}
		return nil
	case *replication.FormatDescriptionEvent:
		st.dec.reset()
		return nil
	case *replication.GenericEvent:
		return st.body(e.Header, begin, x.Data)
	}
	return &DecodeError{At: st.place(), Err: fmt.Errorf("event of type %d came decoded", e.Header.EventType)}
}

// artificial is LOG_EVENT_ARTIFICIAL_F: the event is in no file.
const artificial = 0x20

// move follows the place in the file. Headers have its lower 32 bits, or none (MariaDB 11.4 and later within a transaction).
func (st *stream) move(e *replication.BinlogEvent) {
	h := e.Header
	if h.Flags&artificial != 0 || h.EventType == replication.HEARTBEAT_EVENT || h.EventType == replication.HEARTBEAT_LOG_EVENT_V2 {
		return
	}
	if h.LogPos == 0 {
		if h.EventType != replication.FORMAT_DESCRIPTION_EVENT && h.EventType != replication.ROTATE_EVENT {
			st.at.pos += uint64(h.EventSize)
		}
		return
	}
	pos := st.at.pos&^(1<<32-1) | uint64(h.LogPos)
	if pos < st.at.pos {
		pos += 1 << 32
	}
	st.at.pos = pos
}

// body looks at an event. inner events of a compressed transaction come here too.
func (st *stream) body(h *replication.EventHeader, begin filePlace, data []byte) error {
	switch t := h.EventType; t { //nolint:exhaustive // the rest is below
	case replication.TABLE_MAP_EVENT:
		return st.tableMap(data)
	case replication.WRITE_ROWS_EVENTv1, replication.UPDATE_ROWS_EVENTv1, replication.DELETE_ROWS_EVENTv1,
		replication.WRITE_ROWS_EVENTv2, replication.UPDATE_ROWS_EVENTv2, replication.DELETE_ROWS_EVENTv2,
		replication.PARTIAL_UPDATE_ROWS_EVENT, replication.MARIADB_WRITE_ROWS_COMPRESSED_EVENT_V1,
		replication.MARIADB_UPDATE_ROWS_COMPRESSED_EVENT_V1, replication.MARIADB_DELETE_ROWS_COMPRESSED_EVENT_V1:
		return st.rows(t, data)
	case replication.XID_EVENT:
		return st.commit()
	case replication.GTID_EVENT, replication.ANONYMOUS_GTID_EVENT, replication.GTID_TAGGED_LOG_EVENT:
		return st.beginMySQL(h, begin, data)
	case replication.MARIADB_GTID_EVENT:
		return st.beginMariaDB(h, data)
	case replication.QUERY_EVENT:
		return st.query(data, queryPlain)
	case replication.EXECUTE_LOAD_QUERY_EVENT:
		return st.query(data, queryLoad)
	case replication.MARIADB_QUERY_COMPRESSED_EVENT:
		return st.query(data, queryCompressed)
	case replication.TRANSACTION_PAYLOAD_EVENT:
		return st.payload(data)
	case replication.XA_PREPARE_LOG_EVENT:
		return st.commit() // of the preparing: what it holds was not handed over
	case replication.INCIDENT_EVENT:
		return &capture.GapError{
			Cause: capture.GapIncident,
			Hint: "the source could not write a part of its log (an incident event at " + st.place() + "): look into its error log, then " +
				"`lethe gap resume --accept-loss`",
		}
	}
	return st.other(h)
}

// other passes over what says nothing of rows. What is not known stops capture, unless the server marks it as ignorable.
func (st *stream) other(h *replication.EventHeader) error {
	switch h.EventType { //nolint:exhaustive // the rest is unknown
	case replication.HEARTBEAT_EVENT, replication.HEARTBEAT_LOG_EVENT_V2:
		st.flushCounts()
		return nil
	case replication.STOP_EVENT, replication.IGNORABLE_EVENT, replication.ROWS_QUERY_EVENT, replication.PREVIOUS_GTIDS_EVENT,
		replication.INTVAR_EVENT, replication.RAND_EVENT, replication.USER_VAR_EVENT, replication.BEGIN_LOAD_QUERY_EVENT,
		replication.APPEND_BLOCK_EVENT, replication.DELETE_FILE_EVENT, replication.TRANSACTION_CONTEXT_EVENT,
		replication.VIEW_CHANGE_EVENT, replication.MARIADB_ANNOTATE_ROWS_EVENT, replication.MARIADB_BINLOG_CHECKPOINT_EVENT,
		replication.MARIADB_GTID_LIST_EVENT, replication.MARIADB_START_ENCRYPTION_EVENT:
		return nil
	}
	if h.Flags&replication.LOG_EVENT_IGNORABLE_F != 0 {
		return nil
	}
	return &DecodeError{At: st.place(), Err: fmt.Errorf("event of unknown type %d", h.EventType)}
}

func (st *stream) tableMap(data []byte) error {
	if err := st.inside("a table map"); err != nil {
		return err
	}
	if err := st.dec.tableMap(data); err != nil {
		return placed(err, st.place())
	}
	return nil
}

func (st *stream) rows(t replication.EventType, data []byte) error {
	if err := st.inside("rows"); err != nil {
		return err
	}
	p := &st.history.pending
	table := st.dec.table(data)
	switch {
	case p.passing:
		return nil
	case table != nil && p.foreign:
		return st.secondDomain(table.Name)
	case table != nil && st.state.prepared:
		return st.lose(table, capture.GapXA)
	}
	err := st.dec.rows(t, data, st.handRow)
	if err != nil {
		return placed(err, st.place())
	}
	return nil
}

func (st *stream) secondDomain(table string) error {
	p := &st.history.pending
	return &capture.GapError{
		Cause: capture.GapSecondDomain, Object: table,
		Hint: fmt.Sprintf("table %s was written in replication domain %d (%s), Lethe follows domain %d: two domains have no order between them; "+
			"write all mapped tables with one gtid_domain_id, then `lethe gap resume --accept-loss`", table, p.domain.domain, p.domain,
			st.history.domain),
	}
}

func (st *stream) inside(what string) error {
	if !st.state.open {
		return &DecodeError{At: st.place(), Err: errors.New(what + " outside of a transaction")}
	}
	return nil
}

// row hands a row over; one of the heartbeat's table becomes a message.
func (st *stream) row(c *capture.Change) error {
	if c.Table.Name != st.src.o.Heartbeat {
		return st.hand(c)
	}
	if c.New == nil {
		return nil
	}
	v := c.New[c.Table.Index(heartbeatColumn)]
	if v.State != capture.Present {
		return nil
	}
	return st.hand(&capture.Change{Op: capture.OpMessage, Message: v.Text})
}

// lose tells the Handler, once a transaction, that a table was changed in a way that the log has no rows of.
func (st *stream) lose(table *capture.Table, cause string) error {
	if table.Name == st.src.o.Heartbeat || st.state.lost[table.Name+"\x00"+cause] {
		return nil
	}
	if st.state.lost == nil {
		st.state.lost = map[string]bool{}
	}
	st.state.lost[table.Name+"\x00"+cause] = true
	if cause == capture.GapTruncate {
		cause = ""
	}
	return st.hand(&capture.Change{Op: capture.OpTruncate, Table: table, Lost: cause})
}

// hand gives a change to the Handler. Begin is called with the first one.
func (st *stream) hand(c *capture.Change) error {
	if st.history.pending.passing {
		return nil
	}
	if err := st.start(); err != nil {
		return err
	}
	if err := st.waitForRoom(); err != nil {
		return err
	}
	return st.h.Change(c)
}

// start calls Begin, and before it KeepEpochs where a new epoch has begun.
func (st *stream) start() error {
	if st.begun {
		return nil
	}
	h := &st.history
	if h.epochs.unkept && st.keeper != nil {
		st.src.mu.Lock()
		acked := st.src.acked.Epoch
		st.src.mu.Unlock()
		h.epochs.forget(acked)
		if err := st.keeper.KeepEpochs(h.epochs.list); err != nil {
			return err
		}
		st.src.o.Log.Info().Uint32("epoch", h.pending.epoch).Str("at", st.place()).Msg("a new epoch of the order begins")
	}
	h.epochs.unkept = false
	n := h.pending.number
	st.tx = capture.Transaction{
		Position:    capture.Position{Epoch: h.pending.epoch, Commit: n, Before: h.position()},
		CommittedAt: h.pending.time,
	}
	if err := st.h.Begin(&st.tx); err != nil {
		return err
	}
	st.begun = true
	return nil
}

// waitForRoom reads nothing while the Handler is full. The server waits as long (dumpSettings).
func (st *stream) waitForRoom() error {
	if st.throttle == nil {
		return nil
	}
	for room := st.throttle.Full(); room != nil; room = st.throttle.Full() {
		select {
		case <-room:
		case <-st.ctx.Done():
			return st.ctx.Err()
		}
	}
	return nil
}

// flushCounts adds what was counted since the last time.
func (st *stream) flushCounts() {
	m := st.src.metrics
	n := st.wire.bytes.Load()
	m.received.Add(float64(n - st.seenBytes))
	st.seenBytes = n
	m.skipped.Add(float64(st.dec.skipped))
	st.dec.skipped = 0
}
