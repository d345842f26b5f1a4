package sinktest

import (
	"math/rand/v2"
	"slices"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

func consentFollows(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	d.wantPerson("1", Person{Personal: true, Usable: true, Newsletter: true})
	d.apply(d.Event("1", consent(schema.ConsentWithdrawn)))
	d.wantPerson("1", live)
	d.apply(d.Event("1", consent(schema.ConsentRenewedGiven)))
	d.wantPerson("1", Person{Personal: true, Usable: true, Newsletter: true})
	without := consent(schema.ConsentGiven)
	without.LegalBasis = ""
	if out := d.apply(d.Event("1", without)); out.Refused != 1 {
		d.Errorf("a grant without legal basis: %+v, want it refused", out)
	}
	d.wantPerson("1", live)
	// Another contact point that consents does not lift what the first one forbids.
	second := consent(schema.ConsentGiven)
	second.Contact = schema.ContactRef{2}
	d.apply(d.Event("1", second))
	d.wantPerson("1", live)
	// A consent that has run out is none.
	d.in.InsertPerson("2")
	short := consent(schema.ConsentGiven)
	short.ValidUntil = time.Now().Add(-time.Hour).UTC().Truncate(time.Millisecond)
	d.apply(d.Event("2", short))
	d.wantPerson("2", live)
}

func objectionFollows(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", consent(schema.ConsentGiven)), d.Event("1", &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	d.wantPerson("1", Person{Personal: true, Usable: true, Objects: true})
	lifted := d.Event("1", &schema.Objection{Scope: "direct_marketing"})
	imposed := d.Event("1", &schema.ProcessingRestriction{Imposed: true})
	out := d.apply(lifted, imposed)
	d.wantPerson("1", Person{Personal: true, Usable: true, Frozen: true})
	if len(out.Unusable) != 1 {
		d.Errorf("%d latencies, want that of the restriction", len(out.Unusable))
	}
	if len(d.states(imposed)) == 0 {
		d.Error("a restriction got no receipt")
	}
	d.apply(d.Event("1", &schema.ProcessingRestriction{}))
	d.wantPerson("1", Person{Personal: true, Usable: true, Newsletter: true})
}

func redelivery(d *driver) {
	d.in.InsertPerson("1")
	given, erased := d.Event("1", consent(schema.ConsentGiven)), d.Event("2", &schema.SubjectErasure{Marker: true})
	d.in.InsertPerson("2")
	d.apply(given, erased)
	before := d.receipts()
	person1, person2 := d.in.ReadPerson("1"), d.in.ReadPerson("2")
	for range 3 {
		// The log holds them again: the publisher's answer was lost.
		if out := d.apply(given, erased); out.Applied != 0 {
			d.Errorf("redelivered events were applied again: %+v", out)
		}
	}
	if d.in.ReadPerson("1") != person1 || d.in.ReadPerson("2") != person2 {
		d.Error("redelivered events changed a row")
	}
	for _, r := range d.receipts()[len(before):] {
		if r.EventType == schema.TypeSubjectErasure {
			d.Errorf("a redelivered erasure got another receipt: %v", r.State)
		}
	}
}

func fencing(d *driver) {
	d.in.InsertPerson("1")
	zombie, stale := d.in.Open(), d.All()
	if _, err := zombie.Assign(d.Context(), []int32{0, 1}); err != nil {
		d.Fatal(err)
	}
	withdrawn := d.Batch(d.Event("1", consent(schema.ConsentGiven)))
	d.apply(d.Event("1", consent(schema.ConsentWithdrawn)))
	part := withdrawn.From[0].Partition
	if _, err := zombie.Apply(d.Context(), withdrawn); sinks.Classify(err) != sinks.Fenced {
		d.Errorf("Apply from a place that was left: %v, want it fenced", err)
	}
	if _, err := zombie.Park(d.Context(), stale[part], &withdrawn.Records[0], "code"); sinks.Classify(err) != sinks.Fenced {
		d.Errorf("Park from a place that was left: %v, want it fenced", err)
	}
	if _, err := zombie.RunDue(d.Context(), stale); err != nil && sinks.Classify(err) != sinks.Fenced {
		d.Errorf("RunDue from a place that was left: %v, want it fenced", err)
	}
	d.wantPerson("1", live)
	d.assign()
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	d.wantPerson("1", Person{Personal: true, Usable: true, Newsletter: true})
}

func factsGuard(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.EventAt("1", 20, consent(schema.ConsentWithdrawn)))
	if out := d.apply(d.EventAt("1", 10, consent(schema.ConsentGiven))); out.Stale != 1 {
		d.Errorf("an older grant: %+v, want it stale", out)
	}
	d.wantPerson("1", live)
	// History tables: the claimed time comes before the place in the log.
	now := time.Now().UTC().Truncate(time.Millisecond)
	d.in.InsertPerson("2")
	recent, old := consent(schema.ConsentWithdrawn), consent(schema.ConsentGiven)
	recent.AsOf, old.AsOf = now.Add(-time.Hour), now.Add(-48*time.Hour)
	d.apply(d.EventAt("2", 30, recent))
	d.apply(d.EventAt("2", 40, old))
	d.wantPerson("2", live)
}

// anyOrder plays the same events of many people in any order and batching, some of them twice, and compares the rows with
// the fold.
func anyOrder(d *driver) {
	rng := rand.New(rand.NewPCG(7, 7))
	const people = 20
	facts := map[string][]sinks.Fact{}
	var log []*schema.Event
	for i := range people {
		d.in.InsertPerson(keyOf(i))
	}
	for range 300 {
		key := keyOf(rng.IntN(people))
		ev := d.Event(key, anyFact(rng))
		fact, _, _ := sinks.FactOf(ev)
		facts[key] = append(facts[key], fact)
		log = append(log, ev)
	}
	played := append(slices.Clone(log), log[:100]...)
	rng.Shuffle(len(played), func(i, j int) { played[i], played[j] = played[j], played[i] })
	for len(played) > 0 {
		n := min(len(played), 1+rng.IntN(40))
		d.apply(played[:n]...)
		played = played[n:]
	}
	for i := range people {
		v := sinks.Fold(facts[keyOf(i)], false, time.Now())
		d.wantPerson(keyOf(i), Person{
			Personal: true, Usable: true, Newsletter: v.Permitted("newsletter", "email"),
			Objects: v.Objected("direct_marketing"), Frozen: v.Restricted(),
		})
	}
}

func anyFact(rng *rand.Rand) schema.Body {
	switch rng.IntN(6) {
	case 0:
		return &schema.Objection{Raised: rng.IntN(2) == 0, Scope: []string{"direct_marketing", "all", "newsletter", "profiling"}[rng.IntN(4)]}
	case 1:
		return &schema.ProcessingRestriction{Imposed: rng.IntN(3) == 0}
	}
	states := []schema.ConsentState{
		schema.ConsentGiven, schema.ConsentGiven, schema.ConsentGiven, schema.ConsentRenewedGiven, schema.ConsentWithdrawn,
		schema.ConsentRefused, schema.ConsentInvalidated, schema.ConsentRequested,
	}
	c := consent(states[rng.IntN(len(states))])
	c.Contact = schema.ContactRef{byte(1 + rng.IntN(2))}
	return c
}

func unmatched(d *driver) {
	given := d.Event("1", consent(schema.ConsentGiven))
	if out := d.apply(given, d.Event("2", &schema.Objection{Raised: true, Scope: "direct_marketing"})); out.NoMatch != 2 {
		d.Errorf("events without a row: %+v, want no_match", out)
	}
	d.due()
	d.in.InsertPerson("1")
	d.in.InsertPerson("2")
	d.within(10*time.Second, "rows that came later get the fold", func() bool {
		return d.in.ReadPerson("1").Newsletter && d.in.ReadPerson("2").Objects
	})
}

func parking(d *driver) {
	d.in.InsertPerson("1")
	d.in.InsertPerson("2")
	d.apply(d.Event("2", consent(schema.ConsentGiven)))
	d.in.Refuse("1", true)
	poison := d.Batch(d.Event("1", consent(schema.ConsentGiven)))
	_, err := d.r.Apply(d.Context(), poison)
	if sinks.Classify(err) != sinks.Poison {
		d.Fatalf("Apply of what the database refuses: %v, want poison", err)
	}
	rec := &poison.Records[0]
	place, err := d.r.Park(d.Context(), poison.From[0], rec, sinks.CodeOf(err))
	if err != nil {
		d.Fatalf("Park: %v", err)
	}
	if place.NextOffset != rec.Offset+1 {
		d.Fatalf("Park moved the place to %d, want %d", place.NextOffset, rec.Offset+1)
	}
	d.Move(place)
	d.in.Refuse("1", false)
	if out := d.apply(d.Event("1", consent(schema.ConsentGiven)), d.Event("2", consent(schema.ConsentWithdrawn))); out.Parked != 1 {
		d.Errorf("a permission of a blocked subject: %+v, want it parked", out)
	}
	d.wantPerson("1", live)
	d.wantPerson("2", live)
	d.apply(d.Event("1", &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	d.wantPerson("1", Person{Personal: true, Usable: true, Objects: true})
	d.apply(d.Event("1", &schema.SubjectErasure{Marker: true}))
	if d.in.ReadPerson("1").Usable {
		d.Error("an erasure of a blocked subject was held back")
	}
}
