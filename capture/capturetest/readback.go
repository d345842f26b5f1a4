package capturetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/capture"
	"lethe/capture/rules"
	"lethe/internal/testenv"
	"lethe/schema"
)

// askedMapping is a CRM that is asked about erasures; its key has two columns. %[1]s is the server, %[2]s the tables' schema.
const askedMapping = `
version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: ["localhost:9092"]}
source:
  %[1]s
  subject: {table: %[2]s.person, key: [region, code], on_delete: erasure}
  request: {table: %[2]s.note, when: 'what == "ASKED" and weight > 1', received_at: noted_at}
  erased:
    when: 'status == "E"'
    marker: {table: %[2]s.note, when: 'what == "DONE"'}
  gate:
    mode: enforce
    require:
      no_unpaid_invoice: "not exists (select 1 from %[2]s.invoice i where i.region = $1 and i.code = $2 and i.due > 0 and '$3' <> '')"
  tables:
    %[2]s.person:
      erase: [last_name, born]
      erased_values: [EFFACE]
      state: {blocked: 1, score: 0.5}
    %[2]s.address: {subject: [region, owner], erase: row}
    %[2]s.vendor: {erase: row, optional: true}
replicas:
  reporting:
    recipient: {name: Reporting, role: controller}
    mode: observe
    needs: contract
    postgres: {dsn: "postgres://lethe@localhost/reporting"}
    person: {table: contact, key: id, crm_key: [region, code]}
`

// asked makes the tables, and what stands around a Pipeline that asks about them.
func asked(tb testing.TB, d Dialect, env *Env) *system {
	tb.Helper()
	server, clock := d.Server, "datetime" // without a time zone, as is PostgreSQL's timestamp
	if server == "" {
		server, clock = `postgres: {dsn: "postgres://lethe@localhost/crm"}`, "timestamp"
	}
	env.Exec(tb,
		table(d, "person", "region int, code char(8), status varchar(5), last_name varchar(40), born date, blocked int, score numeric(4,2), PRIMARY KEY (region, code)"),
		table(d, "address", "id int PRIMARY KEY, region int, owner varchar(8), line varchar(40)"),
		table(d, "vendor", "region int, code varchar(8), PRIMARY KEY (region, code)"), "INSERT INTO vendor VALUES (1, '77001')",
		table(d, "note", "id int PRIMARY KEY, region int, code varchar(8), what varchar(9), weight int, noted_at "+clock),
		table(d, "invoice", "id int PRIMARY KEY, region int, code varchar(8), due numeric(9,2)"))
	if d.Server == "" {
		env.Exec(tb, "ALTER TABLE person REPLICA IDENTITY FULL")
	}
	return newSystem(tb, fmt.Sprintf(askedMapping, server, d.Schema))
}

// readback says what the Pipeline asks, with hours that are tenths of a second.
func (s *system) readback(tb testing.TB, d Dialect) func(*capture.Options) {
	tb.Helper()
	source := &s.cfg.Source
	requests, err := rules.NewRequests(source.Request)
	if err != nil {
		tb.Fatal(err)
	}
	o := capture.ReadbackOptions{
		Readbacks: s.readbacks, Encoder: eventText{}, Seal: s.keys, Window: 500 * time.Millisecond, Every: 100 * time.Millisecond, Pause: time.Millisecond,
		Gated: source.Asked(), Enforced: source.Enforced(),
		Request: &capture.RequestTable{Name: source.Request.Table, Subject: source.Request.Subject, Columns: requests.Columns(), Read: requests.Read},
	}
	if d.Server != "" {
		o.SQL = capture.MySQLSQL
	}
	for name, sql := range source.Gate.Require {
		o.Checks = append(o.Checks, capture.GateCheck{Name: name, SQL: sql})
	}
	for name, t := range source.Tables {
		if !t.Optional {
			o.Tables = append(o.Tables, capture.ErasedTable{Name: name, Subject: t.Subject, Columns: t.Erase, Values: t.ErasedValues, Row: t.EraseRow, State: t.State})
		}
	}
	slices.SortFunc(o.Tables, func(a, b capture.ErasedTable) int { return strings.Compare(a.Name, b.Name) })
	return func(p *capture.Options) { p.Readback = o }
}

// said waits until the topic tells the states in this order, among others.
func (s *system) said(tb testing.TB, want ...string) {
	tb.Helper()
	testenv.Eventually(tb, within, func() error {
		next := 0
		var got []string
		for _, e := range s.topic.events() {
			got = append(got, e.Type+" "+e.State)
			if next < len(want) && e.State == want[next] {
				next++
			}
		}
		if next < len(want) {
			return fmt.Errorf("%q is not said: %q", want[next], got)
		}
		return nil
	})
}

// open waits until so many cases are left to ask about.
func (s *system) open(tb testing.TB, want int) {
	tb.Helper()
	testenv.Eventually(tb, within, func() error {
		if n := s.readbacks.count(); n != want {
			return fmt.Errorf("%d cases are left, want %d", n, want)
		}
		return nil
	})
}

// testReadback: what is left in the source is told until nothing is, and the gate lets go once it holds.
func testReadback(t *testing.T, d Dialect, env *Env) {
	s := asked(t, d, env)
	env.Exec(t, "INSERT INTO person VALUES (1, '77001', 'A', 'Rivière', '1970-01-01', 0, 7)", "INSERT INTO address VALUES (1, 1, '77001', 'x'), (2, 2, '77001', 'y')",
		"INSERT INTO person VALUES (2, '77001', 'A', 'Autre', '1970-01-01', 0, 7)",
		"INSERT INTO note VALUES (1, 1, '77001', 'ASKED', 1, '2026-01-01 10:00:00'), (2, 1, '77001', 'ASKED', 2, '2026-01-31 10:00:00'), (3, 1, '77001', 'ASKED', 3, '2026-02-03 10:00:00')",
		"INSERT INTO invoice VALUES (1, 1, '77001', 12.5), (2, 2, '77001', 1)")
	env.Track(t, s.needs(t)...)
	r := s.start(t, env, capture.PassOptions{}, s.readback(t, d))
	s.begun(t)
	env.Tx(t, "UPDATE person SET status = 'E', last_name = 'EFFACE', score = 0.50 WHERE region = 1", "INSERT INTO note VALUES (4, 1, '77001', 'DONE', NULL, NULL)")
	p := d.Schema + "."
	s.said(t, "erasure", "request true  2026-01-31T10:00:00Z 2026-02-28T10:00:00Z")
	s.said(t, "erasure", "decision hold gate no_unpaid_invoice")
	s.said(t, "erasure", "completeness false "+p+"address,"+p+"person.blocked,"+p+"person.born")
	if kept := s.readbacks.text(); len(kept) == 0 || bytes.Contains(kept, []byte("77001")) {
		t.Errorf("what is kept shows the key: %s", kept)
	}
	r.stop(t)
	env.Exec(t, "DELETE FROM address WHERE id = 1", "UPDATE person SET born = NULL WHERE region = 1")
	r = s.start(t, env, capture.PassOptions{}, s.readback(t, d))
	s.said(t, "completeness false "+p+"person.blocked")
	env.Exec(t, "UPDATE person SET blocked = 1 WHERE region = 1", "UPDATE invoice SET due = 0 WHERE id = 1")
	s.said(t, "completeness true ")
	s.said(t, "decision hold gate no_unpaid_invoice", "decision proceed  ")
	s.open(t, 0)

	env.Exec(t, "UPDATE person SET status = 'A' WHERE region = 1")
	s.said(t, "revived false "+p+"person  ")
	s.open(t, 0)
	r.stop(t)
	s.sameIDsSayTheSame(t)
}

// testUnauthorised: an erasure that nobody asked for is told as one, until somebody has; without a marker the window ends the wait.
func testUnauthorised(t *testing.T, d Dialect, env *Env) {
	s := asked(t, d, env)
	env.Exec(t, "INSERT INTO person VALUES (1, '5', 'A', NULL, NULL, 1, 0.5)", "INSERT INTO address VALUES (1, 1, '5', 'x')")
	env.Track(t, s.needs(t)...)
	r := s.start(t, env, capture.PassOptions{}, s.readback(t, d))
	s.begun(t)
	env.Exec(t, "DELETE FROM person")
	s.said(t, "request false request  ", "decision hold gate request")
	s.said(t, "completeness false "+d.Schema+".address")
	env.Exec(t, "DELETE FROM address", "INSERT INTO note VALUES (2, 1, '5', 'ASKED', 2, '2026-01-31 10:00:00')")
	s.said(t, "request true  2026-01-31T10:00:00Z 2026-02-28T10:00:00Z")
	s.said(t, "decision proceed  ")
	s.said(t, "completeness true ")
	s.open(t, 0)
	// A gate that cannot be asked lets nobody through.
	env.Exec(t, "ALTER TABLE invoice RENAME TO gone", "INSERT INTO person VALUES (1, '6', 'E', 'x', NULL, 1, 0.5)",
		"INSERT INTO note VALUES (3, 1, '6', 'ASKED', 2, NULL)")
	s.said(t, "decision hold gate no_unpaid_invoice,gate_error")
	env.Exec(t, "ALTER TABLE gone RENAME TO invoice")
	s.said(t, "decision hold gate no_unpaid_invoice,gate_error", "decision proceed  ")
	r.stop(t)
	s.sameIDsSayTheSame(t)
}

// testGateExplained: a condition is planned, not asked, and what is wrong with it shows without anything of a row.
func testGateExplained(t *testing.T, d Dialect, env *Env) {
	s := asked(t, d, env)
	env.Track(t, s.needs(t)...)
	source := env.Source(t).(capture.Snapshotter)
	if closer, ok := source.(interface{ Close(context.Context) error }); ok {
		defer func() { _ = closer.Close(context.WithoutCancel(t.Context())) }()
	}
	form := capture.PostgresSQL
	if d.Server != "" {
		form = capture.MySQLSQL
	}
	explain := func(sql string) error {
		return source.At(t.Context(), capture.Position{}, func(ctx context.Context, q capture.Querier) error {
			return capture.ExplainGate(ctx, q, form, sql, 2)
		})
	}
	if err := explain(s.cfg.Source.Gate.Require["no_unpaid_invoice"]); err != nil {
		t.Errorf("a sound condition: %v", err)
	}
	for _, sql := range []string{
		"exists (select 1 from " + d.Schema + ".nowhere where region = $1 and code = $2)", "region = $1 and code = $2", "exists (select 1 from " + d.Schema + ".invoice where region = $1)",
		"true", "exists (select 1 from " + d.Schema + ".invoice where region = $3 and code = $1 and code = $2)",
	} {
		if explain(sql) == nil {
			t.Errorf("%s passes", sql)
		}
	}
}

// sameIDsSayTheSame: an event that is published again has its id, and no two events share one.
func (s *system) sameIDsSayTheSame(tb testing.TB) {
	tb.Helper()
	said := map[string]string{}
	for _, e := range s.topic.events() {
		if before, known := said[e.ID]; known && before != e.Type+e.State {
			tb.Errorf("one id says %q and %q", before, e.Type+e.State)
		}
		said[e.ID] = e.Type + e.State
	}
}

// readbacks implements capture.Readbacks.
type readbacks struct {
	mu   sync.Mutex
	kept map[schema.CaseID][]byte
}

// Load implements capture.Readbacks.
func (r *readbacks) Load(_ context.Context, most int) (list []capture.Readback, more bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range r.kept {
		if len(list) == most {
			return list, true, err
		}
		var one capture.Readback
		err = errors.Join(err, json.Unmarshal(text, &one))
		list = append(list, one)
	}
	return list, false, err
}

// Save implements capture.Readbacks.
func (r *readbacks) Save(_ context.Context, list []capture.Readback) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range list {
		text, err := json.Marshal(list[i])
		if err != nil {
			return err
		}
		r.kept[list[i].Case] = text
		if list[i].Finished() {
			delete(r.kept, list[i].Case)
		}
	}
	return nil
}

func (r *readbacks) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.kept)
}

func (r *readbacks) text() (all []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range r.kept {
		all = append(all, text...)
	}
	return all
}
