package sinks_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"lethe/schema"
	"lethe/sinks"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func consent(n uint64, contact byte, state schema.ConsentState) *schema.Event {
	return &schema.Event{
		Header: schema.Header{EventID: schema.EventID{byte(n)}, Order: schema.NewOrder(1, 1, n, 0), CommittedAt: t0},
		Body: &schema.ConsentChange{
			Purpose: "newsletter", Channel: "email", Contact: schema.ContactRef{contact}, State: state, LegalBasis: "consent",
		},
	}
}

func with(ev *schema.Event, change func(*schema.ConsentChange)) *schema.Event {
	change(ev.Body.(*schema.ConsentChange))
	return ev
}

func objection(n uint64, scope string, raised bool) *schema.Event {
	return &schema.Event{
		Header: schema.Header{EventID: schema.EventID{byte(n)}, Order: schema.NewOrder(1, 1, n, 0), CommittedAt: t0},
		Body:   &schema.Objection{Raised: raised, Scope: scope},
	}
}

func restriction(n uint64, imposed bool, until time.Time) *schema.Event {
	return &schema.Event{
		Header: schema.Header{EventID: schema.EventID{byte(n)}, Order: schema.NewOrder(1, 1, n, 0), CommittedAt: t0},
		Body:   &schema.ProcessingRestriction{Imposed: imposed, Until: until},
	}
}

func factsOf(evs ...*schema.Event) []sinks.Fact {
	var fs []sinks.Fact
	for _, ev := range evs {
		if f, _, ok := sinks.FactOf(ev); ok {
			fs = append(fs, f)
		}
	}
	return fs
}

func TestFoldPermitted(t *testing.T) {
	day := 24 * time.Hour
	for _, c := range []struct {
		name   string
		log    []*schema.Event
		erased bool
		now    time.Time
		want   bool
	}{
		{name: "nothing known", want: false},
		{name: "given", log: []*schema.Event{consent(1, 1, schema.ConsentGiven)}, want: true},
		{name: "renewed", log: []*schema.Event{consent(1, 1, schema.ConsentRenewedGiven)}, want: true},
		{name: "given then withdrawn", log: []*schema.Event{consent(1, 1, schema.ConsentGiven), consent(2, 1, schema.ConsentWithdrawn)}},
		{name: "withdrawn then given", log: []*schema.Event{consent(2, 1, schema.ConsentGiven), consent(1, 1, schema.ConsentWithdrawn)}, want: true},
		{name: "withdrawn on another contact point", log: []*schema.Event{consent(2, 1, schema.ConsentGiven), consent(1, 2, schema.ConsentWithdrawn)}},
		{name: "refused on another contact point", log: []*schema.Event{consent(2, 1, schema.ConsentGiven), consent(1, 2, schema.ConsentRefused)}},
		{name: "asked on another contact point", log: []*schema.Event{consent(2, 1, schema.ConsentGiven), consent(1, 2, schema.ConsentRequested)}},
		{name: "invalidated on another contact point", log: []*schema.Event{consent(2, 1, schema.ConsentGiven), consent(1, 2, schema.ConsentInvalidated)}, want: true},
		{name: "only invalidated", log: []*schema.Event{consent(1, 1, schema.ConsentGiven), consent(2, 1, schema.ConsentInvalidated)}},
		{name: "withdrawal survives the invalidation elsewhere", log: []*schema.Event{consent(1, 1, schema.ConsentWithdrawn), consent(2, 2, schema.ConsentGiven), consent(3, 2, schema.ConsentInvalidated)}},
		{name: "no legal basis", log: []*schema.Event{with(consent(1, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.LegalBasis = "" })}},
		{name: "another channel", log: []*schema.Event{with(consent(1, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.Channel = "sms" })}},
		{name: "valid", now: t0.Add(day - 1), log: []*schema.Event{with(consent(1, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.ValidUntil = t0.Add(day) })}, want: true},
		{name: "past its validity", now: t0.Add(day), log: []*schema.Event{with(consent(1, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.ValidUntil = t0.Add(day) })}},
		{name: "objection to direct marketing", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), objection(1, "direct_marketing", true)}},
		{name: "objection to all", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), objection(1, "all", true)}},
		{name: "objection to the purpose", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), objection(1, "newsletter", true)}},
		{name: "objection to another purpose", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), objection(1, "offers", true)}, want: true},
		{name: "objection to profiling", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), objection(1, "profiling", true)}, want: true},
		{name: "objection lifted", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), objection(1, "all", true), objection(2, "all", false)}, want: true},
		{name: "restricted", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), restriction(1, true, time.Time{})}},
		{name: "restricted until later", now: t0, log: []*schema.Event{consent(9, 1, schema.ConsentGiven), restriction(1, true, t0.Add(day))}},
		{name: "restriction run out", now: t0.Add(day), log: []*schema.Event{consent(9, 1, schema.ConsentGiven), restriction(1, true, t0.Add(day))}, want: true},
		{name: "restriction lifted", log: []*schema.Event{consent(9, 1, schema.ConsentGiven), restriction(1, true, time.Time{}), restriction(2, false, time.Time{})}, want: true},
		{name: "erased", log: []*schema.Event{consent(9, 1, schema.ConsentGiven)}, erased: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := c.now
			if now.IsZero() {
				now = t0
			}
			if got := sinks.Fold(factsOf(c.log...), c.erased, now).Permitted("newsletter", "email"); got != c.want {
				t.Errorf("Permitted = %v, want %v", got, c.want)
			}
		})
	}
}

// What is carried forbids until something newer permits in the same scope, on a point that is left; that this runs out does not bring it back.
func TestFoldCarried(t *testing.T) {
	carried := func(n uint64, scope string, state sinks.State) sinks.Fact {
		return sinks.Fact{Scope: scope, Contact: sinks.Carried, Order: schema.NewOrder(1, 1, n, 0), State: state}
	}
	newsletter, marketing := sinks.ConsentScope("newsletter", "email"), sinks.ObjectionScope("direct_marketing")
	short := with(consent(5, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.ValidUntil = t0 })
	for _, c := range []struct {
		name      string
		facts     []sinks.Fact
		permitted bool
		objected  bool
	}{
		{name: "withdrawal", facts: append(factsOf(consent(2, 1, schema.ConsentGiven)), carried(3, newsletter, sinks.StateWithdrawn))},
		{name: "newer permission", facts: append(factsOf(consent(4, 1, schema.ConsentGiven)), carried(3, newsletter, sinks.StateWithdrawn)), permitted: true},
		{name: "permission in another scope", facts: append(factsOf(consent(2, 1, schema.ConsentGiven), with(consent(4, 1, schema.ConsentGiven),
			func(c *schema.ConsentChange) { c.Channel = "sms" })), carried(3, newsletter, sinks.StateWithdrawn))},
		{name: "ran out", facts: append(factsOf(short), carried(3, newsletter, sinks.StateWithdrawn))},
		{name: "two withdrawals", facts: append(factsOf(consent(4, 1, schema.ConsentGiven)), carried(3, newsletter, sinks.StateWithdrawn),
			carried(5, newsletter, sinks.StateWithdrawn))},
		{name: "objection", facts: append(factsOf(consent(9, 1, schema.ConsentGiven)), carried(3, marketing, sinks.StateRaised)), objected: true},
		{name: "objection lifted before", facts: append(factsOf(consent(9, 1, schema.ConsentGiven), objection(2, "direct_marketing", false)),
			carried(3, marketing, sinks.StateRaised)), objected: true},
		{name: "objection lifted", facts: append(factsOf(consent(9, 1, schema.ConsentGiven), objection(4, "direct_marketing", false)),
			carried(3, marketing, sinks.StateRaised)), permitted: true},
	} {
		v := sinks.Fold(c.facts, false, t0)
		if v.Permitted("newsletter", "email") != c.permitted || v.Objected("direct_marketing") != c.objected {
			t.Errorf("%s: permitted %v, objected %v", c.name, v.Permitted("newsletter", "email"), v.Objected("direct_marketing"))
		}
	}
}

func TestFoldNextChange(t *testing.T) {
	log := factsOf(
		with(consent(1, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.ValidUntil = t0.Add(3 * time.Hour) }),
		restriction(2, true, t0.Add(2*time.Hour)),
	)
	for _, c := range []struct {
		now, want time.Time
	}{
		{t0, t0.Add(2 * time.Hour)},
		{t0.Add(2 * time.Hour), t0.Add(3 * time.Hour)},
		{t0.Add(3 * time.Hour), time.Time{}},
	} {
		if got := sinks.Fold(log, false, c.now).NextChange(); !got.Equal(c.want) {
			t.Errorf("at %v: NextChange = %v, want %v", c.now, got, c.want)
		}
	}
	if got := sinks.Fold(log, true, t0).NextChange(); !got.IsZero() {
		t.Errorf("erased: NextChange = %v, want none", got)
	}
}

func TestFactOfBoundsAsOf(t *testing.T) {
	future := with(consent(1, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.AsOf = t0.AddDate(70, 0, 0) })
	f, _, _ := sinks.FactOf(future)
	if !f.AsOf.Equal(t0) {
		t.Errorf("as_of = %v, want the commit time %v", f.AsOf, t0)
	}
}

func TestNewerByAsOf(t *testing.T) {
	old := sinks.Fact{Order: schema.NewOrder(1, 1, 9, 0), AsOf: t0, State: sinks.StateGiven}
	recent := sinks.Fact{Order: schema.NewOrder(1, 1, 1, 0), AsOf: t0.Add(time.Hour), State: sinks.StateGiven}
	if !sinks.Newer(recent, old) || sinks.Newer(old, recent) || sinks.Newer(old, old) {
		t.Error("a later as_of must win over a later order, and nothing is newer than itself")
	}
	strict := old
	strict.State = sinks.StateWithdrawn
	if !sinks.Newer(strict, old) || sinks.Newer(old, strict) {
		t.Error("at the same place the stricter must win")
	}
}

var (
	purposes = []string{"newsletter", "offers"}
	channels = []string{"email", "sms"}
	scopes   = []string{"direct_marketing", "profiling", "all", "newsletter", "offers"}
)

// drawLog draws a log of one subject whose orders are all different.
func drawLog(t *rapid.T) []*schema.Event {
	n := rapid.IntRange(0, 60).Draw(t, "events")
	history := rapid.Bool().Draw(t, "history")
	log := make([]*schema.Event, n)
	for i := range log {
		h := schema.Header{
			EventID: schema.EventID{byte(i), byte(i >> 8), 1}, Order: schema.NewOrder(1, 1, uint64(i+1), 0),
			CommittedAt: t0.Add(time.Duration(i) * time.Minute),
		}
		switch rapid.IntRange(0, 9).Draw(t, "type") {
		case 0:
			log[i] = &schema.Event{Header: h, Body: &schema.Objection{Raised: rapid.Bool().Draw(t, "raised"), Scope: rapid.SampledFrom(scopes).Draw(t, "scope")}}
		case 1:
			b := &schema.ProcessingRestriction{Imposed: rapid.Bool().Draw(t, "imposed")}
			if rapid.Bool().Draw(t, "bounded") {
				b.Until = t0.Add(time.Duration(rapid.IntRange(-100, 100).Draw(t, "until")) * time.Minute)
			}
			log[i] = &schema.Event{Header: h, Body: b}
		default:
			b := &schema.ConsentChange{
				Purpose: rapid.SampledFrom(purposes).Draw(t, "purpose"), Channel: rapid.SampledFrom(channels).Draw(t, "channel"),
				Contact: schema.ContactRef{byte(rapid.IntRange(0, 2).Draw(t, "contact"))}, LegalBasis: "consent",
				State: schema.ConsentState(rapid.IntRange(0, int(schema.ConsentInvalidated)).Draw(t, "state")),
			}
			if history {
				b.AsOf = t0.Add(time.Duration(rapid.IntRange(-50, 50).Draw(t, "as_of")) * time.Minute)
			}
			if rapid.IntRange(0, 4).Draw(t, "bounded") == 0 {
				b.ValidUntil = t0.Add(time.Duration(rapid.IntRange(-100, 100).Draw(t, "valid")) * time.Minute)
			}
			log[i] = &schema.Event{Header: h, Body: b}
		}
	}
	return log
}

type factKey struct {
	scope   string
	contact schema.ContactRef
}

// store plays a log against the guard, as lethe.fact does.
func store(log []sinks.Fact) map[factKey]sinks.Fact {
	m := map[factKey]sinks.Fact{}
	for _, f := range log {
		k := factKey{f.Scope, f.Contact}
		if old, known := m[k]; !known || sinks.Newer(f, old) {
			m[k] = f
		}
	}
	return m
}

func values(m map[factKey]sinks.Fact) []sinks.Fact {
	var fs []sinks.Fact
	for _, f := range m {
		fs = append(fs, f)
	}
	return fs
}

type answers struct {
	permitted  [2][2]bool
	objected   [5]bool
	restricted bool
	next       time.Time
}

func ask(v sinks.Verdict) (a answers) {
	for i, p := range purposes {
		for j, c := range channels {
			a.permitted[i][j] = v.Permitted(p, c)
		}
	}
	for i, s := range scopes {
		a.objected[i] = v.Objected(s)
	}
	a.restricted, a.next = v.Restricted(), v.NextChange()
	return a
}

// The facts and the verdict depend on the set of events alone: not on their order of arrival, not on how often they come.
func TestFoldProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := factsOf(drawLog(t)...)
		doubled := append(append([]sinks.Fact(nil), log...), log...)
		doubled = doubled[:len(log)+rapid.IntRange(0, len(log)).Draw(t, "doubled")]
		permuted := rapid.Permutation(doubled).Draw(t, "permuted")
		now := t0.Add(time.Duration(rapid.IntRange(-120, 120).Draw(t, "now")) * time.Minute)

		want, got := store(log), store(permuted)
		if len(want) != len(got) {
			t.Fatalf("%d facts, want %d", len(got), len(want))
		}
		for k, f := range want {
			if got[k] != f {
				t.Fatalf("fact %v: %+v, want %+v", k, got[k], f)
			}
		}
		verdict := ask(sinks.Fold(values(want), false, now))
		if a := ask(sinks.Fold(permuted, false, now)); a != verdict {
			t.Fatalf("folding the whole log: %+v, folding the facts: %+v", a, verdict)
		}
		checkAgainstModel(t, want, verdict, now)

		// Erasure absorbs.
		erased := sinks.Fold(permuted, true, now)
		if a := ask(erased); a.permitted != [2][2]bool{} || !a.next.IsZero() {
			t.Fatalf("erased subject: %+v", a)
		}
	})
}

// checkAgainstModel is the rule of DESIGN section 4, written as it is said there.
func checkAgainstModel(t *rapid.T, facts map[factKey]sinks.Fact, got answers, now time.Time) {
	restricted := false
	if f, known := facts[factKey{scope: "restriction"}]; known {
		restricted = f.State == "imposed" && (f.ValidUntil.IsZero() || now.Before(f.ValidUntil))
	}
	raised := func(s string) bool { return facts[factKey{scope: "objection:" + s}].State == "raised" }
	for i, p := range purposes {
		for j, c := range channels {
			given, prohibited := 0, 0
			for k, f := range facts {
				if k.scope != "consent:"+p+":"+c || f.State == "invalidated" {
					continue
				}
				if (f.State == "given" || f.State == "renewed_given") && (f.ValidUntil.IsZero() || now.Before(f.ValidUntil)) {
					given++
				} else {
					prohibited++
				}
			}
			want := !restricted && !raised("all") && !raised("direct_marketing") && !raised(p) && given > 0 && prohibited == 0
			if got.permitted[i][j] != want {
				t.Fatalf("%s by %s: permitted = %v, want %v", p, c, got.permitted[i][j], want)
			}
		}
	}
}

func BenchmarkFold(b *testing.B) {
	fs := factsOf(consent(1, 1, schema.ConsentGiven), objection(2, "direct_marketing", false), consent(3, 2, schema.ConsentWithdrawn),
		with(consent(4, 1, schema.ConsentGiven), func(c *schema.ConsentChange) { c.Channel = "sms" }))
	b.ReportAllocs()
	for b.Loop() {
		if sinks.Fold(fs, false, t0).Permitted("newsletter", "email") {
			b.Fatal("withdrawn")
		}
	}
}
