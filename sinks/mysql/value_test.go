package mysql

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/sinks/ledger"
)

// apply runs one step of phase 2 for a CRM key.
func (s *site) apply(m *Mapping, step *eraseStep, key ...string) {
	s.Helper()
	who, err := m.who([]*ledger.Subject{{Key: key}})
	if err != nil {
		s.Fatal(err)
	}
	from, where, person := m.reach(step.join)
	st := &statement{}
	st.add("UPDATE "+who.sql+from+", "+step.table.sql()+" AS t SET ", who.args...)
	for i := range step.set {
		if i > 0 {
			st.add(", ")
		}
		value, args := step.set[i].value("t", person)
		st.add("t."+step.set[i].column.sql()+" = "+value, args...)
	}
	st.add(" WHERE " + where)
	if _, err := s.db.ExecContext(s.ctx, st.String(), st.args...); err != nil {
		s.Fatalf("%s: %v", st.String(), err)
	}
}

// holding counts the rows of a table that have what a step makes of them.
func (s *site) holding(step *eraseStep) (held, all int) {
	s.Helper()
	st := &statement{}
	st.add("SELECT COALESCE(SUM(")
	for i := range step.set {
		if i > 0 {
			st.add(" AND ")
		}
		held, args := step.set[i].holds("t", "NULL")
		st.add("("+held+")", args...)
	}
	st.add("), 0), COUNT(*) FROM " + step.table.sql() + " AS t")
	if err := s.db.QueryRowContext(s.ctx, st.String(), st.args...).Scan(&held, &all); err != nil {
		s.Fatalf("%s: %v", st.String(), err)
	}
	return held, all
}

// values are one column each: what it held, what is written there, and what it holds then.
var values = []struct {
	name, typ     string
	before, after string // SQL, and what a SELECT shows
	value         config.Value
}{
	{"null", "VARCHAR(20)", "'Jeanne'", "NULL", kindOf(ledger.KindNull)},
	{"text", "VARCHAR(20)", "'GONE'", "gone", fixed("gone")}, // capitals do not matter to the collation, and do to an erasure
	{"text in latin1", "VARCHAR(20) CHARACTER SET latin1", "'x'", "l’œil né", fixed("l’œil né")},
	{"text of a number", "VARCHAR(20)", "'x'", "12.5", fixed(12.5)},
	{"fixed text", "CHAR(10)", "'x'", "gone", fixed("gone")},
	{"integer", "BIGINT", "5", "-9223372036854775808", fixed(int64(-9223372036854775808))},
	{"unsigned", "BIGINT UNSIGNED", "5", "18446744073709551615", fixed("18446744073709551615")},
	{"boolean", "TINYINT(1)", "1", "0", fixed(false)},
	{"boolean in words", "ENUM('no', 'yes')", "'yes'", "no", fixed(false)},
	{"label", "ENUM('Lead', 'it''s')", "'Lead'", "it's", fixed("IT'S")},
	{"set", "SET('a', 'b', 'c')", "'a'", "b,c", fixed("b,c")},
	{"decimal", "DECIMAL(30, 2)", "1", "123456789012345678901234.50", fixed("123456789012345678901234.5")},
	{"double", "DOUBLE", "1", "0.1", fixed(0.1)},
	{"date", "DATE", "'2001-05-06'", "1970-01-01", fixed("1970-01-01")},
	{"moment", "DATETIME(3)", "'2001-05-06'", "1970-01-02 03:04:05.678", fixed("1970-01-02 03:04:05.678")},
	{"bytes", "VARBINARY(4)", "'ab'", "\x00\x01", fixed(`\x0001`)},
	{"document", "JSON", `'{"a": 1}'`, "{}", fixed("{}")},
	{"truncated", "VARCHAR(20)", "'75011 Été'", "75011 É", config.Value{Kind: ledger.KindTruncate, Truncate: 7}},
	{"tens", "INT", "1987", "1980", config.Value{Kind: ledger.KindGeneralise, Generalise: "10"}},
	{"tens below zero", "INT", "-3", "-10", config.Value{Kind: ledger.KindGeneralise, Generalise: "10"}},
	{"tens of an unsigned", "BIGINT UNSIGNED", "18446744073709551615", "18446744073709551600", config.Value{Kind: ledger.KindGeneralise, Generalise: "100"}},
	{"not rounded up", "INT", "99999", "0", config.Value{Kind: ledger.KindGeneralise, Generalise: "100000"}},
	{"birth year", "YEAR", "1987", "1980", config.Value{Kind: ledger.KindGeneralise, Generalise: "10"}},
	{"year", "DATE", "'1987-06-05'", "1987-01-01", config.Value{Kind: ledger.KindGeneralise, Generalise: "year"}},
	{"month", "DATETIME", "'1987-06-05 04:03:02'", "1987-06-01 00:00:00", config.Value{Kind: ledger.KindGeneralise, Generalise: "month"}},
	{"nothing to shorten", "VARCHAR(20)", "NULL", "NULL", config.Value{Kind: ledger.KindTruncate, Truncate: 7}},
	{"nothing to round", "INT", "NULL", "NULL", config.Value{Kind: ledger.KindGeneralise, Generalise: "10"}},
}

// Each value is written as the config says, and the condition that it is there is false before and true then.
func TestValuesAreWrittenAndReadBack(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`INSERT INTO contact (crm_id) VALUES (1), (2)`)
		for i, v := range values {
			table := fmt.Sprintf("v%d", i)
			s.exec(fmt.Sprintf(`CREATE TABLE %s (id BIGINT PRIMARY KEY, v %s); INSERT INTO %s SELECT contact_id, %s FROM contact`, table, v.typ, table, v.before))
			s.cfg.Erase.Tables = map[string]*config.EraseTable{table: {By: "id", Set: map[string]config.Value{"v": v.value}}}
			m := s.compiled()
			step := &m.erase[0]
			if held, _ := s.holding(step); held != 0 && v.before != "NULL" {
				t.Errorf("%s: holds before it is written", v.name)
			}
			s.apply(m, step, "1")
			if held, _ := s.holding(step); held != 1 && v.before != "NULL" {
				t.Errorf("%s: %d rows hold after one was written", v.name, held)
			}
			cast := "CAST(v AS CHAR)"
			if strings.HasPrefix(v.typ, "VARB") {
				cast = "v"
			}
			s.want(`SELECT `+cast+` FROM `+table+` ORDER BY id LIMIT 1`, v.after)
		}
	})
}

// The servers of the tests are not in UTC.
func TestNowIsUTC(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`CREATE TABLE stamped (id BIGINT PRIMARY KEY, a DATETIME, b TIMESTAMP(3) NULL, c DATE, d TIME(6), e DATETIME(6));
			INSERT INTO contact (crm_id) VALUES (1); INSERT INTO stamped (id) SELECT contact_id FROM contact`)
		now := kindOf(ledger.KindNow)
		s.cfg.Erase.Tables["stamped"] = &config.EraseTable{By: "id", Set: map[string]config.Value{"a": now, "b": now, "c": now, "d": now, "e": now}}
		m := s.compiled()
		step := &m.erase[slices.IndexFunc(m.erase, func(e eraseStep) bool { return e.table.name == "stamped" })]
		if sql, _ := step.set[0].holds("t", "NULL"); sql != "" {
			t.Errorf("something is said of what a time should be: %s", sql)
		}
		s.apply(m, step, "1")
		s.want(`SELECT ABS(TIMESTAMPDIFF(SECOND, a, UTC_TIMESTAMP())) < 60, a <= UTC_TIMESTAMP(6), ABS(TIMESTAMPDIFF(SECOND, b, UTC_TIMESTAMP())) < 60,
			ABS(DATEDIFF(c, UTC_DATE())) <= 1, ABS(TIMESTAMPDIFF(SECOND, TIMESTAMP(c, d), UTC_TIMESTAMP(6))) < 60, ABS(TIMESTAMPDIFF(SECOND, e, UTC_TIMESTAMP())) < 60
			FROM stamped`, "1|1|1|1|1|1")
		// In the server's own zone the TIMESTAMP is the same moment.
		db := s.server.Open(t, s.name)
		var ago int
		if err := db.QueryRowContext(s.ctx, `SELECT ABS(TIMESTAMPDIFF(SECOND, b, NOW())) FROM stamped`).Scan(&ago); err != nil || ago > 60 {
			t.Errorf("in the server's zone it is %d s ago (%v)", ago, err)
		}
	})
}

func TestTokensAreRandomAndFit(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`CREATE TABLE address (id BIGINT AUTO_INCREMENT PRIMARY KEY, contact_id BIGINT, email VARCHAR(40) CHARACTER SET ascii NOT NULL UNIQUE, KEY (contact_id));
			INSERT INTO contact (crm_id) VALUES (1);
			INSERT INTO address (contact_id, email) SELECT contact_id, CONCAT(seq, '@exemple.fr') FROM contact,
				JSON_TABLE(CONCAT('[', REPEAT('1,', 199), '1]'), '$[*]' COLUMNS (seq FOR ORDINALITY)) x`)
		s.cfg.Erase.Tables["address"] = &config.EraseTable{By: "contact_id", Set: map[string]config.Value{
			"email": {Kind: ledger.KindToken, Token: "e_-{random}@erased.invalid"},
		}}
		for _, old := range []bool{false, true} {
			if old && flavor != testenv.MariaDB {
				continue
			}
			m := s.compiled()
			step := &m.erase[slices.IndexFunc(m.erase, func(e eraseStep) bool { return e.table.name == "address" })]
			if old { // what a server without RANDOM_BYTES does
				c := &compiler{m: &Mapping{server: server{mariadb: true, version: [3]int{10, 6, 0}}}}
				c.assignToken("", &step.set[0], "e_-{random}@erased.invalid")
			} else if held, _ := s.holding(step); held != 0 {
				t.Errorf("%d addresses look like tokens", held)
			}
			s.apply(m, step, "1")
			if held, all := s.holding(step); held != 200 || all != 200 {
				t.Errorf("old %v: %d of %d are tokens", old, held, all)
			}
		}
		s.want(`SELECT DISTINCT email REGEXP '^e_-[0-9a-f]{22}@erased.invalid$', LENGTH(email) FROM address`, "1|40")
		s.exec(`UPDATE address SET email = 'E_-0123456789abcdef012345@ERASED.INVALID' ORDER BY id LIMIT 1`)
		m := s.compiled()
		if held, _ := s.holding(&m.erase[slices.IndexFunc(m.erase, func(e eraseStep) bool { return e.table.name == "address" })]); held != 199 {
			t.Errorf("%d rows look like tokens, want 199", held)
		}
	})
}

func TestJSONPaths(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		s.exec(`CREATE TABLE profile (id BIGINT PRIMARY KEY, doc JSON); INSERT INTO contact (crm_id) VALUES (1)`)
		for _, test := range []struct {
			before, after string
			held          bool
			paths         map[string]config.Value
		}{
			{`{"contact": {"email": "a@b", "others": [1, 2.50]}}`, `{"contact": {"email": null, "others": [1, 2.50]}}`, false, map[string]config.Value{"contact.email": kindOf(ledger.KindNull)}},
			{`{"a": 1}`, `{"a": 1}`, true, map[string]config.Value{"b": kindOf(ledger.KindNull), "c.d": fixed("x")}},
			{`{"a": {"b": 1}}`, `{"a": {"b": 1}}`, true, map[string]config.Value{"a.0": kindOf(ledger.KindNull)}},
			{`{"a": [{"n": "x"}, "y"]}`, `{"a": [{"n": "-"}, false]}`, false, map[string]config.Value{"a.0.n": fixed("-"), "a.1": fixed(false)}},
			{`{"a": {"0": "x"}}`, `{"a": {"0": 7}}`, false, map[string]config.Value{"a.0": fixed(int64(7))}},
			{`["x", ["y"]]`, `["x", ["é\"'"]]`, false, map[string]config.Value{"1.0": fixed(`é"'`)}},
			{`{"quote\"d key": "x"}`, `{"quote\"d key": null}`, false, map[string]config.Value{`quote"d key`: kindOf(ledger.KindNull)}},
			{`{"a": "X"}`, `{"a": "x"}`, false, map[string]config.Value{"a": fixed("x")}},
		} {
			s.exec(`DELETE FROM profile`)
			if _, err := s.db.ExecContext(s.ctx, `INSERT INTO profile SELECT contact_id, ? FROM contact`, test.before); err != nil {
				t.Fatal(err)
			}
			s.cfg.Erase.Tables["profile"] = &config.EraseTable{By: "id", JSON: map[string]map[string]config.Value{"doc": test.paths}}
			m := s.compiled()
			step := &m.erase[slices.IndexFunc(m.erase, func(e eraseStep) bool { return e.table.name == "profile" })]
			if held, _ := s.holding(step); held == 1 != test.held {
				t.Errorf("%s: holds %d before it is written", test.before, held)
			}
			s.apply(m, step, "1")
			if held, _ := s.holding(step); held != 1 {
				t.Errorf("%s: does not hold what was written: %s", test.before, s.lines(`SELECT doc FROM profile`))
			}
			if got := s.lines(`SELECT doc FROM profile`); got != test.after && got != strings.ReplaceAll(test.after, "2.50", "2.5") {
				t.Errorf("%s became %s, want %s", test.before, got, test.after)
			}
		}
	})
}
