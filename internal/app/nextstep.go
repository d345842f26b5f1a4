package app

import "strings"

// nextSteps say what to do about an error code of a case.
var nextSteps = map[string]string{
	"unmapped_columns": "a column that looks personal has no mapping: `lethe check` names it; say in erase.tables what becomes of it, then `lethe setup` and restart",
	"gap_open":         "a part of the log is lost (`lethe gap list`): a later version closes gaps; this one calls nothing verified while one is open",
	"residual_values":  "a mapped value was readable after phase 2: something writes it back (an ETL, a trigger); stop that, then `lethe release CASE`",
	"breaker":          "more new cases than erase.breaker allows: look at the CRM, then `lethe release CASE`",
	"no_row":           "no row was found: it is looked up again",
	"restored":         "the replica was restored from a backup: everything is applied again by itself",
}

// NextStep says what to do about the error code of a case; empty where only the log of the sink can tell.
func NextStep(code string) string {
	if step := nextSteps[code]; step != "" {
		return step
	}
	if len(code) != sqlstateLength {
		return ""
	}
	switch {
	case code == "42501":
		return "a privilege is missing: `lethe check --fix-sql` prints the GRANT; then `lethe release CASE` if the case has failed"
	case strings.HasPrefix(code, "22"), strings.HasPrefix(code, "23"), strings.HasPrefix(code, "P0"):
		return "the replica refuses a value (a constraint, a trigger): mend it, then `lethe release CASE` if the case has failed"
	case strings.HasPrefix(code, "42"):
		return "the replica's tables are not those of the mapping: `lethe check` names the difference; then `lethe release CASE` if the case has failed"
	}
	return ""
}

// WaitsFor is what a case waits for: where no wait is set and it is not proven, the error code that keeps it back.
func (c *CaseInfo) WaitsFor() string {
	if c.Wait == "none" && c.State != "verified" && c.ErrorCode != "" {
		return c.ErrorCode
	}
	return c.Wait
}
