package app

import (
	"slices"
	"strings"
)

// nextSteps say what to do about an error code of a case.
var nextSteps = map[string]string{
	"unmapped_columns": "a column that looks personal has no mapping: `lethe check` names it; say in erase.tables what becomes of it, then `lethe setup` and restart",
	"gap_open":         "a part of the log is lost (`lethe gap list`), and nothing is called verified before a pass has made good for it: `lethe gap close`",
	"incomplete":       "nothing is called verified before a pass over the whole source has ended in this replica: `lethe snapshot status` shows it, `lethe snapshot` asks for one",
	"residual_values":  "a mapped value was readable after phase 2: something writes it back (an ETL, a trigger); stop that, then `lethe release CASE`",
	"breaker":          "more new cases than erase.breaker allows: look at the CRM, then `lethe release CASE`; what a pass has found, `lethe release --run RUN`",
	"no_row":           "no row was found: it is looked up again",
	"ambiguous":        "a person has to say whether a row is the subject: `lethe review list`; it is unusable until then",
	"review":           "a person has to say whether a row is the subject: `lethe review list`; it is unusable until then",
	"restored":         "the replica was restored from a backup: everything is applied again by itself",
}

// NextStep says what to do about the error code of a case; empty where only the log of the sink can tell.
func NextStep(code string) string {
	if step := nextSteps[code]; step != "" {
		return step
	}
	number, mysql := strings.CutPrefix(code, "mysql_")
	switch {
	case slices.Contains(mysqlPrivilege, number), code == "42501":
		return "a privilege is missing: `lethe check --fix-sql` prints the GRANT; then `lethe release CASE` if the case has failed"
	case slices.Contains(mysqlMapping, number):
		return stepMapping
	case slices.Contains(mysqlPasses, number):
		return ""
	case mysql:
		return stepValue
	case len(code) != sqlstateLength:
		return ""
	case strings.HasPrefix(code, "22"), strings.HasPrefix(code, "23"), strings.HasPrefix(code, "P0"):
		return stepValue
	case strings.HasPrefix(code, "42"):
		return stepMapping
	}
	return ""
}

const (
	stepValue   = "the replica refuses a value (a constraint, a trigger): mend it, then `lethe release CASE` if the case has failed"
	stepMapping = "the replica's tables are not those of the mapping: `lethe check` names the difference; then `lethe release CASE` if the case has failed"
)

// The numbers of MySQL and MariaDB for a privilege that is missing, for a table or column that is, and for what passes by
// itself: locks, deadlocks, failovers, time limits.
var (
	mysqlPasses    = []string{"1040", "1053", "1205", "1213", "1290", "1317", "1792", "1836", "1969", "3024"}
	mysqlPrivilege = []string{"1142", "1143", "1227", "1370"}
	mysqlMapping   = []string{"1054", "1146"}
)

// WaitsFor is what a case waits for: where no wait is set and it is not proven, the error code that keeps it back.
func (c *CaseInfo) WaitsFor() string {
	if c.Wait == "none" && c.State != "verified" && c.ErrorCode != "" {
		return c.ErrorCode
	}
	return c.Wait
}
