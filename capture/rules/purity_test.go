package rules

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lethe/capture"
)

// genRow draws a row of testSource's customer table, or of its consents.
func genRow(table string) *rapid.Generator[string] {
	one := func(values ...string) *rapid.Generator[string] { return rapid.SampledFrom(values) }
	columns := map[string]map[string]*rapid.Generator[string]{
		"public.customer": {
			"customer_id": one("1", "2"), "last_name": one("a", "b", "null"), "status": one("A", "E", "'E '", "null"),
			"no_marketing": one("t", "f", "null"), "restricted_until": one("2026-01-01", "infinity", "null"),
		},
		"public.consent": {
			"consent_id": one("1", "2"), "customer_id": one("1", "2", "null"), "purpose_code": one("NL", "OFF"),
			"channel_code": one("E"), "contact_id": one("10", "11", "null"), "status": one("Y", "N"),
			"valid_until": one("2027-01-01", "null"), "document_id": one("d", "null"),
		},
	}[table]
	return rapid.Custom(func(t *rapid.T) string {
		var words []string
		for name, gen := range columns {
			words = append(words, name)
			_ = gen
		}
		for i, name := range distinct(words) {
			words[i] = name + "=" + columns[name].Draw(t, name)
		}
		return strings.Join(words, " ")
	})
}

func genChange() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		table := rapid.SampledFrom([]string{"public.customer", "public.consent"}).Draw(t, "table")
		row := genRow(table)
		switch rapid.SampledFrom([]string{"insert", "update", "delete"}).Draw(t, "op") {
		case "insert":
			return "insert " + table + " " + row.Draw(t, "new")
		case "delete":
			return "delete " + table + " " + row.Draw(t, "old")
		default:
			return "update " + table + " " + row.Draw(t, "new") + " | " + row.Draw(t, "old")
		}
	})
}

// fullScript knows the tables of testSource with REPLICA IDENTITY FULL.
func fullScript(t testing.TB) *script {
	s := testScript(t)
	for name, table := range s.tables {
		full := &capture.Table{Name: name, OldRow: capture.OldRowFull}
		for _, c := range table.Columns {
			full.Columns = append(full.Columns, capture.Column{Name: c.Name, Type: c.Type, Key: true})
		}
		s.tables[name] = full
	}
	return s
}

func applied(e *Engine, s *script, c *capture.Change) string {
	drafts, err := e.Apply(s.tx, c, nil)
	var b strings.Builder
	for _, d := range drafts {
		fmt.Fprintf(&b, "%s|%x|%x|%x\n", describe(d), d.PK, d.SubjectKey, d.ContactPK)
	}
	fmt.Fprint(&b, err)
	return b.String()
}

// TestSameChangeSameDrafts: whatever was applied before, and however often, a change means the same. That is what makes
// event ids the same after a restart.
func TestSameChangeSameDrafts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := mustSource(t, testSource)
		warm, err := New(cfg, Options{})
		if err != nil {
			t.Fatal(err)
		}
		s := fullScript(t)
		for _, line := range rapid.SliceOfN(genChange(), 1, 20).Draw(rt, "changes") {
			c := s.must(t, line)
			got := applied(warm, s, c)
			fresh, err := New(cfg, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if want := applied(fresh, s, c); got != want {
				rt.Fatalf("%s\n  after others: %s\n  alone: %s", line, got, want)
			}
		}
	})
}

// TestRuleNamesDifferWithinAChange: the rule is what tells two events of one change apart, so ids of one change would
// collide otherwise.
func TestRuleNamesDifferWithinAChange(t *testing.T) {
	e := mustEngine(t, testSource)
	s := fullScript(t)
	rapid.Check(t, func(rt *rapid.T) {
		drafts, err := e.Apply(s.tx, s.must(t, genChange().Draw(rt, "change")), nil)
		if err != nil {
			rt.Fatal(err)
		}
		seen := map[string]bool{}
		for _, d := range drafts {
			if seen[d.Rule] {
				rt.Fatalf("two drafts of rule %s", d.Rule)
			}
			seen[d.Rule] = true
			if len(d.SubjectKey) == 0 || len(d.PK) == 0 {
				rt.Fatalf("draft of rule %s without subject or row", d.Rule)
			}
		}
	})
}

// TestNoDraftsWhereNothingChanged: with the whole old row known, an UPDATE of other columns says nothing.
func TestNoDraftsWhereNothingChanged(t *testing.T) {
	e := mustEngine(t, testSource)
	s := fullScript(t)
	rapid.Check(t, func(rt *rapid.T) {
		table := rapid.SampledFrom([]string{"public.customer", "public.consent"}).Draw(rt, "table")
		row := genRow(table).Draw(rt, "row")
		c := s.must(t, "update "+table+" "+row+" | "+row)
		if i := c.Table.Index("last_name"); i >= 0 {
			c.New[i] = capture.Value{State: capture.Present, Text: []byte("changed")}
		}
		if drafts, err := e.Apply(s.tx, c, nil); err != nil || len(drafts) > 0 {
			rt.Fatalf("got %d drafts, %v", len(drafts), err)
		}
	})
}

// TestNothingIsKeptOfAChange: the bytes of a change belong to the source's read buffer, which is overwritten.
func TestNothingIsKeptOfAChange(t *testing.T) {
	e := mustEngine(t, testSource)
	s := testScript(t)
	line := "insert public.consent consent_id=1 customer_id=7 purpose_code=NL channel_code=E contact_id=70 status=Y valid_until=2027-01-01 document_id=null"
	c := s.must(t, line)
	if got := applied(e, s, c); !strings.Contains(got, "newsletter/email given") {
		t.Fatal(got)
	}
	want := applied(e, s, s.must(t, line))
	for i := range c.New {
		for j := range c.New[i].Text {
			c.New[i].Text[j] = '#'
		}
	}
	if got := applied(e, s, s.must(t, line)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
