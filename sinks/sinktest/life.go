package sinktest

import (
	"time"

	"lethe/schema"
)

// permittedPerson is a person who may be sent the newsletter.
var permittedPerson = Person{Personal: true, Usable: true, Newsletter: true}

// email is a contact point with these addresses.
func email(point byte, addresses ...string) *schema.ContactPoint {
	c := &schema.ContactPoint{Contact: schema.ContactRef{point}, Kind: schema.ContactEmail}
	for _, a := range addresses {
		k := schema.MatchKey{Type: "email_strict", KeyID: 1, NormVersion: 1}
		copy(k.Value[:], a)
		c.Keys = append(c.Keys, k)
	}
	return c
}

// bound is a consent for a contact point.
func bound(point byte, state schema.ConsentState) *schema.ConsentChange {
	c := consent(state)
	c.Contact = schema.ContactRef{point}
	return c
}

func contactReplaced(d *driver) {
	d.in.InsertPerson("1")
	d.apply(d.Event("1", bound(1, schema.ConsentGiven)))
	d.apply(d.Event("1", email(1, "a@example.org")))
	d.wantPerson("1", permittedPerson) // it came later than what was given for it
	d.apply(d.Event("1", email(1, "a@example.org")))
	d.wantPerson("1", permittedPerson)
	replaced := d.Event("1", email(1, "b@example.org"))
	d.apply(replaced)
	d.wantPerson("1", live)
	d.receipts()
	if len(d.notices) != 1 {
		d.Fatalf("%d notices of consents that fell, want 1", len(d.notices))
	}
	if n := d.notices[0]; n.Purpose != "newsletter" || n.Channel != "email" || n.EventID != replaced.EventID || n.Contact != (schema.ContactRef{1}) {
		d.Errorf("notice %+v", n)
	}
	d.apply(replaced)
	d.receipts()
	if len(d.notices) != 1 {
		d.Errorf("delivered again: %d notices, want 1", len(d.notices))
	}
	again := d.Event("1", bound(1, schema.ConsentGiven))
	again.Kind, again.RunID = schema.KindSnapshot, "pass"
	d.apply(again) // the source does not void its rows
	d.wantPerson("1", live)
	d.apply(d.Event("1", bound(1, schema.ConsentGiven)))
	d.wantPerson("1", permittedPerson)
}

func contactRemoved(d *driver) {
	d.in.InsertPerson("1")
	gone := &schema.ContactPoint{Contact: schema.ContactRef{1}, Kind: schema.ContactEmail, Removed: true}
	d.apply(d.Event("1", email(1, "a@example.org")), d.Event("1", email(2, "b@example.org")), d.Event("1", bound(2, schema.ConsentGiven)),
		d.Event("1", bound(1, schema.ConsentWithdrawn)))
	d.wantPerson("1", live)
	removed := d.Event("1", gone)
	d.apply(removed)
	d.wantPerson("1", live) // the withdrawal follows the person
	d.apply(removed)
	d.wantPerson("1", live)
	d.apply(d.Event("1", bound(2, schema.ConsentGiven)))
	d.wantPerson("1", permittedPerson)
	// What was withdrawn for it is delivered again behind its end.
	withdrawn := d.Event("1", bound(2, schema.ConsentWithdrawn))
	d.apply(withdrawn)
	d.apply(d.Event("1", &schema.ContactPoint{Contact: schema.ContactRef{2}, Kind: schema.ContactEmail, Removed: true}))
	for range 2 {
		d.apply(withdrawn)
		d.wantPerson("1", live)
	}
}

func withdrawalElsewhere(d *driver) {
	const people = 6 // in both partitions
	for i := range people {
		d.in.InsertPerson(keyOf(i))
		point := byte(1 + i)
		d.apply(d.Event(keyOf(i), email(point, "family@example.org")), d.Event(keyOf(i), bound(point, schema.ConsentGiven)))
		d.wantPerson(keyOf(i), permittedPerson)
	}
	d.in.InsertPerson("1")
	d.apply(d.Event("1", email(1, "alone@example.org")), d.Event("1", bound(1, schema.ConsentGiven)))
	d.apply(d.Event(keyOf(0), bound(1, schema.ConsentWithdrawn)))
	d.wantPerson(keyOf(0), live)
	d.within(10*time.Second, "a withdrawal holds wherever the address stands", func() bool {
		for i := range people {
			if d.in.ReadPerson(keyOf(i)).Newsletter {
				return false
			}
		}
		return true
	})
	d.wantPerson("1", permittedPerson)
}

func withdrawalKnownBefore(d *driver) {
	d.in.InsertPerson("1")
	d.in.InsertPerson("2")
	d.apply(d.Event("2", bound(2, schema.ConsentGiven)))
	d.apply(d.Event("1", email(1, "family@example.org")))
	d.apply(d.Event("1", bound(1, schema.ConsentWithdrawn)))
	d.wantPerson("2", permittedPerson)
	d.apply(d.Event("2", email(2, "family@example.org")))
	d.wantPerson("2", live)
	d.apply(d.Event("2", bound(2, schema.ConsentGiven))) // its own, and newer
	d.wantPerson("2", permittedPerson)
}

func objectionElsewhere(d *driver) {
	raised := &schema.Objection{Raised: true, Scope: "direct_marketing", Contact: schema.ContactRef{1}}
	for i, key := range []string{"1", "2", "3"} {
		d.in.InsertPerson(key)
		d.apply(d.Event(key, bound(byte(1+i), schema.ConsentGiven)))
		d.wantPerson(key, permittedPerson)
	}
	d.apply(d.Event("1", raised)) // before anything is known of the address
	d.wantPerson("1", Person{Personal: true, Usable: true, Objects: true})
	d.apply(d.Event("2", email(2, "family@example.org")))
	d.apply(d.Event("1", email(1, "family@example.org")))
	d.within(10*time.Second, "an objection about an address holds wherever it stands", func() bool { return !d.in.ReadPerson("2").Newsletter })
	d.wantPerson("2", live) // it is not their objection
	d.wantPerson("3", permittedPerson)
	// It follows the person when the address goes.
	d.apply(d.Event("1", &schema.ContactPoint{Contact: schema.ContactRef{1}, Kind: schema.ContactEmail, Removed: true}))
	d.wantPerson("1", Person{Personal: true, Usable: true, Objects: true})
	d.apply(d.Event("1", &schema.Objection{Scope: "direct_marketing"}))
	d.wantPerson("1", live)
}

func newRecordOfTheErased(d *driver) {
	for _, key := range []string{"1", "2", "3"} {
		d.in.InsertPerson(key)
	}
	d.apply(d.Event("1", email(1, "a@example.org")))
	erased := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(erased)
	d.within(10*time.Second, "the erasure is verified", func() bool {
		states := d.states(erased)
		return len(states) > 0 && states[len(states)-1] == schema.ReceiptVerified
	})
	d.apply(d.Event("2", email(2, "a@example.org")))
	if out := d.apply(d.Event("2", bound(2, schema.ConsentGiven))); out.Refused != 1 {
		d.Errorf("a grant without evidence of a new record with an erased person's address: %+v, want it refused", out)
	}
	d.wantPerson("2", live)
	proven := bound(2, schema.ConsentGiven)
	proven.Evidence = []byte("form 7")
	d.apply(d.Event("2", proven))
	d.wantPerson("2", permittedPerson)
	// A grant that came before the address, in a transaction of its own.
	d.apply(d.Event("3", bound(3, schema.ConsentGiven)))
	d.wantPerson("3", permittedPerson)
	d.apply(d.Event("3", email(3, "a@example.org")))
	d.wantPerson("3", live)
}

func joinedRecords(d *driver) {
	for _, key := range []string{"1", "2", "3"} {
		d.in.InsertPerson(key)
		d.apply(d.Event(key, consent(schema.ConsentGiven)))
	}
	ref := func(key string) schema.SubjectRef { return d.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(key))) }
	d.apply(d.Event("2", consent(schema.ConsentWithdrawn)))
	d.apply(d.Event("1", &schema.SubjectMerged{Absorbed: []schema.SubjectRef{ref("2"), ref("3")}}))
	d.within(10*time.Second, "the stricter of both holds for the survivor", func() bool { return !d.in.ReadPerson("1").Newsletter })
	d.within(10*time.Second, "and for the other duplicate", func() bool { return !d.in.ReadPerson("3").Newsletter })
	d.apply(d.Event("1", consent(schema.ConsentGiven)))
	d.wantPerson("1", permittedPerson)
	erased := d.Event("1", &schema.SubjectErasure{Marker: true})
	d.apply(erased)
	d.within(15*time.Second, "the erasure of the survivor covers the absorbed", func() bool {
		return !d.in.ReadPerson("1").Personal && !d.in.ReadPerson("2").Personal && !d.in.ReadPerson("3").Personal
	})
	d.within(10*time.Second, "each has its own proof in the survivor's case", func() bool {
		verified := 0
		for _, r := range d.receipts() {
			if r.State == schema.ReceiptVerified && r.CaseID == erased.CaseID {
				verified++
			}
		}
		return verified == 3
	})
}

// joinedAndCancelled takes an erasure back that covered a duplicate.
func joinedAndCancelled(d *driver) {
	for _, key := range []string{"1", "2"} {
		d.in.InsertPerson(key)
		d.apply(d.Event(key, consent(schema.ConsentGiven)))
	}
	absorbed := d.IDs.SubjectRef(schema.CanonicalKey(nil, []byte("2")))
	d.apply(d.Event("1", &schema.SubjectErasure{Marker: true}))
	d.apply(d.Event("1", &schema.SubjectMerged{Absorbed: []schema.SubjectRef{absorbed}}))
	d.within(10*time.Second, "the erasure of the survivor covers the absorbed", func() bool { return !d.in.ReadPerson("2").Usable })
	d.apply(d.Event("1", decision(schema.DecisionCancel)))
	d.within(10*time.Second, "its cancel does so too", func() bool { return d.in.ReadPerson("1").Usable && d.in.ReadPerson("2").Usable })
	d.wantPerson("2", permittedPerson)
	d.idle(500 * time.Millisecond) // nothing opens it again
	d.wantPerson("2", permittedPerson)
}

// runsOut compares the end of a consent's validity with the replica's clock, at the very moment.
func runsOut(d *driver) {
	d.in.InsertPerson("1")
	given := consent(schema.ConsentGiven)
	given.ValidUntil = time.Now().UTC().Add(1500 * time.Millisecond).Truncate(time.Millisecond)
	d.apply(d.Event("1", given))
	if time.Now().Before(given.ValidUntil) {
		d.wantPerson("1", permittedPerson)
	}
	d.within(10*time.Second, "a consent runs out", func() bool {
		before := time.Now()
		permitted := d.in.ReadPerson("1").Newsletter
		if !permitted && before.Before(given.ValidUntil.Add(-200*time.Millisecond)) {
			d.Fatal("it ran out too early")
		}
		return !permitted
	})
}
