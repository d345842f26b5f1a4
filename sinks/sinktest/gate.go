package sinktest

import (
	"slices"
	"time"

	"lethe/schema"
	"lethe/sinks/ledger"
)

// Lister is an Instance that lists its cases as the desk does.
type Lister interface {
	Cases() []ledger.Case
}

func gated(s Setup) Setup {
	s.Gated = true
	return s
}

// theCase returns the only case.
func (d *driver) theCase() ledger.Case {
	d.Helper()
	list := d.in.(Lister).Cases()
	if len(list) != 1 {
		d.Fatalf("%d cases are listed", len(list))
	}
	return list[0]
}

func gateSays(d schema.Decision, checks ...string) *schema.CaseDecision {
	return &schema.CaseDecision{Decision: d, DecidedBy: ledger.GateDecider, DecidedAt: now(), Checks: checks}
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

func (d *driver) wantWait(wait, gate string, checks ...string) {
	d.Helper()
	c := d.theCase()
	if c.Wait != wait || c.Source.Gate != gate || !slices.Equal(c.Source.GateChecks, checks) && len(c.Source.GateChecks)+len(checks) > 0 {
		d.Errorf("the case waits for %q, the gate says %q %v; want %q, %q %v", c.Wait, c.Source.Gate, c.Source.GateChecks, wait, gate, checks)
	}
}

// gateHolds: only the gate's own word lets phase 2 go on, and it undoes nobody else's.
func gateHolds(d *driver) {
	suppressed := Person{Personal: true}
	d.in.InsertPerson("1")
	d.apply(d.Event("1", &schema.SubjectErasure{}))
	d.idle(300 * time.Millisecond)
	d.wantWait("gate", "waiting")
	d.apply(d.Event("1", &schema.SourceReport{Aspect: schema.AspectGate, Satisfied: true, CheckedAt: now()}))
	d.idle(300 * time.Millisecond)
	d.wantPerson("1", suppressed) // it was asked when the case opened, not before phase 2
	d.wantWait("gate", "waiting")
	held := d.Event("1", gateSays(schema.DecisionHold, "no_unpaid_invoice", "gate_error"))
	d.apply(held)
	d.apply(d.Event("1", decision(schema.DecisionRelease)), d.Event("1", decision(schema.DecisionProceed)))
	d.idle(300 * time.Millisecond)
	d.wantPerson("1", suppressed)
	d.wantWait("gate", "hold", "no_unpaid_invoice", "gate_error")
	if got := d.theCase().Source.States; !slices.Contains(got, ledger.SourceGateError) {
		d.Errorf("states %v", got)
	}
	// A restriction and an objection never wait.
	d.apply(d.Event("1", &schema.Objection{Raised: true, Scope: "direct_marketing"}), d.Event("1", &schema.ProcessingRestriction{Imposed: true}))
	d.wantPerson("1", Person{Personal: true, Objects: true, Frozen: true})

	d.apply(d.Event("1", decision(schema.DecisionHold)))
	d.apply(d.Event("1", gateSays(schema.DecisionProceed)))
	d.apply(held) // sent again: it is older
	d.idle(300 * time.Millisecond)
	if d.erased("1") {
		d.Fatal("the gate's word undid a person's hold")
	}
	d.wantWait("held", "proceed")
	d.apply(d.Event("1", decision(schema.DecisionRelease)))
	d.within(patience, "phase 2 after the gate's word and the release", func() bool { return d.erased("1") })
}

// gateOfNewCase: what the gate said of an earlier case says nothing of the next.
func gateOfNewCase(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", &schema.SubjectErasure{}), d.Event("1", decision(schema.DecisionHold)))
	d.apply(d.Event("1", gateSays(schema.DecisionProceed)))
	d.apply(d.Event("1", decision(schema.DecisionCancel)))
	d.within(patience, "the case is cancelled", func() bool { return d.in.ReadPerson("1") == Person{Found: true, Personal: true, Usable: true} })
	d.apply(d.Event("1", &schema.SubjectErasure{}))
	d.idle(300 * time.Millisecond)
	d.wantPerson("1", Person{Personal: true})
	d.wantWait("gate", "waiting")
	d.apply(d.Event("1", gateSays(schema.DecisionProceed)))
	d.within(patience, "phase 2 once the gate lets go", func() bool { return d.erased("1") })
}

// gateOnDecision: the gate decides nothing that is left to a person.
func gateOnDecision(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}))
	d.apply(d.Event("1", gateSays(schema.DecisionProceed)))
	d.idle(300 * time.Millisecond)
	d.wantPerson("1", Person{Personal: true})
	d.wantWait("decision", "proceed")
	d.apply(d.Event("1", decision(schema.DecisionProceed)))
	d.within(patience, "phase 2 once both have said so", func() bool { return d.erased("1") })
}

// gateElsewhere: a replica that does not need the contract takes note, and goes on.
func gateElsewhere(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", &schema.SubjectErasure{}), d.Event("1", gateSays(schema.DecisionHold, "request")),
		d.Event("1", &schema.SourceReport{Aspect: schema.AspectRequest, Missing: []string{"request"}, CheckedAt: now()}))
	d.within(patience, "phase 2 in spite of the gate", func() bool { return d.erased("1") })
	c := d.theCase()
	if c.Source.Gate != "failed" || !slices.Equal(c.Source.GateChecks, []string{"request"}) || c.Source.Requested != "no" ||
		!slices.Contains(c.Source.States, ledger.SourceUnauthorised) {
		d.Errorf("the case shows %+v", c.Source)
	}
}

// sourceStates: what the source was found to say shows, and the newest counts.
func sourceStates(d *driver) {
	d.in.InsertPerson("1")
	marker := d.Event("1", &schema.SubjectErasure{})
	d.apply(marker)
	if got := d.theCase().Source; len(got.States) > 0 || got.Requested != "" || !got.LegalDueAt.IsZero() {
		d.Errorf("a case nobody has asked about shows %+v", got)
	}
	received, due := now().Add(-48*time.Hour), now().Add(28*24*time.Hour)
	left := d.Event("1", &schema.SourceReport{
		Aspect: schema.AspectCompleteness, Missing: []string{"public.customer.last_name", "public.customer_email"}, CheckedAt: now(),
	})
	d.apply(left, d.Event("1", &schema.SourceReport{
		Aspect: schema.AspectRequest, Satisfied: true, ReceivedAt: received, LegalDueAt: due, CheckedAt: now(),
	}))
	got := d.theCase().Source
	if !slices.Equal(got.States, []string{ledger.SourceIncomplete}) || !slices.Equal(got.Missing, []string{"public.customer.last_name", "public.customer_email"}) {
		d.Errorf("an incomplete case shows %+v", got)
	}
	if got.Requested != "yes" || !got.ReceivedAt.Equal(received) || !got.LegalDueAt.Equal(due) {
		d.Errorf("the request shows as %+v", got)
	}
	d.apply(d.Event("1", &schema.SourceReport{Aspect: schema.AspectCompleteness, Satisfied: true, CheckedAt: now()}))
	revived := d.Event("1", &schema.SourceReport{Aspect: schema.AspectRevived, Missing: []string{"public.customer"}, CheckedAt: now()})
	d.apply(left, revived) // the first is sent again
	if got := d.theCase().Source.States; !slices.Equal(got, []string{ledger.SourceComplete, ledger.SourceRevived}) {
		d.Errorf("a revived case shows %v", got)
	}
	// Nothing that comes with the row is permitted.
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	d.wantPerson("1", Person{Personal: true})
	d.apply(marker)
	if got := d.theCase().Source.States; !slices.Contains(got, ledger.SourceRevived) {
		d.Errorf("the marker sent again ended the revival: %v", got)
	}
	d.apply(d.Event("1", &schema.SubjectErasure{}), revived)
	if got := d.theCase().Source.States; !slices.Equal(got, []string{ledger.SourceComplete}) {
		d.Errorf("a case that is erased again shows %v", got)
	}
}

// gateOfJoined: a record that was joined into another one waits for what the gate says of that.
func gateOfJoined(d *driver) {
	d.in.InsertPerson("1")
	d.in.InsertPerson("2")
	d.apply(d.Event("1", consent(schema.ConsentWithdrawn)), d.Event("2", consent(schema.ConsentWithdrawn)))
	d.apply(d.Event("1", &schema.SubjectMerged{Absorbed: []schema.SubjectRef{d.IDs.SubjectRef(schema.CanonicalKey(nil, []byte("2")))}}))
	d.idle(300 * time.Millisecond)
	d.apply(d.Event("1", &schema.SubjectErasure{}))
	d.within(patience, "the joined record is suppressed too", func() bool { return !d.in.ReadPerson("2").Usable })
	d.apply(d.Event("1", gateSays(schema.DecisionHold, "no_unpaid_invoice")))
	d.idle(500 * time.Millisecond)
	if d.erased("1") || d.erased("2") {
		d.Error("phase 2 ran although the gate holds")
	}
	d.apply(d.Event("1", gateSays(schema.DecisionProceed)))
	d.within(patience, "both are erased once the gate lets go", func() bool { return d.erased("1") && d.erased("2") })
}
