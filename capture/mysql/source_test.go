package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"lethe/capture/capturetest"
	"lethe/internal/testenv"
)

// TestServerIDTaken: a replica that has our id is left alone.
func TestServerIDTaken(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("a", "id")
		e.track(t)
		e.exec(t, "INSERT INTO a VALUES (1)")
		r, _ := startKeeping(t, e.source(t), nil)
		r.Collect(t, 1)
		facts := &serverFacts{}
		if err := e.plainSource(t).withSQL(t.Context(), func(ctx context.Context, conn *sql.Conn) (err error) {
			facts, err = readServer(ctx, conn)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		id := e.plainSource(t).serverID(facts)
		e.change = func(o *Options) { o.Name, o.ServerID = "another", id }
		other := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
		if err := other.Wait(t); !errors.Is(err, errServerID) || !passesBy(err) {
			t.Errorf("another source with the same id ended with %v", err)
		}
		stopped(t, r)
	})
}

// TestTLS: the stream is encrypted where the DSN says so.
func TestTLS(t *testing.T) {
	e := newEnv(t, testenv.SharedMySQL(t, testenv.MySQLServer)) // the distribution's MariaDB has no certificate
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("a", "id")
	e.track(t)
	e.exec(t, fmt.Sprintf("CREATE USER '%s'@'%%' REQUIRE SSL", e.db), fmt.Sprintf("GRANT ALL ON *.* TO '%s'@'%%'", e.db), "INSERT INTO a VALUES (1)")
	t.Cleanup(func() { e.server.Exec(t, "", fmt.Sprintf("DROP USER '%s'@'%%'", e.db)) })
	for _, mode := range []string{"skip-verify", "preferred"} {
		e.change = func(o *Options) { o.Login.DSN = e.server.DSN("", e.db) + "?tls=" + mode }
		r, _ := startKeeping(t, e.source(t), nil)
		r.Collect(t, 1)
		stopped(t, r)
	}
	e.change = func(o *Options) { o.Login.DSN = e.server.DSN("", e.db) + "?tls=true" }
	if err := e.source(t).Run(t.Context(), nil, &capturetest.Recorder{}); !passesBy(err) {
		t.Errorf("with a certificate that nobody signed Run ended with %v", err)
	}
}

// TestTaggedGTIDs: each tag of MySQL has a counter, and so an epoch, of its own.
func TestTaggedGTIDs(t *testing.T) {
	e := newEnv(t, testenv.SharedMySQL(t, testenv.MySQLServer))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	e.need("a", "id")
	e.track(t)
	tag := "t" + e.db[len(e.db)-4:]
	e.exec(t, "INSERT INTO a VALUES (1)", "SET gtid_next = 'AUTOMATIC:"+tag+"'", "INSERT INTO a VALUES (2)", "INSERT INTO a VALUES (3)",
		"SET gtid_next = 'AUTOMATIC'", "INSERT INTO a VALUES (4)")
	txs, at := e.read(t, nil, 4)
	ascending(t, txs)
	if p := txs[2].Position; p.Epoch != 2 || p.Commit != 2 || txs[3].Position.Epoch != 3 || !strings.Contains(p.GTID, ":"+tag+":1-2") {
		t.Errorf("read %+v, then %+v", p, txs[3].Position)
	}
	c := *at
	c.Position, c.CommittedAt = txs[1].Position, txs[1].CommittedAt
	rest, _ := e.read(t, &c, 2)
	same(t, txs[2], rest[0])
	same(t, txs[3], rest[1])
}

// TestWatch: the numbers for metrics and alarms.
func TestWatch(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v longtext)")
		e.need("a", "id")
		e.track(t)
		registry := prometheus.NewRegistry()
		e.change = func(o *Options) { o.MaxBinlogLag, o.Registerer = 50_000, registry }
		src := e.source(t)
		e.change = nil
		st, err := src.Watch(t.Context())
		if err != nil || st.State != "" || st.LagBytes != -1 || st.LagTransactions != -1 || st.RetainedBytes <= 0 || st.Acknowledged != "" {
			t.Errorf("at first %+v, %v", st, err)
		}
		r, k := startKeeping(t, src, nil)
		e.exec(t, "INSERT INTO a VALUES (1, 'x')")
		at := k.checkpoint(t, src, r.Collect(t, 1)[0])
		src.Acknowledge(at.Position)
		st, err = src.Watch(t.Context())
		if err != nil || !st.Active || st.State != StateReserved || st.LagBytes != 0 || st.LagTransactions != 0 || st.OverLimit {
			t.Errorf("while it runs %+v, %v", st, err)
		}
		if e.mariadb() != (st.SafeFor < 0) { // whose default is to keep the log for ever
			t.Errorf("safe for %v", st.SafeFor)
		}
		stopped(t, r)
		e.exec(t, "INSERT INTO a VALUES (2, 'x')", "INSERT INTO a VALUES (3, 'x')")
		if st, err = src.Watch(t.Context()); err != nil || st.Active || st.LagTransactions != 2 || st.LagBytes != -1 {
			t.Errorf("after it ended %+v, %v", st, err)
		}
		h := &stuckAt{Recorder: &capturetest.Recorder{}, n: 1, reached: make(chan struct{}), release: make(chan struct{})}
		e.exec(t, "INSERT INTO a VALUES (4, REPEAT('x', 100000))")
		stuck := capturetest.Start(t, src, at, h)
		<-h.reached
		if st, err = src.Watch(t.Context()); err != nil || !st.OverLimit || st.LagBytes < 100_000 {
			t.Errorf("while the handler waits %+v, %v", st, err)
		}
		close(h.release)
		stopped(t, stuck)
		if list, err := registry.Gather(); err != nil || len(list) != 7 {
			t.Errorf("%d metrics, %v", len(list), err)
		}
	})
}
