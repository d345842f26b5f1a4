package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/internal/app"
	"lethe/internal/testenv"
	"lethe/schema"
)

// resumeGap is what `lethe gap resume` does. Capture says that it stands at a gap a moment before it has announced it.
func (w *world) resumeGap() {
	w.t.Helper()
	testenv.Eventually(w.t, soon, func() error {
		_, err := app.ResumeGap(w.ctx, w.cfg)
		return err
	})
}

// closeGaps asks for the pass that closes them, and waits until capture has none.
func (w *world) closeGaps() {
	w.t.Helper()
	d, err := app.OpenPasses(w.ctx, w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.Close()
	request, gaps, err := d.CloseGaps(w.ctx, nil)
	if err != nil || len(gaps) == 0 {
		w.t.Fatalf("closing gaps %v: %v", gaps, err)
	}
	testenv.Eventually(w.t, within, func() error {
		r, err := d.Report(w.ctx)
		if err == nil && (r.Pass == nil || r.Pass.RequestID != request || r.Pass.State != "ended" || len(r.Pass.Closed) != len(gaps)) {
			err = fmt.Errorf("the pass is %+v", r.Pass)
		}
		return err
	})
}

// unverifiable erases a customer while a gap is open: the copy is erased all the same, but nothing is called proven.
func (w *world) unverifiable(p *player, id int64) {
	w.t.Helper()
	p.erase(id)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.receipt where state = 'applied' and case_id = $1", "1", w.caseBytes(id))
		w.want(w.replica(name), soon, "select string_agg(distinct wait, ' ') from lethe.pending where case_id = $1", "gap", w.caseBytes(id))
		for _, r := range w.receipts(name) {
			switch {
			case r.CaseID != w.caseOf(id):
			case r.State == schema.ReceiptVerified:
				w.t.Errorf("%s: verified although a part of the log is lost", name)
			case len(r.Gaps) == 0:
				w.t.Errorf("%s: the %s receipt does not name the gap", name, r.State)
			}
		}
	}
	w.holds(&w.marketing, "select blocked and firstname is null from contact where crm_id = $1", id)
}

func (w *world) caseBytes(id int64) []byte {
	c := w.caseOf(id)
	return c[:]
}

// The slot is dropped, made again, advanced by somebody, or given up by the server: capture says so, stands still and is not
// ready; the sinks go on; what is erased from then on is never called verified.
func TestSlotLoss(t *testing.T) {
	t.Parallel()
	drop := func(w *world) { w.exec(&w.crm, "select pg_drop_replication_slot($1)", w.name) }
	for _, c := range []struct {
		name   string
		server func(t *testing.T) *testenv.Postgres
		lose   func(w *world)
		causes []string
		again  bool // the slot must be made again before anything can be resumed
	}{
		{"dropped", nil, drop, []string{capture.GapSlotMissing}, true},
		{"made again", nil, func(w *world) {
			drop(w)
			w.exec(&w.crm, "update customer set no_marketing = not no_marketing")
			w.setupSource(options{})
		}, []string{capture.GapSlotRecreated}, false},
		{"advanced", nil, func(w *world) {
			w.exec(&w.crm, "select pg_replication_slot_advance($1, pg_current_wal_lsn())", w.name)
		}, []string{capture.GapSlotAhead, capture.GapSlotRecreated}, false},
		{"given up by the server", smallLog, func(w *world) {
			testenv.Eventually(w.t, soon, func() error {
				w.exec(&w.crm, "insert into order_service (customer_id, magazine) select 1, repeat('x', 1000) from generate_series(1, 3000)")
				w.exec(&w.crm, "select pg_switch_wal()")
				w.exec(&w.crm, "checkpoint")
				if s := w.query(&w.crm, "select wal_status from pg_replication_slots where slot_name = $1", w.name); s != "lost" {
					return fmt.Errorf("the slot is %s", s)
				}
				return nil
			})
		}, []string{capture.GapSlotLost}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := options{}
			if c.server != nil {
				o.crm = c.server(t)
			}
			w := newWorld(t, o)
			sinks, tail := w.start(roleMarketing, roleReporting), w.start(roleCapture)
			tail.waitReady(soon)
			p := w.player()
			p.steps(20)
			w.evening(p)
			tail.terminate(10 * time.Second)
			p.erase(4) // never to be seen in the log
			c.lose(w)

			if err := w.crash(pointGapEvent, 1, roleCapture); err != nil {
				t.Fatal(err)
			}
			tail = w.start(roleCapture)
			status := tail.waitRole(soon, roleCapture, false, "gap")
			if !slices.Contains(c.causes, strings.SplitN(status.Cause, ":", 2)[0]) {
				t.Errorf("the cause is %q, want one of %q", status.Cause, c.causes)
			}
			for _, name := range replicaNames {
				w.want(w.replica(name), soon, "select count(distinct gap_id) from lethe.gap where closed_at is null", "1")
			}
			sinks.waitReady(soon)

			if c.again {
				w.exec(&w.crm, "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1", w.name)
				w.setupSource(options{})
			}
			w.resumeGap()
			tail.waitReady(soon)
			w.unverifiable(p, 5)
			w.want(&w.marketing, soon, "select count(*) from lethe.pending where state = 'verified'", fmt.Sprint(len(w.erased)-2))

			// A pass shows the erasure that nobody saw, and closes the gap; what waited because of it is proven.
			w.closeGaps()
			for _, name := range replicaNames {
				w.want(w.replica(name), within, "select count(*) from lethe.gap where closed_at is null", "0")
			}
			for _, name := range replicaNames { // what a pass finds is unusable at once, and destroyed when a person has looked at it
				w.want(w.replica(name), within, "select string_agg(distinct wait, ' ') from lethe.pending where case_id = $1", "breaker", w.caseBytes(4))
			}
			w.holds(&w.marketing, "select blocked and firstname is not null from contact where crm_id = $1", int64(4))
			w.decide(4, schema.DecisionRelease)
			testenv.Eventually(t, within, w.unproven)
			w.holds(&w.marketing, "select blocked and firstname is null from contact where crm_id = $1", int64(4))
		})
	}
}

// evening ends the day: the ETL has brought everybody, and everything has followed.
func (w *world) evening(p *player) {
	w.t.Helper()
	p.finish()
	w.followed(within)
}

// smallLog is a server that gives a slot up soon.
func smallLog(t *testing.T) *testenv.Postgres {
	o := serverOptions(15)
	o.Settings["max_slot_wal_keep_size"], o.Settings["max_wal_size"], o.Settings["min_wal_size"] = "2MB", "32MB", "32MB"
	return testenv.NewPostgres(t, o)
}

// TRUNCATE of a mapped table erases nobody: it is a gap, and an alert.
func TestTruncateIsAGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.erase(3)
	testenv.Eventually(t, within, w.unproven)
	w.exec(&w.crm, "truncate consent")
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select cause from lethe.gap where closed_at is null", "truncate\ntruncate\ntruncate\ntruncate")
	}
	w.unverifiable(p, 5)
	w.exec(&w.crm, "truncate customer cascade")
	w.want(&w.marketing, soon, "select count(distinct gap_id) > 1 from lethe.gap where closed_at is null", "true")
	for _, name := range replicaNames {
		if got := w.query(w.replica(name), "select count(*) from lethe.pending"); got != "2" {
			t.Errorf("%s: %s cases after a TRUNCATE, want the two erasures", name, got)
		}
	}
	_, metrics, err := lethe.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(metrics), "lethe_capture_open_gaps{") || strings.Contains(string(metrics), "lethe_capture_open_gaps{source=\"crm\"} 0") {
		t.Error("no metric tells of the gaps")
	}
}

// A storage snapshot of the CRM is put back: the same system, the same timeline, but a history of its own.
func TestForkedHistory(t *testing.T) {
	t.Parallel()
	server := testenv.NewPostgres(t, serverOptions(15))
	w := newWorld(t, options{crm: server})
	sinks, tail := w.start(roleMarketing, roleReporting), w.start(roleCapture)
	tail.waitReady(soon)
	p := w.player()
	p.steps(20)
	w.evening(p)
	tail.terminate(10 * time.Second)

	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(server.Dir, "snapshot")
	if err := server.CopyData(snapshot); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(context.WithoutCancel(w.ctx)); err != nil {
		t.Fatal(err)
	}
	w.reconnect(&w.crm)
	p.reconnect()
	tail = w.start(roleCapture)
	tail.waitReady(soon)
	p.steps(50)
	p.erase(p.Someone())
	w.evening(p)
	tail.terminate(10 * time.Second)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}

	o := serverOptions(15)
	o.DataDir, o.Port = snapshot, server.Port
	restored := testenv.NewPostgres(t, o)
	restored.Exec(t, w.crm.name, "update customer set last_contact = now()", "update consent set status = 'N'")
	tail = w.start(roleCapture)
	status := tail.waitRole(soon, roleCapture, false, "gap")
	if !strings.HasPrefix(status.Cause, capture.GapForkedHistory) {
		t.Errorf("the cause is %q", status.Cause)
	}
	sinks.waitReady(soon)
	if err := restored.Kill(); err != nil { // the processes end after their servers otherwise
		t.Fatal(err)
	}
}

// A mapped column is renamed under way: capture stops before the first change that it cannot read, says where, and
// acknowledges nothing behind it.
func TestMappedColumnRenamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	sinks, tail := w.start(roleMarketing, roleReporting), w.start(roleCapture)
	tail.waitReady(soon)
	p := w.player()
	p.erase(3)
	testenv.Eventually(t, within, w.unproven)
	w.exec(&w.crm, "alter table customer rename column no_marketing to opposed")
	before := w.query(&w.crm, "select pg_current_wal_lsn()")
	w.exec(&w.crm, "update customer set opposed = true where customer_id = 5")
	w.exec(&w.crm, "call gdpr_erase_identity(6)")
	status := tail.waitRole(soon, roleCapture, false, "stopped")
	if !strings.Contains(status.Cause, "no_marketing") || !strings.Contains(status.Cause, "/") {
		t.Errorf("the cause names no column or no position: %q", status.Cause)
	}
	sinks.waitReady(soon)
	tail.terminate(10 * time.Second)
	if got := w.query(&w.crm, "select confirmed_flush_lsn <= $2::pg_lsn from pg_replication_slots where slot_name = $1", w.name, before); got != "true" {
		t.Error("the change that could not be read was acknowledged")
	}
	if got := w.query(&w.marketing, "select count(*) from lethe.pending"); got != "1" {
		t.Errorf("%s cases: something behind the change was published", got)
	}
	tail = w.start(roleCapture)
	tail.waitRole(soon, roleCapture, false, "stopped") // and not skipped at the next start
}

// A replica is restored from a backup of the whole database: its offsets are behind what Kafka was told, and everything
// since is applied again.
func TestReplicaRestoredInFull(t *testing.T) {
	t.Parallel()
	w, p, lethe := w18(t)
	dump := w.dump(&w.marketing)
	p.steps(150)
	erased := p.Someone()
	p.erase(erased)
	w.evening(p)
	lethe.terminate(10 * time.Second)
	w.exec(&w.reporting, fmt.Sprintf("drop database %s with (force)", w.marketing.name))
	w.exec(&w.reporting, "create database "+w.marketing.name)
	w.psql(&w.marketing, dump)
	w.reconnect(&w.marketing)
	if got := w.query(&w.marketing, "select firstname is null from contact where crm_id = $1", erased); got != "false" {
		t.Fatal("the backup is no older than the erasure")
	}
	lethe = w.start()
	w.followed(within)
	lethe.waitReady(soon)
	if log, err := os.ReadFile(lethe.log); err != nil || !strings.Contains(string(log), "it was restored") {
		t.Error("the log does not tell of the restore", err)
	}
}

// Only the mapped tables of a replica are restored, and Lethe's own tables are not: the witness tells.
func TestReplicaRestoredInPart(t *testing.T) {
	t.Parallel()
	w, p, lethe := w18(t)
	dump := w.dump(&w.marketing, "--schema=public", "--clean", "--if-exists")
	p.steps(150)
	erased := p.Someone()
	p.erase(erased)
	w.evening(p)
	lethe.terminate(10 * time.Second)
	w.psql(&w.marketing, dump)
	w.again = true
	if got := w.query(&w.marketing, "select firstname is null from contact where crm_id = $1", erased); got != "false" {
		t.Fatal("the backup is no older than the erasure")
	}
	lethe = w.start()
	w.followed(within)
	lethe.waitReady(soon)
}

// w18 is a world whose replicas are on a version that the installed pg_dump can dump, with some of the day played.
func w18(t *testing.T) (*world, *player, *process) {
	t.Helper()
	w := newWorld(t, options{crmVersion: 18})
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.erase(3)
	p.steps(50)
	w.evening(p)
	return w, p, lethe
}

// dump returns the path of a backup.
func (w *world) dump(db *database, args ...string) []byte {
	w.t.Helper()
	out, err := db.Command(w.ctx, "pg_dump", append(args, "--dbname", db.DSN(db.name, ""))...).Output()
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// psql puts a backup back.
func (w *world) psql(db *database, script []byte) {
	w.t.Helper()
	cmd := db.Command(w.ctx, "psql", "--no-psqlrc", "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1", "--dbname", db.DSN(db.name, ""))
	cmd.Stdin = strings.NewReader(string(script))
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("restoring: %v\n%s", err, out)
	}
}
