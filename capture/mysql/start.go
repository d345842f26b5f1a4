package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lethe/capture"
	"lethe/internal/pii"
)

// startPoint is what stands between the checks and the stream.
type startPoint struct {
	facts *serverFacts
	at    string // where reading starts
	// again is where it starts when the log no longer holds the checkpoint's own transaction, but everything behind it; empty
	// where there is no such place.
	again   string
	history history
	// fold is set where the server does not tell capital letters in the names of tables apart.
	fold     bool
	charsets charsets
	tls      bool // the ordinary connection is encrypted
}

// prepare compares the server with the checkpoint. It returns a *capture.GapError where history does not connect.
func (s *Source) prepare(ctx context.Context, from *capture.Checkpoint) (*startPoint, error) {
	st := &startPoint{}
	err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
		var err error
		if st.facts, err = readServer(ctx, conn); err != nil {
			return err
		}
		var cipher string
		var ignore string
		if err := conn.QueryRowContext(ctx, "SHOW SESSION STATUS LIKE 'Ssl_cipher'").Scan(&ignore, &cipher); err != nil {
			return fmt.Errorf("asking the source whether the connection is encrypted: %w", pii.DriverError(err))
		}
		st.tls = cipher != ""
		var lower int
		if err := conn.QueryRowContext(ctx, "SELECT @@global.lower_case_table_names").Scan(&lower); err != nil {
			return fmt.Errorf("reading lower_case_table_names: %w", pii.DriverError(err))
		}
		st.fold = lower != 0
		return s.aloneUnderID(ctx, conn, st.facts)
	})
	if err != nil {
		return nil, err
	}
	if err := s.usable(st.facts); err != nil {
		return nil, err
	}
	db, err := s.pool()
	if err != nil {
		return nil, err
	}
	if st.charsets, err = readCharsets(ctx, db); err != nil {
		return nil, err
	}
	st.history.mode, st.history.domain = st.facts.mode, st.facts.domain
	return st, s.settled(ctx, st, from)
}

// usable tells whether the log can be read at all.
func (s *Source) usable(f *serverFacts) error {
	switch {
	case !f.logs:
		return &SetupError{What: "the source writes no binary log", Hint: "start it with log_bin, binlog_format=ROW, binlog_row_image=FULL and " +
			"binlog_row_metadata=FULL"}
	case f.mode == modeFile && s.o.RequireGTID:
		return &SetupError{What: "the source has gtid_mode=" + f.gtidMode, Hint: "turn GTIDs on (gtid_mode=ON, enforce_gtid_consistency=ON); with " +
			"require_gtid: false Lethe follows this one server without them, and any change of server is a gap"}
	case f.readOnly:
		return fmt.Errorf("connecting to the source: %w", ErrNotPrimary)
	}
	return nil
}

// connect finds where reading starts, and whether what the server has connects to it.
func (st *startPoint) connect(from *capture.Checkpoint) error {
	if from == nil {
		return st.startAt(st.facts.executed)
	}
	if then := from.Identity.Slot; then != st.facts.mode.String() {
		return &capture.GapError{
			Cause: capture.GapModeChanged,
			Hint: fmt.Sprintf("the checkpoint was made by following %s, the server offers %s: positions of one mean nothing to the other; "+
				"`lethe gap resume --accept-loss` goes on in the new way: compare the CRM's erasures of that time with `lethe cases`", then, st.facts.mode),
		}
	}
	st.history.epochs.list = append([]capture.Epoch(nil), from.Epochs...)
	if st.facts.mode == modeMariaDB {
		if err := st.sameDomain(from); err != nil {
			return err
		}
	}
	if from.Position == (capture.Position{}) {
		if err := st.startAt(from.Identity.Start); err != nil {
			return err
		}
		return st.holds(from, from.Identity.Start, true)
	}
	if err := st.holds(from, from.Position.GTID, true); err != nil {
		return err
	}
	st.history.verify = from
	return st.startBefore(from)
}

// sameDomain refuses a primary that writes in another replication domain: heartbeats and data would come from it.
func (st *startPoint) sameDomain(from *capture.Checkpoint) error {
	_, text, _ := strings.Cut(from.Identity.SlotGeneration, "/")
	domain, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return &DecodeError{At: from.Position.GTID, Err: errors.New("the checkpoint names no replication domain")}
	}
	st.history.domain = uint32(domain)
	if uint32(domain) == st.facts.domain {
		return nil
	}
	return &SetupError{
		What: fmt.Sprintf("the source has gtid_domain_id=%d, and Lethe follows domain %d", st.facts.domain, domain),
		Hint: "give all servers that may become the primary the same gtid_domain_id",
	}
}

// startAt begins at a position without looking back.
func (st *startPoint) startAt(position string) (err error) {
	if position == emptySet {
		position = ""
	}
	st.at = position
	h := &st.history
	h.text, h.fresh = position, true
	switch st.facts.mode {
	case modeMariaDB:
		if h.read, err = parseDomainSet(position); err == nil {
			g, _ := h.read.of(h.domain)
			h.last = g.number
		}
	case modeGTID:
		h.set, err = parseGTIDs(position)
	case modeFile:
		h.at, err = parseFilePlace(position)
	}
	if err != nil {
		return &DecodeError{At: position, Err: err}
	}
	return nil
}

// startBefore begins in front of the checkpoint's own transaction, which the log has to have in the same place.
func (st *startPoint) startBefore(from *capture.Checkpoint) error {
	h := &st.history
	h.epochs.now, h.epochs.last = from.Position.Epoch, from.Position.Commit
	if st.facts.mode != modeGTID {
		st.again = from.Position.GTID
		return st.startAt(from.Position.Before)
	}
	was, err1 := parseGTIDs(from.Position.GTID)
	before, err2 := parseGTIDs(from.Position.Before)
	purged, err3 := parseGTIDs(st.facts.purged)
	if err := errors.Join(err1, err2, err3); err != nil {
		return &DecodeError{At: from.Position.GTID, Err: err}
	}
	for origin := range was.minus(before) {
		h.origin = origin
	}
	h.epochs.origin = h.origin
	if !slices.ContainsFunc(h.epochs.list, func(e capture.Epoch) bool { return e.Number == from.Position.Epoch }) {
		// A Handler that keeps no epochs made the checkpoint.
		h.epochs.list = append(h.epochs.list, capture.Epoch{Number: from.Position.Epoch, Origin: h.origin, From: from.Position.Commit})
	}
	if purged.has(h.origin, from.Position.Commit) {
		return st.startAtCheckpoint(from) // it cannot be read again
	}
	if err := st.startAt(from.Position.GTID); err != nil {
		return err
	}
	st.at = from.Position.Before
	return nil
}

// startAtCheckpoint begins behind the checkpoint's own transaction, which is not looked at.
func (st *startPoint) startAtCheckpoint(from *capture.Checkpoint) error {
	st.history.verify, st.again = nil, ""
	return st.startAt(from.Position.GTID)
}

// holds reports a gap where the server lacks something of a position, or, with behind, has purged what lies behind it.
func (st *startPoint) holds(from *capture.Checkpoint, position string, behind bool) error {
	switch st.facts.mode {
	case modeMariaDB:
		return st.holdsDomain(position)
	case modeGTID:
		return st.holdsSet(position, behind)
	case modeFile:
		return st.holdsFile(from, position)
	}
	return nil
}

func (st *startPoint) holdsSet(position string, behind bool) error {
	ours, err1 := parseGTIDs(position)
	executed, err2 := parseGTIDs(st.facts.executed)
	purged, err3 := parseGTIDs(st.facts.purged)
	if err := errors.Join(err1, err2, err3); err != nil {
		return &DecodeError{At: position, Err: err}
	}
	if lacks := ours.minus(executed); len(lacks) > 0 {
		if !ours.meets(executed) {
			return otherSystem("it has none of the transactions that were read")
		}
		return forked(fmt.Sprintf("the server lacks %s, which was read before", lacks))
	}
	if behind && len(purged.minus(ours)) > 0 {
		return &capture.GapError{Cause: capture.GapPurged, Hint: purgedHint}
	}
	return nil
}

func (st *startPoint) holdsDomain(position string) error {
	ours, err1 := parseDomainSet(position)
	state, err2 := parseDomainGTIDs(st.facts.state)
	if err := errors.Join(err1, err2); err != nil {
		return &DecodeError{At: position, Err: err}
	}
	g, ok := ours.of(st.history.domain)
	if !ok {
		return nil // nothing was read yet
	}
	known := false
	for _, has := range state {
		if has.domain == g.domain && has.server == g.server && has.number >= g.number {
			return nil
		}
		known = known || has.domain == g.domain
	}
	if !known {
		return otherSystem(fmt.Sprintf("it has no transaction of replication domain %d", g.domain))
	}
	return forked(fmt.Sprintf("the server lacks %s, which was read before", g))
}

func (st *startPoint) holdsFile(from *capture.Checkpoint, position string) error {
	if from.Identity.SystemID != st.facts.systemID() {
		return otherSystem("without GTIDs only one server can be followed, and the DSN leads to " + st.facts.systemID())
	}
	ours, err1 := parseFilePlace(position)
	now, err2 := parseFilePlace(st.facts.executed)
	if err := errors.Join(err1, err2); err != nil {
		return &DecodeError{At: position, Err: err}
	}
	a, err1 := ours.number()
	b, err2 := now.number()
	if err := errors.Join(err1, err2); err != nil {
		return &DecodeError{At: position, Err: err}
	}
	if a > b {
		return forked(fmt.Sprintf("the checkpoint is at %s, the server's log ends at %s", ours, now))
	}
	return nil
}

func otherSystem(what string) error {
	return &capture.GapError{
		Cause: capture.GapOtherSystem,
		Hint:  "the source is another server than before: " + what + "; correct the DSN, or accept the new one with `lethe gap resume --accept-loss` and compare its erasures with `lethe cases`",
	}
}
