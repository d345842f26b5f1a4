package sinktest

import (
	"slices"
	"time"

	"lethe/schema"
)

// grant: a permission reaches the one row that certainly is the person's, and none that only may be.
func grant(m *matcher) {
	m.insert(Row{Email: "jeanne@exemple.fr"}, Row{Email: "jeanne+x@exemple.fr"}, Row{Email: "paul@exemple.fr", Phone: "0612345678"})
	m.people(jeanne, source{name: "Paul Durand", phone: []string{"0612345678"}})
	m.settle()
	m.apply(m.Event("1", consent(schema.ConsentGiven)), m.Event("2", consent(schema.ConsentGiven)))
	for i, want := range []bool{true, false, false} {
		if got := m.row(i).Newsletter; got != want {
			m.Errorf("row %d permits %v, want %v", i, got, want)
		}
	}
	// The withdrawal reaches whatever may be hers.
	m.apply(m.Event("1", consent(schema.ConsentWithdrawn)))
	if m.row(0).Newsletter {
		m.Error("a withdrawal did not reach the row")
	}
}

// phoneChannels: a household has one number; an objection to what comes by it is not one to what comes by letter.
func phoneChannels(m *matcher) {
	m.insert(Row{First: "Paul", Last: "Martin", Phone: "+33612345678", Email: "paul@exemple.fr"})
	m.people(source{name: "Jeanne Martin", phone: []string{"06 12 34 56 78"}}, source{name: "Paul Martin", emails: []string{"paul@exemple.fr"}})
	m.settle()
	offers := func(state schema.ConsentState) *schema.ConsentChange {
		return &schema.ConsentChange{Purpose: "offers", Channel: "sms", State: state, LegalBasis: "consent"}
	}
	m.apply(m.Event("2", consent(schema.ConsentGiven)), m.Event("2", offers(schema.ConsentGiven)))
	if r := m.row(0); !r.Newsletter || !r.Offers {
		m.Fatalf("Paul's own consents: %+v", r)
	}
	m.apply(m.Event("1", consent(schema.ConsentWithdrawn)), m.Event("1", offers(schema.ConsentWithdrawn)))
	if r := m.row(0); !r.Newsletter || r.Offers {
		m.Errorf("after withdrawals of somebody with the same number: %+v", r)
	}
}

// staleIndex: what a row said at the last scan leads to it, and what it says now decides.
func staleIndex(m *matcher) {
	m.insert(Row{Email: "jeanne@exemple.fr"}, Row{Email: "paul@exemple.fr"})
	m.people(jeanne)
	m.settle()
	m.in.ChangeRow(m.keys[0], Row{First: "Luc", Email: "luc@exemple.fr"})
	ev := m.Event("1", &schema.SubjectErasure{Marker: true})
	m.apply(ev)
	m.within(patience, "it finds nobody", func() bool { return slices.Contains(m.states(ev), schema.ReceiptNoMatch) })
	m.settle()
	for i := range m.keys {
		if r := m.row(i); !r.Personal || !r.Usable {
			m.Errorf("row %d: %+v", i, r)
		}
	}
}

// laterRow: the ETL is later than the erasure, and later than the last scan.
func laterRow(m *matcher) {
	m.people(jeanne)
	ev := m.Event("1", &schema.SubjectErasure{Marker: true})
	m.apply(ev)
	m.settle()
	m.insert(Row{Email: "jeanne@exemple.fr"})
	m.in.Rescan()
	m.within(patience, "the row is erased", func() bool { return m.gone(0) })
	m.within(patience, "it is verified", func() bool { return slices.Contains(m.states(ev), schema.ReceiptVerified) })
}

// undecided leaves one row to a person.
func (m *matcher) undecided() *schema.Event {
	m.insert(Row{First: "Jeanne", Last: "Martin", Born: "1970-02-03"})
	m.people(source{name: "Jeanne Martin", born: "1970-02-03"})
	m.settle()
	ev := m.Event("1", &schema.SubjectErasure{Marker: true})
	m.apply(ev)
	m.within(patience, "a review is open", func() bool { return len(m.open()) == 1 })
	return ev
}

func reviewSame(m *matcher) {
	ev := m.undecided()
	id := m.open()[0].ID
	detail, err := m.in.Desk().ReviewCase(m.Context(), id)
	if err != nil || len(detail.Rows) != 1 || len(detail.Rows[0].Values) == 0 {
		m.Fatalf("ReviewCase: %+v, %v", detail, err)
	}
	if err := m.in.Desk().DecideReview(m.Context(), id, true, "dpo"); err != nil {
		m.Fatal(err)
	}
	if err := m.in.Desk().DecideReview(m.Context(), id, false, "dpo"); err == nil {
		m.Error("a decided review is decided again")
	}
	m.within(patience, "the row is erased", func() bool { return m.gone(0) })
	m.within(patience, "it is verified", func() bool { return slices.Contains(m.states(ev), schema.ReceiptVerified) })
	list, err := m.in.Desk().Reviews(m.Context(), false, 10)
	if err != nil || len(list) != 1 || list[0].DecidedBy != "dpo" || list[0].Decision != "same" || list[0].DecidedAt.IsZero() {
		m.Errorf("what was decided: %+v, %v", list, err)
	}
}

func reviewDifferent(m *matcher) {
	ev := m.undecided()
	if err := m.in.Desk().DecideReview(m.Context(), m.open()[0].ID, false, "dpo"); err != nil {
		m.Fatal(err)
	}
	m.within(patience, "the row is given back", func() bool { return m.row(0).Usable })
	m.settle()
	if r := m.row(0); !r.Personal {
		m.Errorf("somebody else's row: %+v", r)
	}
	if states := m.states(ev); slices.Contains(states, schema.ReceiptApplied) {
		m.Errorf("receipts of an erasure that found nobody: %v", states)
	}
	m.wantReviews()
}

func matchCancel(m *matcher) {
	m.insert(Row{First: "Jeanne", Last: "Martin", Email: "jeanne@exemple.fr"}, Row{First: "Paul", Last: "Martin", Email: "jeanne@exemple.fr"})
	m.people(jeanne)
	m.settle()
	before := []RowState{m.row(0), m.row(1)}
	ev := m.Event("1", &schema.SubjectErasure{Marker: true})
	m.apply(ev)
	if m.row(0).Usable || m.row(1).Usable {
		m.Fatalf("not suppressed: %+v, %+v", m.row(0), m.row(1))
	}
	m.apply(m.Event("1", decision(schema.DecisionCancel)))
	m.within(patience, "the suppression is undone", func() bool { return m.row(0) == before[0] && m.row(1) == before[1] })
	if states := m.states(ev); !slices.Contains(states, schema.ReceiptCancelled) {
		m.Errorf("receipts of a cancelled case: %v", states)
	}
}

func matchObserve(m *matcher) {
	m.insert(Row{Email: "jeanne@exemple.fr"})
	m.people(jeanne)
	m.settle()
	before := m.row(0)
	ev := m.Event("1", &schema.SubjectErasure{Marker: true})
	m.apply(m.Event("1", consent(schema.ConsentGiven)), ev)
	m.idle(500 * time.Millisecond)
	if got := m.row(0); got != before {
		m.Errorf("a row while observing: %+v", got)
	}
	states := m.states(ev)
	if len(states) == 0 || slices.ContainsFunc(states, func(s schema.ReceiptState) bool { return s != schema.ReceiptPlanned }) {
		m.Errorf("receipts while observing: %v", states)
	}
}

// keysGo: of an erased row no key is left in the index.
func keysGo(m *matcher) {
	m.insert(Row{First: "Jeanne", Last: "Martin", Email: "jeanne@exemple.fr", Phone: "0612345678"}, Row{Email: "paul@exemple.fr"})
	m.people(jeanne)
	m.settle()
	if n := m.in.IndexedKeys(); n != 3 {
		m.Errorf("%d keys of two rows, want 3", n)
	}
	m.apply(m.Event("1", &schema.SubjectErasure{Marker: true}))
	m.within(patience, "the row is erased", func() bool { return m.gone(0) })
	if n := m.in.IndexedKeys(); n != 1 {
		m.Errorf("%d keys after one row was erased, want 1", n)
	}
}
