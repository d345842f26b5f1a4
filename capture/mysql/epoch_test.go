package mysql

import (
	"testing"

	"lethe/capture"
	"lethe/internal/testenv"
)

// TestEpochThatBeginsWithNothing: the first transaction of a new epoch may have nothing for the Handler, and so not be handed
// over. The epoch is durable all the same before the first event of it.
func TestEpochThatBeginsWithNothing(t *testing.T) {
	e := newEnv(t, testenv.SharedMySQL(t, testenv.MySQLServer))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE other (id int PRIMARY KEY)")
	e.need("a", "id")
	e.track(t)
	tag := "e" + e.db[len(e.db)-4:]
	e.exec(t, "INSERT INTO a VALUES (1)", "SET gtid_next = 'AUTOMATIC:"+tag+"'", "INSERT INTO other VALUES (1)", "INSERT INTO a VALUES (2)",
		"SET gtid_next = 'AUTOMATIC'")
	r, k := startKeeping(t, e.source(t), nil)
	r.Collect(t, 2)
	stopped(t, r)
	if n := len(k.epochs); n != 2 || k.epochs[1].From != 1 {
		t.Errorf("known are the epochs %+v", k.epochs)
	}
}

// TestEpochsAfterAResumedGap: what was acknowledged before the gap says nothing of the epochs behind it.
func TestEpochsAfterAResumedGap(t *testing.T) {
	e := newEnv(t, testenv.SharedMySQL(t, testenv.MySQLServer))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("a", "id")
	e.track(t)
	tag := "r" + e.db[len(e.db)-4:]
	e.exec(t, "INSERT INTO a VALUES (1)", "SET gtid_next = 'AUTOMATIC:"+tag+"'", "INSERT INTO a VALUES (2)", "SET gtid_next = 'AUTOMATIC'")
	src := e.source(t)
	src.Acknowledge(capture.Position{Epoch: 9, Commit: 1})
	r, k := startKeeping(t, src, nil)
	r.Collect(t, 2)
	stopped(t, r)
	if len(k.epochs) != 2 || k.epochs[0].Number != 1 {
		t.Errorf("known are the epochs %+v", k.epochs)
	}
}
