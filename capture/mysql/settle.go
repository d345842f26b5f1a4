package mysql

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"lethe/capture"
)

// MySQL sends a transaction as soon as it is in the log, and counts it among those executed only when it has committed:
// milliseconds later, or, with semi-synchronous replication and a replica that does not answer, ten seconds
// (rpl_semi_sync_source_timeout). Until then the server seems to lack what was read. That is a gap only where it lasts.
const (
	// unsettledLooks is how many looks old what was read has to be before the server is asked for it.
	unsettledLooks = 3
	// settleWithin is for how long a start waits for what the checkpoint has.
	settleWithin = 12 * time.Second
	settlePause  = 200 * time.Millisecond
)

// settled connects the server's history with the checkpoint's, and asks again while the server seems to lack its end.
func (s *Source) settled(ctx context.Context, st *startPoint, from *capture.Checkpoint) error {
	deadline := time.Now().Add(s.settleWithin)
	tick := time.NewTicker(settlePause)
	defer tick.Stop()
	for {
		err := st.connect(from)
		var gap *capture.GapError
		if !errors.As(err, &gap) || gap.Cause != capture.GapForkedHistory || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		err = s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			st.facts, err = readServer(ctx, conn)
			return err
		})
		if err != nil {
			return err
		}
	}
}
