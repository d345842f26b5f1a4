package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"lethe/internal/pii"
)

// holeWithin is how long a GTID may be missing in front of one that is in the log: on a replica that was promoted, parallel
// workers may have committed in another order.
const holeWithin = 10 * time.Second

// awaitExecuted waits until the server has executed what the log jumped over: then it stands, or stood, elsewhere in the
// log. What the server never executed is a hole, and so is what it says to have purged: that was compared at the start, so
// somebody declared it to be executed since (SET GLOBAL gtid_purged), and no log has it.
func (s *Source) awaitExecuted(ctx context.Context, missing hole) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(s.holeWithin)
	for {
		var text, purgedText string
		err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
			if err := conn.QueryRowContext(ctx, "SELECT @@global.gtid_executed, @@global.gtid_purged").Scan(&text, &purgedText); err != nil {
				return fmt.Errorf("reading gtid_executed: %w", pii.DriverError(err))
			}
			return nil
		})
		if err != nil {
			return err
		}
		executed, err1 := parseGTIDs(text)
		purged, err2 := parseGTIDs(purgedText)
		if err := errors.Join(err1, err2); err != nil {
			return &DecodeError{At: text, Err: err}
		}
		want := gtidSet{missing.origin: []interval{missing.interval}}
		if skipped := want.minus(want.minus(purged)); len(skipped) > 0 {
			return holed(skipped.String())
		}
		lacks := want.minus(executed)
		if len(lacks) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return holed(lacks.String())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
