package ledger

import (
	"encoding/json"
	"fmt"
	"time"

	"lethe/config"
	"lethe/schema"
)

// GateDecider is who a decision of the gate is by. No operator decides under this name.
const GateDecider = "gate"

// checkError stands beside the checks of the gate that could not be asked.
const checkError = "gate_error"

// Where the gate stands in a replica that waits for it (report.standing of the aspect gate).
const (
	GateWaiting  = "waiting" // it has not said that phase 2 may run
	GateHolds    = "hold"
	GateProceeds = "proceed"
)

// WaitGate is what a case waits for that only the gate keeps from phase 2.
const WaitGate = "gate"

// The states that the source can put a case into.
const (
	SourceComplete     = "complete_at_source"
	SourceIncomplete   = "incomplete_at_source"
	SourceRevived      = "revived_at_source"
	SourceUnauthorised = "unauthorised_at_source"
	SourceGateError    = "gate_error"
)

// Gated reports whether phase 2 of cases in the log waits for the gate in this replica.
func Gated(cfg *config.Replica) bool { return cfg.Gated }

// ReportRow is what the source was found to say about a case, for the table report: one row for each aspect of a subject, and
// the newest order counts.
type ReportRow struct {
	Ref        Ref
	Part       int32
	Aspect     string
	Satisfied  bool
	Missing    []byte // JSON
	Standing   string // aspect gate only; empty: stays as it is
	ReceivedAt time.Time
	LegalDueAt time.Time
	CheckedAt  time.Time // zero: nobody has asked yet
	Order      schema.Order
	// Opens is set on the first row of a case that the gate holds: what was said of an earlier case goes.
	Opens bool
	// Ends changes a row that is there, and makes none.
	Ends bool
	// Fills gives a standing to a row that has none, or makes one.
	Fills bool
}

var noneMissing = []byte("[]")

// ReportRows are what the unit's records say of the source, in the order of the records.
func (u *Unit) ReportRows() ([]ReportRow, error) {
	var out []ReportRow
	for i := range u.Results {
		x := &u.Results[i]
		switch body := x.Event.Body.(type) {
		case *schema.SourceReport:
			if x.Outcome == OutcomeElsewhere || body.Aspect == schema.AspectPresent {
				continue // that somebody is there is no report about a case; a pass has one of everybody
			}
			missing, err := missingJSON(body.Missing)
			if err != nil {
				return nil, err
			}
			out = append(out, ReportRow{
				Ref: u.Core.Ref(x.Event.SubjectRef), Part: x.Record.Partition, Aspect: body.Aspect, Satisfied: body.Satisfied, Missing: missing,
				ReceivedAt: body.ReceivedAt, LegalDueAt: body.LegalDueAt, CheckedAt: body.CheckedAt, Order: x.Event.Order,
			})
		case *schema.CaseDecision:
			if body.DecidedBy != GateDecider {
				continue
			}
			missing, err := missingJSON(body.Checks)
			if err != nil {
				return nil, err
			}
			row := ReportRow{
				Ref: u.Core.Ref(x.Event.SubjectRef), Part: x.Record.Partition, Aspect: schema.AspectGate, Standing: GateHolds, Missing: missing,
				CheckedAt: body.DecidedAt, Order: x.Event.Order,
			}
			if body.Decision == schema.DecisionProceed {
				row.Satisfied, row.Standing = true, GateProceeds
			}
			out = append(out, row)
		case *schema.SubjectErasure:
			out = u.erasureReport(out, x)
		}
	}
	return out, nil
}

// erasureReport: a case begins without what was said of an earlier one, and one that the log tells of waits for the gate where the replica
// does. A further marker says that the row is in the erased state again. Cases of a pass wait for a person's release in any
// case; capture does not ask the gate about them, because a pass shows everybody who was ever erased.
func (u *Unit) erasureReport(out []ReportRow, x *Result) []ReportRow {
	s := x.Subject
	if s == nil {
		return out
	}
	row := ReportRow{Ref: s.Ref, Part: s.Part, Missing: noneMissing, Order: x.Event.Order}
	for _, c := range u.Cases {
		if c != x {
			continue
		}
		row.Opens = true
		row.Aspect = schema.AspectGate
		derived := x.Event.SubjectRef.IsZero() // of a record that was joined into this one, which is asked about
		if Gated(u.Core.Config) && x.Event.Kind == schema.KindStream && !derived {
			row.Standing = GateWaiting
		}
		return append(out, row)
	}
	if x.Outcome == OutcomeUnchanged {
		row.Aspect, row.Satisfied, row.Ends = schema.AspectRevived, true, true
		out = append(out, row)
		if Gated(u.Core.Config) && x.Event.Kind == schema.KindStream { // found by a pass first, or opened before there was a gate
			row.Aspect, row.Satisfied, row.Ends, row.Fills, row.Standing = schema.AspectGate, false, false, true, GateWaiting
			out = append(out, row)
		}
	}
	return out
}

func missingJSON(list []string) ([]byte, error) {
	if len(list) == 0 {
		return noneMissing, nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("encoding what is missing: %w", err)
	}
	return b, nil
}

// Report is what the source was found to say about one case in one aspect.
type Report struct {
	Aspect     string
	Satisfied  bool
	Missing    []byte // JSON, as stored
	Standing   string
	ReceivedAt time.Time
	LegalDueAt time.Time
	CheckedAt  time.Time
}

// SourceView is what is known of a case at the source, for people.
type SourceView struct {
	States     []string  // of the Source… constants; none: nothing is known yet
	Missing    []string  // columns that still say something: table.column, table where the row should be gone
	Gate       string    // waiting, hold, proceed; satisfied or failed where it decides nothing here; empty: not asked
	GateChecks []string  // those that fail
	Requested  string    // yes, no; empty: unknown
	ReceivedAt time.Time // zero: unknown
	LegalDueAt time.Time // zero: unknown
	CheckedAt  time.Time // of the newest answer
}

// TakeReports puts the reports of a case into it. gated says that the replica waits for the gate.
func (c *Case) TakeReports(reports []Report, gated bool) error {
	v := &c.Source
	for i := range reports {
		r := &reports[i]
		var missing []string
		if err := json.Unmarshal(r.Missing, &missing); err != nil {
			return fmt.Errorf("reading what the source lacks: %w", err)
		}
		if r.CheckedAt.After(v.CheckedAt) {
			v.CheckedAt = r.CheckedAt
		}
		switch r.Aspect {
		case schema.AspectCompleteness:
			state := SourceIncomplete
			if r.Satisfied {
				state = SourceComplete
			}
			v.States, v.Missing = append(v.States, state), missing
		case schema.AspectRevived:
			if !r.Satisfied {
				v.States = append(v.States, SourceRevived)
			}
		case schema.AspectRequest:
			v.takeRequest(r, missing)
		case schema.AspectGate:
			v.takeGate(r, missing, gated)
		}
	}
	if gated && c.State == PendingSuppressed && (c.Wait == WaitNone || c.Wait == WaitCoolOff) && (v.Gate == GateWaiting || v.Gate == GateHolds) {
		c.Wait = WaitGate
	}
	return nil
}

func (v *SourceView) takeRequest(r *Report, missing []string) {
	v.ReceivedAt, v.LegalDueAt = r.ReceivedAt, r.LegalDueAt
	switch {
	case r.Satisfied:
		v.Requested = "yes"
	case len(missing) > 0 && missing[0] != checkError: // else nobody could look
		v.Requested = "no"
		v.States = append(v.States, SourceUnauthorised)
	}
}

func (v *SourceView) takeGate(r *Report, missing []string, gated bool) {
	v.GateChecks = missing
	switch {
	case gated && r.Standing != "":
		v.Gate = r.Standing
	case r.CheckedAt.IsZero():
	case r.Satisfied:
		v.Gate = "satisfied"
	default:
		v.Gate = "failed"
	}
	for _, name := range missing {
		if name == checkError {
			v.States = append(v.States, SourceGateError)
		}
	}
}

// CaseReports gather reports by case.
type CaseReports map[schema.CaseID][]Report

// Add adds a report of a case.
func (m CaseReports) Add(id []byte, r Report) {
	var c schema.CaseID
	copy(c[:], id)
	m[c] = append(m[c], r)
}

// Into puts them into the cases.
func (m CaseReports) Into(cases []Case, gated bool) error {
	for i := range cases {
		if err := cases[i].TakeReports(m[cases[i].ID], gated); err != nil {
			return err
		}
	}
	return nil
}
