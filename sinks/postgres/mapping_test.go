package postgres

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// odd are tables that a mapping can go wrong on.
const odd = `
CREATE TABLE odd (
	id bigint PRIMARY KEY, contact_id bigint REFERENCES contact, code text NOT NULL, short varchar(3), login text UNIQUE,
	born date, age integer, tags jsonb, twice bigint GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE odd_child (odd_id bigint REFERENCES odd, phone text);
CREATE TABLE odd_cascade (odd_id bigint REFERENCES odd ON DELETE CASCADE);
CREATE TABLE no_key (contact_id bigint, channel text, flag boolean);`

func eraseOdd(set map[string]config.Value) func(*config.Replica) {
	return func(c *config.Replica) {
		c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", Set: set}
	}
}

func TestFaultsOfAMappingAreNamed(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(odd)
	flag := map[string]config.Value{"flag": constant(true)}
	for name, test := range map[string]struct {
		change func(*config.Replica)
		code   string
		object string
	}{
		"table":        {func(c *config.Replica) { c.Erase.Tables["gone"] = &config.EraseTable{By: "x"} }, ledger.CodeTableMissing, "gone"},
		"person table": {func(c *config.Replica) { c.Person.Table = "nobody" }, ledger.CodeTableMissing, "nobody"},
		"column":       {eraseOdd(map[string]config.Value{"gone": value(ledger.KindNull)}), ledger.CodeColumnMissing, "public.odd.gone"},
		"crm key":      {func(c *config.Replica) { c.Person.CRMKey = []string{"gone"} }, ledger.CodeColumnMissing, "public.contact.gone"},
		"not null":     {eraseOdd(map[string]config.Value{"code": value(ledger.KindNull)}), ledger.CodeNotNull, "public.odd.code"},
		"unique":       {eraseOdd(map[string]config.Value{"login": constant("x")}), ledger.CodeUnique, "public.odd.login"},
		"generated":    {eraseOdd(map[string]config.Value{"twice": value(ledger.KindNull)}), ledger.CodeColumnFixed, "public.odd.twice"},
		"token":        {eraseOdd(map[string]config.Value{"age": {Kind: ledger.KindToken, Token: "{random}"}}), ledger.CodeColumnType, "public.odd.age"},
		"truncate":     {eraseOdd(map[string]config.Value{"age": {Kind: ledger.KindTruncate, Truncate: 2}}), ledger.CodeColumnType, "public.odd.age"},
		"year":         {eraseOdd(map[string]config.Value{"age": {Kind: ledger.KindGeneralise, Generalise: "year"}}), ledger.CodeColumnType, "public.odd.age"},
		"permitted": {func(c *config.Replica) {
			c.Consent[0].Set = set("contact", map[string]config.Value{"email": value(ledger.KindPermitted)})
		}, ledger.CodeColumnType, "public.contact.email"},
		"objected in consent": {func(c *config.Replica) {
			c.Consent[0].Set = set("contact", map[string]config.Value{"newsletter": value(ledger.KindObjected)})
		}, ledger.CodeUnsupported, "public.contact.newsletter"},
		"token in suppress": {func(c *config.Replica) {
			c.Suppress[0].Set = set("contact", map[string]config.Value{"email": {Kind: ledger.KindToken, Token: "{random}"}})
		}, ledger.CodeUnsupported, "public.contact.email"},
		"person key": {func(c *config.Replica) { c.Person.Key = "firstname" }, ledger.CodeKeyNotUnique, "public.contact.firstname"},
		"personal suppress": {func(c *config.Replica) {
			c.Suppress[0].Set = set("contact", map[string]config.Value{"email": value(ledger.KindNull)})
		}, ledger.CodeUnsupported, "public.contact.email"},
		"document in suppress": {func(c *config.Replica) {
			c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id"}
			c.Suppress[0].Set = set("odd", map[string]config.Value{"tags": value(ledger.KindNull)})
		}, ledger.CodeUnsupported, "public.odd.tags"},
		"nullable key": {func(c *config.Replica) {
			c.Person = config.Person{Table: "odd", Key: "login", CRMKey: []string{"id"}}
		}, ledger.CodeKeyNotUnique, "public.odd.login"},
		"erased key": {func(c *config.Replica) {
			c.Erase.Tables["contact"].Set["contact_id"] = constant(int64(0))
		}, ledger.CodeUnsupported, "public.contact.contact_id"},
		"no join": {func(c *config.Replica) {
			c.Suppress[0].Set = set("odd", map[string]config.Value{"code": constant("x")})
		}, ledger.CodeNoJoin, "public.odd"},
		"insert without key": {func(c *config.Replica) {
			delete(c.Suppress[1].Insert.Values, "contact_id")
		}, ledger.CodeNoKey, "public.do_not_contact"},
		"undo": {func(c *config.Replica) {
			c.Erase.Tables["no_key"] = &config.EraseTable{By: "contact_id", Delete: true}
			c.Suppress[0].Set = set("no_key", flag)
		}, ledger.CodeNoUndoKey, "public.no_key"},
		"blocking child": {func(c *config.Replica) {
			c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", Delete: true}
		}, ledger.CodeForeignKeyBlocks, "public.odd_child"},
		"json": {func(c *config.Replica) {
			c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", JSON: map[string]map[string]config.Value{
				"code": {"a.b": value(ledger.KindNull)},
			}}
		}, ledger.CodeColumnType, "public.odd.code"},
		"unlink": {func(c *config.Replica) {
			c.Erase.Tables["note"] = &config.EraseTable{By: "contact_id", Unlink: true}
		}, ledger.CodeNotNull, "public.note.contact_id"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := marketing()
			test.change(cfg)
			_, findings, err := compile(w.ctx, w.admin, cfg)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(findings, func(f ledger.Finding) bool { return f.Code == test.code && f.Object == test.object })
			if i < 0 || findings[i].Severity != ledger.SeverityError || findings[i].Message == "" {
				t.Fatalf("no error %s of %s among %+v", test.code, test.object, findings)
			}
			if _, err := Setup(w.ctx, w.admin, SetupOptions{Name: "marketing", Source: "crm", Config: cfg}); sinks.Classify(err) != sinks.Permanent {
				t.Errorf("setup with that mapping: %v", err)
			}
		})
	}
}

// A table may be written with and without its schema: a cancel restores both's columns.
func TestTableOfTwoNamesIsOneTable(t *testing.T) {
	w := newWorld(t, 15, func(c *config.Replica) {
		c.Consent[1].Set = set("public.contact", map[string]config.Value{"offers": value(ledger.KindPermitted)})
		c.Erase.Tables["public.contact"] = c.Erase.Tables["contact"]
		delete(c.Erase.Tables, "contact")
	})
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.want(`SELECT usable, offers FROM contact`, "false|0")
	w.apply(w.decide(1, schema.DecisionCancel))
	w.due()
	w.want(`SELECT usable, newsletter, offers FROM contact`, "true|true|1")
}

func TestGoodMappingHasNoFindings(t *testing.T) {
	w := newWorld(t, 15)
	m, findings, err := compile(w.ctx, w.admin, marketing())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Code != ledger.CodeKeyNotIndexed || f.Object != "public.note.contact_id" {
			t.Errorf("finding %+v", f)
		}
	}
	var order []string
	for _, s := range m.erase {
		order = append(order, s.table.name)
	}
	if got := strings.Join(order, " "); got != "note contact" {
		t.Errorf("order of erasing %q, want the children first", got)
	}
}

func TestForeignKeysSetTheOrder(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(odd)
	cfg := marketing()
	w.exec(`ALTER TABLE odd_child ADD contact_id bigint`)
	cfg.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", Delete: true}
	cfg.Erase.Tables["odd_child"] = &config.EraseTable{By: "contact_id", Delete: true}
	cfg.Erase.Tables["contact"] = &config.EraseTable{Delete: true}
	cfg.Erase.Tables["do_not_contact"] = &config.EraseTable{By: "contact_id", Delete: true}
	m, findings, err := compile(w.ctx, w.admin, cfg)
	if err != nil {
		t.Fatal(err)
	}
	place := map[string]int{}
	for i, s := range m.erase {
		place[s.table.name] = i
	}
	if place["odd_child"] > place["odd"] || place["odd"] > place["contact"] || place["contact"] != len(m.erase)-1 {
		t.Errorf("order %v", place)
	}
	for _, f := range findings {
		if f.Severity == ledger.SeverityError {
			t.Errorf("finding %+v", f)
		}
	}
	if !slices.ContainsFunc(findings, func(f ledger.Finding) bool {
		return f.Code == ledger.CodeForeignKeyDrags && f.Object == "public.odd_cascade"
	}) {
		t.Errorf("the cascade is not named: %+v", findings)
	}
}

func TestUnmappedPersonalColumnsAreListed(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(odd)
	w.exec(`ALTER TABLE contact ADD phone_mobile text, ADD birth_date date, ADD phone_optin boolean, ADD score integer`)
	w.r.forget()
	m, err := w.r.compiled(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(m.Unmapped, " "), "public.contact.birth_date public.contact.phone_mobile public.odd.login"; got != want {
		t.Errorf("unmapped %q, want %q", got, want)
	}
}

// TestKeyIsNeverCut has a key column shorter than another subject's key: cutting the key to the column's length would
// reach the wrong person.
func TestKeyIsNeverCut(t *testing.T) {
	for _, typ := range []string{"varchar(3)", "char(3)", "text", "numeric"} {
		w := newWorld(t, 15)
		w.person(123, 7)
		w.exec(`ALTER TABLE contact ALTER crm_id TYPE ` + typ)
		w.r.forget()
		out := w.apply(w.event(12345, consent("newsletter", schema.ConsentWithdrawn)), w.event(7, consent("newsletter", schema.ConsentWithdrawn)))
		w.want(`SELECT crm_id::text::int, newsletter FROM contact ORDER BY 1`, "7|false\n123|true")
		if out.NoMatch != 1 || out.Applied != 1 {
			t.Errorf("%s: outcome %+v", typ, out)
		}
	}
}

func TestCompositeKeyWithoutIndex(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(`ALTER TABLE contact ADD company text NOT NULL DEFAULT 'A', DROP CONSTRAINT contact_crm_id_key`)
	w.person(1, 2)
	w.exec(`UPDATE contact SET company = 'B' WHERE crm_id = 2`)
	w.exec(`UPDATE contact SET crm_id = 1`)
	w.cfg.Person.CRMKey = []string{"company", "crm_id"}
	w.setup()
	w.r = w.replica()
	w.assign()
	ev := w.event(1, consent("newsletter", schema.ConsentWithdrawn))
	ev.CRMKey = crmKeyParts("B", "1")
	w.apply(ev)
	w.want(`SELECT company, newsletter FROM contact ORDER BY 1`, "A|true\nB|false")
	ev = w.event(1, consent("newsletter", schema.ConsentWithdrawn))
	if _, err := w.r.Apply(w.ctx, w.batch(ev)); sinks.CodeOf(err) != ledger.CodeKeyParts {
		t.Errorf("key of one part: %v", err)
	}
	if m, err := w.r.compiled(w.ctx); err != nil || m.indexed {
		t.Errorf("indexed %v, %v", m.indexed, err)
	}
}

func TestSetupIsRepeatable(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(`UPDATE lethe_witness SET n = 7`)
	w.setup()
	w.want(`SELECT n FROM lethe_witness`, "7")
	w.want(`SELECT v FROM lethe.meta WHERE k = 'witness'`, "0")
	other := SetupOptions{Name: "another", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest()}
	if _, err := Setup(w.ctx, w.admin, other); sinks.CodeOf(err) != "ledger_foreign" {
		t.Errorf("setup of another replica in the same schema: %v", err)
	}
	sql := UninstallSQL(w.cfg)
	w.exec(sql)
	w.want(`SELECT count(*) FROM pg_class WHERE relname LIKE 'lethe%'`, "0")
	w.want(`SELECT count(*) FROM pg_namespace WHERE nspname = 'lethe'`, "0")
}

func TestStatementRenumbersParameters(t *testing.T) {
	s := &statement{}
	s.arg("first")
	got := s.value(&assignment{sql: "f($1, {row}.a, $2, {key}, $1)", args: []any{"x", "y"}}, "t", "p.id")
	if want := "f($2, t.a, $3, p.id, $2)"; got != want || len(s.args) != 3 {
		t.Errorf("got %s with %v, want %s", got, s.args, want)
	}
	if keys := ledger.SortedKeys(map[string]int{"b": 1, "a": 2}); !slices.Equal(keys, slices.Sorted(maps.Keys(map[string]int{"b": 1, "a": 2}))) {
		t.Errorf("keys %v", keys)
	}
}
