package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"lethe/capture"
	"lethe/internal/pii"
)

// slotState is the row of pg_replication_slots.
type slotState struct {
	plugin     string
	slotType   string
	datoid     string
	here       bool // belongs to the database that we are connected to
	temporary  bool
	active     bool
	restart    uint64 // 0: none
	confirmed  uint64 // 0: none
	walStatus  string
	twoPhase   bool
	catalogXID string
}

// slotQuery wants the slot's name in quotes after it; all values come as text.
const slotQuery = `SELECT coalesce(plugin, ''), slot_type, coalesce(datoid::text, ''), coalesce(database = current_database(), false),
	temporary, active, coalesce(restart_lsn::text, ''), coalesce(confirmed_flush_lsn::text, ''), coalesce(wal_status, ''),
	two_phase, coalesce(catalog_xmin::text, '')
	FROM pg_catalog.pg_replication_slots WHERE slot_name = `

// readSlot returns nil where there is no such slot. The slot's name was checked for form by Options.validate.
func readSlot(ctx context.Context, conn *pgconn.PgConn, slot string) (*slotState, error) {
	r, err := rows(ctx, conn, slotQuery+"'"+slot+"'")
	if err != nil {
		return nil, fmt.Errorf("reading the state of slot %s: %w", slot, pii.DriverError(err))
	}
	if len(r) == 0 {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	text := func(i int) string { return string(r[0][i]) }
	st := &slotState{
		plugin: text(0), slotType: text(1), datoid: text(2), here: text(3) == "t", temporary: text(4) == "t",
		active: text(5) == "t", walStatus: text(8), twoPhase: text(9) == "t", catalogXID: text(10),
	}
	if st.restart, err = optionalLSN(text(6)); err != nil {
		return nil, err
	}
	st.confirmed, err = optionalLSN(text(7))
	return st, err
}

func optionalLSN(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	lsn, err := pglogrepl.ParseLSN(s)
	return uint64(lsn), err
}

// generation is what a checkpoint is stamped with to know its slot again. PostgreSQL gives a slot nothing of its own: no
// creation time, no id, and whatever could be written down elsewhere would take DDL or a file. It is not needed for
// safety, because positions already tell:
//
//   - A slot's confirmed position is only ever what we acknowledged, the place of its creation, or what somebody advanced
//     it to. We acknowledge nothing beyond the checkpoint.
//   - A slot can be dropped only while nobody reads from it, so the server's log is by then at or past the checkpoint; a
//     new slot starts behind that. So a re-created slot is ahead of the checkpoint, and is seen as that; if it is not,
//     nothing was written in between and nothing is lost.
//   - On a server whose history was replaced (a restore, a clone) the slot may stand anywhere, but then the log does not
//     hold the checkpoint's own commit, and the stream is made to pass that before anything is handed over.
//
// The generation is the database that the slot belongs to and where the slot stands. The second part moves with every
// acknowledgement, so it says something only as long as nothing was acknowledged: then there is no position to compare
// with, and the slot must not have moved since the stamp. With a position only the database is compared.
func (st *slotState) generation() string { return "db" + st.datoid + "@" + lsnText(st.confirmed) }

// startPoint is what stands between the checks and the stream.
type startPoint struct {
	history   timelines
	confirmed uint64
	// verify is the checkpoint whose commit the stream has to pass before anything is handed over; nil where the slot
	// already stands at or past it.
	verify *capture.Checkpoint
}

// prepare compares the server with the checkpoint. It returns a *capture.GapError where history does not connect.
func (s *Source) prepare(ctx context.Context, conn *pgconn.PgConn, from *capture.Checkpoint) (startPoint, error) {
	sys, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return startPoint{}, fmt.Errorf("identifying the source: %w", pii.DriverError(err))
	}
	if err := refuseStandby(ctx, conn); err != nil {
		return startPoint{}, connectError("looking whether the source is the primary", err)
	}
	if from != nil && from.Identity.SystemID != sys.SystemID {
		return startPoint{}, &capture.GapError{
			Cause: capture.GapOtherSystem,
			Hint: fmt.Sprintf("the checkpoint is of system %s, the DSN leads to system %s: correct the DSN, or accept the new system "+
				"with a full pass", from.Identity.SystemID, sys.SystemID),
		}
	}
	slot, err := readSlot(ctx, conn, s.o.Slot)
	if err != nil {
		return startPoint{}, err
	}
	if err := s.usable(slot, from); err != nil {
		return startPoint{}, err
	}
	history, err := readTimelines(ctx, conn, sys.Timeline)
	if err != nil {
		return startPoint{}, err
	}
	start := startPoint{history: history, confirmed: slot.confirmed}
	if from == nil {
		return start, nil
	}
	if err := connects(history, uint64(sys.XLogPos), slot, from); err != nil {
		return startPoint{}, err
	}
	// A slot between the commit record and its end has this transaction behind it: nothing to pass.
	if slot.confirmed <= from.Position.Commit {
		start.verify = from
	}
	return start, nil
}

// usable tells whether the slot can be read from at all.
func (s *Source) usable(slot *slotState, from *capture.Checkpoint) error {
	switch {
	case slot == nil && from == nil:
		return &SetupError{
			What: fmt.Sprintf("replication slot %s does not exist", s.o.Slot),
			Hint: "`lethe setup` makes it, `lethe check --fix-sql` prints the statement",
		}
	case slot == nil:
		return &capture.GapError{
			Cause: capture.GapSlotMissing,
			Hint: fmt.Sprintf("slot %s is gone, and with it the log since %s: somebody dropped it, or a failover went to a standby "+
				"without it; make it again with `lethe setup`, then `lethe gap resume --accept-loss`", s.o.Slot, lsnText(from.Position.End)),
		}
	case slot.slotType != "logical" || slot.plugin != "pgoutput" || slot.temporary || !slot.here:
		return &SetupError{
			What: fmt.Sprintf("replication slot %s is not a permanent logical slot of this database with the plugin pgoutput", s.o.Slot),
			Hint: "name another slot in the config, or have its owner drop it; `lethe setup` makes the right one",
		}
	case slot.walStatus == "lost" || slot.restart == 0 || slot.confirmed == 0:
		return &capture.GapError{
			Cause: capture.GapSlotLost,
			Hint: fmt.Sprintf("the server gave up slot %s because it held back more log than max_slot_wal_keep_size allows (or stood idle "+
				"too long): drop and make it again with `lethe setup`, then `lethe gap resume --accept-loss`", s.o.Slot),
		}
	case slot.active:
		return fmt.Errorf("starting replication from slot %s: %w", s.o.Slot, ErrSlotInUse)
	}
	return nil
}

// connects compares positions: the checkpoint has to lie on the server's own history, and the slot must not have passed it.
func connects(history timelines, written uint64, slot *slotState, from *capture.Checkpoint) error {
	end := from.Position.End
	if on := history.at(from.Position.Commit); on != from.Position.Epoch {
		return forked(fmt.Sprintf("the checkpoint's commit %s was on timeline %d, on this server that place is on timeline %d",
			lsnText(from.Position.Commit), from.Position.Epoch, on))
	}
	if written < end {
		return forked(fmt.Sprintf("the checkpoint is at %s, the server's log ends at %s", lsnText(end), lsnText(written)))
	}
	if slot.confirmed <= end && sameDatabase(slot, from) {
		return nil
	}
	if slot.restart > end || !sameDatabase(slot, from) {
		return &capture.GapError{
			Cause: capture.GapSlotRecreated,
			Hint: fmt.Sprintf("the slot starts at %s and holds no log before %s, the checkpoint is at %s: it was dropped and made again "+
				"(or advanced far); the changes in between are not in the log any more: `lethe gap resume --accept-loss` goes on behind them",
				lsnText(slot.confirmed), lsnText(slot.restart), lsnText(end)),
		}
	}
	return &capture.GapError{
		Cause: capture.GapSlotAhead,
		Hint: fmt.Sprintf("the slot was advanced to %s, the checkpoint is at %s, and the server skips what lies between: find out who "+
			"reads from or advances this slot, then `lethe gap resume --accept-loss`", lsnText(slot.confirmed), lsnText(end)),
	}
}

// sameDatabase compares the first part of the generation, where the checkpoint has one.
func sameDatabase(slot *slotState, from *capture.Checkpoint) bool {
	then, _, _ := strings.Cut(from.Identity.SlotGeneration, "@")
	now, _, _ := strings.Cut(slot.generation(), "@")
	return then == "" || then == now
}

func forked(what string) error {
	return &capture.GapError{
		Cause: capture.GapForkedHistory,
		Hint: what + ": the source was restored from a backup or a snapshot, or a standby was promoted that lacked the newest commits " +
			"(another publication on the same slot looks the same); list the erasures after the point of restore, then `lethe gap resume --accept-loss`",
	}
}

func readTimelines(ctx context.Context, conn *pgconn.PgConn, now int32) (timelines, error) {
	if now <= 1 {
		return timelines{now: 1}, nil // the first timeline has no history file
	}
	h, err := pglogrepl.TimelineHistory(ctx, conn, now)
	if err != nil {
		return timelines{}, fmt.Errorf("reading the history of timeline %s: %w", strconv.Itoa(int(now)), pii.DriverError(err))
	}
	return parseTimelines(uint32(now), h.Content)
}
