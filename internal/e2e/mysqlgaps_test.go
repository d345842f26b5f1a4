package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/internal/app"
	"lethe/internal/testenv"
)

// onFlavors plays a test with the CRM on MySQL and on MariaDB, each a server of its own where private is set.
func onFlavors(t *testing.T, private bool, play func(t *testing.T, crm *testenv.MySQL)) {
	t.Helper()
	for _, flavor := range []string{testenv.MySQLServer, testenv.MariaDB} {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			if private {
				play(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor}))
				return
			}
			play(t, testenv.SharedMySQL(t, flavor))
		})
	}
}

// A session of the CRM logs a statement instead of rows: what it changed nobody can tell from the log. That is a gap and an
// alert for the mapped table, and no reason to stop; so is a TRUNCATE.
func TestStatementsAreGaps(t *testing.T) {
	t.Parallel()
	onFlavors(t, false, func(t *testing.T, crm *testenv.MySQL) {
		w := newWorld(t, options{on: engines{crm: crm, marketing: crm}})
		lethe := w.start()
		lethe.waitReady(soon)
		p := w.player()
		p.erase(3)
		testenv.Eventually(t, within, w.unproven)
		crm.Exec(t, w.crm.name, "SET SESSION binlog_format = 'STATEMENT'; SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ;"+
			"UPDATE customer SET last_contact = '2026-01-01 00:00:00' WHERE customer_id = 8; UPDATE order_service SET magazine = 'Un autre'")
		for _, name := range replicaNames {
			w.want(w.replica(name), soon, "select count(*), min(cause), max(cause) from lethe.gap where closed_at is null", "4|statement_format|statement_format")
		}
		w.unverifiable(p, 5)
		crm.Exec(t, w.crm.name, "TRUNCATE consent")
		w.want(&w.marketing, soon, "select count(distinct gap_id) from lethe.gap where closed_at is null and cause = 'truncate'", "1")
		for _, name := range replicaNames {
			if got := w.query(w.replica(name), "select count(*) from lethe.pending"); got != "2" {
				t.Errorf("%s: %s cases, want the two erasures", name, got)
			}
		}
		testenv.Eventually(t, soon, func() error {
			_, metrics, err := lethe.get("/metrics")
			if open := fmt.Sprintf("lethe_capture_open_gaps{source=%q} 2", w.cfg.Name); err == nil && !strings.Contains(string(metrics), open) {
				list, err := app.Gaps(w.ctx, w.cfg)
				return fmt.Errorf("no metric says %s: capture knows %+v (%w)", open, list.Capture, err)
			}
			return err
		})
	})
}

// The server purges binary log that was not read: capture says so, stands still and is not ready; the sinks go on; after a
// resume what is erased is erased, and never called verified.
func TestPurgedLogIsAGap(t *testing.T) {
	t.Parallel()
	onFlavors(t, true, func(t *testing.T, crm *testenv.MySQL) {
		w := newWorld(t, options{on: engines{crm: crm}})
		sinks, tail := w.start(roleMarketing, roleReporting), w.start(roleCapture)
		tail.waitReady(soon)
		p := w.player()
		p.steps(20)
		w.evening(p)
		tail.terminate(10 * time.Second)
		p.erase(4) // never to be seen in the log
		purge(t, crm)
		tail = w.start(roleCapture)
		tail.waitCause(roleCapture, capture.GapPurged)
		for _, name := range replicaNames {
			w.want(w.replica(name), soon, "select count(distinct gap_id) from lethe.gap where closed_at is null", "1")
		}
		sinks.waitReady(soon)
		w.resumeGap()
		tail.waitReady(soon)
		w.unverifiable(p, 5)
	})
}

// purge has the server forget all of its log but the newest file. MariaDB keeps one for a moment that its engine may need.
func purge(t *testing.T, crm *testenv.MySQL) {
	t.Helper()
	crm.Exec(t, "", "FLUSH BINARY LOGS")
	db := crm.Open(t, "")
	testenv.Eventually(t, soon, func() error {
		crm.Exec(t, "", "PURGE BINARY LOGS BEFORE '2037-12-31 00:00:00'")
		rows, err := db.QueryContext(t.Context(), "SHOW BINARY LOGS")
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for rows.Next() {
			n++
		}
		if n > 1 {
			return fmt.Errorf("the server keeps %d logs", n)
		}
		return rows.Err()
	})
}

// failover moves the world's CRM to another server of the same data: the name in the DSN leads there from now on.
func (w *world) failover(p *player, to *testenv.MySQL) {
	w.t.Helper()
	text, err := os.ReadFile(w.file)
	if err != nil {
		w.t.Fatal(err)
	}
	moved := strings.ReplaceAll(string(text), w.crm.mysql.Addr(), to.Addr())
	if err := os.WriteFile(w.file, []byte(moved), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.crm.mysql, w.crm.pool = to, to.Open(w.t, w.crm.name)
	w.listen(&w.crm)
	p.reconnect()
}

// The primary dies under load and its replica is promoted: capture goes on there, nothing is lost and nothing has a second
// effect. What was committed on the dead server alone is not the CRM's any more, and is not in this test.
func TestFailover(t *testing.T) {
	t.Parallel()
	onFlavors(t, true, func(t *testing.T, primary *testenv.MySQL) {
		standby := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: primary.Flavor()})
		standby.Follow(t, primary)
		w := newWorld(t, options{on: engines{crm: primary, reporting: testenv.SharedMySQL(t, primary.Flavor())}})
		w.start(roleMarketing, roleReporting)
		tail := w.start(roleCapture)
		tail.waitReady(soon)
		p := w.player()
		p.begin(5 * time.Millisecond)
		w.holds(&w.marketing, "select count(*) > 3 from lethe.pending")
		p.rest()
		standby.CatchUp(t, primary)
		if err := primary.Kill(); err != nil {
			t.Fatal(err)
		}
		tail.waitRole(soon, roleCapture, false)
		standby.Promote(t)
		w.failover(p, standby)
		tail.kill()
		tail = w.start(roleCapture)
		tail.waitReady(soon)
		p.begin(5 * time.Millisecond)
		w.holds(&w.marketing, "select count(*) > 10 from lethe.pending")
		p.rest()
		p.finish()
		w.followed(within)
		tail.waitReady(soon)
	})
}
