package mysql

import (
	"errors"
	"fmt"
	"testing"

	"lethe/capture"
	"lethe/internal/testenv"
)

// TestDeclaredAsExecuted: GTIDs that somebody declared to be executed (SET GLOBAL gtid_purged) are in no log. The log goes on
// behind them, which must not be taken for transactions that stand elsewhere in it.
func TestDeclaredAsExecuted(t *testing.T) {
	t.Parallel()
	e := newEnv(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MySQLServer}))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("a", "id")
	e.track(t)
	e.exec(t, "INSERT INTO a VALUES (1)")
	r, _ := startKeeping(t, e.source(t), nil)
	n := r.Collect(t, 1)[0].Position.Commit
	e.exec(t, fmt.Sprintf("SET GLOBAL gtid_purged = '+%s:%d-%d'", e.query(t, "SELECT @@server_uuid"), n+1, n+7),
		"INSERT INTO a VALUES (2)")
	var gap *capture.GapError
	if err := r.Wait(t); !errors.As(err, &gap) || gap.Cause != capture.GapHole {
		t.Fatalf("Run ended with %v", err)
	}
}
