package sinktest

import (
	"slices"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// patience is how long the suite waits for what is due.
const patience = 15 * time.Second

// erased is what a person's row must look like after phase 2.
func (d *driver) erased(crmKey string) bool {
	p := d.in.ReadPerson(crmKey)
	return !p.Found || !p.Personal && !p.Usable && !p.Newsletter
}

func erasure(d *driver) {
	d.in.InsertPerson("1")
	d.in.InsertPerson("2")
	d.apply(d.Event("1", consent(schema.ConsentGiven)), d.Event("2", consent(schema.ConsentGiven)))
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	out := d.apply(ev)
	if len(out.Unusable) != 1 || out.Unusable[0] < 0 || out.Unusable[0] > time.Minute {
		d.Errorf("latency of the erasure: %v", out.Unusable)
	}
	d.wantPerson("1", Person{Personal: true})
	d.wantStates(ev, schema.ReceiptSuppressed)
	d.due()
	d.wantPerson("1", Person{Personal: true})
	// A further marker of the same case and a grant that comes later change nothing.
	d.apply(d.Event("1", &schema.SubjectErasure{Marker: true}))
	if out := d.apply(d.Event("1", consent(schema.ConsentGiven))); out.Refused != 1 {
		d.Errorf("a grant after the erasure: %+v, want it refused", out)
	}
	d.within(patience, "phase 2 runs after the cool-off", func() bool { return d.erased("1") })
	d.within(patience, "the erasure is verified", func() bool {
		return slices.Contains(d.states(ev), schema.ReceiptVerified)
	})
	d.wantStates(ev, schema.ReceiptSuppressed, schema.ReceiptApplied, schema.ReceiptVerified)
	d.wantPerson("2", Person{Personal: true, Usable: true, Newsletter: true})
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	d.idle(200 * time.Millisecond)
	if !d.erased("1") {
		d.Errorf("a grant revived an erased person: %+v", d.in.ReadPerson("1"))
	}
	d.wantStates(ev, schema.ReceiptSuppressed, schema.ReceiptApplied, schema.ReceiptVerified)
	last := d.receipts()[len(d.receipts())-1]
	for _, r := range d.receipts() {
		if r.EventID == ev.EventID && r.State == schema.ReceiptVerified {
			last = r
		}
	}
	if last.Evidence < schema.EvidenceReadBack || last.Verification == nil || last.Verification.Remaining != 0 || last.CaseID != ev.CaseID {
		d.Errorf("the verified receipt: %+v", last)
	}
}

func erasureAtOnce(d *driver) {
	d.in.InsertPerson("1")
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	d.within(patience, "phase 2 runs", func() bool { return d.erased("1") })
	d.within(patience, "it is verified", func() bool { return slices.Contains(d.states(ev), schema.ReceiptVerified) })
}

func erasureUnmatched(d *driver) {
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	d.due()
	if got := d.states(ev); !slices.Equal(got, []schema.ReceiptState{schema.ReceiptNoMatch}) {
		d.Errorf("receipts of an erasure without a row: %v, want no_match", got)
	}
	d.in.InsertPerson("1")
	d.within(patience, "a row that comes later is erased", func() bool { return d.erased("1") })
	d.within(patience, "it is verified", func() bool { return slices.Contains(d.states(ev), schema.ReceiptVerified) })
}

func cancel(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	before := d.in.ReadPerson("1")
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	if d.in.ReadPerson("1").Usable {
		d.Fatal("not suppressed")
	}
	d.apply(d.Event("1", decision(schema.DecisionCancel)))
	d.within(patience, "the suppression is undone", func() bool { return d.in.ReadPerson("1") == before })
	d.idle(coolOff + time.Second)
	if got := d.in.ReadPerson("1"); got != before {
		d.Errorf("a cancelled case went on: %+v", got)
	}
	d.wantStates(ev, schema.ReceiptSuppressed, schema.ReceiptCancelled)
	// The same marker delivered again does not open the case again.
	d.apply(ev)
	if got := d.in.ReadPerson("1"); got != before {
		d.Errorf("a redelivered marker opened a cancelled case: %+v", got)
	}
	// Consents follow again.
	d.apply(d.Event("1", consent(schema.ConsentWithdrawn)))
	d.wantPerson("1", live)
}

func hold(d *driver) {
	d.in.InsertPerson("1")
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	d.apply(d.Event("1", decision(schema.DecisionHold)), d.Event("1", decision(schema.DecisionProceed)))
	d.idle(coolOff + time.Second)
	d.wantPerson("1", Person{Personal: true})
	d.wantStates(ev, schema.ReceiptSuppressed, schema.ReceiptHeld)
	d.apply(d.Event("1", decision(schema.DecisionRelease)))
	d.within(patience, "a released case goes on", func() bool { return d.erased("1") })
	d.apply(d.Event("1", decision(schema.DecisionCancel)))
	d.idle(200 * time.Millisecond)
	if !d.erased("1") {
		d.Error("a cancel after phase 2 brought something back")
	}
}

func onDecision(d *driver) {
	d.in.InsertPerson("1")
	ev := d.Event("1", &schema.SubjectErasure{Marker: true, Phase2: schema.Phase2OnDecision})
	d.apply(ev)
	d.idle(time.Second)
	d.wantPerson("1", Person{Personal: true})
	d.apply(d.Event("1", decision(schema.DecisionProceed)))
	d.within(patience, "it proceeds when decided", func() bool { return d.erased("1") })
}

func breaker(d *driver) {
	const people = 6
	var evs []*schema.Event
	for i := range people {
		d.in.InsertPerson(keyOf(i))
		evs = append(evs, d.Event(keyOf(i), &schema.SubjectErasure{Marker: true}))
	}
	d.apply(evs...)
	d.idle(time.Second)
	for i := range people {
		d.wantPerson(keyOf(i), Person{Personal: true})
		d.wantStates(evs[i], schema.ReceiptSuppressed, schema.ReceiptAwaitingRelease)
	}
	d.apply(d.Event(keyOf(0), decision(schema.DecisionRelease)))
	d.within(patience, "a released case goes on", func() bool { return d.erased(keyOf(0)) })
	d.idle(500 * time.Millisecond)
	d.wantPerson(keyOf(1), Person{Personal: true})
	for i := 1; i < people; i++ {
		d.apply(d.Event(keyOf(i), decision(schema.DecisionRelease)))
	}
	d.within(patience, "all released cases go on", func() bool {
		for i := range people {
			if !d.erased(keyOf(i)) {
				return false
			}
		}
		return true
	})
}

func observe(d *driver) {
	d.in.InsertPerson("1")
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(d.Event("1", consent(schema.ConsentGiven)), d.Event("1", &schema.Objection{Raised: true, Scope: "direct_marketing"}), ev)
	d.idle(500 * time.Millisecond)
	d.wantPerson("1", live)
	states := d.states(ev)
	if len(states) == 0 || slices.ContainsFunc(states, func(s schema.ReceiptState) bool { return s != schema.ReceiptPlanned }) {
		d.Errorf("receipts while observing: %v, want what would be done", states)
	}
}

func suppress(d *driver) {
	d.in.InsertPerson("1")
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	d.idle(time.Second)
	d.wantPerson("1", Person{Personal: true})
	if states := d.states(ev); slices.Contains(states, schema.ReceiptApplied) || !slices.Contains(states, schema.ReceiptSuppressed) {
		d.Errorf("receipts in mode suppress: %v", states)
	}
}

func outbox(d *driver) {
	const people = 9
	for i := range people {
		d.in.InsertPerson(keyOf(i))
		d.apply(d.Event(keyOf(i), &schema.SubjectErasure{Marker: true}))
	}
	first, err := d.r.Unsent(d.Context(), []int32{0, 1}, 4)
	if err != nil || len(first) != 4 {
		d.Fatalf("Unsent with limit 4 gave %d: %v", len(first), err)
	}
	again, err := d.r.Unsent(d.Context(), []int32{0, 1}, 4)
	if err != nil || !slices.EqualFunc(first, again, func(a, b sinks.OutboxReceipt) bool { return a.ID == b.ID }) {
		d.Fatalf("what was not marked as sent did not come again: %v", err)
	}
	one, err := d.r.Unsent(d.Context(), []int32{0}, 100)
	if err != nil {
		d.Fatal(err)
	}
	other, err := d.r.Unsent(d.Context(), []int32{1}, 100)
	if err != nil {
		d.Fatal(err)
	}
	if len(one) == 0 || len(other) == 0 || len(one)+len(other) != people {
		d.Errorf("%d and %d receipts by partition, want %d in all", len(one), len(other), people)
	}
	before := len(d.receipts())
	if before != people {
		d.Errorf("%d receipts left, want %d", before, people)
	}
	if rest, err := d.r.Unsent(d.Context(), []int32{0, 1}, 100); err != nil || len(rest) != 0 {
		d.Errorf("%d receipts came again after they were marked: %v", len(rest), err)
	}
}

func gap(d *driver) {
	d.in.InsertPerson("1")
	opened := &schema.Gap{Opened: true, GapID: "G1", Cause: "slot_lost"}
	d.toAll(opened)
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	d.idle(time.Second)
	for _, r := range d.receipts() {
		if r.EventID == ev.EventID && !slices.Contains(r.Gaps, "G1") {
			d.Errorf("receipt %v does not carry the open gap: %v", r.State, r.Gaps)
		}
	}
	if slices.Contains(d.states(ev), schema.ReceiptVerified) {
		d.Error("verified while a gap is open")
	}
	// A case that is opened after the gap was closed is not held back by it.
	d.toAll(&schema.Gap{GapID: "G1", Cause: "slot_lost"})
	d.in.InsertPerson("2")
	after := d.Event("2", &schema.SubjectErasure{Marker: true})
	d.apply(after)
	d.within(patience, "it is verified after the gap was closed", func() bool {
		return slices.Contains(d.states(after), schema.ReceiptVerified)
	})
}

// toAll applies one event without a subject to every partition, as the topic has it.
func (d *driver) toAll(body schema.Body) {
	d.Helper()
	ev := d.Event("", body)
	b := d.Batch()
	for p := range int32(suitePartitions) {
		b.From = append(b.From, d.Places[p])
		b.Records = append(b.Records, d.Record(p, d.Places[p].NextOffset, ev))
	}
	out, err := d.r.Apply(d.Context(), b)
	if err != nil {
		d.Fatalf("Apply: %v", err)
	}
	d.Move(out.Places...)
}
