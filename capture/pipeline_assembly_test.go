package capture

import (
	"context"
	"testing"
	"testing/synctest"

	"lethe/schema"
)

// keeper keeps the events that it is given to encode.
type keeper struct {
	textEncoder
	events []schema.Event
}

func (k *keeper) Append(dst []byte, ev *schema.Event) ([]byte, error) {
	e := *ev
	if c, ok := ev.Body.(*schema.ConsentChange); ok {
		body := *c
		e.Body = &body
	}
	e.CRMKey = append([]byte(nil), ev.CRMKey...)
	k.events = append(k.events, e)
	return k.textEncoder.Append(dst, ev)
}

// draftsRuler gives the drafts of each change, by its message.
type draftsRuler struct {
	*world
	drafts map[string][]Draft
}

func (r draftsRuler) Apply(_ *Transaction, c *Change, out []Draft) ([]Draft, error) {
	return append(out, r.drafts[string(c.Message)]...), nil
}

func TestEventsCarryWhatTheSinksNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("erasure", "nothing", "consent")
		customer, address := schema.CanonicalKey(nil, []byte("42")), schema.CanonicalKey(nil, []byte("7"))
		body := &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentGiven}
		rules := draftsRuler{w, map[string][]Draft{
			"erasure": {{Rule: "erased", PK: customer, SubjectKey: customer, Body: &schema.SubjectErasure{}}},
			"consent": {
				{Rule: "consent", PK: customer, SubjectKey: customer, Body: body, ContactTable: "public.customer_email", ContactPK: address},
				{Rule: "objection", PK: customer, SubjectKey: customer, Body: &schema.Objection{}},
				{Rule: "contact_point", PK: customer, SubjectKey: customer, Body: &schema.ContactPoint{}, ContactTable: "public.customer_email", ContactPK: address},
				{Rule: "merged", PK: customer, SubjectKey: customer, Body: &schema.SubjectMerged{}, Absorbed: [][]byte{address}},
			},
		}}
		kept := &keeper{}
		digest := [32]byte{1, 2, 3}
		p := w.pipeline(func(o *Options) { o.Rules, o.Encoder, o.ConfigDigest = rules, kept, digest })
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		w.until("encoded", func() bool { return w.publishes > 0 })
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ids := schema.NewIdentifiers(prf{}, "crm")
		ref := ids.SubjectRef(customer)
		if len(kept.events) != 5 {
			t.Fatalf("%d events", len(kept.events))
		}
		for i, ordinal := range []uint32{0, 2, 2, 2, 2} {
			ev := &kept.events[i]
			if ev.SubjectRef != ref || string(ev.CRMKey) != string(customer) || ev.Source != "crm" || ev.ConfigDigest != digest ||
				ev.Order != schema.NewOrder(1, 1, 100, ordinal) || !ev.CommittedAt.Equal(w.script[0].tx.CommittedAt) || ev.DetectedAt.IsZero() {
				t.Errorf("event %d: %+v", i, ev.Header)
			}
		}
		if kept.events[0].CaseID != ids.CaseID(ref) || !kept.events[1].CaseID.IsZero() {
			t.Error("an erasure belongs to its subject's case, and nothing else does")
		}
		consent, ok := kept.events[1].Body.(*schema.ConsentChange)
		if !ok || consent.Contact != ids.ContactRef("public.customer_email", address) {
			t.Errorf("the consent's contact point: %+v", kept.events[1].Body)
		}
		if point, ok := kept.events[3].Body.(*schema.ContactPoint); !ok || point.Contact != consent.Contact {
			t.Errorf("the contact point is not what the consent is bound to: %+v", kept.events[3].Body)
		}
		if merged, ok := kept.events[4].Body.(*schema.SubjectMerged); !ok || len(merged.Absorbed) != 1 || merged.Absorbed[0] != ids.SubjectRef(address) {
			t.Errorf("the subjects that were joined: %+v", kept.events[4].Body)
		}
		want := ids.EventID(schema.EventKey{
			Incarnation: 1, Epoch: 1, Number: 100, Table: "public.customer", PK: customer, Op: uint8(OpUpdate), Occurrence: 2, Rule: "objection",
		})
		if kept.events[2].EventID != want {
			t.Error("the event's id does not follow from its change")
		}
	})
}

func TestEventWithoutSubjectIsADefect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.add("x")
		p := w.pipeline(func(o *Options) {
			o.Rules = draftsRuler{w, map[string][]Draft{"x": {{Rule: "objection", Body: &schema.Objection{}}}}}
		})
		stop := w.run(p)
		w.until("stopped", func() bool { return p.Status().State == StateStopped })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
