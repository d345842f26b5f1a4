package mysql

import (
	"errors"
	"testing"

	"lethe/capture"
	"lethe/internal/testenv"
)

// TestAnonymousTransactions: GTIDs were turned off for a while. What was written then has no place among them.
func TestAnonymousTransactions(t *testing.T) {
	t.Parallel()
	e := newEnv(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MySQLServer}))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("a", "id")
	e.track(t)
	e.exec(t, "INSERT INTO a VALUES (1)")
	_, at := e.read(t, nil, 1)
	r, _ := startKeeping(t, e.source(t), at)
	e.exec(t, "INSERT INTO a VALUES (2)")
	r.Collect(t, 1)
	e.exec(t, "SET GLOBAL gtid_mode = ON_PERMISSIVE", "SET gtid_next = 'ANONYMOUS'", "INSERT INTO a VALUES (3)", "SET gtid_next = 'AUTOMATIC'",
		"SET GLOBAL gtid_mode = ON")
	gap := func(err error) {
		t.Helper()
		var gap *capture.GapError
		if !errors.As(err, &gap) || gap.Cause != capture.GapModeChanged {
			t.Errorf("Run ended with %v", err)
		}
	}
	gap(r.Wait(t))
	r, _ = startKeeping(t, e.source(t), at)
	gap(r.Wait(t))
	e.track(t)
	e.exec(t, "INSERT INTO a VALUES (4)")
	if txs, _ := e.read(t, nil, 1); txs[0].Rows[0].New["id"] != "4" {
		t.Errorf("after the gap it reads %+v", txs[0])
	}
}
