package mysql

import (
	"slices"
	"strings"
	"testing"

	"lethe/config"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// found lists the rows of contact whose CRM key is one of the keys, as place:firstname.
func (s *site) found(keys ...string) string {
	s.Helper()
	m := s.compiled()
	var list []*ledger.Subject
	for _, k := range keys {
		list = append(list, &ledger.Subject{Key: strings.Split(k, "|")})
	}
	who, err := m.who(list)
	if err != nil {
		s.Fatal(err)
	}
	return strings.ReplaceAll(s.lines(`SELECT CONCAT(v.i, ':', t.firstname) FROM `+who.sql+`, contact AS t WHERE `+m.matches("t")+` ORDER BY 1`, who.args...), "\n", " ")
}

// keyColumns are types of a CRM key, the rows that there are, the keys that are looked for, and what is found.
var keyColumns = []struct {
	typ  string
	rows []string // SQL
	keys []string
	want string
}{
	{"VARCHAR(20)", []string{"'abc'", "'ABC'"}, []string{"abc", "ABC", "Abc", "abc "}, "0:r0 1:r1"},
	{"VARCHAR(20) COLLATE utf8mb4_bin", []string{"'a'", "'a '"}, []string{"a", "a ", "A"}, "0:r0 1:r1"},
	{"VARCHAR(20) CHARACTER SET latin1", []string{"'élan'", "'?'"}, []string{"élan", "elan", "ÉLAN", "Ω", "?"}, "0:r0 4:r1"},
	{"VARCHAR(3)", []string{"'123'"}, []string{"123", "1234", "12"}, "0:r0"},
	{"CHAR(5)", []string{"'ab'"}, []string{"ab", "ab   ", " ab", "AB"}, "0:r0 1:r0"},
	{"TEXT", []string{"'abc'"}, []string{"abc", "ab"}, "0:r0"},
	{"INT", []string{"7", "0"}, []string{"7", "007", " 7", "99999999999"}, "0:r0 1:r0 2:r0"},
	{"BIGINT UNSIGNED", []string{"18446744073709551615", "9223372036854775807"}, []string{"18446744073709551615", "9223372036854775807"}, "0:r0 1:r1"},
	{"DECIMAL(20, 2)", []string{"12.50", "123456789012345678.01"}, []string{"12.5", "12.505", "123456789012345678.01", "123456789012345678.02"}, "0:r0 2:r1"},
	{"VARBINARY(16)", []string{"0x00ff", "'ab'"}, []string{`\x00ff`, "ab", "AB", `\x00`}, "0:r0 1:r1"},
	{"BINARY(4)", []string{"0x00ff"}, []string{`\x00ff`, `\x00ff0000`, `\x00ff000001`}, "0:r0 1:r0"},
	{"ENUM('a', 'b')", []string{"'a'"}, []string{"a", "A", "1", "c"}, "0:r0"},
}

func TestKeysAreComparedExactly(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		for _, test := range keyColumns {
			s.exec(`DELETE FROM contact; ALTER TABLE contact DROP COLUMN crm_id; ALTER TABLE contact ADD crm_id ` + test.typ)
			for i, row := range test.rows {
				s.exec(`INSERT INTO contact (crm_id, firstname) VALUES (` + row + `, 'r` + string(rune('0'+i)) + `')`)
			}
			if got := s.found(test.keys...); got != test.want {
				t.Errorf("%s: found %q, want %q", test.typ, got, test.want)
			}
		}
	})
}

// The server would take abc for 0.
func TestKeyOfAnotherTypeIsPoison(t *testing.T) {
	for typ, keys := range map[string][]string{
		"int": {"abc", "", "1.5", "99999999999999999999", "0x10", "1e3"}, "int unsigned": {"-1", "18446744073709551616"},
		"decimal(5,2)": {"abc", "1/2", "1e2", "inf"}, "varchar(9)": {"\xff", "a\x00b"}, "binary(2)": {`\x0`, `\xzz`}, "uuid": {"6f9619ff"},
	} {
		c := &column{typ: typ, base: strings.Fields(strings.SplitN(typ, "(", 2)[0])[0], length: 9, precision: 5, scale: 2}
		c.classify()
		for _, key := range keys {
			if _, err := c.keyValue(key); sinks.Classify(err) != sinks.Poison || sinks.CodeOf(err) != CodeKeyType || key != "" && strings.Contains(err.Error(), key) {
				t.Errorf("%s takes the key %q: %v", typ, key, err)
			}
		}
	}
}

func TestKeysUseTheIndex(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		for _, typ := range []string{"VARCHAR(20) CHARACTER SET latin1", "VARCHAR(20)", "BIGINT", "INT UNSIGNED", "DECIMAL(10, 2)", "VARBINARY(8)"} {
			s.exec(`ALTER TABLE contact DROP COLUMN crm_id; ALTER TABLE contact ADD crm_id ` + typ + ` NOT NULL DEFAULT '1', ADD INDEX by_crm (crm_id)`)
			s.exec(`DELETE FROM contact; INSERT INTO contact (crm_id) SELECT 10000 + x.n FROM JSON_TABLE(CONCAT('[', REPEAT('1,', 1999), '1]'), '$[*]' COLUMNS (n FOR ORDINALITY)) x; ANALYZE TABLE contact`)
			m := s.compiled()
			who, err := m.who([]*ledger.Subject{{Key: []string{"10007"}}, {Key: []string{"10008"}}})
			if err != nil {
				t.Fatal(err)
			}
			plan := s.lines(`EXPLAIN SELECT v.i FROM `+who.sql+` STRAIGHT_JOIN contact AS t ON `+m.matches("t"), who.args...)
			if !strings.Contains(plan, "using by_crm") && !strings.Contains(plan, "|ref|by_crm|by_crm|") {
				t.Errorf("%s: no index in\n%s", typ, plan)
			}
		}
	})
}

// A child that refers to ABC is abc's where MySQL's own foreign key says so, and of nobody else where two collations
// disagree on whose it is.
func TestChildrenAreFoundAsTheServerRefers(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`CREATE TABLE person (ref VARCHAR(20) PRIMARY KEY, crm BIGINT NOT NULL UNIQUE);
			CREATE TABLE visit (ref VARCHAR(20), page VARCHAR(20), FOREIGN KEY (ref) REFERENCES person (ref));
			INSERT INTO person VALUES ('abc', 1), ('x', 2); INSERT INTO visit VALUES ('ABC', 'one'), ('abc', 'two'), ('x', 'other')`)
		s.cfg = &config.Replica{
			Mode: ledger.ModeErase, MySQL: &config.MySQLServer{Prefix: "lethe_"},
			Person: config.Person{Table: "person", Key: "ref", CRMKey: []string{"crm"}},
			Erase:  config.Erase{Tables: map[string]*config.EraseTable{"visit": {By: "ref", Delete: true}}},
		}
		pages := func(key string) string {
			m := s.compiled()
			who, err := m.who([]*ledger.Subject{{Key: []string{key}}})
			if err != nil {
				t.Fatal(err)
			}
			from, where, _ := m.reach(m.erase[0].join)
			got := s.lines(`SELECT page FROM `+who.sql+from+`, visit AS t WHERE `+where+` ORDER BY page`, who.args...)
			persons := map[string]string{"1": "abc", "2": "x", "3": "ABC"}
			w, err := m.personsTable([]int32{0}, []string{persons[key]})
			if err != nil {
				t.Fatal(err)
			}
			owned := s.lines(`SELECT page FROM `+w.sql+`, visit AS t WHERE `+m.owns(m.erase[0].join)+` ORDER BY page`, w.args...)
			if owned != got {
				t.Errorf("the read-back finds %q of person %s, phase 2 %q", owned, key, got)
			}
			return strings.ReplaceAll(got, "\n", " ")
		}
		if got := pages("1"); got != "one two" {
			t.Errorf("visits %q of abc", got)
		}
		s.exec(`ALTER TABLE visit DROP FOREIGN KEY ` + s.lines(`SELECT CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME = 'visit'`) + `;
			ALTER TABLE person MODIFY ref VARCHAR(20) COLLATE utf8mb4_bin; INSERT INTO person VALUES ('ABC', 3)`)
		if got := pages("1"); got != "two" {
			t.Errorf("visits %q of abc, beside ABC", got)
		}
		if got := pages("3"); got != "one" {
			t.Errorf("visits %q of ABC", got)
		}
	})
}

func TestTextFormOfAColumnGoesBackIn(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		for _, c := range [][2]string{
			{"BIT(64)", "b'" + strings.Repeat("1", 64) + "'"},
			{"BIT(9)", "b'101010101'"},
			{"VARBINARY(9)", "0x00ff5c"},
			{"TINYINT UNSIGNED", "255"},
			{"ENUM('a''b', 'c')", "'a''b'"},
			{"VARCHAR(9) CHARACTER SET latin1", "'é\\\\x'"},
			{"DATETIME(6)", "'2001-02-03 04:05:06.789012'"},
			{"TIMESTAMP(3) NULL", "'2001-02-03 04:05:06.789'"},
			{"DECIMAL(30,5)", "-1.5"},
			{"SET('x','y')", "'x,y'"},
			{"YEAR", "1999"},
			{"BIGINT", "NULL"},
			{"DOUBLE", "0.1"},
			{"DOUBLE", "12345678901234567"},
			{"FLOAT", "0.1"},
			{"FLOAT", "16777215"},
		} {
			s.exec(`DROP TABLE IF EXISTS one; CREATE TABLE one (id BIGINT PRIMARY KEY, a ` + c[0] + `, b ` + c[0] + `); INSERT INTO one (id, a) VALUES (1, ` + c[1] + `)`)
			table, err := loadTable(s.ctx, s.db, "one")
			if err != nil {
				t.Fatal(err)
			}
			col := table.column("a")
			var text *string
			if err := s.db.QueryRowContext(s.ctx, `SELECT `+col.text("t.a")+` FROM one t`).Scan(&text); err != nil {
				t.Fatal(err)
			}
			if _, err := s.db.ExecContext(s.ctx, `UPDATE one SET b = `+col.fromText("?"), text); err != nil {
				t.Fatalf("%s: %v", c[0], err)
			}
			s.want(`SELECT a <=> b FROM one`, "1")
		}
	})
}

func TestAudienceIsComparedWithTheKey(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`INSERT INTO contact (contact_id, crm_id, email) VALUES (7, 1, 'a'), (8, 2, NULL)`)
		for _, audience := range []string{
			s.cfg.Audience, s.cfg.Audience + " -- whom we write to", "select contact_id from contact where email is not null order by 1 limit 5",
			"with c as (select * from contact where email is not null) select contact_id from c", "select cast(contact_id as char) from contact where email = 'a'",
		} {
			s.cfg.Audience = audience
			s.wantInAudience("0|1", "7", "8")
		}
		s.exec(`CREATE TABLE member (code VARCHAR(20) CHARACTER SET latin1 NOT NULL PRIMARY KEY, crm_id BIGINT NOT NULL UNIQUE, raw VARBINARY(8) NOT NULL UNIQUE,
			price DECIMAL(5,2) NOT NULL UNIQUE, size BIGINT UNSIGNED NOT NULL UNIQUE);
			INSERT INTO member VALUES ('Éa', 1, 0x00ff, 1.5, 18446744073709551615)`)
		s.cfg = &config.Replica{Mode: ledger.ModeErase, MySQL: &config.MySQLServer{Prefix: "lethe_"}, Audience: "select code from member"}
		s.cfg.Person = config.Person{Table: "member", Key: "code", CRMKey: []string{"crm_id"}}
		s.wantInAudience("0|1", "Éa", "Éb", "?a", "Éa1")
		// A foreign key refers under the collation: the table that the query reads may spell the key otherwise.
		s.exec(`CREATE TABLE mailing (code VARCHAR(20) CHARACTER SET latin1, FOREIGN KEY (code) REFERENCES member (code)); INSERT INTO mailing VALUES ('éA'), (NULL)`)
		s.cfg.Audience = "select code from mailing"
		s.wantInAudience("0|1", "Éa", "Éb", "?a", "Éa1")
		s.cfg.Audience = "select convert(code using utf8mb4) collate utf8mb4_bin from mailing"
		s.wantInAudience("0|1", "Éa", "Éb", "?a", "Éa1")
		s.cfg.Audience, s.cfg.Person.Key = "select raw from member", "raw"
		s.wantInAudience("1|1", `\x00`, `\x00ff`)
		s.cfg.Audience, s.cfg.Person.Key = "select price from member", "price"
		s.wantInAudience("1|1", "1", "1.50")
		s.cfg.Audience, s.cfg.Person.Key = "select size from member", "size"
		s.wantInAudience("0|1", "18446744073709551615", "9223372036854775807")
	})
}

// wantInAudience looks for persons, by their keys, in the audience.
func (s *site) wantInAudience(want string, keys ...string) {
	s.Helper()
	m := s.compiled()
	places := make([]int32, len(keys))
	for i := range places {
		places[i] = int32(i)
	}
	w, err := m.personsTable(places, keys)
	if err != nil {
		s.Fatal(err)
	}
	s.want(`SELECT w.i, COUNT(*) FROM `+w.sql+` WHERE `+m.inAudience()+` GROUP BY w.i`, want, w.args...)
}

func TestEveryKindOfColumnHasACategory(t *testing.T) {
	s := newSite(t, "mysql")
	s.exec(`CREATE TABLE every (a TINYINT(1), b BIT(1), c BIT(2), d ENUM('Y','N'), e ENUM('a','b','c'), f SET('a'), g JSON, h POINT, i BLOB, j MEDIUMTEXT, k YEAR, l TIME)`)
	table, err := loadTable(s.ctx, s.db, "every")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range table.columns {
		got = append(got, string(c.category))
	}
	if want := strings.Split("BBNBEEUUXSND", ""); !slices.Equal(got, want) {
		t.Errorf("categories %v, want %v", got, want)
	}
}
