package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"lethe/internal/pii"
)

// holeWithin is how long a GTID may be missing in front of one that is in the log: on a replica that was promoted, parallel
// workers may have committed in another order.
const holeWithin = 10 * time.Second

// awaitExecuted waits until the server has executed what the log jumped over: then it stands, or stood, elsewhere in the
// log, and what is purged was compared at the start. What the server never executed is a hole.
func (s *Source) awaitExecuted(ctx context.Context, missing hole) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(s.holeWithin)
	for {
		var text string
		err := s.withSQL(ctx, func(ctx context.Context, conn *sql.Conn) error {
			if err := conn.QueryRowContext(ctx, "SELECT @@global.gtid_executed").Scan(&text); err != nil {
				return fmt.Errorf("reading gtid_executed: %w", pii.DriverError(err))
			}
			return nil
		})
		if err != nil {
			return err
		}
		executed, err := parseGTIDs(text)
		if err != nil {
			return &DecodeError{At: text, Err: err}
		}
		want := gtidSet{missing.origin: []interval{missing.interval}}
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
