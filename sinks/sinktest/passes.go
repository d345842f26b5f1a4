package sinktest

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"lethe/schema"
)

// run is a pass over the source's present state.
type run struct {
	*driver
	id       string
	at       uint64 // the place in the log that its rows have
	whole    bool
	replicas []string
	rows     uint32
}

// newRun makes a whole pass that begins where the log is now.
func (d *driver) newRun(id string) *run { return &run{driver: d, id: id, at: d.number, whole: true} }

// marker is a begin or end marker of the pass in some partitions.
func (p *run) marker(begin bool, parts ...int32) {
	p.Helper()
	p.mark(&schema.PassMarker{Begin: begin, Full: p.whole, Tables: []string{"customer"}, Replicas: p.replicas}, parts...)
}

func (p *run) mark(body *schema.PassMarker, parts ...int32) {
	p.Helper()
	ev := p.row("", body)
	ev.Kind = schema.KindSnapshot
	p.toSome(ev, parts...)
}

func (p *run) begin() {
	p.Helper()
	p.marker(true, p.Partitions()...)
}

func (p *run) end() {
	p.Helper()
	p.marker(false, p.Partitions()...)
}

// row is what the pass says of one row: at the pass's place in the log, behind every event there.
func (p *run) row(crmKey string, body schema.Body) *schema.Event {
	ev := p.EventAt(crmKey, p.at, body)
	p.rows++
	ev.Kind, ev.RunID = schema.KindSnapshot, p.id
	ev.Order = schema.NewOrder(0, 1, p.at, 1<<31+p.rows)
	ev.EventID = p.IDs.EventID(schema.EventKey{Number: p.at, Table: "public.customer", PK: []byte(crmKey), Op: 9, Rule: p.id + strconv.Itoa(int(p.rows))})
	return ev
}

// toSome applies one event without a subject to some partitions.
func (d *driver) toSome(ev *schema.Event, parts ...int32) {
	d.Helper()
	b := d.Batch()
	for _, n := range parts {
		b.From = append(b.From, d.Places[n])
		b.Records = append(b.Records, d.Record(n, d.Places[n].NextOffset, ev))
	}
	out, err := d.r.Apply(d.Context(), b)
	if err != nil {
		d.Fatalf("Apply: %v", err)
	}
	d.Move(out.Places...)
}

var (
	subscribed = Person{Personal: true, Usable: true, Newsletter: true}
	objecting  = Person{Personal: true, Usable: true, Objects: true}
)

// passKnown: what a pass states again writes nothing and leaves no receipt.
func passKnown(d *driver) {
	raised := &schema.Objection{Raised: true, Scope: "direct_marketing"}
	d.in.InsertPerson("1")
	d.in.InsertPerson("2")
	d.in.InsertPerson("3")
	objection := d.Event("2", raised)
	d.apply(d.Event("1", consent(schema.ConsentGiven)), objection)
	d.within(patience, "the objection is read back", func() bool { return slices.Contains(d.states(objection), schema.ReceiptVerified) })
	before := len(d.receipts())
	p := d.newRun("R1")
	p.begin()
	out := d.apply(
		p.row("1", consent(schema.ConsentGiven)), p.row("2", raised),
		p.row("1", &schema.Objection{Scope: "direct_marketing"}), p.row("3", &schema.ProcessingRestriction{}))
	p.end()
	if out.Unchanged != 4 {
		d.Errorf("a pass that says what is known: %+v, want all of it unchanged", out)
	}
	d.due()
	if got := len(d.receipts()); got != before {
		d.Errorf("%d receipts of a pass that says what is known", got-before)
	}
	d.wantPerson("1", subscribed)
	d.wantPerson("2", objecting)
	d.wantPerson("3", live)
}

// passDiffers: what the log had not told is made good for, as what the log tells would be, and what the log tells later wins.
func passDiffers(d *driver) {
	for _, key := range []string{"1", "2", "3"} {
		d.in.InsertPerson(key)
	}
	d.apply(d.Event("1", consent(schema.ConsentGiven)), d.Event("2", consent(schema.ConsentGiven)))
	p := d.newRun("R1")
	p.begin()
	later := d.Event("2", consent(schema.ConsentRenewedGiven))
	d.apply(later)
	objection := p.row("3", &schema.Objection{Raised: true, Scope: "direct_marketing"})
	withdrawn, refused := p.row("1", consent(schema.ConsentWithdrawn)), p.row("2", consent(schema.ConsentWithdrawn))
	out := d.apply(withdrawn, refused, objection)
	p.end()
	if out.Reconciled != 2 || out.Stale != 1 || len(out.Unusable) != 0 {
		d.Errorf("a pass with two facts that the log lacks: %+v, want them reconciled", out)
	}
	d.wantPerson("1", live)
	d.wantPerson("2", subscribed)
	d.wantPerson("3", objecting)
	d.within(patience, "an objection that a pass has found is read back", func() bool {
		return slices.Contains(d.states(objection), schema.ReceiptVerified)
	})
	listed := false
	for _, r := range d.receipts() {
		for _, ev := range r.Events {
			listed = listed || ev.EventID == withdrawn.EventID && ev.Outcome == "reconciled"
		}
	}
	if !listed {
		d.Error("no receipt says that a withdrawal was reconciled")
	}
	// Delivered again it changes nothing.
	if out := d.apply(withdrawn, refused); out.Reconciled != 0 {
		d.Errorf("a row of a pass delivered again: %+v", out)
	}
}

// passDatedLater: a history row that claims a time to come does not beat what was withdrawn since it was read.
func passDatedLater(d *driver) {
	d.in.InsertPerson("1")
	grant, withdrawn := consent(schema.ConsentGiven), consent(schema.ConsentWithdrawn)
	grant.AsOf, withdrawn.AsOf = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().Add(-time.Minute).UTC().Truncate(time.Millisecond)
	first := d.Event("1", grant)
	first.CommittedAt = first.CommittedAt.Add(-time.Hour)
	d.apply(first)
	d.wantPerson("1", subscribed)
	d.apply(d.Event("1", withdrawn))
	d.wantPerson("1", live)
	p := d.newRun("R1")
	p.begin()
	d.apply(p.row("1", withdrawn), p.row("1", grant))
	p.end()
	d.wantPerson("1", live)
}

// passElsewhere: what a pass for other replicas says is counted, and nothing else.
func passElsewhere(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	p := d.newRun("R1")
	p.replicas = []string{"another"}
	p.begin()
	out := d.apply(p.row("1", consent(schema.ConsentWithdrawn)), p.row("2", consent(schema.ConsentGiven)), p.row("1", &schema.SubjectErasure{}))
	p.end()
	if out.Unchanged != 3 {
		d.Errorf("a pass for another replica: %+v, want it passed over", out)
	}
	d.wantPerson("1", subscribed)
	d.due()
	if n := d.in.Absent(); n != 0 {
		d.Errorf("%d subjects are absent after a pass for another replica", n)
	}
}

// passErasures: whom a pass shows as erased is suppressed at once, and erased when one decision has released them all. A
// case that the log tells of too is one of its own.
func passErasures(d *driver) {
	keys := []string{"1", "2", "3", "4"}
	evs := make([]*schema.Event, len(keys))
	p := d.newRun("R1")
	for i, key := range keys {
		d.in.InsertPerson(key)
		evs[i] = p.row(key, &schema.SubjectErasure{})
	}
	p.begin()
	out := d.apply(evs...)
	p.end()
	if out.Reconciled != len(keys) {
		d.Errorf("erasures that a pass has found: %+v, want them reconciled", out)
	}
	if out := d.apply(p.row("1", consent(schema.ConsentGiven))); out.Refused != 1 {
		d.Errorf("a grant of a suppressed subject in a pass: %+v, want it refused", out)
	}
	d.idle(500 * time.Millisecond)
	for i, key := range keys {
		d.wantPerson(key, Person{Personal: true})
		d.wantStates(evs[i], schema.ReceiptSuppressed, schema.ReceiptAwaitingRelease)
	}
	d.apply(d.Event("3", &schema.SubjectErasure{Marker: true}))
	d.within(patience, "a case that the log tells of needs no release", func() bool { return d.erased("3") })
	d.apply(d.Event("4", decision(schema.DecisionCancel)))
	d.within(patience, "the suppression is undone", func() bool { return d.in.ReadPerson("4") == Person{Found: true, Personal: true, Usable: true} })
	d.wantPerson("1", Person{Personal: true})
	d.apply(d.Event("1", decision(schema.DecisionRelease)))
	d.within(patience, "one release lets all cases of the pass go on", func() bool { return d.erased("1") && d.erased("2") })
	// The next pass reads the same rows: what is known stays as it is, and what somebody has cancelled stays cancelled.
	next := d.newRun("R2")
	next.begin()
	if out := d.apply(next.row("1", &schema.SubjectErasure{}), next.row("4", &schema.SubjectErasure{})); out.Unchanged != 2 {
		d.Errorf("erasures that are known, in the next pass: %+v", out)
	}
	next.end()
	d.wantPerson("4", live)
}

// passBlocked: while an event of a subject is parked, a pass's permission waits behind it, also where it says what is known.
func passBlocked(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	d.in.Refuse("1", true)
	poison := d.Batch(d.Event("1", &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	place, err := d.r.Park(d.Context(), poison.From[0], &poison.Records[0], "code")
	if err != nil {
		d.Fatal(err)
	}
	d.Move(place)
	d.in.Refuse("1", false)
	p := d.newRun("R1")
	p.begin()
	if out := d.apply(p.row("1", consent(schema.ConsentGiven))); out.Parked != 1 {
		d.Errorf("a pass's permission of a blocked subject: %+v, want it parked", out)
	}
	d.apply(p.row("1", &schema.ProcessingRestriction{Imposed: true}))
	d.wantPerson("1", Person{Personal: true, Usable: true, Frozen: true})
}

// incomplete: nothing is called verified before a whole pass has ended in every partition.
func incomplete(d *driver) {
	d.in.InsertPerson("1")
	p := d.newRun("R1")
	p.begin()
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(ev)
	d.within(patience, "phase 2 runs", func() bool { return d.erased("1") })
	d.idle(300 * time.Millisecond)
	if slices.Contains(d.states(ev), schema.ReceiptVerified) {
		d.Error("verified before the first pass has ended")
	}
	own := d.Partition(ev)
	p.marker(false, own)
	d.idle(300 * time.Millisecond)
	if slices.Contains(d.states(ev), schema.ReceiptVerified) {
		d.Error("verified while the pass has ended in one partition only")
	}
	p.marker(false, 1-own)
	d.within(patience, "it is verified behind the pass", func() bool { return slices.Contains(d.states(ev), schema.ReceiptVerified) })
}

// partial: a pass that did not read every table to its end completes nothing, and calls nobody absent.
func partial(d *driver) {
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	p := d.newRun("R1")
	p.begin()
	ev := d.Event("2", &schema.SubjectErasure{Marker: true})
	d.in.InsertPerson("2")
	d.apply(ev)
	p.mark(&schema.PassMarker{}, p.Partitions()...)
	d.idle(300 * time.Millisecond)
	if n := d.in.Absent(); n != 0 {
		d.Errorf("%d subjects are absent after a pass that had to leave a table", n)
	}
	if slices.Contains(d.states(ev), schema.ReceiptVerified) {
		d.Error("verified behind a pass that had to leave a table")
	}
	next := d.newRun("R2")
	next.begin()
	d.apply(next.row("1", consent(schema.ConsentGiven)))
	next.end()
	d.within(patience, "it is verified behind the whole pass", func() bool { return slices.Contains(d.states(ev), schema.ReceiptVerified) })
}

// gapCloses: a gap is open until it is closed in every partition; then what waits because of it is read back soon.
func gapCloses(d *driver) {
	d.in.InsertPerson("1")
	opened := d.Event("", &schema.Gap{Opened: true, GapID: "G1", Cause: "slot_lost"})
	d.toSome(opened, d.Partitions()...)
	ev := d.Event("1", &schema.SubjectErasure{Marker: true})
	objection := d.Event("2", &schema.Objection{Raised: true, Scope: "direct_marketing"})
	d.in.InsertPerson("2")
	d.apply(ev, objection)
	d.within(patience, "phase 2 runs", func() bool { return d.erased("1") })
	p := d.newRun("R1")
	p.begin()
	p.end()
	closed := d.Event("", &schema.Gap{GapID: "G1", Cause: "slot_lost"})
	d.toSome(closed, 0)
	d.idle(300 * time.Millisecond)
	if slices.Contains(d.states(ev), schema.ReceiptVerified) || slices.Contains(d.states(objection), schema.ReceiptVerified) {
		d.Error("verified while a gap is open in one partition")
	}
	d.toSome(closed, 1)
	d.within(patience, "they are verified after the gap was closed", func() bool {
		return slices.Contains(d.states(ev), schema.ReceiptVerified) && slices.Contains(d.states(objection), schema.ReceiptVerified)
	})
}

// absence: whom a whole pass does not show is listed until one does, unless nobody knew of them when it began. Nothing
// happens to them.
func absence(d *driver) {
	for i := range 4 {
		d.in.InsertPerson(keyOf(i))
	}
	d.apply(d.Event(keyOf(0), consent(schema.ConsentGiven)), d.Event(keyOf(1), consent(schema.ConsentGiven)), d.Event(keyOf(2), &schema.SubjectErasure{}))
	want := func(n int, when string) {
		d.Helper()
		d.idle(100 * time.Millisecond)
		if got := d.in.Absent(); got != n {
			d.Errorf("%d subjects are absent %s, want %d", got, when, n)
		}
	}
	p := d.newRun("R1")
	p.begin()
	d.apply(p.row(keyOf(0), consent(schema.ConsentGiven)))
	d.apply(d.Event(keyOf(3), consent(schema.ConsentGiven))) // new, and behind what the pass has read
	want(0, "before the pass has ended")
	p.end()
	want(1, "behind the pass")
	d.wantPerson(keyOf(1), subscribed)
	next := d.newRun("R2")
	next.begin()
	next.rows = 100
	// The worker that takes over goes on where the other one was.
	d.r = d.in.Open()
	d.assign()
	d.apply(next.row(keyOf(0), consent(schema.ConsentGiven)), next.row(keyOf(1), consent(schema.ConsentGiven)))
	next.end()
	want(1, "where the next pass shows one and not another") // keyOf(3)
	// A pass that never ended is given up when the next one begins.
	d.newRun("R3").begin()
	last := d.newRun("R4")
	last.begin()
	// Where no rule has anything to say of a subject's own row, the pass says that it is there.
	d.apply(last.row(keyOf(0), consent(schema.ConsentGiven)), last.row(keyOf(1), present()), last.row(keyOf(3), present()))
	last.end()
	want(0, "when everybody is there")
	d.wantPerson(keyOf(3), subscribed)
}

func present() *schema.SourceReport {
	return &schema.SourceReport{Aspect: schema.AspectPresent, Satisfied: true, CheckedAt: time.Now().UTC().Truncate(time.Millisecond)}
}

// passAnywhere plays a random log to one replica, and to another one with a pass in it: each of its rows was read at some
// time after the pass began, and comes at another. The persons' rows end the same.
func passAnywhere(d *driver) {
	const people, length = 10, 60
	rng := rand.New(rand.NewPCG(11, 13))
	for round := range 3 {
		log := make([]*schema.Event, length)
		for i := range log {
			key := keyOf(round*people + rng.IntN(people))
			body := anyFact(rng)
			if rng.IntN(25) == 0 {
				body = &schema.SubjectErasure{}
			}
			log[i] = d.Event(key, body)
		}
		other := d.again()
		began := rng.IntN(length)
		p := d.newRun("R" + strconv.Itoa(round))
		p.at = log[began].Order.Number()
		due := map[int][]*schema.Event{}
		for i := range people {
			key := keyOf(round*people + i)
			d.in.InsertPerson(key)
			other.in.InsertPerson(key)
			read := began + rng.IntN(length-began)
			comes := began + rng.IntN(length-began)
			due[comes] = append(due[comes], p.read(key, log[:read+1])...)
		}
		for i, ev := range log {
			other.apply(ev)
			d.apply(ev)
			if i == began {
				p.begin()
			}
			if rows := due[i]; len(rows) > 0 {
				d.apply(rows...)
			}
		}
		p.end()
		for i := range people {
			key := keyOf(round*people + i)
			got, want := d.in.ReadPerson(key), other.in.ReadPerson(key)
			if !want.Usable { // a lift is refused from the suppression on, and a pass may suppress earlier
				got.Objects, got.Frozen, want.Objects, want.Frozen = false, false, false, false
			}
			if got != want {
				d.Errorf("round %d, person %s: %+v with the pass, %+v without", round, key, got, want)
			}
		}
	}
}

// read returns what the pass says of one person whose rows it reads behind a part of the log.
func (p *run) read(key string, log []*schema.Event) []*schema.Event {
	ref := p.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(key)))
	var order []string
	newest := map[string]schema.Body{}
	for _, ev := range log {
		if ev.SubjectRef != ref {
			continue
		}
		row := ev.Body.Type().String()
		switch body := ev.Body.(type) {
		case *schema.ConsentChange:
			row += body.Contact.String()
		case *schema.Objection:
			row += body.Scope
		}
		if newest[row] == nil {
			order = append(order, row)
		}
		newest[row] = ev.Body
	}
	var out []*schema.Event
	for _, row := range order {
		out = append(out, p.row(key, newest[row]))
	}
	return out
}
