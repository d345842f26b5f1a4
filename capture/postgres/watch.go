package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/capture"
	"lethe/internal/pii"
)

// SlotStatus is how the slot stands on the server.
type SlotStatus struct {
	Active bool
	// WALStatus is reserved, extended, unreserved (about to be lost) or lost.
	WALStatus string
	// SafeWAL is how many bytes can still be written before the slot is lost; -1 where max_slot_wal_keep_size is unlimited.
	SafeWAL int64
	// RetainedWAL is how many bytes of log the server holds back. Where it is large and Lag is small, a transaction has
	// been open for long: capture does not stand still.
	RetainedWAL int64
	// Lag is how many bytes of log are not acknowledged.
	Lag int64
	// OverLimit is set where RetainedWAL exceeds Options.MaxRetainedWAL.
	OverLimit bool
	Confirmed uint64 // LSN acknowledged by us, as far as the server remembers
	Current   uint64 // LSN where the server writes
}

// Watch reads the slot's state for metrics and alarms, and compares the publication with what it was when the first
// stream started. Together with the status it returns a *capture.GapError for a slot that is lost or missing and for a
// mapped table that was dropped, and a *PublicationError, which is a gap too, for a publication that was changed. It takes
// a few milliseconds on the server; every ten seconds is enough.
func (s *Source) Watch(ctx context.Context) (SlotStatus, error) {
	var st SlotStatus
	s.readers.tidy(ctx)
	err := s.withSQL(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var safe *int64
		var seen string
		err := conn.QueryRow(ctx, `SELECT active, coalesce(wal_status, 'lost'), safe_wal_size,
				coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8,
				coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::int8,
				coalesce(confirmed_flush_lsn - '0/0'::pg_lsn, 0)::int8, (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8,
				pg_catalog.pg_current_snapshot()::text
			FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`, s.o.Slot).
			Scan(&st.Active, &st.WALStatus, &safe, &st.RetainedWAL, &st.Lag, &st.Confirmed, &st.Current, &seen)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return &capture.GapError{
				Cause: capture.GapSlotMissing,
				Hint:  fmt.Sprintf("slot %s does not exist: `lethe setup` makes it; if it was there before, then also `lethe gap resume --accept-loss`", s.o.Slot),
			}
		case err != nil:
			return fmt.Errorf("reading the state of slot %s: %w", s.o.Slot, pii.DriverError(err))
		}
		if snap, err := parseSnapshot(seen); err == nil {
			s.visible.sees(snap, 0) // so that no more is kept than ten seconds have
		}
		st.SafeWAL = -1
		if safe != nil {
			st.SafeWAL = *safe
		}
		st.OverLimit = s.o.MaxRetainedWAL > 0 && st.RetainedWAL > s.o.MaxRetainedWAL
		s.publish(st)
		if st.WALStatus == "lost" {
			return &capture.GapError{
				Cause: capture.GapSlotLost,
				Hint:  fmt.Sprintf("the server gave up slot %s: drop and make it again with `lethe setup`, then `lethe gap resume --accept-loss`", s.o.Slot),
			}
		}
		return s.watchPublication(ctx, conn)
	})
	return st, err
}

func (s *Source) publish(st SlotStatus) {
	s.metrics.retained.Set(float64(st.RetainedWAL))
	s.metrics.lag.Set(float64(st.Lag))
	s.metrics.safe.Set(float64(st.SafeWAL))
	s.metrics.streaming.Set(0)
	if st.Active {
		s.metrics.streaming.Set(1)
	}
}

// EmitHeartbeat writes a message into the source's log that comes back through the stream as OpMessage with the time of
// sending, in milliseconds since 1970, in decimal. Acknowledging it lets the slot move although nothing mapped is written.
// A role with LOGIN and REPLICATION may do that.
func (s *Source) EmitHeartbeat(ctx context.Context) error {
	return s.withSQL(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		now := strconv.FormatInt(time.Now().UnixMilli(), 10)
		if _, err := conn.Exec(ctx, "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)", MessagePrefix, now); err != nil {
			return fmt.Errorf("writing a heartbeat into the source's log: %w", pii.DriverError(err))
		}
		return nil
	})
}

// Identity reads who the server is and where the slot stands.
func (s *Source) Identity(ctx context.Context) (capture.Identity, error) {
	id := capture.Identity{Slot: s.o.Slot}
	err := s.withSQL(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// The name of the current log file begins with the timeline; pg_control still has the old one for a while after a
		// promotion.
		var timeline string
		err := conn.QueryRow(ctx, `SELECT system_identifier::text, left(pg_walfile_name(pg_current_wal_lsn()), 8)
			FROM pg_catalog.pg_control_system()`).Scan(&id.SystemID, &timeline)
		if err != nil {
			return fmt.Errorf("reading the identity of the source: %w", pii.DriverError(err))
		}
		epoch, err := strconv.ParseUint(timeline, 16, 32)
		if err != nil {
			return fmt.Errorf("reading the timeline of the source: %w", err)
		}
		id.Epoch = uint32(epoch)
		slot, err := readSlot(ctx, conn.PgConn(), s.o.Slot)
		if err == nil && slot != nil {
			id.SlotGeneration = slot.generation()
		}
		return err
	})
	return id, err
}

// sqlTimeout bounds what is asked on the ordinary connection. Without it a server that vanished without a word would be
// waited for as long as TCP sends again, a quarter of an hour, and with it the end of the session and the next start.
const sqlTimeout = 15 * time.Second

// withSQL lends the ordinary connection, opening it where it is missing. One that was kept may be dead since the server
// was restarted: then f is called once more with a new one, so f must not mind being repeated.
func (s *Source) withSQL(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ask := func() error {
		ctx, cancel := context.WithTimeout(ctx, min(sqlTimeout, s.o.Liveness))
		defer cancel()
		return f(ctx, s.sql)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sql != nil {
		err := ask()
		if err == nil || !s.sql.IsClosed() {
			return err
		}
		s.sql = nil
		if ctx.Err() != nil {
			return err
		}
	}
	conn, err := connectSQL(ctx, s.o.DSN, s.o)
	if err != nil {
		return err
	}
	s.sql = conn
	err = ask()
	if conn.IsClosed() {
		s.sql = nil
	}
	return err
}
