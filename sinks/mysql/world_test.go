package mysql

import (
	"database/sql"
	"fmt"
	"strconv"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// world is one replica database with its ledger, a run role without DDL rights, and a log of one test's events.
type world struct {
	*site
	*sinktest.Topic
	keys *sinktest.Keys
	role string
	run  *sql.DB
	r    *Replica
}

// newWorld makes a world on the shared server of a flavor; change edits the mapping before setup.
func newWorld(tb testing.TB, flavor string, change ...func(*config.Replica)) *world {
	tb.Helper()
	return newWorldOn(tb, testenv.SharedMySQL(tb, flavor), change...)
}

func newWorldOn(tb testing.TB, server *testenv.MySQL, change ...func(*config.Replica)) *world {
	tb.Helper()
	return worldOn(tb, newSiteOn(tb, server, change...))
}

// worldOn makes a world of a site: the run role may use every table that is mapped there.
func worldOn(tb testing.TB, s *site) *world {
	tb.Helper()
	w := &world{site: s, keys: sinktest.NewKeys(tb)}
	w.Topic = sinktest.NewTopic(4, func(ev *schema.Event) []byte { return w.keys.Encode(tb, ev) })
	w.role = testenv.UniqueName("run")
	w.exec("CREATE USER " + w.role + "@'%'")
	tb.Cleanup(func() { w.server.Exec(tb, "", "DROP USER "+w.role+"@'%'") })
	for _, table := range append([]string{"note", "do_not_contact"}, ledger.TableNames(w.cfg)...) {
		w.grant("SELECT, INSERT, UPDATE, DELETE", table)
	}
	w.setup()
	w.run = w.loginAs(w.role)
	w.r = w.replica()
	w.assign()
	return w
}

// grant gives the run role a privilege on a table.
func (w *world) grant(privilege, table string) {
	w.Helper()
	w.exec("GRANT " + privilege + " ON " + table + " TO " + w.role + "@'%'")
}

// loginAs opens a pool that does not wait long for a lock.
func (w *world) loginAs(user string) *sql.DB {
	w.Helper()
	c, err := driver.ParseDSN(w.server.DSN(w.name, user))
	if err != nil {
		w.Fatal(err)
	}
	db, err := Open(c, Session{LockTimeout: 2 * time.Second, StatementTimeout: 10 * time.Second})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = db.Close() })
	return db
}

func (w *world) setup() {
	w.Helper()
	_, err := Setup(w.ctx, w.db, SetupOptions{Name: "marketing", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest(), RunRole: w.role})
	if err != nil {
		w.Fatalf("setup: %v", err)
	}
	w.exec(`DELETE FROM lethe_meta WHERE k = 'needs_pass'`) // most tests' logs have no pass
}

// replica makes another Replica on the same database: another worker process.
func (w *world) replica(change ...func(*Options)) *Replica {
	w.Helper()
	o := Options{
		Name: "marketing", Source: "crm", Config: w.cfg, DB: w.run, Seal: w.keys, Pseudonym: sinktest.PRF("marketing"), Signer: w.keys,
		MappingDigest: w.cfg.Digest(), Version: "test", StatementTimeout: 10 * time.Second, Logger: zerolog.New(zerolog.NewTestWriter(w.TB)),
		Match: sinktest.Maker{},
	}
	for _, f := range change {
		f(&o)
	}
	r, err := New(o)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(r.Close)
	return r
}

func (w *world) assign() {
	w.Helper()
	places, err := w.r.Assign(w.ctx, w.Partitions())
	if err != nil {
		w.Fatalf("assign: %v", err)
	}
	w.Move(places...)
}

// restart makes the replica anew under the present mapping, as after a deployment.
func (w *world) restart() {
	w.Helper()
	w.setup()
	w.r = w.replica()
	w.assign()
}

// person inserts rows into contact; their CRM ids are the arguments.
func (w *world) person(ids ...int) {
	w.Helper()
	for _, id := range ids {
		w.exec(fmt.Sprintf(`INSERT INTO contact (crm_id, firstname, email) VALUES (%d, 'Jeanne', 'p%[1]d@exemple.fr');
			INSERT INTO note (contact_id, body) SELECT contact_id, 'called' FROM contact WHERE crm_id = %[1]d`, id))
	}
}

func consent(purpose string, state schema.ConsentState) *schema.ConsentChange {
	return &schema.ConsentChange{Purpose: purpose, Channel: "email", State: state, LegalBasis: "consent"}
}

// event makes the next event of the source about a person.
func (w *world) event(id int, body schema.Body) *schema.Event { return w.Event(strconv.Itoa(id), body) }

func (w *world) erasure(id int) *schema.Event { return w.event(id, &schema.SubjectErasure{}) }

func (w *world) decide(id int, d schema.Decision) *schema.Event {
	return w.event(id, &schema.CaseDecision{Decision: d, DecidedBy: "dpo", DecidedAt: time.Now().UTC().Truncate(time.Millisecond)})
}

// apply commits one batch and moves the places.
func (w *world) apply(events ...*schema.Event) sinks.Outcome {
	w.Helper()
	out, err := w.r.Apply(w.ctx, w.Batch(events...))
	if err != nil {
		w.Fatalf("apply: %v", err)
	}
	w.Move(out.Places...)
	return out
}

// park applies a batch of one event that the replica refuses, and parks it.
func (w *world) park(ev *schema.Event) {
	w.Helper()
	b := w.Batch(ev)
	_, err := w.r.Apply(w.ctx, b)
	if sinks.Classify(err) != sinks.Poison {
		w.Fatalf("apply: %v, want poison", err)
	}
	place, err := w.r.Park(w.ctx, b.From[0], &b.Records[0], sinks.CodeOf(err))
	if err != nil {
		w.Fatal(err)
	}
	w.Move(place)
}

// runDue runs the chores of all partitions once.
func (w *world) runDue() time.Time {
	w.Helper()
	next, err := w.r.RunDue(w.ctx, w.All())
	if err != nil {
		w.Fatalf("chores: %v", err)
	}
	return next
}

// allFacts are the facts of all subjects, in whichever table they lie.
const allFacts = `(SELECT ref, scope, contact_ref, ord, fact_state AS state, event_id FROM lethe_subject WHERE scope IS NOT NULL
	UNION ALL SELECT ref, scope, contact_ref, ord, state, event_id FROM lethe_fact) AS f`

// due makes what a column of a ledger table says due now, unless it is never.
func (w *world) due(table, column string) {
	w.Helper()
	w.exec("UPDATE lethe_" + table + " SET " + column + " = UTC_TIMESTAMP(6) WHERE " + column + " < '" + never + "'")
}

// states lists the receipts of the case of a person in the order of their making.
func (w *world) states(id int, want string) {
	w.Helper()
	caseID := w.CaseID(strconv.Itoa(id))
	w.want(`SELECT COALESCE(GROUP_CONCAT(state ORDER BY made_at, attempt, state SEPARATOR ' '), '') FROM lethe_receipt WHERE case_id = ?`, want, caseID[:])
}

// receipts returns all receipts, verified, in the order in which they were made.
func (w *world) receipts() []*schema.Receipt {
	w.Helper()
	rows, err := w.db.QueryContext(w.ctx, `SELECT body FROM lethe_receipt ORDER BY made_at, state`)
	if err != nil {
		w.Fatal(err)
	}
	defer rows.Close()
	var out []*schema.Receipt
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			w.Fatal(err)
		}
		out = append(out, w.keys.Receipt(w, body))
	}
	if rows.Err() != nil {
		w.Fatal(rows.Err())
	}
	return out
}

// erasing is a mapping whose cool-off is over at once.
func erasing(c *config.Replica) {
	c.Erase.CoolOff = 0
	c.Breaker = config.Breaker{NewCases: 20, Window: time.Minute}
	c.Residuals = map[string]config.Period{"backup": {Days: 35}}
}

// bothWorlds runs a test on both servers.
func bothWorlds(t *testing.T, f func(w *world), change ...func(*config.Replica)) {
	t.Helper()
	flavors(t, func(t *testing.T, flavor string) { f(newWorld(t, flavor, change...)) })
}

// nulled is what phase 2 does to a column.
func nulled() config.Value { return kindOf(ledger.KindNull) }
