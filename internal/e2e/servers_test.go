package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/internal/app"
	"lethe/internal/demo"
	"lethe/internal/testenv"
	"lethe/schema"
)

// A worker is down for longer than the cool-off, and a cancel waits in Kafka: it must be seen before anything is erased.
func TestCancelThatWaitsInKafka(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{coolOff: "3s"})
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.erase(3)
	p.erase(4)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.pending where state = 'suppressed'", "2")
	}
	lethe.terminate(10 * time.Second)
	w.decide(3, schema.DecisionCancel)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select bool_and(due_at + interval '500ms' < now()) from lethe.pending", "true")
	}
	w.start()
	w.mu.Lock()
	delete(w.erased, 3)
	w.mu.Unlock()
	testenv.Eventually(t, soon, w.unproven)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.decision where done_at is not null", "1")
		if got := w.caseStates(name, 3); got != "suppressed cancelled" {
			t.Errorf("%s: the cancelled case has %s", name, got)
		}
		if got := w.caseStates(name, 4); got != "suppressed applied verified" {
			t.Errorf("%s: the other case has %s", name, got)
		}
	}
	w.want(&w.marketing, soon, "select blocked, firstname is null, (select count(*) from do_not_contact d where d.contact_id = c.contact_id) from contact c where crm_id = 3", "false|false|0")
	w.want(&w.reporting, soon, "select usable, full_name is null from dim_customer where customer_nk = 3", "true|false")
}

// Kafka is killed and comes back while the CRM is written to, which never waits for Lethe.
func TestKafkaDownAndBack(t *testing.T) {
	t.Parallel()
	broker := testenv.NewKafka(t, testenv.KafkaOptions{})
	w := newWorld(t, options{kafka: broker})
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.steps(60)
	if err := broker.Kill(); err != nil {
		t.Fatal(err)
	}
	p.begin(10 * time.Millisecond)
	lethe.waitRole(soon, roleCapture, false)
	lethe.waitRole(soon, roleMarketing, false)
	lethe.waitRole(soon, roleReporting, false)
	if err := broker.Start(context.WithoutCancel(w.ctx)); err != nil {
		t.Fatal(err)
	}
	lethe.waitReady(within)
	p.rest()
	p.finish()
	w.followed(within)
	w.sent()
}

// sent waits until every receipt has left the outbox, and wants each of them in the topic at least once.
func (w *world) sent() {
	w.t.Helper()
	topic := map[schema.ReceiptID]bool{}
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.receipt where sent_at is null", "0")
	}
	for _, r := range w.topic("receipts") {
		if _, err := schema.DecodeReconsentDue(r.value); err == nil {
			continue
		}
		signed, err := schema.DecodeSignedReceipt(r.value)
		if err != nil {
			w.t.Fatal(err)
		}
		rc, err := schema.VerifyReceipt(w.ring.Verifier(), signed)
		if err != nil {
			w.t.Fatal(err)
		}
		topic[rc.ReceiptID] = true
	}
	for _, name := range replicaNames {
		for _, r := range w.receipts(name) {
			if !topic[r.ReceiptID] {
				w.t.Errorf("%s: receipt %s of state %s is marked as sent and not in the topic", name, r.ReceiptID, r.State)
			}
		}
	}
}

// restarts is a server that is killed and comes back.
type restarts interface {
	Kill() error
	Start(ctx context.Context) error
}

// One replica is killed and comes back: the other one goes on meanwhile.
func TestReplicaDownAndBack(t *testing.T) {
	t.Parallel()
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		server := testenv.NewPostgres(t, serverOptions(18))
		replicaDownAndBack(t, server, options{marketing: server})
	})
	t.Run("mysql", func(t *testing.T) {
		t.Parallel()
		server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MySQLServer})
		replicaDownAndBack(t, server, options{on: engines{crm: testenv.SharedMySQL(t, testenv.MariaDB), marketing: server}})
	})
	t.Run("mariadb", func(t *testing.T) {
		t.Parallel()
		server := testenv.NewMySQL(t, testenv.MySQLOptions{})
		replicaDownAndBack(t, server, options{on: engines{marketing: server, reporting: testenv.SharedMySQL(t, testenv.MySQLServer)}})
	})
}

func replicaDownAndBack(t *testing.T, server restarts, o options) {
	t.Helper()
	w := newWorld(t, o)
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.steps(40)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for id := int64(20); id < 26; id++ {
		p.erase(id)
	}
	lethe.waitRole(soon, roleMarketing, false)
	w.want(&w.reporting, soon, "select count(*) from dim_customer where customer_nk between 20 and 25 and not usable and full_name is null", "6")
	lethe.waitRole(soon, roleCapture, true)
	lethe.waitRole(soon, roleReporting, true)
	if err := server.Start(context.WithoutCancel(w.ctx)); err != nil {
		t.Fatal(err)
	}
	w.reconnect(&w.marketing)
	p.reconnect()
	lethe.waitReady(within)
	p.steps(20)
	p.finish()
	w.followed(within)
}

// The CRM's server is killed and comes back; then its walsender is terminated. What was confirmed may come again.
func TestSourceKilledAndBack(t *testing.T) {
	t.Parallel()
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		server := testenv.NewPostgres(t, serverOptions(15))
		sourceKilledAndBack(t, server, options{crm: server})
	})
	for _, flavor := range []string{testenv.MySQLServer, testenv.MariaDB} {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
			sourceKilledAndBack(t, server, options{on: engines{crm: server}})
		})
	}
}

func sourceKilledAndBack(t *testing.T, server restarts, o options) {
	t.Helper()
	w := newWorld(t, o)
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.steps(100)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	lethe.waitRole(soon, roleCapture, false)
	lethe.waitRole(soon, roleMarketing, true)
	if err := server.Start(context.WithoutCancel(w.ctx)); err != nil {
		t.Fatal(err)
	}
	w.reconnect(&w.crm)
	p.reconnect()
	lethe.waitReady(within)
	p.steps(50)
	w.cutStream()
	p.steps(50)
	p.finish()
	w.followed(within)
	lethe.waitReady(soon)
}

// A second process joins and leaves the groups while batches are applied, once in order and once by SIGKILL.
func TestRebalanceDuringApply(t *testing.T) {
	t.Parallel()
	anywhere(t, rebalanceDuringApply)
}

func rebalanceDuringApply(t *testing.T, o options) {
	t.Helper()
	o.customers = 400
	w := newWorld(t, o)
	w.start(roleCapture)
	first := w.start(roleMarketing, roleReporting)
	first.waitReady(soon)
	p := w.player()
	p.begin(4 * time.Millisecond)
	second := w.start(roleMarketing, roleReporting)
	second.waitRole(soon, roleMarketing, true, "running")
	second.waitRole(soon, roleReporting, true, "running")
	first.waitRole(soon, roleMarketing, true, "running")
	second.terminate(15 * time.Second)
	third := w.start(roleMarketing, roleReporting)
	third.waitRole(soon, roleMarketing, true, "running")
	first.kill()
	p.rest()
	p.finish()
	w.followed(within)
	third.waitReady(soon)
}

// A worker is stopped in the midst of its work, another one takes over, and then the first one wakes up: it is fenced by
// the replica's own rows, whatever it was about to write.
func TestZombieWorker(t *testing.T) {
	t.Parallel()
	anywhere(t, zombieWorker)
}

func zombieWorker(t *testing.T, o options) {
	t.Helper()
	o.customers = 400
	w := newWorld(t, o)
	// The stopped worker may hold rows in an open transaction: the server ends that after the role's timeout. On MySQL it is
	// that of Lethe's own sessions.
	for _, db := range []*database{&w.marketing, &w.reporting} {
		if db.mysql == nil {
			w.exec(db, fmt.Sprintf("alter role %q set idle_in_transaction_session_timeout = '2s'", db.run))
		}
	}
	w.start(roleCapture)
	zombie := w.start(roleMarketing, roleReporting)
	zombie.waitReady(soon)
	p := w.player()
	p.begin(5 * time.Millisecond)
	w.holds(&w.marketing, "select count(*) > 3 from lethe.pending where state = 'verified'")
	zombie.signal(syscall.SIGSTOP)
	heir := w.start(roleMarketing, roleReporting)
	heir.waitRole(within, roleMarketing, true, "running")
	heir.waitRole(within, roleReporting, true, "running")
	done := w.query(&w.marketing, "select count(*) from lethe.receipt where state = 'verified'")
	w.holdsWithin(&w.marketing, within, "select count(*) > $1::int + 3 from lethe.receipt where state = 'verified'", done)
	zombie.signal(syscall.SIGCONT)
	zombie.waitReady(within)
	heir.waitReady(soon)
	p.rest()
	p.finish()
	w.followed(within)
}

// A second capture stands by and takes over when the first one dies.
func TestStandbyCaptureTakesOver(t *testing.T) {
	t.Parallel()
	anywhere(t, standbyCaptureTakesOver)
}

func standbyCaptureTakesOver(t *testing.T, o options) {
	t.Helper()
	w := newWorld(t, o)
	w.start(roleMarketing, roleReporting)
	first := w.start(roleCapture)
	first.waitReady(soon)
	standby := w.start(roleCapture)
	standby.waitRole(soon, roleCapture, false, "waiting")
	p := w.player()
	p.begin(5 * time.Millisecond)
	w.holds(&w.marketing, "select count(*) > 3 from lethe.pending")
	first.kill()
	standby.waitReady(soon)
	p.rest()
	p.finish()
	w.followed(within)
}

// Hold, release, pause and resume, as an operator uses them.
func TestHoldReleasePauseResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{coolOff: "2s"})
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.erase(3)
	p.erase(4)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.pending where state = 'suppressed'", "2")
	}
	w.decide(3, schema.DecisionHold)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select string_agg(state || held, ' ' order by held) from lethe.pending where state = 'verified' or held", "verifiedfalse suppressedtrue")
		if got := w.caseStates(name, 3); got != "suppressed held" {
			t.Errorf("%s: the held case has %s", name, got)
		}
	}
	w.decide(3, schema.DecisionRelease)
	testenv.Eventually(t, soon, w.unproven)

	if err := app.Pause(w.ctx, w.cfg, "marketing", "dpo"); err != nil {
		t.Fatal(err)
	}
	lethe.waitRole(soon, roleMarketing, false, "paused")
	p.erase(5)
	w.want(&w.reporting, soon, "select not usable from dim_customer where customer_nk = 5", "true")
	if got := w.query(&w.marketing, "select blocked from contact where crm_id = 5"); got != "false" {
		t.Error("a paused replica was written to")
	}
	if err := app.Resume(w.ctx, w.cfg, "marketing", "ops"); err != nil {
		t.Fatal(err)
	}
	lethe.waitReady(soon)
	p.finish()
	w.followed(within)
}

// More erasures than the breaker allows are all suppressed at once, and erased only after their release.
func TestBreakerTripsAndReleases(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{breaker: 3})
	w.start().waitReady(soon)
	p := w.player()
	ids := []int64{11, 12, 13, 14, 15, 16}
	w.exec(&w.crm, "update customer set status = 'E', last_name = 'EFFACE', first_name = null, blocked = true, ok_for_promo = false where customer_id = any($1)", ids)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.pending where state = 'suppressed' and wait = 'breaker'", "6")
	}
	w.want(&w.marketing, soon, "select count(*) from contact where crm_id = any($1) and blocked and firstname is not null", "6", ids)
	for _, id := range ids {
		if got := w.caseStates("reporting", id); got != "suppressed awaiting_release" {
			t.Errorf("customer %d has %s", id, got)
		}
		w.decide(id, schema.DecisionRelease)
		w.wasErased(id, time.Now())
	}
	p.finish()
	w.followed(within)
}

// SIGTERM under load: everything that was taken is finished, and the process is gone within seconds.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{customers: 400})
	p := w.player()
	p.begin(2 * time.Millisecond)
	for range 3 {
		lethe := w.start()
		lethe.waitReady(soon)
		lethe.terminate(8 * time.Second)
		log, err := os.ReadFile(lethe.log)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(log), "lethe has stopped") {
			t.Error("the process did not stop in order")
		}
	}
	p.rest()
	p.finish()
	w.start()
	w.followed(within)
}

// The row of a replica comes after the erasure, in both replicas, and after a withdrawal.
func TestRowThatComesLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.start().waitReady(soon)
	p := w.player()
	const gone, unsubscribed = 7, 57 // customers that the ETL of last night has left out
	if !w.publisher.Late(gone) || !w.publisher.Late(unsubscribed) {
		t.Fatal("these customers are not late")
	}
	p.erase(gone)
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = $1", unsubscribed)
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.pending where not matched", "1")
		testenv.Eventually(t, soon, func() error {
			if got := w.caseStates(name, gone); got != "no_match" {
				return fmt.Errorf("%s: the case without a row has %q", name, got)
			}
			return nil
		})
	}
	p.finish()
	w.followed(within)
	if diff, err := demo.Differences(w.ctx, w.databases()); err != nil || len(diff) > 0 {
		t.Error(diff, err)
	}
}
