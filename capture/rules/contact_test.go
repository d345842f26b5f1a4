package rules

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"lethe/capture"
	"lethe/config"
	"lethe/schema"
)

// contactSource maps what says who a person is, and how to reach them.
const contactSource = `source:
  subject: {table: public.customer, key: customer_id, on_delete: erasure}
  erased: {when: 'status == "E"'}
  tables:
    public.customer:
      identity: {name: [first_name, last_name], birth_date: born}
      merged: {survivor: into_id, absorbed: customer_id}
    public.customer_email: {contact_point: {kind: email, value: email, ignore: ["deleted@exemple.fr"]}, erase: row}
    public.customer_phone: {contact_point: {kind: phone, value: number, region: country, key: phone_id}, erase: row}
    public.consent:
      consent:
        kind: current
        purpose: newsletter
        channel: {column: channel_code, map: {E: email, S: sms}}
        state: {column: status, map: {Y: given, N: withdrawn}}
        legal_basis: consent
        method: {column: form, map: {W: web_form}}
        bound_to: {column: contact_id, rows_of: {email: public.customer_email, sms: public.customer_phone}}
`

type identifier struct{}

func (identifier) Compute(dst *[32]byte, data []byte) { legible.Compute(dst, data) }

// A consent falls with its contact point: what it is bound to has to be the reference under which the contact point itself is known, whatever the
// database calls the types, and whether the log or a pass tells the row.
func TestConsentsAreBoundToTheContactPointsTheySpeakOf(t *testing.T) {
	ids := schema.NewIdentifiers(identifier{}, "crm")
	for name, lines := range map[string][]string{
		"identity by an index": {
			"table public.customer_email key *email_id:int8 *customer_id:int8 email:text",
			"table public.consent key *consent_id:int8 *customer_id:int8 *channel_code:bpchar *contact_id:int4 status:text form:text",
		},
		"a padded key": {
			"table public.customer_email key email:text *customer_id:int8 *email_id:bpchar",
			"table public.consent key *consent_id:int8 *customer_id:int8 *channel_code:bpchar *contact_id:text status:text form:text",
		},
		"a key within the subject": {
			"table public.customer_email mysql *customer_id:bigint *email_id:int email:varchar",
			"table public.consent mysql *consent_id:bigint customer_id:bigint channel_code:char contact_id:bigint status:char form:varchar",
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := New(mustSource(t, contactSource), Options{Match: testMatch})
			if err != nil {
				t.Fatal(err)
			}
			s := newScript()
			for _, line := range lines {
				if _, err := s.line(line); err != nil {
					t.Fatal(err)
				}
			}
			refs := map[schema.ContactRef]bool{}
			for _, line := range []string{
				"insert public.customer_email email_id='70 ' customer_id=7 email=a@exemple.fr",
				"read public.customer_email email_id='70 ' customer_id=7 email=a@exemple.fr",
				"delete public.customer_email email_id='70 ' customer_id=7 email=a@exemple.fr",
				"insert public.consent consent_id=1 customer_id=7 channel_code=E contact_id=70 status=Y form=W",
				"delete public.consent consent_id=1 customer_id=7 channel_code=E contact_id=70 status=Y form=W",
			} {
				if !strings.Contains(name, "padded") {
					line = strings.Replace(line, "'70 '", "70", 1)
				}
				out, err := e.Apply(s.tx, s.must(t, line), nil)
				if err != nil || len(out) != 1 || out[0].ContactTable != "public.customer_email" {
					t.Fatalf("%s: %+v, %v", line, out, err)
				}
				refs[ids.ContactRef(out[0].ContactTable, out[0].ContactPK)] = true
			}
			if len(refs) != 1 {
				t.Errorf("%d references to one contact point", len(refs))
			}
		})
	}
}

// An objection in the row of a contact point names the point, and each row has a state of its own: that one of them does not object says nothing of
// another. In the subject's own row it is said of the person, whatever contact point lies there too.
func TestObjectionsNameTheContactPointsThatTheyAreSaidOf(t *testing.T) {
	src := mustSource(t, contactSource)
	src.Tables["public.customer_email"].Objection = &config.Objection{When: "refused", Scope: "direct_marketing"}
	src.Tables["public.customer"].Objection = &config.Objection{When: "refused", Scope: "direct_marketing"}
	e, err := New(src, Options{Match: testMatch})
	if err != nil {
		t.Fatal(err)
	}
	s := newScript()
	for _, line := range []string{
		"table public.customer key *customer_id:int8 first_name:text last_name:text born:date into_id:int8 status:text refused:bool",
		"table public.customer_email key *email_id:int8 *customer_id:int8 email:text refused:bool",
	} {
		if _, err := s.line(line); err != nil {
			t.Fatal(err)
		}
	}
	var said []string
	for _, line := range []string{
		"insert public.customer_email email_id=1 customer_id=7 email=a@exemple.fr refused=t",
		"insert public.customer_email email_id=2 customer_id=7 email=b@exemple.fr refused=t",
		"update public.customer_email email_id=2 customer_id=7 email=b@exemple.fr refused=f",
		"insert public.customer customer_id=7 first_name=A last_name=Durand born=2000-01-02 into_id=null status=A refused=t",
	} {
		out, err := e.Apply(s.tx, s.must(t, line), nil)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for i := range out {
			if o, ok := out[i].Body.(*schema.Objection); ok {
				key, _ := schema.SplitKey(out[i].ContactPK)
				said = append(said, fmt.Sprintf("%v %s %v", o.Raised, out[i].ContactTable, key))
			}
		}
	}
	want := []string{"true public.customer_email [1]", "true public.customer_email [2]", "false public.customer_email [2]", "true  []"}
	if !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}

// A pass sees the rows with another shape than the log: the key that the log's identity tells has to be the one that the pass reads by.
func TestStreamAndPassAgreeOnTheKey(t *testing.T) {
	e, err := New(mustSource(t, contactSource), Options{Match: testMatch})
	if err != nil {
		t.Fatal(err)
	}
	stream := newTable("public.customer_email", "key", "*email_id:int8", "*customer_id:int8", "email:text")
	for _, pass := range []*capture.Table{
		newTable("public.customer_email", "mysql", "*email_id:bigint", "customer_id:bigint", "email:text"),
		newTable("public.customer_email", "mysql", "*customer_id:bigint", "*email_id:bigint", "email:text"),
	} {
		for _, table := range []*capture.Table{stream, pass, stream} {
			if err := e.Bind(table); err != nil {
				t.Error(err)
			}
		}
	}
	other := newTable("public.customer_email", "mysql", "*email:text", "customer_id:bigint", "email_id:bigint")
	if err := e.Bind(other); err == nil || !strings.Contains(err.Error(), "contact_point.key") {
		t.Errorf("another key: %v", err)
	}
	// Whole rows tell no key, and need none where the config names it.
	if err := e.Bind(newTable("public.customer_email", "full", "email_id:int8", "customer_id:int8", "email:text")); err == nil {
		t.Error("a whole row was taken for the key")
	}
	if err := e.Bind(newTable("public.customer_phone", "full", "phone_id:int8", "customer_id:int8", "number:text", "country:text")); err != nil {
		t.Error(err)
	}
}

func TestContactNeeds(t *testing.T) {
	needs, err := Needs(mustSource(t, contactSource))
	if err != nil {
		t.Fatal(err)
	}
	for table, want := range map[string]string{
		"public.customer":       "born customer_id first_name into_id last_name status; customer_id; true",
		"public.customer_email": "customer_id email; customer_id; true",
		"public.customer_phone": "country customer_id number phone_id; customer_id phone_id; true",
		"public.consent":        "channel_code contact_id customer_id form status; channel_code contact_id customer_id; true",
	} {
		n := needs[table]
		got := strings.Join(n.Columns, " ") + "; " + strings.Join(n.OldColumns, " ") + "; " + map[bool]string{true: "true", false: "false"}[n.ReadsDelete]
		if got != want {
			t.Errorf("%s: %s, want %s", table, got, want)
		}
	}
}

// Ordinary changes of a customer cost nothing, also where the log does not tell the old name.
func TestContactsDoNotAllocateForNothing(t *testing.T) {
	e, err := New(mustSource(t, contactSource), Options{Match: testMatch})
	if err != nil {
		t.Fatal(err)
	}
	s := newScript()
	for _, line := range []string{
		"table public.customer key *customer_id:int8 first_name:text last_name:text born:date status:text into_id:int8",
		"table public.customer_email key *email_id:int8 *customer_id:int8 email:text",
		"table public.customer_phone mysql *phone_id:bigint customer_id:bigint number:varchar country:char",
	} {
		s.must(t, line)
	}
	for _, line := range []string{
		"update public.customer customer_id=7 first_name=Jean last_name=Dupont born=1980-02-29 status=A into_id=null",
		"update public.customer_email email_id=70 customer_id=7 email=jean@exemple.fr",
		"update public.customer_phone phone_id=1 customer_id=7 number=1 country=FR | phone_id=1 customer_id=7 number=1 country=FR",
		"insert public.customer_email email_id=71 customer_id=7 email=null",
	} {
		c := s.must(t, line)
		out, err := e.Apply(s.tx, c, make([]Draft, 0, 8)) // news to the memory
		if err != nil {
			t.Fatal(err)
		}
		if got := testing.AllocsPerRun(100, func() {
			if out, err = e.Apply(s.tx, c, out[:0]); err != nil || len(out) > 0 {
				t.Fatalf("%s: %d drafts, %v", line, len(out), err)
			}
		}); got > 0 {
			t.Errorf("%s: %v allocations", line, got)
		}
	}
	// After a restart nothing is known, and all is told again.
	e.Begin()
	if out, err := e.Apply(s.tx, s.must(t, "update public.customer_email email_id=70 customer_id=7 email=jean@exemple.fr"), nil); err != nil || len(out) != 1 {
		t.Errorf("%d drafts after the memory was lost, %v", len(out), err)
	}
}

// No notice, error or label tells a value.
func TestContactErrorsTellNoValue(t *testing.T) {
	const secret = "jean@exemple.fr"
	e, err := New(mustSource(t, contactSource), Options{Match: testMatch})
	if err != nil {
		t.Fatal(err)
	}
	s := newScript()
	s.must(t, "table public.customer_email key *email_id:int8 *customer_id:int8 email:text")
	for _, line := range []string{
		"update public.customer_email email_id=" + secret + " customer_id=7 email=unchanged | email_id=1 customer_id=7",
		"insert public.customer_email email_id=1 customer_id=" + secret,
	} {
		_, err := e.Apply(s.tx, s.must(t, line), nil)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", line, err)
		}
	}
}
