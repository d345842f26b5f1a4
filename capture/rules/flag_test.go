package rules

import (
	"errors"
	"strings"
	"testing"

	"lethe/capture"
)

// MySQL has no booleans: its small numbers are true and false where a condition takes them so.
func TestFlagsAreNumbersOrTruthValues(t *testing.T) {
	table := newTable("crm.customer", "full", "*customer_id:bigint unsigned", "a:tinyint", "b:tinyint unsigned", "level:tinyint", "y:year", "m:mediumint", "w:double", "at:datetime")
	row := values(table, split("customer_id=1 a=1 b=0 level=3 y=2026 m=-7 w=2.5 at='2026-03-01 12:00:00'"))
	for when, want := range map[string]bool{
		`a`: true, `b`: false, `not b`: true, `a == true`: true, `a == 1`: true, `a && level > 2`: true, `b || level == 3`: true, `!(a && b)`: true,
		`a != true`: false, `false == b`: true, `level in [1, 2]`: false, `level != 3`: false, `old.a && not b`: false, `old.b == nil`: true, `a == b`: false,
		`y == 2026 && m < 0 && w > 2`: true, `at == date("2026-03-01 12:00:00")`: true, `level && a`: true, `a ? level == 3 : b`: true,
	} {
		got, err := eval(t, table, when, &capture.Change{Op: capture.OpInsert, Table: table, New: row})
		if err != nil || got != want {
			t.Errorf("%s is %t, want %t: %v", when, got, want, err)
		}
	}
	nulls := values(table, split("customer_id=1 a=null b=null level=null y=null m=null w=null at=null"))
	for _, when := range []string{`a`, `not a`, `a == 1`, `a == false`, `level > 2 && not b`} {
		if got, err := eval(t, table, when, &capture.Change{Op: capture.OpInsert, Table: table, New: nulls}); err != nil || got {
			t.Errorf("of NULL %s is %t: %v", when, got, err)
		}
	}
	for _, when := range []string{`a == "Y"`, `y`, `not m`} {
		e, err := parseExpression("when", when)
		if err != nil {
			t.Fatal(err)
		}
		_, err = newBinding(&plan{subject: []string{"customer_id"}, rules: []spec{&objectionSpec{when: e, scope: "all"}}}, table)
		if fault := (*CompileError)(nil); !errors.As(err, &fault) || !strings.Contains(fault.Reason, "int") {
			t.Errorf("%s gave %v", when, err)
		}
	}
}

func TestMySQLValues(t *testing.T) {
	table := newTable("crm.customer", "full", "*customer_id:bigint unsigned", "f:bit unsigned", "u:bigint unsigned", "d:date", "dt:datetime", "ts:timestamp", "dec:decimal unsigned")
	row := values(table, split("customer_id=1 f=1 u=18446744073709551615 d='0000-00-00' dt='0000-00-00 00:00:00.000' ts='2026-03-01 12:00:00.5+00' dec=12.50"))
	for when, want := range map[string]bool{
		`f`: true, `f != true`: false, `false == f`: false, `f == 1`: true, `u > 5`: true, `u == 5`: false,
		`d == nil`: true, `dt == nil`: true, `d < date("2026-01-01")`: false, `ts > date("2026-03-01 12:00:00")`: true, `dec == 12.5`: true,
	} {
		got, err := eval(t, table, when, &capture.Change{Op: capture.OpInsert, Table: table, New: row})
		if err != nil || got != want {
			t.Errorf("%s is %t, want %t: %v", when, got, want, err)
		}
	}
	for _, odd := range []string{"d='2026-00-01' dt=null", "d='2026-02-30' dt=null", "d=null dt='2026-02-00 00:00:00'"} {
		row := values(table, split("customer_id=1 f=null u=null ts=null dec=null "+odd))
		_, err := eval(t, table, `d > date("2020-01-01") || dt > date("2020-01-01")`, &capture.Change{Op: capture.OpInsert, Table: table, New: row})
		if value := (*ValueError)(nil); !errors.As(err, &value) {
			t.Errorf("%s gave %v: a date that the calendar does not have is no NULL", odd, err)
		}
	}
}
