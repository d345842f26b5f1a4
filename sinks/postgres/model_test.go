package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lethe/schema"
	"lethe/sinks"
)

// people of the model; each run uses CRM ids of its own, so that runs share one database.
const modelPeople = 4

// modelRun is one drawn history and the replica it is fed to.
type modelRun struct {
	w     *world
	base  int
	facts map[int][]sinks.Fact
	done  map[int]bool // erased
}

// TestExactlyOnceInAnyOrder feeds drawn histories, permuted, doubled and cut into batches at random, and compares the
// mapped columns with what the fold says of the facts. Grants after an erasure have no effect; every erasure has one
// receipt, every event one that says what became of it.
func TestExactlyOnceInAnyOrder(t *testing.T) {
	w := newWorld(t, 15)
	base := 0
	rapid.Check(t, func(rt *rapid.T) {
		base += modelPeople
		m := &modelRun{w: w, base: base, facts: map[int][]sinks.Fact{}, done: map[int]bool{}}
		for i := range modelPeople {
			w.person(base + i)
		}
		events := m.history(rt)
		log := slices.Clone(events)
		for range rapid.IntRange(0, len(events)).Draw(rt, "doubled") {
			log = append(log, events[rapid.IntRange(0, len(events)-1).Draw(rt, "again")])
		}
		log = rapid.Permutation(log).Draw(rt, "order")
		for len(log) > 0 {
			n := rapid.IntRange(1, len(log)).Draw(rt, "batch")
			w.apply(log[:n]...)
			log = log[n:]
		}
		if got, want := m.columns(), m.oracle(); got != want {
			rt.Fatalf("columns\n got: %s\nwant: %s", got, want)
		}
		m.receipts(rt)
	})
}

func (m *modelRun) history(rt *rapid.T) []*schema.Event {
	events := make([]*schema.Event, 0, 12)
	for range rapid.IntRange(1, 12).Draw(rt, "events") {
		id := m.base + rapid.IntRange(0, modelPeople-1).Draw(rt, "person")
		var body schema.Body
		switch rapid.IntRange(0, 9).Draw(rt, "kind") {
		case 0:
			body = &schema.SubjectErasure{}
			m.done[id] = true
		case 1, 2:
			body = &schema.Objection{Raised: rapid.Bool().Draw(rt, "raised"), Scope: "direct_marketing"}
		case 3:
			body = &schema.ProcessingRestriction{Imposed: rapid.Bool().Draw(rt, "imposed")}
		default:
			c := consent("newsletter", rapid.SampledFrom([]schema.ConsentState{
				schema.ConsentGiven, schema.ConsentRenewedGiven, schema.ConsentWithdrawn, schema.ConsentRefused, schema.ConsentInvalidated,
			}).Draw(rt, "state"))
			c.Contact[0] = byte(rapid.IntRange(0, 2).Draw(rt, "contact"))
			if rapid.Bool().Draw(rt, "history") {
				c.AsOf = time.Unix(int64(1700000000+rapid.IntRange(0, 5).Draw(rt, "as of")), 0).UTC()
			}
			body = c
		}
		ev := m.w.event(id, body)
		if f, _, ok := sinks.FactOf(ev); ok {
			m.facts[id] = append(m.facts[id], f)
		}
		events = append(events, ev)
	}
	return events
}

func (m *modelRun) columns() string {
	var lines []string
	for i := range modelPeople {
		lines = append(lines, m.w.one(`SELECT newsletter, CASE WHEN NOT usable THEN NULL ELSE no_marketing END AS no_marketing,
			CASE WHEN NOT usable THEN NULL ELSE frozen END AS frozen, usable FROM contact WHERE crm_id = $1`, m.base+i))
	}
	return strings.Join(lines, "\n")
}

// oracle folds all facts of each person. Of an erased person the order of arrival decides which liftings were refused,
// so no_marketing and frozen are left out.
func (m *modelRun) oracle() string {
	var lines []string
	for i := range modelPeople {
		id := m.base + i
		v := sinks.Fold(m.facts[id], m.done[id], time.Now())
		newsletter, objected, restricted := true, "false", "false"
		if m.done[id] || len(m.facts[id]) > 0 {
			newsletter = v.Permitted("newsletter", "email")
		}
		if v.Objected("direct_marketing") {
			objected = "true"
		}
		if v.Restricted() {
			restricted = "true"
		}
		if m.done[id] {
			objected, restricted = "null", "null"
		}
		lines = append(lines, fmt.Sprintf(`{"frozen": %s, "usable": %t, "newsletter": %t, "no_marketing": %s}`,
			restricted, !m.done[id], newsletter, objected))
	}
	return strings.Join(lines, "\n")
}

func (m *modelRun) receipts(rt *rapid.T) {
	for i := range modelPeople {
		id := m.base + i
		caseID := m.w.ids.CaseID(m.w.ids.SubjectRef(crmKey(id)))
		want := "0"
		if m.done[id] {
			want = "1"
		}
		got := fmt.Sprint(m.w.one(`SELECT count(*) AS n FROM lethe.receipt WHERE case_id = $1 AND state = 'suppressed'`, caseID[:]))
		if got != `{"n": `+want+`}` {
			rt.Fatalf("receipts of the erasure of %d: %s, want %s", id, got, want)
		}
	}
}
