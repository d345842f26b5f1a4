package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// realKeys makes match keys as the program does.
func realKeys() *matchkey.Maker {
	return matchkey.New([]keys.MatchKey{{ID: 7, PRF: sinktest.PRF("match")}}, []string{"FR", "RE"})
}

// leads are a marketing database that does not know the CRM's key.
const leads = `
CREATE TABLE lead (
	id bigserial PRIMARY KEY, crm_id text, firstname text, lastname text, born date, email text, mobile text, phone text, street text, city text,
	newsletter boolean NOT NULL DEFAULT true, sms boolean NOT NULL DEFAULT true, no_marketing boolean NOT NULL DEFAULT false,
	frozen boolean NOT NULL DEFAULT false, usable boolean NOT NULL DEFAULT true, updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE lead_email (
	lead_email_id bigserial PRIMARY KEY, lead_id bigint NOT NULL REFERENCES lead, address text);
CREATE INDEX ON lead_email (lead_id);
CREATE TABLE do_not_contact (
	lead_id bigint NOT NULL REFERENCES lead, channel text NOT NULL, PRIMARY KEY (lead_id, channel));`

// leadMapping is the mapping of leads.
func leadMapping() *config.Replica {
	null := value(ledger.KindNull)
	return &config.Replica{
		Name: "marketing", Recipient: config.Recipient{Name: "Régie", Role: "processor"}, Mode: ledger.ModeErase,
		Postgres: &config.PostgresServer{},
		Person:   config.Person{Table: "lead", Key: "id"},
		Find: &config.Find{
			Email: []string{"lead.email", "lead_email.address"}, Phone: []string{"lead.mobile", "lead.phone"}, Name: []string{"lead.firstname", "lead.lastname"},
			BirthDate: "lead.born", Postal: []string{"lead.street", "lead.city"}, Scan: time.Hour,
		},
		Suppress: []config.Action{
			{Set: set("lead", map[string]config.Value{"usable": constant(false)})},
			{Insert: &config.Insert{Table: "do_not_contact", Values: map[string]config.Value{"lead_id": value(ledger.KindKey), "channel": constant("email")}}},
		},
		Erase: config.Erase{Tables: map[string]*config.EraseTable{
			"lead": {Set: map[string]config.Value{
				"firstname": null, "lastname": null, "born": null, "email": null, "mobile": null, "phone": null, "street": null, "city": null,
			}},
			"lead_email": {By: "lead_id", Delete: true},
		}},
		Consent: []config.ConsentAction{
			{Purpose: "newsletter", Channel: "email", Set: set("lead", map[string]config.Value{"newsletter": value(ledger.KindPermitted)})},
			{Purpose: "newsletter", Channel: "sms", Set: set("lead", map[string]config.Value{"sms": value(ledger.KindPermitted)})},
		},
		Objection: []config.ObjectionAction{
			{Scope: "direct_marketing", Set: set("lead", map[string]config.Value{"no_marketing": value(ledger.KindObjected)})},
		},
		Restricted: &config.RestrictedAction{Set: set("lead", map[string]config.Value{"frozen": value(ledger.KindRestricted)})},
		Audience:   "select id from lead where newsletter and usable and email is not null",
	}
}

// newLeads makes a world of leads.
func newLeads(tb testing.TB, change ...func(*config.Replica)) *world {
	tb.Helper()
	cfg := leadMapping()
	for _, f := range change {
		f(cfg)
	}
	return newWorldOf(tb, testenv.SharedPostgres(tb, 18), cfg, leads, `GRANT SELECT, UPDATE ON lead TO {role}; GRANT SELECT, DELETE, UPDATE ON lead_email TO {role};
		GRANT SELECT, INSERT, DELETE ON do_not_contact TO {role}`)
}

// lead inserts a row: id, then column=value pairs.
func (w *world) lead(id int, columns ...string) {
	w.Helper()
	names, values := []string{"id"}, []string{"$1"}
	args := []any{id}
	for _, c := range columns {
		name, v, _ := strings.Cut(c, "=")
		args = append(args, v)
		names, values = append(names, name), append(values, "$"+strings.TrimSpace(string(rune('0'+len(args)))))
	}
	w.exec(`INSERT INTO lead (`+strings.Join(names, ", ")+`) VALUES (`+strings.Join(values, ", ")+`)`, args...)
}

// says makes the event that a contact point of a person is this.
func (w *world) says(id int, point byte, kind schema.ContactKind, made []schema.MatchKey) *schema.Event {
	return w.event(id, &schema.ContactPoint{Contact: schema.ContactRef{byte(id), point}, Kind: kind, Keys: made})
}

func (w *world) mail(id int, address string) *schema.Event {
	return w.says(id, 1, schema.ContactEmail, realKeys().Email(address))
}

func (w *world) past(id int, address string) *schema.Event {
	ev := w.says(id, 2, schema.ContactEmail, realKeys().Email(address))
	ev.Body.(*schema.ContactPoint).Past = true
	return ev
}

func (w *world) tel(id int, number string) *schema.Event {
	return w.says(id, 3, schema.ContactPhone, realKeys().Phone(number, ""))
}

func (w *world) address(id int, parts ...string) *schema.Event {
	return w.says(id, 4, schema.ContactPostal, realKeys().Postal(parts))
}

func (w *world) name(id int, first, last, born string) *schema.Event {
	return w.says(id, 5, schema.ContactIdentity, realKeys().Identity([]string{first, last}, born))
}

func (w *world) erased(id int) *schema.Event { return w.event(id, &schema.SubjectErasure{}) }

// scan scans until there is nothing to do.
func (w *world) scan() {
	w.Helper()
	w.exec(`UPDATE lethe.scan SET wanted = true`)
	w.scanOn()
}

func (w *world) scanOn() {
	w.Helper()
	m, err := w.r.compiled(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	for {
		next, _, err := w.r.scanOnce(w.ctx, m)
		if err != nil {
			w.Fatalf("scan: %v", err)
		}
		if next.After(time.Now()) {
			return
		}
	}
}

// settle runs the chores until nothing is due any more.
func (w *world) settle() {
	w.Helper()
	for range 50 {
		if next := w.due(); next.IsZero() || next.After(time.Now().Add(2*time.Second)) {
			return
		}
	}
	w.Fatal("the chores do not come to an end")
}

// erasureStates are the case states of receipts about erasures with their match methods, each once, in the order of their making.
func (w *world) erasureStates() string {
	w.Helper()
	var out []string
	for _, rc := range w.receipts() {
		if rc.EventType == schema.TypeSubjectErasure {
			out = append(out, rc.State.String()+" "+rc.MatchMethod)
		}
	}
	return strings.Join(slices.Compact(out), ", ")
}

const (
	leadRows = `SELECT id, email IS NOT NULL OR mobile IS NOT NULL OR phone IS NOT NULL OR firstname IS NOT NULL, newsletter, sms, no_marketing, frozen, usable FROM lead ORDER BY id`
	intact   = "|true|true|true|false|false|true"
	hidden   = "|true|false|false|false|false|false" // suppressed
	noSMS    = "|true|true|false|false|false|true"
	gone     = "|false|false|false|false|false|false"
)

// Each line of the decision table, on a real server: who is in the CRM, what the replica holds, what an erasure and an objection
// of person 1 make of it.
func TestDecisionTable(t *testing.T) {
	const jean, marie = "Jean", "Marie"
	for _, c := range []struct {
		name   string
		crm    func(w *world) []*schema.Event
		rows   func(w *world)
		change func(*config.Replica)
		erased string // rows after an erasure
		states string
		review string
		object string // no_marketing by row, after an objection
	}{
		{
			name:   "CRM key",
			change: func(c *config.Replica) { c.Person.CRMKey = []string{"crm_id"} },
			crm:    func(w *world) []*schema.Event { return []*schema.Event{w.mail(1, "jean@exemple.fr")} },
			rows: func(w *world) {
				w.lead(1, "crm_id=1", "email=other@exemple.fr")
				w.lead(2, "crm_id=2", "email=someone@exemple.fr")
			},
			erased: "1" + gone + "\n2" + intact, states: "suppressed crm_key, applied crm_key, verified crm_key", object: "1|true\n2|false",
		},
		{
			name:   "one row",
			crm:    func(w *world) []*schema.Event { return []*schema.Event{w.mail(1, "jean@exemple.fr")} },
			rows:   func(w *world) { w.lead(1, "email= Jean@EXEMPLE.fr"); w.lead(2, "email=jeanne@exemple.fr") },
			erased: "1" + gone + "\n2" + intact, states: "suppressed email_strict, applied email_strict, verified email_strict", object: "1|true\n2|false",
		},
		{
			name: "old e-mail in the replica",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.past(1, "old@exemple.fr"), w.mail(1, "new@exemple.fr")}
			},
			rows:   func(w *world) { w.lead(1, "email=old@exemple.fr") },
			erased: "1" + gone, states: "suppressed email_strict, applied email_strict, verified email_strict", object: "1|true",
		},
		{
			name: "phone in four spellings",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.tel(1, "06 12 34 56 78"), w.name(1, jean, "Dupont", "")}
			},
			rows: func(w *world) {
				w.lead(1, "mobile=+33612345678", "firstname=Jean", "lastname=DUPONT")
				w.lead(2, "phone=06.12.34.56.78", "firstname=jean", "lastname=dupont")
				w.lead(3, "mobile=0033 6 12 34 56 78", "firstname=Jean", "lastname=Dupont")
				w.lead(4, "phone=+33 (0)6 12 34 56 78 (bureau)", "firstname=Dupont", "lastname=Jean")
			},
			erased: "1" + gone + "\n2" + gone + "\n3" + gone + "\n4" + gone,
			states: "suppressed phone_e164+name, applied phone_e164+name, verified phone_e164+name", object: "1|true\n2|true\n3|true\n4|true",
		},
		{
			name: "the person twice",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.mail(1, "jean@exemple.fr"), w.name(1, jean, "Dupont", "")}
			},
			rows: func(w *world) {
				w.lead(1, "email=jean@exemple.fr", "firstname=Jean", "lastname=Dupont")
				w.lead(2, "email=JEAN@exemple.fr", "firstname=jean", "lastname=dupont")
			},
			erased: "1" + gone + "\n2" + gone, states: "suppressed email_strict+name, applied email_strict+name, verified email_strict+name", object: "1|true\n2|true",
		},
		{
			name: "one address, two names",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.mail(1, "famille@exemple.fr"), w.name(1, jean, "Dupont", "")}
			},
			rows: func(w *world) {
				w.lead(1, "email=famille@exemple.fr", "firstname=Jean", "lastname=Dupont")
				w.lead(2, "email=famille@exemple.fr", "firstname=Marie", "lastname=Dupont")
			},
			erased: "1" + hidden + "\n2" + hidden, states: "ambiguous email_strict+name", review: "1|erasure|email_strict+name\n2|erasure|email_strict",
			object: "1|true\n2|true",
		},
		{
			name: "two people share the family phone",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{
					w.tel(1, "01 42 68 53 00"), w.name(1, jean, "Dupont", ""), w.tel(2, "+33 1 42 68 53 00"), w.name(2, marie, "Dupont", ""),
				}
			},
			rows: func(w *world) {
				w.lead(1, "phone=0142685300", "firstname=Jean", "lastname=Dupont")
				w.lead(2, "phone=0142685300", "firstname=Marie", "lastname=Dupont")
			},
			erased: "1" + gone + "\n2" + noSMS, states: "suppressed phone_e164+name, applied phone_e164+name",
			review: "2|erasure|phone_e164", object: "1|true\n2|false",
		},
		{
			name: "phone only",
			crm:  func(w *world) []*schema.Event { return []*schema.Event{w.tel(1, "01 42 68 53 00")} },
			rows: func(w *world) { w.lead(1, "phone=0142685300") },
			// The number's channels are closed, nothing else.
			erased: "1" + noSMS, states: "ambiguous phone_e164", review: "1|erasure|phone_e164", object: "1|false",
		},
		{
			name: "shared mailbox",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.mail(1, "info@exemple.fr"), w.mail(2, "info@exemple.fr"), w.mail(3, "info@exemple.fr")}
			},
			rows:   func(w *world) { w.lead(1, "email=info@exemple.fr") },
			erased: "1" + hidden, states: "ambiguous email_strict", review: "1|erasure|email_strict", object: "1|true",
		},
		{
			name: "address re-used by another person later",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.past(1, "contact@exemple.fr"), w.name(1, jean, "Dupont", ""), w.mail(2, "contact@exemple.fr"), w.name(2, marie, "Durand", "")}
			},
			rows:   func(w *world) { w.lead(1, "email=contact@exemple.fr", "firstname=Marie", "lastname=Durand") },
			erased: "1" + hidden, states: "ambiguous email_strict", review: "1|erasure|email_strict", object: "1|true",
		},
		{
			name: "another CRM key on the row",
			change: func(c *config.Replica) {
				c.Person.CRMKey = []string{"crm_id"}
			},
			crm:    func(w *world) []*schema.Event { return []*schema.Event{w.mail(1, "jean@exemple.fr")} },
			rows:   func(w *world) { w.lead(1, "crm_id=77", "email=jean@exemple.fr") },
			erased: "1" + hidden, states: "ambiguous email_strict", review: "1|erasure|email_strict", object: "1|true",
		},
		{
			name:   "name and birth date",
			crm:    func(w *world) []*schema.Event { return []*schema.Event{w.name(1, jean, "Dupont", "1970-02-01")} },
			rows:   func(w *world) { w.lead(1, "firstname=Jean", "lastname=Dupont", "born=1970-02-01") },
			erased: "1" + hidden, states: "ambiguous name_dob", review: "1|erasure|name_dob", object: "1|true",
		},
		{
			name: "name and postal address",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.name(1, jean, "Dupont", ""), w.address(1, "3 rue des Lilas", "Lyon")}
			},
			rows: func(w *world) {
				w.lead(1, "firstname=Jean", "lastname=Dupont", "street=3, rue des Lilas", "city=LYON")
				w.lead(2, "firstname=Paul", "lastname=Durand", "street=3, rue des Lilas", "city=LYON")
			},
			erased: "1" + hidden + "\n2" + intact, states: "ambiguous postal+name", review: "1|erasure|postal+name", object: "1|true\n2|false",
		},
		{
			name: "name and postal address of four rows",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.name(1, jean, "Dupont", ""), w.address(1, "3 rue des Lilas", "Lyon")}
			},
			rows: func(w *world) {
				for id := range 4 {
					w.lead(id+1, "firstname=Jean", "lastname=Dupont", "street=3 rue des Lilas", "city=Lyon")
				}
			},
			erased: "1" + intact + "\n2" + intact + "\n3" + intact + "\n4" + intact, states: "ambiguous postal+name",
			review: "1|erasure|postal+name\n2|erasure|postal+name\n3|erasure|postal+name\n4|erasure|postal+name",
			object: "1|false\n2|false\n3|false\n4|false",
		},
		{
			name:   "e-mail loose only",
			crm:    func(w *world) []*schema.Event { return []*schema.Event{w.mail(1, "jean.dupont+news@gmail.com")} },
			rows:   func(w *world) { w.lead(1, "email=jeandupont@gmail.com") },
			erased: "1" + hidden, states: "ambiguous email_loose", review: "1|erasure|email_loose", object: "1|true",
		},
		{
			name: "name alone, and nothing",
			crm: func(w *world) []*schema.Event {
				return []*schema.Event{w.name(1, jean, "Dupont", ""), w.mail(1, "jean@exemple.fr")}
			},
			rows:   func(w *world) { w.lead(1, "firstname=Jean", "lastname=Dupont"); w.lead(2, "email=nobody@exemple.fr") },
			erased: "1" + intact + "\n2" + intact, states: "no_match crm_key", object: "1|false\n2|false",
		},
		{
			name: "an address of another table",
			crm:  func(w *world) []*schema.Event { return []*schema.Event{w.mail(1, "jean@exemple.fr")} },
			rows: func(w *world) {
				w.lead(1, "firstname=Jean")
				w.exec(`INSERT INTO lead_email (lead_id, address) VALUES (1, 'jean@exemple.fr'), (1, 'other@exemple.fr')`)
			},
			erased: "1" + gone, states: "suppressed email_strict, applied email_strict, verified email_strict", object: "1|true",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			changes := []func(*config.Replica){}
			if c.change != nil {
				changes = append(changes, c.change)
			}
			t.Run("erasure", func(t *testing.T) {
				w := newLeads(t, changes...)
				c.rows(w)
				w.scanOn()
				w.apply(c.crm(w)...)
				w.apply(w.erased(1))
				w.settle()
				w.want(leadRows, c.erased)
				if got := w.erasureStates(); got != c.states {
					t.Errorf("receipts: %s\nwant: %s", got, c.states)
				}
				w.want(`SELECT person, kind, evidence FROM lethe.review WHERE decided_at IS NULL ORDER BY 1`, c.review)
			})
			t.Run("objection", func(t *testing.T) {
				w := newLeads(t, changes...)
				c.rows(w)
				w.scanOn()
				w.apply(c.crm(w)...)
				w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
				w.want(`SELECT id, no_marketing FROM lead ORDER BY id`, c.object)
			})
		})
	}
}

// openReview returns the id of the open review of a row.
func (w *world) openReview(person string) (id string) {
	w.Helper()
	if err := w.admin.QueryRow(w.ctx, `SELECT id FROM lethe.review WHERE person = $1 AND decided_at IS NULL`, person).Scan(&id); err != nil {
		w.Fatalf("review of row %s: %v", person, err)
	}
	return id
}

// decideRow decides the open review of a row.
func (w *world) decideRow(person string, same bool) {
	w.Helper()
	if err := NewDesk(w.cfg, w.pool).DecideReview(w.ctx, w.openReview(person), same, "dpo"); err != nil {
		w.Fatal(err)
	}
}

// A family shares one address. What a person decides holds: the one row is erased, the other gets back what phase 1 took, and
// nobody is asked again.
func TestReviewDecides(t *testing.T) {
	w := newLeads(t)
	w.lead(1, "email=famille@exemple.fr", "firstname=Jean", "lastname=Dupont")
	w.lead(2, "email=famille@exemple.fr", "firstname=Marie", "lastname=Dupont")
	w.scanOn()
	w.apply(w.mail(1, "famille@exemple.fr"), w.name(1, "Jean", "Dupont", ""))
	w.apply(w.erased(1))
	w.settle()
	w.want(leadRows, "1"+hidden+"\n2"+hidden)
	w.want(`SELECT state, matched, error_code FROM lethe.pending`, "suppressed|false|ambiguous")
	w.want(`SELECT due_at - opened_at = interval '7 days' FROM lethe.review`, "true\ntrue")

	w.decideRow("2", false)
	w.settle()
	w.want(leadRows, "1"+gone+"\n2"+intact) // one row has the address now that is not somebody else's
	w.want(`SELECT lead_id FROM do_not_contact ORDER BY 1`, "1")
	w.want(`SELECT person, decision, decided_by FROM lethe.review ORDER BY 1`, "1|obsolete|lethe\n2|different|dpo")
	if got, want := w.erasureStates(), "ambiguous email_strict+name, suppressed email_strict, applied email_strict, verified email_strict"; got != want {
		t.Errorf("receipts: %s\nwant: %s", got, want)
	}
	w.want(`SELECT state, undo IS NULL, error_code FROM lethe.pending`, "verified|true|<nil>")
	if err := NewDesk(w.cfg, w.pool).DecideReview(w.ctx, "nothing", true, "dpo"); err == nil {
		t.Error("a review that is not there was decided")
	}
}

// A phone alone: the person says that it is the subject, or that it is not.
func TestReviewOfAPhone(t *testing.T) {
	for _, c := range []struct {
		same         bool
		rows, states string
	}{
		{true, "1" + gone, "ambiguous phone_e164, suppressed crm_key, applied crm_key, verified crm_key"},
		{false, "1" + intact, "ambiguous phone_e164, no_match crm_key"},
	} {
		w := newLeads(t)
		w.lead(1, "phone=0142685300")
		w.scanOn()
		w.apply(w.tel(1, "01 42 68 53 00"))
		w.apply(w.erased(1))
		w.settle()
		w.want(leadRows, "1"+noSMS)
		w.decideRow("1", c.same)
		w.settle()
		w.want(leadRows, c.rows)
		if got := w.erasureStates(); got != c.states {
			t.Errorf("same %t: receipts: %s\nwant: %s", c.same, got, c.states)
		}
		w.want(`SELECT count(*) FROM lethe.review WHERE decided_at IS NULL`, "0")
	}
}

// One row is certain, another waits for a person: the first is erased when it is due, nothing is called verified before the second
// is decided, and it is erased too where it is the same person.
func TestErasureWaitsForItsReviews(t *testing.T) {
	w := newLeads(t)
	w.lead(1, "email=jean@exemple.fr", "phone=0142685300")
	w.lead(2, "phone=0142685300", "firstname=J.")
	w.scanOn()
	w.apply(w.mail(1, "jean@exemple.fr"), w.tel(1, "0142685300"))
	w.apply(w.erased(1))
	w.settle()
	w.want(leadRows, "1"+gone+"\n2"+noSMS)
	w.want(`SELECT state, error_code FROM lethe.pending`, "applied|ambiguous")
	list, err := NewDesk(w.cfg, w.pool).Reviews(w.ctx, true, 10)
	if err != nil || len(list) != 1 || list[0].Person != "2" || list[0].CaseID.IsZero() || list[0].Agreeing != 1 {
		t.Fatalf("reviews %+v, %v", list, err)
	}
	w.decideRow("2", true)
	w.settle()
	w.want(leadRows, "1"+gone+"\n2"+gone)
	w.want(`SELECT state, error_code FROM lethe.pending`, "verified|<nil>")
}

// What the replica says is read live, and in values that print as nothing.
func TestReviewShowsTheRow(t *testing.T) {
	w := newLeads(t)
	w.lead(1, "phone=0142685300", "firstname=Jean")
	w.scanOn()
	w.apply(w.tel(1, "0142685300"), w.tel(2, "0142685300"))
	w.apply(w.erased(1))
	d, err := NewDesk(w.cfg, w.pool).ReviewCase(w.ctx, w.openReview("1"))
	if err != nil {
		t.Fatal(err)
	}
	if key, err := ledger.OpenKey(w.keys, d.Ref[:], d.Sealed); err != nil || !slices.Equal(key, []string{"1"}) {
		t.Errorf("CRM key %v, %v", key, err)
	}
	if d.Rivals != 1 || len(d.Rows) != 1 || d.Rows[0].Table != "lead" {
		t.Fatalf("%+v", d)
	}
	i := slices.Index(d.Rows[0].Columns, "firstname")
	if got := d.Rows[0].Values[i].Reveal(); got != "Jean" {
		t.Errorf("firstname %q", got)
	}
	if text := fmt.Sprintf("%+v", d); strings.Contains(text, "Jean") {
		t.Error("the review prints a value")
	}
}

// The index may be of yesterday: a row that says something else by now is nobody's, and a row that the index does not know yet is
// found by the next scan, at once.
func TestIndexIsNotBelieved(t *testing.T) {
	w := newLeads(t, func(c *config.Replica) { c.Erase.CoolOff = 0 })
	w.lead(1, "email=jean@exemple.fr")
	w.scanOn()
	w.exec(`UPDATE lead SET email = 'somebody.else@exemple.fr'`)
	w.lead(2, "email=jean@exemple.fr")
	w.apply(w.mail(1, "jean@exemple.fr"))
	w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	w.want(`SELECT id, no_marketing FROM lead ORDER BY id`, "1|false\n2|false")
	w.scan()
	w.settle()
	w.want(`SELECT id, no_marketing FROM lead ORDER BY id`, "1|false\n2|true")

	// Before phase 2 the index is made anew.
	w.lead(3, "email=JEAN@exemple.fr", "firstname=Jean", "lastname=Dupont")
	w.exec(`UPDATE lead SET firstname = 'Jean', lastname = 'Dupont' WHERE id = 2`)
	w.apply(w.erased(1))
	w.settle()
	w.want(leadRows, "1"+intact+"\n2|false|false|false|true|false|false\n3|false|false|false|true|false|false")
	w.want(`SELECT count(*) FROM lethe.row_key`, "1") // of row 1
}

// Two subjects on one row: what one of them forbids holds, and a permission needs that the row is certainly one's own.
func TestTwoSubjectsOnOneRow(t *testing.T) {
	w := newLeads(t)
	w.lead(1, "email=marie@exemple.fr", "phone=0142685300", "firstname=Marie", "lastname=Durand")
	w.exec(`UPDATE lead SET newsletter = false, sms = false`)
	w.scanOn()
	w.apply(w.mail(1, "marie@exemple.fr"), w.name(1, "Marie", "Durand", ""), w.tel(2, "0142685300"), w.name(2, "Paul", "Durand", ""))
	given := func(id int, channel string, state schema.ConsentState) *schema.Event {
		c := consent("newsletter", state)
		c.Channel = channel
		return w.event(id, c)
	}
	w.apply(given(2, "sms", schema.ConsentGiven))
	w.want(`SELECT newsletter, sms FROM lead`, "false|false")
	w.want(`SELECT kind, evidence FROM lethe.review`, "permission|phone_e164")
	w.apply(given(1, "email", schema.ConsentGiven), given(1, "sms", schema.ConsentGiven))
	w.want(`SELECT newsletter, sms FROM lead`, "true|true")
	w.apply(given(2, "sms", schema.ConsentWithdrawn), given(2, "email", schema.ConsentWithdrawn))
	w.want(`SELECT newsletter, sms FROM lead`, "true|false") // the number's channels, not the address'
	w.apply(given(1, "sms", schema.ConsentRenewedGiven))
	w.want(`SELECT newsletter, sms FROM lead`, "true|false")
	w.apply(w.event(1, &schema.ProcessingRestriction{Imposed: true}))
	w.want(`SELECT newsletter, sms, frozen FROM lead`, "false|false|true")
	w.apply(w.event(1, &schema.ProcessingRestriction{}))
	w.want(`SELECT newsletter, sms, frozen FROM lead`, "true|false|false")
}

// A cancelled erasure gives back what it took, of the rows that were certain and of those that were not, and closes the reviews.
func TestCancelOfWhatWasFound(t *testing.T) {
	w := newLeads(t, func(c *config.Replica) { c.Erase.CoolOff = time.Hour })
	w.lead(1, "email=jean@exemple.fr")
	w.lead(2, "email=jean+news@exemple.fr")
	w.exec(`UPDATE lead SET email = 'jean.d+news@gmail.com' WHERE id = 2`)
	w.scanOn()
	w.apply(w.mail(1, "jean@exemple.fr"), w.says(1, 9, schema.ContactEmail, realKeys().Email("jeand@gmail.com")))
	w.apply(w.erased(1))
	w.settle()
	w.want(leadRows, "1"+hidden+"\n2"+hidden)
	w.want(`SELECT person, evidence FROM lethe.review WHERE decided_at IS NULL`, "2|email_loose")
	w.apply(w.event(1, &schema.CaseDecision{Decision: schema.DecisionCancel, DecidedBy: "dpo"}))
	w.settle()
	w.want(leadRows, "1"+intact+"\n2"+intact)
	w.want(`SELECT count(*) FROM lethe.review WHERE decided_at IS NULL`, "0")
	w.want(`SELECT count(*) FROM do_not_contact`, "0")
}

// A larger mapping and a restored backup reach who was erased, by the replica's own keys: what found them is gone.
func TestErasedRowsAreKnown(t *testing.T) {
	w := newLeads(t)
	w.lead(1, "email=jean@exemple.fr", "city=Lyon")
	w.scanOn()
	w.apply(w.mail(1, "jean@exemple.fr"))
	w.apply(w.erased(1))
	w.settle()
	w.want(`SELECT state FROM lethe.pending`, "verified")
	w.exec(`UPDATE lead SET email = 'jean@exemple.fr', usable = true, newsletter = true; UPDATE lethe_witness SET n = n - 1`)
	w.settle()
	w.want(leadRows, "1"+gone)
	w.want(`SELECT state FROM lethe.pending`, "verified")
}
