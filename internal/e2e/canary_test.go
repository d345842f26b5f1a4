package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/internal/app"
	"lethe/internal/canary"
	"lethe/internal/demo"
	"lethe/internal/testenv"
)

// A customer whose CRM key is a marker too: keys are personal, and nothing but a sealed form of them may travel.
const (
	markedKey     = 7_771_234_567_890
	markedKeyText = "7771234567890"
	markedOther   = 7_771_234_567_891 // stays in the CRM as it is
)

// Marked people go through everything that Lethe does, errors that quote their values included, and nothing that it leaves
// behind holds any of those values: topics, logs of every level, metrics, its own tables, what the operator's commands
// print, and the servers' logs of its sessions.
func TestNothingPersonalIsLeftBehind(t *testing.T) {
	t.Parallel()
	crm, copies := testenv.NewPostgres(t, serverOptions(15)), testenv.NewPostgres(t, serverOptions(18))
	broker := testenv.NewKafka(t, testenv.KafkaOptions{})
	w := newWorld(t, options{crm: crm, replicas: copies, kafka: broker})
	w.addMarked()
	w.provokeErrors()
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.begin(5 * time.Millisecond)
	w.erasedMarked(p)
	p.rest()
	w.want(&w.marketing, soon, "select count(*) > 0 from lethe.parked where error_code = '23514'", "true")
	w.want(&w.marketing, soon, "select count(*) > 0 from lethe.parked where error_code = 'P0001'", "true")
	w.want(&w.reporting, soon, "select error_code from lethe.pending where attempts = 3", "23514")
	for _, db := range []*database{&w.crm, &w.marketing, &w.reporting} {
		w.exec(db, "select pg_terminate_backend(pid) from pg_stat_activity where usename like $1", w.name+"%")
	}
	lethe.waitReady(within)
	p.steps(30)
	w.want(&w.marketing, soon, "select count(*) > 5 from lethe.pending where state = 'verified'", "true")

	answers := w.operator()
	for _, path := range []string{"/metrics", "/readyz"} {
		_, body, err := lethe.get(path)
		if err != nil {
			t.Fatal(err)
		}
		answers[path] = body
	}
	// Capture meets a code that nobody has mapped: it says so loudly, and never copies it.
	w.exec(&w.crm, `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis)
		values ($1, 'zqcanary-purpose', 'E', 1, 'Y', 'C')`, markedOther)
	lethe.waitRole(soon, roleCapture, false)
	_, body, err := lethe.get("/readyz")
	if err != nil {
		t.Fatal(err)
	}
	answers["/readyz of a stopped capture"] = body
	lethe.terminate(15 * time.Second)
	if err := broker.Stop(); err != nil {
		t.Fatal(err)
	}
	w.scan(broker, answers)
}

// addMarked adds the customers with marked keys.
func (w *world) addMarked() {
	for _, key := range []int64{markedKey, markedOther} {
		w.exec(&w.crm, `insert into customer (customer_id, last_name, first_name, national_id, gender) values ($1, 'Zqcanary', 'Zqcanary', '19999981234', 'F')`, key)
		w.exec(&w.crm, `insert into customer_email (email_id, customer_id, email) values ($1, $1, 'zqcanary@exemple.fr')`, key)
		w.exec(&w.crm, `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
			values ($1, 'NL', 'E', $1, 'Y', 'C', 'zqcanary-document')`, key)
		w.exec(&w.marketing, `insert into contact (crm_id, firstname, lastname, email) values ($1::bigint, 'Zqcanary', 'Zqcanary', $1::bigint::text || '@zqcanary.fr')`, key)
		w.exec(&w.reporting, `insert into dim_customer (customer_nk, full_name) values ($1, 'Zqcanary')`, key)
	}
}

// provokeErrors has the replicas refuse what Lethe writes about some marked customers, with messages that quote the row.
func (w *world) provokeErrors() {
	w.exec(&w.marketing, "alter table contact add constraint quoting check (crm_id <> 10 or not offers_sms) not valid")
	w.exec(&w.marketing, `create function refuse() returns trigger language plpgsql as $$ begin
		raise exception 'cannot change %', old.email using detail = 'it is ' || old.lastname, hint = 'ask ' || old.mobile; end $$`)
	w.exec(&w.marketing, "create trigger refuse before update of newsletter_optin on contact for each row when (old.crm_id = 20) execute function refuse()")
	w.exec(&w.reporting, "alter table dim_customer add constraint quoting check (customer_nk <> 30 or full_name is not null)")
}

// erasedMarked erases marked customers, and has others run into the refusals.
func (w *world) erasedMarked(p *player) {
	w.exec(&w.crm, `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
		values (10, 'OFF', 'S', 10, 'Y', 'C', 'zqcanary-document') on conflict do nothing`)
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = 20 and purpose_code = 'NL'")
	for _, id := range []int64{markedKey, 30, 40, 50, 60} {
		w.exec(&w.crm, "call gdpr_erase_identity($1)", id)
		w.exec(&w.crm, "call gdpr_erase_traces($1)", id)
	}
	w.want(&w.marketing, soon, "select firstname is null from contact where crm_id = $1", "true", markedKey)
}

// operator collects what the operator's commands answer.
func (w *world) operator() map[string][]byte {
	w.t.Helper()
	out := map[string][]byte{}
	add := func(name string, v any, err error) {
		if err != nil {
			w.t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			w.t.Fatal(err)
		}
		out[name] = append(text, fmt.Sprintf("\n%v\n%+v", v, v)...)
	}
	for _, name := range replicaNames {
		cases, err := app.Cases(w.ctx, w.cfg, name, false, 1000)
		add("cases of "+name, cases, err)
		letters, err := app.DeadLetters(w.ctx, w.cfg, name, true, 1000)
		add("dead letters of "+name, letters, err)
	}
	add("status", app.ReadStatus(w.ctx, w.cfg), nil)
	report, err := app.Check(w.ctx, w.cfg, nil)
	add("check", report, err)
	var events []string
	for _, ev := range w.events() {
		events = append(events, fmt.Sprintf("%v %+v %#v", ev, *ev, ev.Header))
	}
	add("events as they print", events, nil)
	return out
}

// scan looks for the markers everywhere.
func (w *world) scan(broker *testenv.Kafka, answers map[string][]byte) {
	w.t.Helper()
	scanner, err := canary.New(append([]string{markedKeyText}, demo.Markers...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	reader := func(place string, data []byte) []canary.Hit {
		hits, err := scanner.Reader(place, bytes.NewReader(data))
		if err != nil {
			w.t.Fatal(err)
		}
		return hits
	}
	var hits []canary.Hit
	for _, root := range []string{w.dir, broker.Dir} { // logs, config and keys; every topic as it lies on the disk
		found, err := scanner.Tree(root, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		hits = append(hits, found...)
	}
	for place, text := range answers {
		hits = append(hits, reader(place, text)...)
	}
	for _, db := range []*database{&w.marketing, &w.reporting} {
		for table, text := range w.ledger(db) {
			hits = append(hits, reader(table, text)...)
		}
	}
	for _, db := range []*database{&w.crm, &w.marketing} {
		ours, others := w.serverLog(db)
		hits = append(hits, reader("log of the sessions of Lethe on PostgreSQL "+fmt.Sprint(db.Version), ours)...)
		if len(reader("", others)) == 0 {
			w.t.Error("the scanner finds nothing in the log of the CRM's own sessions: it cannot find anything")
		}
	}
	for i, h := range hits {
		if i == 20 {
			w.t.Errorf("… and %d more", len(hits)-i)
			break
		}
		w.t.Error(h)
	}
}

// ledger returns Lethe's own tables as text.
func (w *world) ledger(db *database) map[string][]byte {
	w.t.Helper()
	rows, err := db.conn.Query(w.ctx, `select format('%I.%I', table_schema, table_name) from information_schema.tables
		where table_schema = 'lethe' or table_name = 'lethe_witness'`)
	if err != nil {
		w.t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 8 {
		w.t.Fatalf("Lethe's tables are %q: %v", tables, err)
	}
	out := map[string][]byte{}
	for _, table := range tables {
		var text bytes.Buffer
		if _, err := db.conn.PgConn().CopyTo(w.ctx, &text, "copy (select * from "+table+") to stdout"); err != nil {
			w.t.Fatal(err)
		}
		out[table] = text.Bytes()
	}
	return out
}

// serverLog splits a server's log into what Lethe's sessions wrote, and the rest. A line without a prefix belongs to the
// entry before.
func (w *world) serverLog(db *database) (ours, others []byte) {
	w.t.Helper()
	log, err := os.ReadFile(db.LogFile())
	if err != nil {
		w.t.Fatal(err)
	}
	mine := false
	for line := range strings.Lines(string(log)) {
		if !strings.HasPrefix(line, "\t") {
			mine = strings.Contains(line, "] "+w.name)
		}
		if mine {
			ours = append(ours, line...)
		} else {
			others = append(others, line...)
		}
	}
	return ours, others
}
