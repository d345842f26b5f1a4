package rules

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lethe/capture"
	"lethe/config"
)

// testSource is a mapping with every kind of rule.
const testSource = `source:
  subject: {table: public.customer, key: customer_id, on_delete: erasure}
  erased:
    when: 'status == "E"'
    marker: {table: public.customer_note, when: 'note_code == "GDPR_ERASURE"'}
  tables:
    public.customer:
      objection: {when: no_marketing, scope: direct_marketing}
      restricted: {until: restricted_until}
    public.customer_email: {erase: row}
    public.consent:
      consent:
        kind: current
        purpose: {column: purpose_code, map: {NL: newsletter, OFF: offers}}
        channel: {column: channel_code, map: {E: email}}
        state: {column: status, map: {Y: given, N: withdrawn}}
        legal_basis: consent
        valid_until: valid_until
        bound_to: {column: contact_id, rows_of: {email: public.customer_email}}
        evidence: document_id
`

func mustSource(t testing.TB, text string) *config.Source {
	t.Helper()
	cfg, err := parseSource(text)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func mustEngine(t testing.TB, text string) *Engine {
	t.Helper()
	e, err := New(mustSource(t, text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// testScript knows the tables of testSource with the default replica identity.
func testScript(t testing.TB) *script {
	t.Helper()
	s := newScript()
	for _, line := range []string{
		"table public.customer key *customer_id:int8 last_name:text status:bpchar no_marketing:bool restricted_until:date",
		"table public.customer_note key *note_id:int8 customer_id:int8 note_code:text",
		"table public.consent key *consent_id:int8 *customer_id:int8 *purpose_code:text *channel_code:text *contact_id:int8 status:bpchar valid_until:date document_id:text",
	} {
		if _, err := s.line(line); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *script) must(t testing.TB, line string) *capture.Change {
	t.Helper()
	c, err := s.line(line)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFaultsOfTheMapping(t *testing.T) {
	tests := map[string]struct {
		change func(c *config.Source)
		want   string
	}{
		"clock":            {func(c *config.Source) { c.Erased.When = "closed_on < now()" }, "source.erased.when: calls now() (a rule never sees the clock"},
		"unknown function": {func(c *config.Source) { c.Erased.When = `secret(status)` }, "source.erased.when: calls secret()"},
		"time zone":        {func(c *config.Source) { c.Erased.When = `closed_on < date("2020-01-01", "2006-01-02", "Europe/Paris")` }, "source.erased.when: calls date() with more or less"},
		"no date":          {func(c *config.Source) { c.Erased.When = `closed_on < date("soon")` }, "source.erased.when: calls date()"},
		"environment":      {func(c *config.Source) { c.Erased.When = `$env["status"] == "E"` }, "source.erased.when: reads a member"},
		"whole old row":    {func(c *config.Source) { c.Erased.When = `old == nil` }, "source.erased.when: old cannot be used alone"},
		"member":           {func(c *config.Source) { c.Erased.When = `closed_on.Year() == 2020` }, "source.erased.when: calls a method()"},
		"let":              {func(c *config.Source) { c.Erased.When = `let x = status; x == "E"` }, "source.erased.when: uses a part of the language"},
		"closure":          {func(c *config.Source) { c.Erased.When = `any(["E"], # == status)` }, "source.erased.when: calls any()"},
		"not boolean":      {func(c *config.Source) { c.Erased.When = `amount + 1 > 0 ? 1 : 2` }, "the result must be true or false"},
		"syntax":           {func(c *config.Source) { c.Erased.When = `status == ` }, "source.erased.when: unexpected token EOF"},
		"no column":        {func(c *config.Source) { c.Erased.When = `1 == 1` }, "source.erased.when: reads no column"},
		"empty":            {func(c *config.Source) { c.Erased.Marker.When = ` ` }, "source.erased.marker.when: is empty"},
		"coalesce":         {func(c *config.Source) { c.Erased.When = `(status ?? code) == "E"` }, "source.erased.when: ?? is used on more"},
		"objection":        {func(c *config.Source) { c.Tables["public.customer"].Objection.When = "now() > x" }, "source.tables.public.customer.objection.when: calls now()"},
		"restricted":       {func(c *config.Source) { c.Tables["public.customer"].Restricted = &config.Restricted{} }, "source.tables.public.customer.restricted: has neither"},
		"subject":          {func(c *config.Source) { c.Tables["public.consent"].Subject = []string{"a", "b"} }, "source.tables.public.consent.subject: has 2 columns"},
		"marker's subject": {func(c *config.Source) { c.Erased.Marker.Subject = []string{"a", "b"} }, "source.erased.marker.subject: has 2 columns"},
		"two owners": {
			func(c *config.Source) {
				c.Erased.Marker.Table, c.Erased.Marker.Subject = "public.consent", []string{"owner"}
			},
			"source.erased.marker.subject: names other columns than source.tables.public.consent.subject",
		},
		"on_delete": {func(c *config.Source) { c.Subject.OnDelete = "" }, "source.subject.on_delete: is neither"},
		"phase2":    {func(c *config.Source) { c.Erased.Phase2 = "later" }, "source.erased.phase2: is neither"},
		"no key":    {func(c *config.Source) { c.Subject.Key = nil }, "source.subject: names no table or no key"},
		"kind":      {func(c *config.Source) { c.Tables["public.consent"].Consent.Kind = "" }, "consent.kind: is neither current nor history"},
		"as_of":     {func(c *config.Source) { c.Tables["public.consent"].Consent.Kind = "history" }, "consent.as_of: is missing"},
		"state":     {func(c *config.Source) { c.Tables["public.consent"].Consent.State.Map["Z"] = "gone" }, `consent.state.map: names the unknown state "gone"`},
		"purpose":   {func(c *config.Source) { c.Tables["public.consent"].Consent.Purpose = config.Mapped{} }, "consent.purpose: is missing"},
		"contact kind": {func(c *config.Source) {
			c.Tables["public.customer_email"].ContactPoint = &config.ContactPoint{Kind: "fax", Value: []string{"fax"}}
		}, "public.customer_email.contact_point.kind: is none of"},
		"contact value": {func(c *config.Source) {
			c.Tables["public.customer_email"].ContactPoint = &config.ContactPoint{Kind: "email"}
		}, "public.customer_email.contact_point.value: names no column"},
		"identity": {func(c *config.Source) { c.Tables["public.customer"].Identity = &config.Identity{} }, "public.customer.identity.name: names no column"},
		"merged": {func(c *config.Source) {
			c.Tables["public.customer"].Merged = &config.Merged{Survivor: []string{"a", "b"}, Absorbed: []string{"c"}, When: "now()"}
		}, "public.customer.merged: has other than as many columns"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := mustSource(t, testSource)
			test.change(cfg)
			_, err := New(cfg, Options{})
			var fault *CompileError
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want a CompileError with %q", err, test.want)
			}
			if _, err := Needs(cfg); err == nil {
				t.Error("Needs accepts what New refuses")
			}
		})
	}
}

// Every fault is told at once, so that an operator does not have to try ten times.
func TestAllFaultsAtOnce(t *testing.T) {
	cfg := mustSource(t, testSource)
	cfg.Erased.When, cfg.Erased.Marker.When, cfg.Subject.OnDelete = "now()", "", ""
	_, err := New(cfg, Options{})
	if n := len(flatten(err)); n != 3 {
		t.Errorf("got %d faults, want 3: %v", n, err)
	}
}

func TestFaultsOfTheShape(t *testing.T) {
	tests := map[string]struct {
		when, table string
		want        string
	}{
		"missing column": {`status == "E"`, "key *customer_id:int8", `source.erased.when to table public.customer: column "status" is not in the log`},
		"type":           {`status == 5`, "key *customer_id:int8 status:text", "source.erased.when on table public.customer: invalid operation: == (mismatched types string and int)"},
		"not boolean":    {`status`, "key *customer_id:int8 status:text", "source.erased.when on table public.customer: expected bool, but got string"},
		"date with text": {`closed_on < "2020-01-01"`, "key *customer_id:int8 closed_on:date", "mismatched types time.Time and string"},
		"old row":        {`old.status != "E" && status == "E"`, "key *customer_id:int8 status:text", `column "status" is not in the table's replica identity`},
		"subject":        {`status == "E"`, "key *id:int8 status:text", `source.tables.public.customer.subject to table public.customer: column "customer_id" is not in the log`},
		"delete":         {`status == "E"`, "key *id:int8 customer_id:int8 status:text", `source.subject.on_delete to table public.customer: column "customer_id" is not in the table's replica identity`},
		"restricted":     {`status == "E"`, "key *customer_id:int8 status:text restricted_until:int4", `column "restricted_until" has type int4 (a date, timestamp or timestamptz is needed)`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := mustSource(t, testSource)
			cfg.Erased.When = test.when
			if name != "restricted" {
				cfg.Tables["public.customer"].Restricted = nil
			}
			cfg.Tables["public.customer"].Objection = nil
			e, err := New(cfg, Options{})
			if err != nil {
				t.Fatal(err)
			}
			words := strings.Fields(test.table)
			table := newTable("public.customer", words[0], words[1:]...)
			err = e.Bind(table)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			_, applied := e.Apply(&capture.Transaction{}, &capture.Change{Op: capture.OpInsert, Table: table, New: make([]capture.Value, len(table.Columns))}, nil)
			if applied == nil || applied.Error() != err.Error() {
				t.Errorf("Apply says %v, Bind says %v", applied, err)
			}
		})
	}
}

// A value that the log does not carry is never taken for NULL.
func TestUnavailableValues(t *testing.T) {
	tests := map[string]struct{ line, want string }{
		"absent subject": {"insert public.customer_note note_id=1 note_code=GDPR_ERASURE", `column "customer_id" of table public.customer_note: the change does not carry it`},
		"absent flag":    {"insert public.customer customer_id=1 no_marketing=f restricted_until=null", `column "status" of table public.customer: the change does not carry it`},
		"unchanged":      {"update public.customer_note note_id=1 customer_id=unchanged note_code=GDPR_ERASURE", `column "customer_id" of table public.customer_note: PostgreSQL did not send it`},
		"absent key":     {"delete public.customer last_name=x", `column "customer_id" of table public.customer: the old row does not carry it`},
		"no old row":     {"delete public.consent", `column "purpose_code" of table public.consent: the old row does not carry it`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			e, s := mustEngine(t, testSource), testScript(t)
			out, err := e.Apply(s.tx, s.must(t, test.line), nil)
			var unavailable *UnavailableError
			if !errors.As(err, &unavailable) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an UnavailableError with %q", err, test.want)
			}
			if len(out) != 0 {
				t.Errorf("%d drafts of a change that cannot be understood", len(out))
			}
		})
	}
}

// A change that is understood in part must not be published in part.
func TestNoPartOfAFailingChange(t *testing.T) {
	e, s := mustEngine(t, testSource), testScript(t)
	earlier := Draft{Rule: "earlier"}
	out, err := e.Apply(s.tx, s.must(t, "insert public.customer customer_id=1 status=E no_marketing=maybe restricted_until=null"), []Draft{earlier})
	var value *ValueError
	if !errors.As(err, &value) || value.Column != "no_marketing" {
		t.Fatalf("got %v, want a ValueError of no_marketing", err)
	}
	if len(out) != 1 || out[0].Rule != "earlier" {
		t.Errorf("got %d drafts, want only the one that was there", len(out))
	}
}

func TestWrongChanges(t *testing.T) {
	e, s := mustEngine(t, testSource), testScript(t)
	for name, c := range map[string]*capture.Change{
		"no table":       {Op: capture.OpInsert},
		"too few values": {Op: capture.OpInsert, Table: s.tables["public.customer"], New: make([]capture.Value, 1)},
		"too few old":    {Op: capture.OpDelete, Table: s.tables["public.customer"], Old: make([]capture.Value, 1)},
	} {
		if out, err := e.Apply(s.tx, c, nil); err == nil || len(out) > 0 {
			t.Errorf("%s: got %d drafts and %v, want an error", name, len(out), err)
		}
	}
}

// TestForeignMessageStopsNothing: every user of the database may write a message under our prefix.
func TestForeignMessageStopsNothing(t *testing.T) {
	e, s := mustEngine(t, testSource), testScript(t)
	for i, text := range []string{"2026-03-01T10:00:00Z", "", "-1", "9223372036854775807", "1"} {
		out, err := e.Apply(s.tx, &capture.Change{Op: capture.OpMessage, Message: []byte(text)}, nil)
		if err != nil || len(out) > 0 {
			t.Errorf("%q: got %d drafts and %v", text, len(out), err)
		}
		if got := e.Notices(); len(got) != 1 || got[0] != (Notice{Kind: NoticeNoHeartbeat, Count: uint64(i + 1)}) {
			t.Errorf("%q: noticed %v", text, got)
		}
	}
}

// Tables change their shape while the log is read; only the shape in force is kept.
func TestShapeChangesMidStream(t *testing.T) {
	e := mustEngine(t, testSource)
	tx := &capture.Transaction{CommittedAt: time.Now()}
	for i := range 50 {
		columns := []string{"*customer_id:int8", "status:text", "no_marketing:bool", "restricted_until:date"}
		if i%2 == 1 {
			columns[0], columns[1] = columns[1], columns[0]
		}
		table := newTable("public.customer", "key", columns...)
		c := &capture.Change{Op: capture.OpInsert, Table: table, New: values(table, split("customer_id=7 status=E no_marketing=f restricted_until=null"))}
		out, err := e.Apply(tx, c, nil)
		if err != nil || len(out) != 1 || keyText(out[0].SubjectKey) != "7" {
			t.Fatalf("shape %d: got %v, %v", i, out, err)
		}
	}
	if len(e.bound) != 1 {
		t.Errorf("%d shapes are kept, want 1", len(e.bound))
	}
}

func TestNeeds(t *testing.T) {
	cfg := mustSource(t, testSource)
	cfg.Erased.When = `status == "E" && old.status != "E"`
	needs, err := Needs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"public.customer":       "reads customer_id no_marketing restricted_until status; old customer_id status; subject customer_id; delete true",
		"public.customer_note":  "reads customer_id note_code; old ; subject customer_id; delete false",
		"public.customer_email": "reads customer_id; old ; subject customer_id; delete false",
		"public.consent": "reads channel_code contact_id customer_id document_id purpose_code status valid_until; " +
			"old channel_code contact_id customer_id purpose_code; subject customer_id; delete true",
	}
	for table, n := range needs {
		got := "reads " + strings.Join(n.Columns, " ") + "; old " + strings.Join(n.OldColumns, " ") +
			"; subject " + strings.Join(n.SubjectColumns, " ") + "; delete " + map[bool]string{true: "true", false: "false"}[n.ReadsDelete]
		if got != want[table] {
			t.Errorf("%s:\n got %s\nwant %s", table, got, want[table])
		}
	}
	if len(needs) != len(want) {
		t.Errorf("%d tables, want %d", len(needs), len(want))
	}
}

func TestRecommends(t *testing.T) {
	got, err := Recommends(mustSource(t, testSource))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"public.customer":      "no_marketing restricted_until status",
		"public.customer_note": "note_code",
		"public.consent":       "status valid_until",
	}
	for table, columns := range got {
		if strings.Join(columns, " ") != want[table] {
			t.Errorf("%s: got %v, want %s", table, columns, want[table])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d tables, want %d", len(got), len(want))
	}
}

// What the config accepts as a state is what the rules know.
func TestStatesOfTheConfig(t *testing.T) {
	for _, name := range config.ConsentStates() {
		if _, known := consentStates[name]; !known {
			t.Errorf("the state %q of the config is unknown", name)
		}
	}
	if len(consentStates) != len(config.ConsentStates()) {
		t.Errorf("%d states, the config has %d", len(consentStates), len(config.ConsentStates()))
	}
}

func TestNoticesMetric(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	e, err := New(mustSource(t, testSource), Options{Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	s := testScript(t)
	for range 3 {
		if _, err := e.Apply(s.tx, s.must(t, "insert public.customer_note note_id=1 customer_id=null note_code=GDPR_ERASURE"), nil); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "lethe_rule_notices_total" {
		t.Fatalf("got %v, %v", families, err)
	}
	total := 0.0
	for _, m := range families[0].GetMetric() {
		total += m.GetCounter().GetValue()
	}
	if n := len(families[0].GetMetric()); n != 4*int(noticeKinds)+1 || total != 3 {
		t.Errorf("%d series with %v in all, want one for each of 4 tables and %d kinds, and one more, with 3 in all", n, total, noticeKinds)
	}
	if got := e.Notices(); len(got) != 1 || got[0] != (Notice{Kind: NoticeRowOfNobody, Table: "public.customer_note", Count: 3}) {
		t.Errorf("got %v", got)
	}
}

// No error tells what somebody typed into the CRM.
func TestErrorsTellNoValue(t *testing.T) {
	const secret = "jean@example.org"
	e, s := mustEngine(t, testSource), testScript(t)
	consent := "insert public.consent consent_id=1 customer_id=7 purpose_code=NL channel_code=E contact_id=70 status=Y valid_until=null document_id=null"
	for _, line := range []string{
		strings.Replace(consent, "=NL", "="+secret, 1), strings.Replace(consent, "=E", "="+secret, 1),
		strings.Replace(consent, "=Y", "="+secret, 1), strings.Replace(consent, "valid_until=null", "valid_until="+secret, 1),
		"insert public.customer customer_id=7 status=A no_marketing=" + secret + " restricted_until=null",
		"insert public.customer customer_id=7 status=A no_marketing=f restricted_until=" + secret,
	} {
		_, err := e.Apply(s.tx, s.must(t, line), nil)
		if err == nil {
			t.Errorf("no error for %s", line)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells the value: %v", err)
		}
	}
}
