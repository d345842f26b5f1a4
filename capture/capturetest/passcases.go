package capturetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lethe/capture"
	"lethe/internal/testenv"
	"lethe/schema"
)

// mapping is a CRM whose tables a pass reads; bare has no key to walk along. %[1]s is the server, %[2]s the tables' schema.
const mapping = `
version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: ["localhost:9092"]}
source:
  %[1]s
  subject: {table: %[2]s.customer, key: customer_id, on_delete: erasure}
  erased: {when: 'status == "E"'}
  tables:
    %[2]s.customer:
      erase: [last_name]
      objection: {when: 'opposed == "Y"', scope: direct_marketing}
    %[2]s.consent:
      subject: customer_id
      consent:
        kind: current
        purpose: {column: purpose, map: {NL: newsletter, OFF: offers}}
        channel: {column: channel, map: {E: email, S: sms}}
        state: {column: status, map: {Y: given, N: withdrawn, R: refused}}
        legal_basis: {column: basis, map: {C: consent}}
    %[2]s.bare: {subject: customer_id, erase: row}
replicas:
  marketing:
    recipient: {name: Agency, role: processor}
    mode: observe
    postgres: {dsn: "postgres://lethe@localhost/marketing"}
    person: {table: contact, key: id, crm_key: crm_id}
`

// crm makes the tables, and what stands around a Pipeline that reads them.
func crm(tb testing.TB, d Dialect, env *Env) *system {
	tb.Helper()
	server := d.Server
	if server == "" {
		server = `postgres: {dsn: "postgres://lethe@localhost/crm"}`
	}
	env.Exec(tb,
		table(d, "customer", "customer_id int PRIMARY KEY, status varchar(5), last_name varchar(40), opposed varchar(5)"),
		table(d, "consent", "customer_id int, purpose varchar(9), channel varchar(9), status varchar(5), basis varchar(5), PRIMARY KEY (channel, purpose, customer_id)"),
		table(d, "bare", "customer_id int"))
	return newSystem(tb, fmt.Sprintf(mapping, server, d.Schema))
}

func consent(id int, purpose, channel, status string) string {
	return fmt.Sprintf("INSERT INTO consent VALUES (%d, '%s', '%s', '%s', 'C')", id, purpose, channel, status)
}

// ask files a request for a pass over the tables that can be read.
func (s *system) ask(tb testing.TB, d Dialect, id string, tables ...string) {
	tb.Helper()
	r := capture.PassRequest{ID: id, Cause: capture.PassAsked, RequestedAt: time.Now().UTC()}
	for _, name := range tables {
		r.Tables = append(r.Tables, d.Schema+"."+name)
	}
	if err := s.passes.Ask(tb.Context(), r); err != nil {
		tb.Fatal(err)
	}
}

// begun waits until the Pipeline has a place in the log.
func (s *system) begun(tb testing.TB) {
	tb.Helper()
	testenv.Eventually(tb, within, func() error {
		if at, err := s.checkpoints.Load(context.Background()); at == nil {
			return fmt.Errorf("there is no checkpoint (%w)", err)
		}
		return nil
	})
}

// testPassStates: what a pass says of rows in every state, once, and nothing of what is not there. A table that cannot be walked
// along is refused, and the pass is not full.
func testPassStates(t *testing.T, d Dialect, env *Env) {
	s := crm(t, d, env)
	env.Exec(t, "INSERT INTO customer VALUES (1, 'A', 'x', 'N'), (2, 'E', NULL, 'N'), (3, 'A', 'y', 'Y'), (4, NULL, NULL, NULL)",
		consent(1, "NL", "E", "Y"), consent(1, "OFF", "E", "N"), consent(1, "OFF", "S", "R"), consent(2, "NL", "E", "N"), consent(4, "NL", "S", "Y"),
		"DELETE FROM consent WHERE customer_id = 4", "INSERT INTO customer VALUES (5, 'A', 'gone', 'Y')", "DELETE FROM customer WHERE customer_id = 5",
		"INSERT INTO bare VALUES (1)")
	env.Track(t, s.needs(t)...)
	s.ask(t, d, "all")
	r := s.start(t, env, capture.PassOptions{Chunk: 2, Replicas: []string{"marketing"}})
	p := s.ended(t)
	r.stop(t)
	if refused := p.Refused(); p.Full || len(refused) != 1 || refused[0].Name != d.Schema+".bare" || refused[0].Cause != capture.RefusedNoKey || refused[0].Hint == "" {
		t.Errorf("the pass is full: %t, refused are %+v", p.Full, refused)
	}
	var got, markers []string
	for _, e := range s.topic.events() {
		switch {
		case e.Type == schema.TypePassMarker.String():
			markers = append(markers, e.State)
		case e.Key == "":
		case !e.Pass || e.RunID != p.RunID:
			t.Errorf("an event of the pass is %+v", e)
		case e.Type == schema.TypeSubjectErasure.String():
			got = append(got, e.Key+" "+e.Type)
		default:
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", e.Key, e.Type, e.Scope, e.State)))
		}
	}
	slices.Sort(got)
	want := []string{
		"1 ConsentChange newsletter/email given", "1 ConsentChange offers/email withdrawn", "1 ConsentChange offers/sms refused",
		"2 ConsentChange newsletter/email withdrawn", "2 SubjectErasure", "3 Objection direct_marketing true",
	}
	// A state that means nothing may be told all the same: lifted is lifted.
	got = slices.DeleteFunc(got, func(s string) bool { return strings.HasSuffix(s, "Objection direct_marketing false") })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"begin true full false", "begin false full false"}, markers); diff != "" {
		t.Errorf("markers: %s", diff)
	}
}

// model is what the rows of the CRM say by now.
type model struct {
	erased  map[int]bool
	opposed map[int]string
	consent map[string]string // by customer, purpose and channel; of one that was deleted: empty
}

// step makes one change at random, in the CRM and in the model.
func (m *model) step(t *testing.T, env *Env, random *rand.Rand, customers int) {
	t.Helper()
	id := 1 + random.IntN(customers)
	purpose, channel := []string{"NL", "OFF"}[random.IntN(2)], []string{"E", "S"}[random.IntN(2)]
	where := fmt.Sprintf(" WHERE customer_id = %d AND purpose = '%s' AND channel = '%s'", id, purpose, channel)
	key := fmt.Sprintf("%d %s %s", id, purpose, channel)
	status := []string{"Y", "N", "R"}[random.IntN(3)]
	switch kind := random.IntN(20); {
	case kind == 0 && !m.erased[id]:
		m.erased[id] = true
		env.Exec(t, fmt.Sprintf("UPDATE customer SET status = 'E', last_name = NULL WHERE customer_id = %d", id))
	case kind < 5:
		m.opposed[id] = map[string]string{"Y": "N", "N": "Y"}[m.opposed[id]]
		env.Exec(t, fmt.Sprintf("UPDATE customer SET opposed = '%s' WHERE customer_id = %d", m.opposed[id], id))
	case m.consent[key] == "":
		m.consent[key] = status
		env.Exec(t, consent(id, purpose, channel, status))
	case kind < 9:
		m.consent[key] = ""
		env.Exec(t, "DELETE FROM consent"+where)
	default:
		m.consent[key] = status
		env.Exec(t, "UPDATE consent SET status = '"+status+"'"+where)
	}
}

// testPassUnderChange: rows are changed and deleted while passes run; what is known at the end is what the rows say. What is later in
// the log wins over what a pass has read, and what it has read over what was before.
func testPassUnderChange(t *testing.T, d Dialect, env *Env) {
	const customers, steps = 6, 250
	s := crm(t, d, env)
	m := &model{erased: map[int]bool{}, opposed: map[int]string{}, consent: map[string]string{}}
	for id := 1; id <= customers; id++ {
		m.opposed[id] = "N"
		env.Exec(t, fmt.Sprintf("INSERT INTO customer VALUES (%d, 'A', 'x', 'N')", id))
	}
	env.Track(t, s.needs(t)...)
	s.start(t, env, capture.PassOptions{Chunk: 3})
	s.begun(t)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range steps {
		if i%20 == 0 {
			s.ask(t, d, fmt.Sprintf("pass %d", i), "customer", "consent")
		}
		m.step(t, env, random, customers)
	}
	if p := s.ended(t); p.State != capture.PassEnded || len(p.Refused()) > 0 {
		t.Fatalf("the pass is %+v", p)
	}
	// A last change of every customer: when it has come, all before it has.
	for id := 1; id <= customers; id++ {
		m.opposed[id] = map[string]string{"Y": "N", "N": "Y"}[m.opposed[id]]
		env.Exec(t, fmt.Sprintf("UPDATE customer SET opposed = '%s' WHERE customer_id = %d", m.opposed[id], id))
	}
	state := map[string]string{"Y": "given", "N": "withdrawn", "R": "refused", "": "invalidated"}
	testenv.Eventually(t, within, func() error {
		facts := s.facts()
		for id := 1; id <= customers; id++ {
			if got := fmt.Sprint(facts[fact(id, "Objection", "direct_marketing")]); got != fmt.Sprint(m.opposed[id] == "Y") {
				return fmt.Errorf("seed %d: the objection of %d is %s", seed, id, got)
			}
		}
		return nil
	})
	facts := s.facts()
	for id := 1; id <= customers; id++ {
		if _, erased := facts[fact(id, "SubjectErasure", "")]; erased != m.erased[id] {
			t.Errorf("seed %d: customer %d is erased: %t", seed, id, erased)
		}
		for code, purpose := range map[string]string{"NL": "newsletter", "OFF": "offers"} {
			for short, channel := range map[string]string{"E": "email", "S": "sms"} {
				status, ever := m.consent[fmt.Sprintf("%d %s %s", id, code, short)]
				got, known := facts[fact(id, "ConsentChange", purpose+"/"+channel)]
				if known != ever || ever && got != state[status] {
					t.Errorf("seed %d: consent of %d for %s by %s is %q, and in the CRM %q", seed, id, purpose, channel, got, status)
				}
			}
		}
	}
}

// fact is a key of system.facts.
func fact(id int, event, scope string) string { return fmt.Sprintf("%d %s %s", id, event, scope) }

// testPassTakenUp: another process goes on where the pass was, from a key that nobody can read where it is kept.
func testPassTakenUp(t *testing.T, d Dialect, env *Env) {
	const rows = 40
	s := crm(t, d, env)
	for id := 1; id <= rows; id++ {
		env.Exec(t, consent(id, "NL", "E", "Y"))
	}
	env.Track(t, s.needs(t)...)
	s.ask(t, d, "consents", "consent")
	r := s.start(t, env, capture.PassOptions{Chunk: 3, RowsPerSecond: 15})
	testenv.Eventually(t, within, func() error {
		book, err := s.passes.Load(t.Context())
		if err != nil || book.Pass == nil || len(book.Pass.Tables) == 0 || book.Pass.Tables[0].Rows < 6 {
			return fmt.Errorf("the pass is %+v (%w)", book.Pass, err)
		}
		return nil
	})
	r.stop(t)
	book, err := s.passes.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	half := book.Pass.Tables[0]
	if half.State != capture.TableReading || half.Rows >= rows || half.After == nil {
		t.Fatalf("the pass was stopped at %+v", half)
	}
	if bytes.Contains(half.After, []byte("NL")) || bytes.Contains(s.passes.saved(), []byte("NL")) {
		t.Error("the key of a row can be read where the pass is kept")
	}
	s.start(t, env, capture.PassOptions{Chunk: 3})
	p := s.ended(t)
	if p.RunID != book.Pass.RunID || p.Tables[0].Rows != rows || p.Tables[0].Restarts != 0 || p.Restarts != 0 {
		t.Errorf("the pass was taken up as %+v", p)
	}
	shown := map[string]int{}
	for _, e := range s.topic.events() {
		if e.Type == schema.TypeConsentChange.String() {
			shown[e.Key]++
		}
	}
	again := 0
	for _, n := range shown {
		again += n - 1
	}
	if len(shown) != rows || again > 6 {
		t.Errorf("%d of %d rows were shown, %d more than once", len(shown), rows, again)
	}
}
