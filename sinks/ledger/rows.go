package ledger

import (
	"fmt"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// PendingRow is a new case for the table pending: opened and suppressed now, due after CoolOff.
type PendingRow struct {
	Ref          Ref
	CaseID       schema.CaseID
	EventID      schema.EventID
	Part         int32
	Wait         string
	Snapshot     bool
	RunID        string
	Matched      bool
	Code         string // ReasonAmbiguous: a person has to decide; else empty
	Observed     bool
	CommittedAt  time.Time
	ConfigDigest [32]byte
	CoolOff      time.Duration
	Undo         []byte // JSON; nil: NULL
}

// PendingRows are the cases that the unit opens. The time at which phase 2 is due is the replica's, not ours.
func (u *Unit) PendingRows() ([]PendingRow, error) {
	out := make([]PendingRow, 0, len(u.Cases))
	for _, x := range u.Cases {
		s, body := x.Subject, x.Event.Body.(*schema.SubjectErasure)
		undo, err := EncodeUndo(s.Effect.Undo)
		if err != nil {
			return nil, fmt.Errorf("encoding undo: %w", err)
		}
		wait := WaitCoolOff
		if body.Phase2 == schema.Phase2OnDecision {
			wait = WaitDecision
		}
		out = append(out, PendingRow{
			Ref: s.Ref, CaseID: x.Event.CaseID, EventID: x.Event.EventID, Part: s.Part, Wait: wait,
			Snapshot: x.Event.Kind == schema.KindSnapshot, RunID: x.Event.RunID, Matched: s.Effect.Found(), Code: s.Effect.Doubt(),
			Observed: u.Core.Config.Mode == ModeObserve, CommittedAt: x.Event.CommittedAt, ConfigDigest: x.Event.ConfigDigest,
			CoolOff: u.Core.Config.Erase.CoolOff, Undo: undo,
		})
	}
	return out, nil
}

// ReadbackRow is an objection or restriction for the table readback.
type ReadbackRow struct {
	EventID      schema.EventID
	Ref          Ref
	Part         int32
	Kind         string
	CommittedAt  time.Time
	ConfigDigest [32]byte
	Due          bool // now; else when the subject's row appears
}

// ReadbackRows leave the objections and restrictions that took effect to verification; those of a subject without a row
// wait for it.
func (u *Unit) ReadbackRows() []ReadbackRow {
	var out []ReadbackRow
	for _, x := range u.Readback {
		due := true
		switch x.Outcome {
		case OutcomeApplied, OutcomeReconciled, OutcomeUnchanged:
		case OutcomeNoMatch:
			due = false
		default:
			continue
		}
		out = append(out, ReadbackRow{
			EventID: x.Event.EventID, Ref: x.Subject.Ref, Part: x.Subject.Part, Kind: x.Event.Body.Type().String(),
			CommittedAt: x.Event.CommittedAt, ConfigDigest: x.Event.ConfigDigest, Due: due,
		})
	}
	return out
}

// ParkedRow is a record parked behind another, for the table parked.
type ParkedRow struct {
	Part    int32
	Offset  int64
	Ref     Ref
	EventID schema.EventID
	Bytes   []byte
	Code    string
}

// DecisionRow is a decision for the table decision.
type DecisionRow struct {
	EventID   schema.EventID
	Ref       Ref
	CaseID    schema.CaseID
	Part      int32
	Decision  string
	Reason    string
	Checks    []string // never nil
	DecidedBy string
	DecidedAt time.Time // zero: NULL
	// Outcome, where set, closes the decision at once: the gate's takes effect through the table report.
	Outcome string
}

// GapRow opens or closes a gap for one partition in the table gap: it is open for the replica until every partition has
// seen it closed. A close that comes without its open, because the topic no longer holds it, leaves a closed row.
type GapRow struct {
	Part int32
	*schema.Gap
}

// Singles are what few records leave: decisions, gaps and records parked behind another, each in the order of the
// records. One of the results is set at a time; the callback must take them in that order, because the last word of an
// operator holds.
func (u *Unit) Singles(parked func(ParkedRow), decision func(DecisionRow), gap func(GapRow)) {
	for i := range u.Results {
		x := &u.Results[i]
		part := x.Record.Partition
		if x.Outcome == OutcomeParked {
			parked(ParkedRow{
				Part: part, Offset: x.Record.Offset, Ref: x.Subject.Ref, EventID: x.Event.EventID, Bytes: x.Record.Value, Code: CodeBlocked,
			})
			continue
		}
		switch body := x.Event.Body.(type) {
		case *schema.CaseDecision:
			if body.Replica != "" && body.Replica != u.Core.Name {
				continue
			}
			checks := body.Checks
			if checks == nil {
				checks = []string{}
			}
			outcome := ""
			if body.DecidedBy == GateDecider {
				outcome = DecisionDone
			}
			decision(DecisionRow{
				Outcome: outcome, EventID: x.Event.EventID, Ref: u.Core.Ref(x.Event.SubjectRef), CaseID: x.Event.CaseID, Part: part,
				Decision: body.Decision.String(), Reason: body.Reason, Checks: checks, DecidedBy: body.DecidedBy, DecidedAt: body.DecidedAt,
			})
		case *schema.Gap:
			gap(GapRow{Part: part, Gap: body})
		}
	}
}

// ParkedSubject finds whose record it is: by the event, else by the Kafka key. event is nil where the bytes could not be
// decoded; ok is false where nothing says whose it is.
func (c *Core) ParkedSubject(rec *sinks.Record) (ref Ref, event []byte, ok bool) {
	if rec.Event != nil {
		if rec.Event.SubjectRef.IsZero() {
			return ref, nil, false
		}
		return c.Ref(rec.Event.SubjectRef), rec.Event.EventID[:], true
	}
	subject, err := schema.ParseSubjectRef(string(rec.Key))
	if err != nil {
		return ref, nil, false
	}
	return c.Ref(subject), nil, true
}

// ContactBytes is the contact of a fact as stored: the empty string for none, because it is part of the key.
func ContactBytes(f *sinks.Fact) []byte {
	if f.Contact.IsZero() {
		return noContact
	}
	return f.Contact[:]
}

var noContact = []byte{}
