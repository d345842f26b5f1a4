package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lethe/internal/pii"
)

// Severity says what a Finding means: run refuses an error, a warning says what is at risk, info tells what was seen.
type Severity string

// The severities.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
	SeverityInfo    Severity = "info"
)

// The places that findings are about; those of a replica are replica= and its name.
const (
	WhereConfig  = "config"
	WhereKeys    = "keys"
	WhereKafka   = "kafka"
	WhereSource  = "source"
	whereReplica = "replica="
)

// Codes of findings that belong to no server's own check.
const (
	CodeUnreachable     = "unreachable"
	CodeLoginRefused    = "login_refused"
	CodeDatabaseMissing = "database_missing"
	CodeUnreadable      = "unreadable"
	CodeGap             = "gap_open"
	CodeLater           = "not_in_this_version"
	CodeMapping         = "mapping"
	CodeKeys            = "keys"
)

// Finding is one precondition that does not hold. Nothing in it is personal.
type Finding struct {
	Where    string   `json:"where"` // config, keys, kafka, source, replica=NAME
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Object   string   `json:"object"`
	Message  string   `json:"message"`
	// Fix are SQL statements without a trailing semicolon, or shell commands where Where is kafka or keys, in this order.
	Fix []string `json:"fix,omitempty"`
}

// IsSQL reports whether Fix is for psql.
func (f *Finding) IsSQL() bool {
	return f.Where == WhereSource || strings.HasPrefix(f.Where, whereReplica)
}

// Report is what a check found, in the order in which it is mended: config, keys, Kafka, source, replicas.
type Report struct {
	Findings []Finding `json:"findings"`
	// Unreachable are the places that could not be looked at.
	Unreachable []string `json:"unreachable,omitempty"`
	// Gap is set while a gap of the source's log is open.
	Gap bool `json:"gap"`
}

// Errors are the findings that run refuses.
func (r *Report) Errors() []Finding {
	return slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool { return f.Severity != SeverityError || f.Code == CodeUnreachable })
}

// part is one place that a check looks at.
type part struct {
	where string
	look  func(ctx context.Context) ([]Finding, error)
}

// lookWithin bounds the look at one place: a server that takes the connection and never answers has to end somewhere.
const lookWithin = time.Minute

// examine looks at all places at once.
func examine(ctx context.Context, parts []part) *Report {
	type answer struct {
		findings []Finding
		err      error
	}
	answers := make([]chan answer, len(parts))
	for i, p := range parts {
		answers[i] = make(chan answer, 1)
		go func() {
			bound, cancel := context.WithTimeout(ctx, lookWithin)
			defer cancel()
			findings, err := p.look(bound)
			answers[i] <- answer{findings, err}
		}()
	}
	r := &Report{Findings: []Finding{}}
	for i, p := range parts {
		a := <-answers[i]
		if a.err != nil {
			a.findings = append(a.findings, failedFinding(a.err))
		}
		for _, f := range a.findings {
			f.Where = p.where
			if f.Code == CodeUnreachable && !slices.Contains(r.Unreachable, p.where) {
				r.Unreachable = append(r.Unreachable, p.where)
			}
			r.Gap = r.Gap || f.Code == CodeGap
			r.Findings = append(r.Findings, f)
		}
	}
	return r
}

// failedFinding is what a place says that could not be looked at to the end.
func failedFinding(err error) Finding {
	f := Finding{Code: CodeUnreadable, Severity: SeverityError, Object: "server", Message: err.Error()}
	if IsUnreachable(err) {
		f.Code = CodeUnreachable
	}
	return f
}

// loginFinding is what a refused login says. It returns false for another error. server names the database server.
func loginFinding(err error, server, role, create string) (Finding, bool) {
	switch pii.Code(err) {
	case "28P01":
		// The server says the same of a role that does not exist, so as not to tell who does.
		return Finding{
			Code: CodeLoginRefused, Severity: SeverityError, Object: role,
			Message: fmt.Sprintf("%s refuses the password of the login %s: check password or password_file against the role's password; only if the role"+
				" does not exist, have an administrator run %s and give it a password", server, role, create),
		}, true
	case "28000":
		return Finding{
			Code: CodeLoginRefused, Severity: SeverityError, Object: role,
			Message: fmt.Sprintf("%s refuses the login %s: compare pg_hba.conf and sslmode; if the role does not exist, make it and give it a password",
				server, role),
			Fix: []string{create},
		}, true
	case "3D000":
		return Finding{
			Code: CodeDatabaseMissing, Severity: SeverityError, Object: "database",
			Message: "the database of the dsn does not exist on " + server + ": correct the dsn",
		}, true
	}
	return Finding{}, false
}

// FindingsError is the refusal to start.
type FindingsError struct{ Findings []Finding }

func (e *FindingsError) Error() string {
	var b strings.Builder
	b.WriteString("refusing to start; `lethe check --fix-sql` prints all statements:")
	for _, f := range e.Findings {
		fmt.Fprintf(&b, "\n  %s: %s: %s (%s)", f.Where, f.Object, f.Message, f.Code)
		for _, fix := range f.Fix {
			b.WriteString("\n    fix: " + strings.ReplaceAll(fix, "\n", "\n         "))
		}
	}
	return b.String()
}

// leaves returns the errors that errors.Join put together, in one list.
func leaves(err error) []error {
	var joined interface{ Unwrap() []error }
	if err == nil {
		return nil
	}
	if errors.As(err, &joined) {
		var list []error
		for _, e := range joined.Unwrap() {
			list = append(list, leaves(e)...)
		}
		return list
	}
	return []error{err}
}

// statement cuts the semicolon that some checks put behind a statement.
func statement(sql string) []string {
	if sql == "" {
		return nil
	}
	return []string{cmp.Or(strings.TrimSuffix(strings.TrimSpace(sql), ";"), sql)}
}
