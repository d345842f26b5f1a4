package sinktest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Row is what a row of the person's table says, in a replica that finds people by it; empty: NULL. The columns ignore capitals
// and accents where the database can.
type Row struct {
	CRMKey                     string
	First, Last, Born          string // Born is a date
	Email, Phone, Street, City string
}

// RowState is a row of the person's table, reduced to what the suite asks about.
type RowState struct {
	Found      bool
	Personal   bool // something of Row is still readable, but for CRMKey
	Usable     bool
	Newsletter bool // consent newsletter by email, set to $permitted
	Offers     bool // consent offers by sms, set to $permitted
	Objects    bool // objection direct_marketing, set to $objected
	Frozen     bool // restriction, set to $restricted
}

// MatchHarness makes replicas that find people by match keys of Maker. Their mapping has `find` with every kind of column, and
// person.crm_key where withKey says so; everything else is as Harness says.
type MatchHarness interface {
	NewMatch(t *testing.T, s Setup, withKey bool) MatchInstance
}

// MatchInstance is one replica under test.
type MatchInstance interface {
	Open() sinks.Replica
	// InsertRow puts a usable row whose other flags are false, and returns its person.key.
	InsertRow(row Row) string
	// ChangeRow gives a row other values, as the replica's owner does.
	ChangeRow(key string, row Row)
	ReadRow(key string) RowState
	// Rescan makes a scan of everything due now.
	Rescan()
	// IndexedKeys counts the keys of the index.
	IndexedKeys() int
	// Desk is the operator's.
	Desk() MatchDesk
	Encode(ev *schema.Event) []byte
}

// MatchDesk is what an operator does about matches.
type MatchDesk interface {
	Reviews(ctx context.Context, open bool, limit int) ([]ledger.Review, error)
	ReviewCase(ctx context.Context, id string) (*ledger.ReviewDetail, error)
	DecideReview(ctx context.Context, id string, same bool, by string) error
}

// matchCase is a line of the decision table: who is known at the source, which rows there are, and what becomes of them. Places
// are those of rows.
type matchCase struct {
	name    string
	withKey bool
	people  []source // the first is erased, or objects
	rows    []Row
	erased  []int
	review  []int // of an erasure; they are unusable until it is decided
	objects []int // of an objection, as a whole
	wait    []int // rows that only a review can decide on, also for an objection
}

// source is what the source says of a person.
type source struct {
	name, born    string
	emails, phone []string
	past          []string // e-mail addresses
	postal        string
}

var (
	jeanne = source{name: "Jeanne Martin", emails: []string{"jeanne@exemple.fr"}}
	paul   = source{name: "Paul Durand", emails: []string{"paul@exemple.fr"}}
	all    = []int{0, 1}
)

// matchCases are DOMAIN.md 3.2 line by line, and what must not be taken for them.
var matchCases = []matchCase{
	{
		name: "CRM key", withKey: true, people: []source{{name: "Jeanne Martin"}, paul},
		rows: []Row{{CRMKey: "1", Email: "old@exemple.fr"}, {CRMKey: "2", Email: "jeanne@exemple.fr"}}, erased: []int{0}, objects: []int{0},
	},
	{
		name: "one row with the address", people: []source{jeanne, paul},
		rows: []Row{{Email: "Jeanne Martin <JEANNE@exemple.fr>"}, {Email: "paul@exemple.fr"}}, erased: []int{0}, objects: []int{0},
	},
	{
		name: "one row with the address, and another CRM key", withKey: true, people: []source{jeanne, paul},
		rows: []Row{{CRMKey: "2", First: "Paul", Last: "Durand", Email: "jeanne@exemple.fr"}}, review: []int{0}, objects: []int{0},
	},
	{
		name: "an address that two people share", people: []source{jeanne, {name: "Paul Martin", emails: []string{"jeanne@exemple.fr"}}},
		rows: []Row{{Email: "jeanne@exemple.fr"}}, review: []int{0}, objects: []int{0},
	},
	{
		name: "a shared address, and the names tell", people: []source{jeanne, {name: "Paul Martin", emails: []string{"jeanne@exemple.fr"}}},
		rows:   []Row{{First: "Jeanne", Last: "Martin", Email: "jeanne@exemple.fr"}, {First: "Paul", Last: "Martin", Email: "paul@exemple.fr"}},
		erased: []int{0}, objects: []int{0},
	},
	{
		name: "the person twice", people: []source{jeanne},
		rows:   []Row{{First: "Jeanne", Last: "Martin", Email: "jeanne@exemple.fr"}, {First: "JEANNE", Last: "MARTIN", Email: "jeanne@exemple.fr"}},
		erased: all, objects: all,
	},
	{
		name: "one address, two names", people: []source{jeanne},
		rows:   []Row{{First: "Jeanne", Last: "Martin", Email: "jeanne@exemple.fr"}, {First: "Paul", Last: "Martin", Email: "jeanne@exemple.fr"}},
		review: all, objects: all,
	},
	{
		name: "phone and name", people: []source{{name: "Jeanne Martin", phone: []string{"06 12 34 56 78"}}},
		rows:   []Row{{First: "Jeanne", Last: "Martin", Phone: "+33612345678"}, {First: "Paul", Last: "Martin", Phone: "0033 6 12 34 56 78"}},
		erased: []int{0}, objects: []int{0}, review: []int{1},
	},
	{
		name: "phone alone", people: []source{{name: "Jeanne Martin", phone: []string{"06 12 34 56 78"}}},
		rows: []Row{{Phone: "+33612345678"}}, review: []int{0},
	},
	{
		name: "name and birth date", people: []source{{name: "Jeanne Martin", born: "1970-02-03"}},
		rows:   []Row{{First: "Jeanne", Last: "Martin", Born: "1970-02-03"}, {First: "Jeanne", Last: "Martin", Born: "1971-02-03"}},
		review: []int{0}, objects: []int{0},
	},
	{
		name: "name and postal address", people: []source{{name: "Jeanne Martin", postal: "1 rue X Paris"}},
		rows: []Row{
			{First: "Jeanne", Last: "Martin", Street: "1 rue X", City: "Paris"},
			{First: "Paul", Last: "Martin", Street: "1 rue X", City: "Paris"},
			{First: "Jeanne", Last: "Martin", Street: "2 rue X", City: "Paris"},
		},
		review: []int{0}, objects: []int{0},
	},
	{
		name: "name and postal address of many", people: []source{{name: "Jeanne Martin", postal: "1 rue X Paris"}},
		rows: []Row{
			{First: "Jeanne", Last: "Martin", Street: "1 rue X", City: "Paris"},
			{First: "Jeanne", Last: "Martin", Street: "1 rue X", City: "Paris"},
			{First: "Jeanne", Last: "Martin", Street: "1 rue X", City: "Paris"},
			{First: "Jeanne", Last: "Martin", Street: "1 rue X", City: "Paris"},
		},
		wait: []int{0, 1, 2, 3},
	},
	{
		name: "the loose form of the address", people: []source{{name: "Jeanne Martin", emails: []string{"jeanne+shop@exemple.fr"}}},
		rows: []Row{{Email: "jeanne@exemple.fr"}}, review: []int{0}, objects: []int{0},
	},
	{
		name: "name alone", people: []source{jeanne},
		rows: []Row{{First: "Jeanne", Last: "Martin", Email: "other@exemple.fr"}},
	},
	{
		name: "an old address in the replica", people: []source{{name: "Jeanne Martin", emails: []string{"new@exemple.fr"}, past: []string{"jeanne@exemple.fr"}}},
		rows: []Row{{First: "Jeanne", Last: "Martin", Email: "jeanne@exemple.fr"}}, erased: []int{0}, objects: []int{0},
	},
	{
		name:   "an address used again by another person",
		people: []source{{name: "Jeanne Martin", past: []string{"info@exemple.fr"}}, {name: "Paul Durand", emails: []string{"info@exemple.fr"}}},
		rows:   []Row{{First: "Paul", Last: "Durand", Email: "info@exemple.fr"}}, review: []int{0}, objects: []int{0},
	},
	{
		name: "accents tell people apart", people: []source{{name: "Jeanne Martin", emails: []string{"rene@exemple.fr"}}},
		rows: []Row{{Email: "rené@exemple.fr"}, {Email: "rene@exemple.fr"}}, erased: []int{1}, objects: []int{1},
	},
}

// RunMatch runs the suite of finding people without the CRM key.
func RunMatch(t *testing.T, h MatchHarness) {
	for _, c := range matchCases {
		t.Run("erasure: "+c.name, func(t *testing.T) { newMatcher(t, h, erasing(0), c.withKey).erasure(&c) })
		t.Run("objection: "+c.name, func(t *testing.T) { newMatcher(t, h, erasing(0), c.withKey).objection(&c) })
	}
	for name, test := range map[string]func(*matcher){
		"a grant needs a certain match":             grant,
		"phone alone forbids the channels of phone": phoneChannels,
		"the index decides nothing":                 staleIndex,
		"a row that comes later":                    laterRow,
		"a review that says same":                   reviewSame,
		"a review that says different":              reviewDifferent,
		"a cancel gives back what was taken":        matchCancel,
		"mode observe writes nothing":               matchObserve,
		"nothing but hashes is left":                keysGo,
	} {
		t.Run(name, func(t *testing.T) {
			s := erasing(0)
			switch name {
			case "a cancel gives back what was taken":
				s = erasing(time.Hour)
			case "mode observe writes nothing":
				s = Setup{Mode: ledger.ModeObserve}
			}
			test(newMatcher(t, h, s, false))
		})
	}
}

// matcher plays a log to a replica that finds people.
type matcher struct {
	*driver
	in   MatchInstance
	keys []string // of the rows
}

func newMatcher(t *testing.T, h MatchHarness, s Setup, withKey bool) *matcher {
	t.Helper()
	in := h.NewMatch(t, s, withKey)
	m := &matcher{driver: &driver{T: t, Topic: NewTopic(suitePartitions, in.Encode)}, in: in}
	m.r = in.Open()
	m.assign()
	return m
}

// insert puts rows, and has them scanned.
func (m *matcher) insert(rows ...Row) {
	m.Helper()
	for _, row := range rows {
		m.keys = append(m.keys, m.in.InsertRow(row))
	}
}

// people are known from 1 on.
func (m *matcher) people(list ...source) {
	m.Helper()
	for i, p := range list {
		m.person(fmt.Sprint(i+1), p)
	}
}

// person tells what the source says of somebody.
func (m *matcher) person(key string, p source) {
	m.Helper()
	var events []*schema.Event
	n := byte(0)
	add := func(kind schema.ContactKind, past bool, keys []schema.MatchKey) {
		n++
		c := &schema.ContactPoint{Kind: kind, Past: past, Keys: keys}
		c.Contact[0], c.Contact[1], c.Contact[2] = 1, n, key[0]
		events = append(events, m.Event(key, c))
	}
	var maker Maker
	if p.name != "" {
		add(schema.ContactIdentity, false, maker.Identity(strings.Fields(p.name), p.born))
	}
	for _, e := range p.emails {
		add(schema.ContactEmail, false, maker.Email(e))
	}
	for _, e := range p.past {
		add(schema.ContactEmail, true, maker.Email(e))
	}
	for _, e := range p.phone {
		add(schema.ContactPhone, false, maker.Phone(e, ""))
	}
	if p.postal != "" {
		add(schema.ContactPostal, false, maker.Postal([]string{p.postal}))
	}
	m.apply(events...)
}

// settle runs the chores until the rows of a fresh scan are known.
func (m *matcher) settle() {
	m.Helper()
	m.idle(150 * time.Millisecond)
}

func (m *matcher) row(i int) RowState { return m.in.ReadRow(m.keys[i]) }

// gone reports whether a row is erased.
func (m *matcher) gone(i int) bool {
	r := m.row(i)
	return !r.Found || !r.Personal && !r.Usable && !r.Newsletter
}

// open lists the persons of the reviews that are open.
func (m *matcher) open() []ledger.Review {
	m.Helper()
	list, err := m.in.Desk().Reviews(m.Context(), true, 100)
	if err != nil {
		m.Fatalf("Reviews: %v", err)
	}
	return list
}

// wantReviews compares the rows that wait for a person.
func (m *matcher) wantReviews(places ...int) {
	m.Helper()
	var have []int
	for _, r := range m.open() {
		have = append(have, slices.Index(m.keys, r.Person))
		if r.OpenedAt.IsZero() || !r.DueAt.After(r.OpenedAt) || r.Evidence == "" {
			m.Errorf("review %+v", r)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, places) {
		m.Errorf("reviews of rows %v, want %v", have, places)
	}
}

func (m *matcher) erasure(c *matchCase) {
	m.insert(c.rows...)
	m.people(c.people...)
	m.settle()
	ev := m.Event("1", &schema.SubjectErasure{Marker: true})
	m.apply(ev)
	undecided := slices.Concat(c.review, c.wait)
	m.within(patience, "the erasure comes to its end", func() bool {
		states := m.states(ev)
		switch {
		case len(undecided) > 0:
			return len(m.open()) >= len(undecided) && !slices.ContainsFunc(c.erased, func(i int) bool { return !m.gone(i) })
		case len(c.erased) > 0:
			return slices.Contains(states, schema.ReceiptVerified)
		}
		return slices.Contains(states, schema.ReceiptNoMatch)
	})
	m.settle()
	for i := range c.rows {
		switch {
		case slices.Contains(c.erased, i):
			if !m.gone(i) {
				m.Errorf("row %d is not erased: %+v", i, m.row(i))
			}
		case slices.Contains(c.review, i):
			// Of a number alone only the channels of the number are closed.
			if r := m.row(i); !r.Personal || r.Usable && slices.Contains(c.objects, i) {
				m.Errorf("row %d waits for a person: %+v, want it kept and unusable", i, r)
			}
		default:
			if r := m.row(i); !r.Personal || !r.Usable {
				m.Errorf("row %d of somebody else: %+v", i, r)
			}
		}
	}
	slices.Sort(undecided)
	m.wantReviews(undecided...)
	states := m.states(ev)
	if ambiguous := slices.Contains(states, schema.ReceiptAmbiguous); ambiguous != (len(undecided) > 0 && len(c.erased) == 0) {
		m.Errorf("receipts %v with %d rows undecided", states, len(undecided))
	}
	if len(undecided) > 0 && slices.Contains(states, schema.ReceiptVerified) {
		m.Errorf("verified while rows are undecided: %v", states)
	}
}

func (m *matcher) objection(c *matchCase) {
	m.insert(c.rows...)
	m.people(c.people...)
	m.settle()
	m.apply(m.Event("1", &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	m.settle()
	for i := range c.rows {
		if r := m.row(i); r.Objects != slices.Contains(c.objects, i) || !r.Personal || !r.Usable {
			m.Errorf("row %d after an objection: %+v", i, r)
		}
	}
	m.wantReviews(c.wait...)
}
