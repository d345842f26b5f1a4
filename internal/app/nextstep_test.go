package app_test

import (
	"testing"

	"lethe/internal/app"
)

func TestCasesWithoutWaitSayWhatKeepsThemBack(t *testing.T) {
	for want, c := range map[string]app.CaseInfo{
		"unmapped_columns": {State: "applied", Wait: "none", ErrorCode: "unmapped_columns"},
		"none":             {State: "verified", Wait: "none", ErrorCode: "left over"},
		"cool_off":         {State: "suppressed", Wait: "cool_off", ErrorCode: "23505"},
	} {
		if got := c.WaitsFor(); got != want {
			t.Errorf("%+v waits for %q, want %q", c, got, want)
		}
	}
	for _, code := range []string{"unmapped_columns", "gap_open", "residual_values", "restored", "23505", "42501", "42703", "mysql_1142", "mysql_1146", "mysql_3819", "mysql_4025"} {
		if app.NextStep(code) == "" {
			t.Errorf("no next step for %s", code)
		}
	}
	if app.NextStep("") != "" || app.NextStep("08006") != "" || app.NextStep("mysql_1213") != "" {
		t.Error("a next step where there is none")
	}
}
