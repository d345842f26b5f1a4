package mysql

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// mappedTables are a marketing database in small; the database's own collation ignores capitals and accents.
const mappedTables = `
CREATE TABLE contact (
	contact_id BIGINT AUTO_INCREMENT PRIMARY KEY, crm_id BIGINT NOT NULL UNIQUE, firstname VARCHAR(64), email VARCHAR(100),
	newsletter TINYINT(1) NOT NULL DEFAULT 1, offers INT NOT NULL DEFAULT 1, reconsent BIT(1) NOT NULL DEFAULT 0,
	no_marketing ENUM('N', 'Y') NOT NULL DEFAULT 'N', frozen TINYINT(1) NOT NULL DEFAULT 0, usable TINYINT(1) NOT NULL DEFAULT 1,
	changed_at DATETIME);
CREATE TABLE note (
	note_id BIGINT AUTO_INCREMENT PRIMARY KEY, contact_id BIGINT NOT NULL, body TEXT, FOREIGN KEY (contact_id) REFERENCES contact (contact_id));
CREATE TABLE do_not_contact (
	contact_id BIGINT NOT NULL, channel VARCHAR(16) NOT NULL, reason INT NOT NULL, added_at TIMESTAMP NULL,
	PRIMARY KEY (contact_id, channel), FOREIGN KEY (contact_id) REFERENCES contact (contact_id));`

func kindOf(kind string) config.Value { return config.Value{Kind: kind} }

func fixed(v any) config.Value { return config.Value{Kind: ledger.KindConst, Const: v} }

func setOf(table string, columns map[string]config.Value) map[string]map[string]config.Value {
	return map[string]map[string]config.Value{table: columns}
}

// leads is the mapping of mappedTables.
func leads() *config.Replica {
	return &config.Replica{
		Name: "marketing", Recipient: config.Recipient{Name: "Régie", Role: "processor"}, Mode: ledger.ModeErase,
		MySQL:  &config.MySQLServer{Prefix: "lethe_"},
		Person: config.Person{Table: "contact", Key: "contact_id", CRMKey: []string{"crm_id"}},
		Suppress: []config.Action{
			{Set: setOf("contact", map[string]config.Value{"usable": fixed(false)})},
			{Insert: &config.Insert{Table: "do_not_contact", Values: map[string]config.Value{
				"contact_id": kindOf(ledger.KindKey), "channel": fixed("email"), "reason": fixed(int64(3)), "added_at": kindOf(ledger.KindNow),
			}}},
		},
		Erase: config.Erase{CoolOff: time.Hour, Tables: map[string]*config.EraseTable{
			"contact": {Set: map[string]config.Value{"firstname": kindOf(ledger.KindNull), "email": kindOf(ledger.KindNull)}},
			"note":    {By: "contact_id", Delete: true},
		}},
		Consent: []config.ConsentAction{
			{Purpose: "newsletter", Channel: "email", Set: setOf("contact", map[string]config.Value{
				"newsletter": kindOf(ledger.KindPermitted), "reconsent": kindOf(ledger.KindReconsentDue), "changed_at": kindOf(ledger.KindNow),
			})},
			{Purpose: "offers", Channel: "email", Set: setOf("contact", map[string]config.Value{"offers": kindOf(ledger.KindPermitted)})},
		},
		Objection: []config.ObjectionAction{
			{Scope: "direct_marketing", Set: setOf("contact", map[string]config.Value{"no_marketing": kindOf(ledger.KindObjected)})},
		},
		Restricted: &config.RestrictedAction{Set: setOf("contact", map[string]config.Value{"frozen": kindOf(ledger.KindRestricted)})},
		Audience:   "select contact_id from contact where newsletter and usable and email is not null",
	}
}

// site is one replica database with mappedTables, looked at as its owner.
type site struct {
	testing.TB
	ctx    context.Context
	server *testenv.MySQL
	name   string
	db     *sql.DB
	cfg    *config.Replica
}

func newSite(tb testing.TB, flavor string, change ...func(*config.Replica)) *site {
	tb.Helper()
	return newSiteOn(tb, testenv.SharedMySQL(tb, flavor), change...)
}

func newSiteOn(tb testing.TB, server *testenv.MySQL, change ...func(*config.Replica)) *site {
	tb.Helper()
	s := &site{TB: tb, ctx: tb.Context(), server: server, cfg: leads()}
	for _, f := range change {
		f(s.cfg)
	}
	s.name = s.server.NewDatabase(tb)
	s.db = s.login(s.server.Root())
	s.exec(mappedTables)
	return s
}

// login opens a pool as a user without password.
func (s *site) login(user string) *sql.DB {
	s.Helper()
	c, err := driver.ParseDSN(s.server.DSN(s.name, user))
	if err != nil {
		s.Fatal(err)
	}
	db, err := Open(c, Session{})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = db.Close() })
	return db
}

func (s *site) exec(script string) {
	s.Helper()
	s.server.Exec(s, s.name, script)
}

// want compares the rows of a query, one text line each, columns joined by |.
func (s *site) want(query, want string, args ...any) {
	s.Helper()
	if got := s.lines(query, args...); got != want {
		s.Errorf("%s\n got: %s\nwant: %s", query, got, want)
	}
}

func (s *site) lines(query string, args ...any) string {
	s.Helper()
	rows, err := s.db.QueryContext(s.ctx, query, args...)
	if err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		s.Fatal(err)
	}
	var out []string
	for rows.Next() {
		values, into := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			s.Fatal(err)
		}
		parts := make([]string, len(values))
		for i, v := range values {
			if parts[i] = v.String; !v.Valid {
				parts[i] = "NULL"
			}
		}
		out = append(out, strings.Join(parts, "|"))
	}
	if err := rows.Err(); err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	return strings.Join(out, "\n")
}

// compiled compiles the site's mapping, which must be free of errors.
func (s *site) compiled() *Mapping {
	s.Helper()
	m, findings, err := compile(s.ctx, s.db, s.cfg)
	if err != nil {
		s.Fatal(err)
	}
	for _, f := range findings {
		if f.Severity == ledger.SeverityError {
			s.Fatalf("finding %+v", f)
		}
	}
	return m
}

func (s *site) setUp() ([]Finding, error) {
	s.Helper()
	return Setup(s.ctx, s.db, SetupOptions{Name: "marketing", Source: "crm", Config: s.cfg, Digest: s.cfg.Digest()})
}

// odd are tables that a mapping can go wrong on.
const odd = `
CREATE TABLE odd (
	id BIGINT PRIMARY KEY, contact_id BIGINT, code TEXT NOT NULL, short VARCHAR(3), login VARCHAR(40) UNIQUE, tiny TINYINT, size INT UNSIGNED,
	born DATE, age INT, tags JSON, twice BIGINT GENERATED ALWAYS AS (id * 2) STORED, half VARCHAR(20), price DECIMAL(5, 2), kind ENUM('lead', 'client'),
	latin VARCHAR(20) CHARACTER SET latin1, fixed CHAR(8), moment DATETIME, must INT NOT NULL, raw BINARY(4), ratio FLOAT,
	FOREIGN KEY (contact_id) REFERENCES contact (contact_id));
CREATE TABLE odd_child (odd_id BIGINT, phone TEXT, FOREIGN KEY odd_blocks (odd_id) REFERENCES odd (id));
CREATE TABLE odd_cascade (odd_id BIGINT, FOREIGN KEY (odd_id) REFERENCES odd (id) ON DELETE CASCADE);
CREATE TABLE no_key (contact_id BIGINT, channel VARCHAR(16), flag TINYINT(1));
CREATE TABLE old_engine (contact_id BIGINT, phone VARCHAR(20), KEY (contact_id)) ENGINE=MyISAM;
CREATE TABLE by_text (id BIGINT PRIMARY KEY, contact VARCHAR(20), body TEXT, KEY (contact));`

func eraseOdd(set map[string]config.Value) func(*config.Replica) {
	return func(c *config.Replica) {
		c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", Set: set}
	}
}

func oddConst(column string, v any) func(*config.Replica) {
	return eraseOdd(map[string]config.Value{column: fixed(v)})
}

func oddValue(column string, v config.Value) func(*config.Replica) {
	return eraseOdd(map[string]config.Value{column: v})
}

// mistakes are mappings that cannot work, with the code and object (without the database) of what is to be found.
var mistakes = map[string]struct {
	change       func(*config.Replica)
	code, object string
}{
	"table":        {func(c *config.Replica) { c.Erase.Tables["gone"] = &config.EraseTable{By: "x"} }, ledger.CodeTableMissing, "gone"},
	"person table": {func(c *config.Replica) { c.Person.Table = "nobody" }, ledger.CodeTableMissing, "nobody"},
	"column":       {oddValue("gone", kindOf(ledger.KindNull)), ledger.CodeColumnMissing, "odd.gone"},
	"crm key":      {func(c *config.Replica) { c.Person.CRMKey = []string{"gone"} }, ledger.CodeColumnMissing, "contact.gone"},
	"float key":    {func(c *config.Replica) { c.Person = config.Person{Table: "odd", Key: "id", CRMKey: []string{"ratio"}} }, ledger.CodeColumnType, "odd.ratio"},
	"not null":     {oddValue("code", kindOf(ledger.KindNull)), ledger.CodeNotNull, "odd.code"},
	"unique":       {oddConst("login", "x"), ledger.CodeUnique, "odd.login"},
	"generated":    {oddValue("twice", kindOf(ledger.KindNull)), ledger.CodeColumnFixed, "odd.twice"},
	"token":        {oddValue("age", config.Value{Kind: ledger.KindToken, Token: "{random}"}), ledger.CodeColumnType, "odd.age"},
	"short token": {
		oddValue("half", config.Value{Kind: ledger.KindToken, Token: "{random}@x.invalid"}), ledger.CodeColumnType, "odd.half",
	},
	"truncate":          {oddValue("age", config.Value{Kind: ledger.KindTruncate, Truncate: 2}), ledger.CodeColumnType, "odd.age"},
	"year":              {oddValue("age", config.Value{Kind: ledger.KindGeneralise, Generalise: "year"}), ledger.CodeColumnType, "odd.age"},
	"ten of a text":     {oddValue("code", config.Value{Kind: ledger.KindGeneralise, Generalise: "10"}), ledger.CodeColumnType, "odd.code"},
	"now in a number":   {oddValue("age", kindOf(ledger.KindNow)), ledger.CodeColumnType, "odd.age"},
	"too long":          {oddConst("short", "four"), ledger.CodeColumnType, "odd.short"},
	"too large":         {oddConst("tiny", int64(128)), ledger.CodeColumnType, "odd.tiny"},
	"negative":          {oddConst("size", int64(-1)), ledger.CodeColumnType, "odd.size"},
	"word in a number":  {oddConst("age", "none"), ledger.CodeColumnType, "odd.age"},
	"digits":            {oddConst("price", 1.234), ledger.CodeColumnType, "odd.price"},
	"digits in front":   {oddConst("price", int64(1000)), ledger.CodeColumnType, "odd.price"},
	"rounded":           {oddConst("ratio", 0.1), ledger.CodeColumnType, "odd.ratio"},
	"label":             {oddConst("kind", "boss"), ledger.CodeColumnType, "odd.kind"},
	"character set":     {oddConst("latin", "Ω"), ledger.CodeColumnType, "odd.latin"},
	"blank at the end":  {oddConst("fixed", "x "), ledger.CodeColumnType, "odd.fixed"},
	"date":              {oddConst("born", "2000-02-30"), ledger.CodeColumnType, "odd.born"},
	"fraction":          {oddConst("moment", "2000-02-03 04:05:06.7"), ledger.CodeColumnType, "odd.moment"},
	"bytes":             {oddConst("raw", `\x0102030405`), ledger.CodeColumnType, "odd.raw"},
	"constant document": {oddConst("tags", "{"), ledger.CodeColumnType, "odd.tags"},
	"permitted": {func(c *config.Replica) {
		c.Consent[0].Set = setOf("contact", map[string]config.Value{"email": kindOf(ledger.KindPermitted)})
	}, ledger.CodeColumnType, "contact.email"},
	"permitted in words": {func(c *config.Replica) {
		c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id"}
		c.Consent[0].Set = setOf("odd", map[string]config.Value{"kind": kindOf(ledger.KindPermitted)})
	}, ledger.CodeColumnType, "odd.kind"},
	"objected in consent": {func(c *config.Replica) {
		c.Consent[0].Set = setOf("contact", map[string]config.Value{"newsletter": kindOf(ledger.KindObjected)})
	}, ledger.CodeUnsupported, "contact.newsletter"},
	"token in suppress": {func(c *config.Replica) {
		c.Suppress[0].Set = setOf("contact", map[string]config.Value{"email": {Kind: ledger.KindToken, Token: "{random}"}})
	}, ledger.CodeUnsupported, "contact.email"},
	"person key": {func(c *config.Replica) { c.Person.Key = "firstname" }, ledger.CodeKeyNotUnique, "contact.firstname"},
	"personal suppress": {func(c *config.Replica) {
		c.Suppress[0].Set = setOf("contact", map[string]config.Value{"email": kindOf(ledger.KindNull)})
	}, ledger.CodeUnsupported, "contact.email"},
	"document in suppress": {func(c *config.Replica) {
		c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id"}
		c.Suppress[0].Set = setOf("odd", map[string]config.Value{"tags": kindOf(ledger.KindNull)})
	}, ledger.CodeUnsupported, "odd.tags"},
	"nullable key": {func(c *config.Replica) {
		c.Person = config.Person{Table: "odd", Key: "login", CRMKey: []string{"id"}}
	}, ledger.CodeKeyNotUnique, "odd.login"},
	"erased key": {func(c *config.Replica) { c.Erase.Tables["contact"].Set["contact_id"] = fixed(int64(0)) }, ledger.CodeUnsupported, "contact.contact_id"},
	"no join": {func(c *config.Replica) {
		c.Suppress[0].Set = setOf("odd", map[string]config.Value{"code": fixed("x")})
	}, ledger.CodeNoJoin, "odd"},
	"join of text and number": {func(c *config.Replica) {
		c.Erase.Tables["by_text"] = &config.EraseTable{By: "contact", Delete: true}
	}, ledger.CodeColumnType, "by_text.contact"},
	"insert without key": {func(c *config.Replica) { delete(c.Suppress[1].Insert.Values, "contact_id") }, ledger.CodeNoKey, "do_not_contact"},
	"insert without a value": {func(c *config.Replica) {
		c.Suppress[1].Insert.Table = "odd"
		c.Suppress[1].Insert.Values = map[string]config.Value{"contact_id": kindOf(ledger.KindKey), "code": fixed("x"), "id": fixed(int64(7))}
	}, ledger.CodeNotNull, "odd.must"},
	"undo": {func(c *config.Replica) {
		c.Erase.Tables["no_key"] = &config.EraseTable{By: "contact_id", Delete: true}
		c.Suppress[0].Set = setOf("no_key", map[string]config.Value{"flag": fixed(true)})
	}, ledger.CodeNoUndoKey, "no_key"},
	"blocking child": {func(c *config.Replica) {
		c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", Delete: true}
	}, ledger.CodeForeignKeyBlocks, "odd_child"},
	"json": {func(c *config.Replica) {
		c.Erase.Tables["odd"] = &config.EraseTable{By: "contact_id", JSON: map[string]map[string]config.Value{"code": {"a.b": kindOf(ledger.KindNull)}}}
	}, ledger.CodeColumnType, "odd.code"},
	"unlink": {func(c *config.Replica) {
		c.Erase.Tables["note"] = &config.EraseTable{By: "contact_id", Unlink: true}
	}, ledger.CodeNotNull, "note.contact_id"},
	"engine": {func(c *config.Replica) {
		c.Erase.Tables["old_engine"] = &config.EraseTable{By: "contact_id", Delete: true}
	}, CodeEngine, "old_engine"},
}

func TestFaultsOfAMappingAreNamed(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(odd)
		for name, test := range mistakes {
			cfg := leads()
			test.change(cfg)
			_, findings, err := compile(s.ctx, s.db, cfg)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			i := slices.IndexFunc(findings, func(f Finding) bool {
				return f.Code == test.code && strings.TrimPrefix(f.Object, s.name+".") == test.object && f.Severity == ledger.SeverityError
			})
			if i < 0 || findings[i].Message == "" {
				t.Errorf("%s: no error %s of %s among %+v", name, test.code, test.object, findings)
			}
			s.cfg = cfg
			if _, err := s.setUp(); sinks.Classify(err) != sinks.Permanent {
				t.Errorf("%s: setup with that mapping: %v", name, err)
			}
		}
		s.want(`SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'lethe%'`, "0")
	})
}

func TestSystemVersionedTableIsRefused(t *testing.T) {
	s := newSite(t, testenv.MariaDB)
	s.exec(`ALTER TABLE note ADD SYSTEM VERSIONING`)
	_, findings, err := compile(s.ctx, s.db, s.cfg)
	if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool { return f.Code == CodeHistory && f.Object == s.name+".note" }) {
		t.Fatalf("findings %+v, %v", findings, err)
	}
	s.exec(`SET SESSION system_versioning_alter_history = 1; ` + findings[0].FixSQL)
	s.compiled()
}

func TestGoodMappingHasNoFindings(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		m, findings, err := compile(s.ctx, s.db, s.cfg)
		if err != nil || len(findings) > 0 {
			t.Fatalf("findings %+v, %v", findings, err)
		}
		var order []string
		for _, e := range m.erase {
			order = append(order, e.table.name)
		}
		if got := strings.Join(order, " "); got != "note contact" {
			t.Errorf("order of erasing %q, want the children first", got)
		}
		if m.server.mariadb != (flavor == testenv.MariaDB) || !m.server.since(8, 0, 0) || !m.indexed {
			t.Errorf("server %+v, indexed %v", m.server, m.indexed)
		}
	})
}

func TestForeignKeysSetTheOrder(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(odd + `ALTER TABLE odd_child ADD contact_id BIGINT`)
		for _, name := range []string{"odd", "odd_child", "do_not_contact"} {
			s.cfg.Erase.Tables[name] = &config.EraseTable{By: "contact_id", Delete: true}
		}
		s.cfg.Erase.Tables["contact"] = &config.EraseTable{Delete: true}
		m, findings, err := compile(s.ctx, s.db, s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		place := map[string]int{}
		for i, e := range m.erase {
			place[e.table.name] = i
		}
		if place["odd_child"] > place["odd"] || place["odd"] > place["contact"] || place["contact"] != len(m.erase)-1 {
			t.Errorf("order %v", place)
		}
		for _, f := range findings {
			if f.Severity == ledger.SeverityError {
				t.Errorf("finding %+v", f)
			}
		}
		if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Code == ledger.CodeForeignKeyDrags && f.Object == s.name+".odd_cascade" }) {
			t.Errorf("the cascade is not named: %+v", findings)
		}
	})
}

func TestTableOfTwoNamesIsOneTable(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.cfg.Erase.Tables[s.name+".contact"] = &config.EraseTable{Set: map[string]config.Value{"FirstName": kindOf(ledger.KindNull)}}
		m := s.compiled()
		if m.tables["contact"] != m.tables[s.name+".contact"] {
			t.Error("contact has two tables")
		}
		if got := m.erase[len(m.erase)-1].set[0].column.name; got != "firstname" && got != "email" {
			t.Errorf("column %s is not in the catalog's spelling", got)
		}
	})
}

// hostile are names that would leave their quotes, if they could.
var hostile = []string{
	"a`b", "a``; DROP TABLE contact; -- x", "a'b", `a"b`, `a\`, "a;b", "a -- b", "a/*b", "été", "?", "{row}", strings.Repeat("n", 64),
}

func TestNamesAreQuoted(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`INSERT INTO contact (crm_id, email) VALUES (1, 'a'), (2, 'b')`)
		for _, name := range hostile {
			column := "x" + string([]rune(name)[1:])
			s.exec(`CREATE TABLE ` + quote(name) + ` (` + quote(name) + ` BIGINT, ` + quote(column) + ` VARCHAR(40), id BIGINT PRIMARY KEY, KEY (` +
				quote(name) + `)); INSERT INTO ` + quote(name) + ` SELECT contact_id, 'Jeanne', contact_id FROM contact`)
			s.cfg = leads()
			s.cfg.Erase.Tables[name] = &config.EraseTable{By: name, Set: map[string]config.Value{column: fixed("gone ? '")}}
			m := s.compiled()
			at := slices.IndexFunc(m.erase, func(e eraseStep) bool { return e.table.name == name })
			s.apply(m, &m.erase[at], "1")
			s.want(`SELECT `+quote(column)+` FROM `+quote(name)+` ORDER BY id`, "gone ? '\nJeanne")
			s.want(`SELECT COUNT(*) FROM contact`, "2")
		}
		s.exec("ALTER TABLE contact ADD `a\x01b` INT")
		for _, name := range []string{"a\x01b", "a\x00b", strings.Repeat("n", 65), "a.b.c", "", "`contact`", "contact`", "information_schema.TABLES`"} {
			cfg := leads()
			cfg.Erase.Tables[name] = &config.EraseTable{Delete: true}
			_, findings, err := compile(s.ctx, s.db, cfg)
			if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool { return f.Code == ledger.CodeTableMissing && f.Object == name }) {
				t.Errorf("table %q: %+v, %v", name, findings, err)
			}
			cfg = leads()
			cfg.Erase.Tables["contact"].Set[name] = fixed("x")
			_, findings, err = compile(s.ctx, s.db, cfg)
			if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool { return f.Code == ledger.CodeColumnMissing }) {
				t.Errorf("column %q: %+v, %v", name, findings, err)
			}
		}
	})
}

func TestLabelsOfATypeAreRead(t *testing.T) {
	for typ, want := range map[string][]string{
		"enum('a','b')": {"a", "b"}, "set('it''s',',',')')": {"it's", ",", ")"}, "enum('')": {""}, "bigint(20)": nil, "enum": nil, "enum('a": {"a"},
	} {
		if got := parseLabels(typ); !slices.Equal(got, want) {
			t.Errorf("%s has labels %q, want %q", typ, got, want)
		}
	}
	for text, want := range map[string]server{
		"9.7.0": {false, [3]int{9, 7, 0}}, "5.5.5-10.6.18-MariaDB-log": {true, [3]int{10, 6, 18}}, "11.4.5-MariaDB": {true, [3]int{11, 4, 5}}, "?": {},
	} {
		if got := parseServer(text); got != want {
			t.Errorf("%s is %+v, want %+v", text, got, want)
		}
	}
}
