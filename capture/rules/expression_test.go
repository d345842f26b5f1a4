package rules

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lethe/capture"
)

// exprTable has a column of each kind that an expression can read.
func exprTable(identity string) *capture.Table {
	return newTable("public.customer", identity, "*customer_id:int8", "a:bool", "b:bool", "n:int4", "f:numeric", "s:text", "c:bpchar", "d:date", "ts:timestamptz")
}

const exprRow = "customer_id=1 a=t b=f n=5 f=2.50 s=hello c='E  ' d=2026-03-01 ts='2026-03-01 12:00:00+02'"

// bindWhen binds one condition as an objection.
func bindWhen(t testing.TB, table *capture.Table, when string) *binding {
	t.Helper()
	e, err := parseExpression("when", when)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBinding(&plan{subject: []string{"customer_id"}, rules: []spec{&objectionSpec{when: e, scope: "all"}}}, table)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func evalBound(t testing.TB, b *binding, c *capture.Change) (bool, error) {
	t.Helper()
	x := &row{}
	if err := x.reset(&Engine{}, b, &capture.Transaction{}, c); err != nil {
		t.Fatal(err)
	}
	return b.insert[0].(*objectionRule).when.holds(x, after)
}

// eval evaluates one condition on a row.
func eval(t testing.TB, table *capture.Table, when string, c *capture.Change) (bool, error) {
	t.Helper()
	return evalBound(t, bindWhen(t, table, when), c)
}

func TestExpressions(t *testing.T) {
	table := exprTable("full")
	full := values(table, split(exprRow))
	nulls := values(table, split("customer_id=1 a=null b=null n=null f=null s=null c=null d=null ts=null"))
	tests := []struct {
		when         string
		row, onNulls bool
	}{
		{`a`, true, false},
		{`!a`, false, false},
		{`not b`, true, false},
		{`a && !b`, true, false},
		{`a == true`, true, false},
		{`a != b`, true, false},
		{`n > 4`, true, false},
		{`!(n > 4)`, false, false},
		{`!(n < 4)`, true, false},
		{`n in [4, 5]`, true, false},
		{`n not in [4]`, true, false},
		{`n in 1..9`, true, false},
		{`f == 2.5`, true, false},
		{`n + f > 7`, true, false},
		{`n % 2 == 1`, true, false},
		{`s == "hello"`, true, false},
		{`s != "E"`, true, false},
		{`s startsWith "he" && s endsWith "lo" && s contains "ell"`, true, false},
		{`s matches "^h.*o$"`, true, false},
		{`upper(s) == "HELLO"`, true, false},
		{`len(s) == 5`, true, false},
		{`c == "E"`, true, false},
		{`c in ["E", "F"]`, true, false},
		{`d == date("2026-03-01")`, true, false},
		{`d < date("2026-03-02") && d > date("2026-02-28")`, true, false},
		{`ts == date("2026-03-01T10:00:00Z")`, true, false},
		{`ts - d > duration("9h")`, true, false},
		{`s == nil`, false, true},
		{`nil != s`, true, false},
		{`!(s == nil)`, true, false},
		{`s == nil || s == ""`, false, true},
		{`(s ?? "") == ""`, false, true},
		{`!(a ?? false)`, false, true},
		{`a ? s == "hello" : s == nil`, true, true},
		{`a || b == nil`, true, true},
	}
	for _, test := range tests {
		for _, c := range []struct {
			name string
			row  []capture.Value
			want bool
		}{{"row", full, test.row}, {"row of NULLs", nulls, test.onNulls}} {
			got, err := eval(t, table, test.when, &capture.Change{Op: capture.OpInsert, Table: table, New: c.row})
			if err != nil || got != c.want {
				t.Errorf("%s on the %s: got %t, %v; want %t", test.when, c.name, got, err, c.want)
			}
		}
	}
}

func TestExpressionsOnTheOldRow(t *testing.T) {
	table := exprTable("full")
	newRow := values(table, split(exprRow))
	oldRow := values(table, split(strings.Replace(exprRow, "n=5", "n=3", 1)))
	update := &capture.Change{Op: capture.OpUpdate, Table: table, New: newRow, Old: oldRow}
	insert := &capture.Change{Op: capture.OpInsert, Table: table, New: newRow}
	for when, want := range map[string][2]bool{ // on the UPDATE, on the INSERT
		`old.n == 3 && n == 5`: {true, false},
		`old.n != n`:           {true, false},
		`old.n == nil`:         {false, true},
		`old.s != s`:           {false, false},
	} {
		for i, c := range []*capture.Change{update, insert} {
			if got, err := eval(t, table, when, c); err != nil || got != want[i] {
				t.Errorf("%s on the %s: got %t, %v; want %t", when, c.Op, got, err, want[i])
			}
		}
	}
}

// A condition that fails on a row is an error, not false, and the error does not quote the row.
func TestFailingExpression(t *testing.T) {
	table := exprTable("full")
	row := values(table, split(strings.Replace(exprRow, "n=5", "n=0", 1)))
	_, err := eval(t, table, `10 % n == 1`, &capture.Change{Op: capture.OpInsert, Table: table, New: row})
	if _, ok := err.(*EvalError); !ok { //nolint:errorlint // It must be this very error, unwrapped.
		t.Fatalf("got %v, want an EvalError", err)
	}
}

// truth is one of SQL's three values.
type truth int

const (
	isFalse truth = iota
	isOpen
	isTrue
)

// condition is a random condition with its meaning in SQL.
type condition struct {
	text string
	mean func(row map[string]any) truth
}

func of(b bool) truth {
	if b {
		return isTrue
	}
	return isFalse
}

func genCondition(depth int) *rapid.Generator[condition] {
	return rapid.Custom(func(t *rapid.T) condition {
		kinds := 7
		if depth == 0 {
			kinds = 4
		}
		switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
		case 0:
			col := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "flag")
			return condition{col, func(row map[string]any) truth {
				if row[col] == nil {
					return isOpen
				}
				return of(row[col].(bool))
			}}
		case 1:
			n := rapid.IntRange(0, 2).Draw(t, "n")
			op := rapid.SampledFrom([]string{"<", "<=", "==", "!=", ">", ">="}).Draw(t, "op")
			return condition{fmt.Sprintf("n %s %d", op, n), func(row map[string]any) truth {
				if row["n"] == nil {
					return isOpen
				}
				v := row["n"].(int)
				return of(map[string]bool{"<": v < n, "<=": v <= n, "==": v == n, "!=": v != n, ">": v > n, ">=": v >= n}[op])
			}}
		case 2:
			return condition{`s in ["x", "y"]`, func(row map[string]any) truth {
				if row["s"] == nil {
					return isOpen
				}
				return of(row["s"] == "x" || row["s"] == "y")
			}}
		case 3:
			col := rapid.SampledFrom([]string{"a", "b", "n", "s"}).Draw(t, "column")
			return condition{col + " == nil", func(row map[string]any) truth { return of(row[col] == nil) }}
		case 4:
			inner := genCondition(depth-1).Draw(t, "inner")
			return condition{"!(" + inner.text + ")", func(row map[string]any) truth { return isTrue - inner.mean(row) }}
		case 5:
			l, r := genCondition(depth-1).Draw(t, "left"), genCondition(depth-1).Draw(t, "right")
			return condition{"(" + l.text + ") && (" + r.text + ")", func(row map[string]any) truth { return min(l.mean(row), r.mean(row)) }}
		default:
			l, r := genCondition(depth-1).Draw(t, "left"), genCondition(depth-1).Draw(t, "right")
			return condition{"(" + l.text + ") or (" + r.text + ")", func(row map[string]any) truth { return max(l.mean(row), r.mean(row)) }}
		}
	})
}

// kleeneRows are all rows over a few values of each column, with what the columns mean.
func kleeneRows(table *capture.Table) (rows [][]capture.Value, means []map[string]any) {
	flags := map[string]any{"t": true, "f": false, "null": nil}
	for a, aMeans := range flags {
		for b, bMeans := range flags {
			for n, nMeans := range map[string]any{"0": 0, "1": 1, "2": 2, "null": nil} {
				for s, sMeans := range map[string]any{"x": "x", "z": "z", "null": nil} {
					rows = append(rows, values(table, []string{"customer_id=1", "a=" + a, "b=" + b, "n=" + n, "s=" + s}))
					means = append(means, map[string]any{"a": aMeans, "b": bMeans, "n": nMeans, "s": sMeans})
				}
			}
		}
	}
	return rows, means
}

// TestNullMeansWhatItMeansInSQL compares conditions over all rows with Kleene's three-valued logic.
func TestNullMeansWhatItMeansInSQL(t *testing.T) {
	table := exprTable("full")
	rows, means := kleeneRows(table)
	rapid.Check(t, func(rt *rapid.T) {
		c := genCondition(3).Draw(rt, "condition")
		b := bindWhen(t, table, c.text)
		for i, row := range rows {
			got, err := evalBound(t, b, &capture.Change{Op: capture.OpInsert, Table: table, New: row})
			if err != nil || got != (c.mean(means[i]) == isTrue) {
				rt.Fatalf("%s on %v: got %t, %v; SQL says %d", c.text, means[i], got, err, c.mean(means[i]))
			}
		}
	})
}

// TestRememberedResults: results are remembered by bytes, so rows that differ must not look alike.
func TestRememberedResults(t *testing.T) {
	table := exprTable("full")
	check := func(b *binding, row string, want bool) {
		t.Helper()
		got, err := evalBound(t, b, &capture.Change{Op: capture.OpInsert, Table: table, New: values(table, split(row))})
		if err != nil || got != want {
			t.Errorf("%s: got %t, %v; want %t", row, got, err, want)
		}
	}
	empty := bindWhen(t, table, `s == nil`)
	check(empty, "s=''", false)
	check(empty, "s=null", true)
	check(empty, "s=''", false)
	joined := bindWhen(t, table, `s == "ab" && c == ""`)
	check(joined, "s=a c=b", false)
	check(joined, "s=ab c=''", true)
	check(joined, "s='' c=ab", false)
	long := bindWhen(t, table, `len(s) > 150`)
	check(long, "s="+strings.Repeat("x", 150), false)
	check(long, "s="+strings.Repeat("x", 151), true)
	many := bindWhen(t, table, `n >= 2000`)
	for i := range 3000 {
		check(many, fmt.Sprintf("n=%d", i), i >= 2000)
	}
	if n := len(many.insert[0].(*objectionRule).when.results); n > cachedResults {
		t.Errorf("%d results are remembered, want at most %d", n, cachedResults)
	}
}

// FuzzExpression looks for texts of the config that make the compiler panic.
func FuzzExpression(f *testing.F) {
	for _, seed := range []string{`status == "E"`, `old.a != a`, `!(a && b) || n in [1, 2]`, `d < date("2020-01-01")`, `a ?? true`, `now()`, `1..`, `a.b.c()`, `$env`} {
		f.Add(seed)
	}
	table := exprTable("full")
	row := values(table, split(exprRow))
	f.Fuzz(func(t *testing.T, source string) {
		if len(source) > 1000 {
			return
		}
		e, err := parseExpression("when", source)
		if err != nil {
			return
		}
		p := &plan{subject: []string{"customer_id"}, rules: []spec{&objectionSpec{when: e, scope: "all"}}}
		b, err := newBinding(p, table)
		if err != nil {
			return
		}
		engine := &Engine{notices: &notices{}}
		engine.notices.init(map[string]*plan{table.Name: p})
		x := newRow()
		if err := x.reset(engine, b, &capture.Transaction{}, &capture.Change{Op: capture.OpInsert, Table: table, New: row}); err != nil {
			t.Fatal(err)
		}
		_, _ = b.insert[0].apply(x, nil)
	})
}

// newRow is a function because the fuzz target calls its row of values row.
func newRow() *row { return &row{} }
