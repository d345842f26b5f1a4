package mysql

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
)

// MariaDB's flags of a GTID event that go-mysql does not name (sql/log_event.h).
const (
	flagStandalone = 1
	flagPreparedXA = 64
)

// beginMySQL begins a transaction at a GTID event; without GTIDs the event is an anonymous one.
func (st *stream) beginMySQL(h *replication.EventHeader, begin filePlace, data []byte) error {
	if st.state.open {
		return &DecodeError{At: st.place(), Err: errors.New("a transaction begins inside of another")}
	}
	var tagged replication.GtidTaggedLogEvent
	g := &tagged.GTIDEvent
	var err error
	if h.EventType == replication.GTID_TAGGED_LOG_EVENT {
		err = tagged.Decode(data)
	} else {
		err = g.Decode(data)
	}
	if err != nil {
		return &DecodeError{At: st.place(), Err: errors.New("a GTID event cannot be read")}
	}
	at := time.UnixMicro(int64(g.OriginalCommitTimestamp)).UTC() //nolint:gosec // microseconds since 1970
	if g.OriginalCommitTimestamp == 0 {
		at = time.Unix(int64(h.Timestamp), 0).UTC()
	}
	st.open(begin)
	if st.history.mode == modeFile {
		return st.history.beginFile(begin, at)
	}
	if h.EventType == replication.ANONYMOUS_GTID_EVENT || g.GNO <= 0 {
		return &DecodeError{At: st.place(), Err: errors.New("a transaction without GTID in a log with them")}
	}
	origin := st.history.uuid(g.SID)
	if tag := g.Tag.String(); tag != "" {
		origin += ":" + tag
	}
	missing, err := st.history.beginGTID(origin, uint64(g.GNO), at)
	if err != nil || missing.origin == "" {
		return err
	}
	return st.src.awaitExecuted(st.ctx, missing)
}

func (st *stream) beginMariaDB(h *replication.EventHeader, data []byte) error {
	if st.state.open {
		return &DecodeError{At: st.place(), Err: errors.New("a transaction begins inside of another")}
	}
	var g replication.MariadbGTIDEvent
	if len(data) < 13 {
		return &DecodeError{At: st.place(), Err: errShort}
	}
	if g.Flags = data[12]; g.Flags&replication.BINLOG_MARIADB_FL_GROUP_COMMIT_ID != 0 && len(data) < 21 {
		return &DecodeError{At: st.place(), Err: errShort}
	}
	if err := g.Decode(data); err != nil {
		return &DecodeError{At: st.place(), Err: errors.New("a GTID event cannot be read")}
	}
	st.open(filePlace{})
	st.state.statement = true // there is no BEGIN
	st.state.standalone = g.Flags&flagStandalone != 0
	st.state.prepared = g.Flags&flagPreparedXA != 0
	return st.history.beginDomain(domainGTID{g.GTID.DomainID, h.ServerID, g.GTID.SequenceNumber}, time.Unix(int64(h.Timestamp), 0).UTC())
}

func (st *stream) open(begin filePlace) {
	st.state = txState{open: true}
	st.begin = begin
	st.begun = false
}

// commit ends a transaction. One without a change for us is handed over now and then, so that the position moves.
func (st *stream) commit() error {
	if err := st.inside("a commit"); err != nil {
		return err
	}
	p := &st.history.pending
	now := time.Now()
	handed := st.begun
	if !handed && !p.passing && !p.foreign && now.Sub(st.lastHanded) >= emptyEvery {
		if err := st.start(); err != nil {
			return err
		}
		handed = true
	}
	passing := p.passing
	if err := st.history.end(st.at); err != nil {
		return err
	}
	st.state = txState{}
	st.begun = false
	if passing {
		st.src.o.Log.Info().Str("position", st.history.position()).Msg("the log holds the checkpoint's transaction: history connects")
	}
	if !handed {
		return nil
	}
	st.lastHanded = now
	st.tx.Position.End = st.tx.Position.Commit + 1
	st.tx.Position.GTID = st.history.position()
	// Before the Handler knows of the commit: whoever reads tables for it has to find the commit's place.
	place := st.at
	place.committedAt = st.tx.CommittedAt
	st.src.setPlace(place, st.tx.Position.GTID)
	if err := st.h.Commit(&st.tx); err != nil {
		return err
	}
	if now.Sub(st.lastFlush) >= time.Second {
		st.lastFlush = now
		st.flushCounts()
		st.src.metrics.epoch.Set(float64(st.tx.Position.Epoch))
	}
	return nil
}

// rolledBack ends a transaction that the log takes back: one that changed tables without transactions too.
func (st *stream) rolledBack() error {
	if st.begun && !st.history.pending.passing {
		return &capture.GapError{
			Cause: capture.GapRolledBack,
			Hint: fmt.Sprintf("transaction %s is in the log, and was rolled back: it changed tables of an engine without transactions too; "+
				"make all mapped tables InnoDB, then `lethe gap resume --accept-loss`", st.place()),
		}
	}
	return st.commit()
}

// query looks at a statement in the log.
func (st *stream) query(data []byte, form queryForm) error {
	if err := st.inside("a statement"); err != nil {
		return err
	}
	q, err := readQuery(data, form)
	if err != nil {
		return &DecodeError{At: st.place(), Err: err}
	}
	words := newLexer(q.text, q.noBackslash)
	first := words.keyword()
	if !st.state.statement {
		// MySQL: what is no BEGIN is the whole transaction.
		switch {
		case first == "BEGIN":
			st.state.statement = true
			return nil
		case first == "XA" && strings.EqualFold(words.next().text, "START"):
			st.state.statement, st.state.prepared = true, true
			return nil
		}
		if err := st.effect(q); err != nil {
			return err
		}
		return st.commit()
	}
	switch first {
	case "COMMIT":
		return st.commit()
	case "ROLLBACK":
		if strings.EqualFold(words.next().text, "TO") {
			return st.rolledBackTo()
		}
		return st.rolledBack()
	case "SAVEPOINT", "RELEASE", "BEGIN":
		return nil
	case "XA":
		if st.state.standalone {
			return st.commit()
		}
		return nil
	}
	if err := st.effect(q); err != nil {
		return err
	}
	if st.state.standalone {
		return st.commit()
	}
	return nil
}

// rolledBackTo stops at a savepoint that the log takes rows back to; the server cuts them out itself wherever it can.
func (st *stream) rolledBackTo() error {
	if st.begun && !st.history.pending.passing {
		return st.rolledBack()
	}
	return nil
}

// effect reports what a statement did to mapped tables without rows.
func (st *stream) effect(q query) error {
	if st.history.pending.passing {
		return nil
	}
	found, unclear := effects(q, st.src.o.Needs, st.fold)
	if unclear && !st.warned {
		st.warned = true
		st.src.o.Log.Error().Str("at", st.place()).Msg("the log has statements that change rows instead of the rows; those seen name no mapped " +
			"table, but what their triggers and views change is not seen: set binlog_format = ROW everywhere (told once)")
	}
	for _, e := range found {
		st.src.o.Log.Error().Str("table", e.table).Str("cause", e.cause).Str("at", st.place()).
			Msg("a mapped table was changed by a statement that the log has no rows of")
		if st.history.pending.foreign {
			return st.secondDomain(e.table)
		}
		if err := st.lose(&capture.Table{Name: e.table, OldRow: capture.OldRowFull}, e.cause); err != nil {
			return err
		}
	}
	return nil
}
