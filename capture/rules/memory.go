package rules

import "hash/maphash"

// memory knows what the log said last of a subject's objection or restriction, in this run. Where the replica identity
// does not carry the old value every UPDATE of a customer restates the present one, and hardly ever is it news: without a
// memory each ordinary change of a customer would cost two events. It only ever saves: what it has forgotten, or never
// knew, is sent.
//
// It is a cache of four-way sets, 16 MiB in all and made on first need. A subject is kept as a 64-bit hash under a key of
// this process: that two subjects share one within the 2^20 entries has a chance of about 10^-8.
type memory struct {
	seed maphash.Seed
	sets [][memoryWays]memoryEntry
	next uint8 // the way that is given up next
}

type memoryEntry struct{ subject, state uint64 }

const (
	memoryWays = 4
	memorySets = 1 << 18
)

// doubtful is the state of a subject of whom the log said one thing and a new row, which only ever raises, keeps silent
// about it: no rule gives it.
const doubtful = ^uint64(0)

// know notes that the subject's state under a rule is state, and reports whether that was known already.
func (m *memory) know(rule string, subject []byte, state uint64) bool {
	e, known := m.entry(rule, subject)
	known = known && e.state == state
	e.state = state
	return known
}

// arrive notes the state of a subject whose row is new, and of which nothing is told. Where something else was told before
// (the row was deleted and comes again) the next UPDATE has to say what holds.
func (m *memory) arrive(rule string, subject []byte, state uint64) {
	e, known := m.entry(rule, subject)
	if known && e.state != state {
		state = doubtful
	}
	e.state = state
}

// entry finds the subject's entry, or makes one and reports that it is new.
func (m *memory) entry(rule string, subject []byte) (e *memoryEntry, known bool) {
	if m.sets == nil {
		m.seed, m.sets = maphash.MakeSeed(), make([][memoryWays]memoryEntry, memorySets)
	}
	var h maphash.Hash
	h.SetSeed(m.seed)
	_, _ = h.WriteString(rule) // a Hash never fails
	_, _ = h.Write(subject)
	hash := h.Sum64() | 1 // an empty entry has zero
	set := &m.sets[hash>>32%memorySets]
	for i := range set {
		if set[i].subject == hash {
			return &set[i], true
		}
	}
	for i := range set {
		if set[i].subject == 0 {
			set[i].subject = hash
			return &set[i], false
		}
	}
	e = &set[m.next%memoryWays]
	m.next++
	e.subject = hash
	return e, false
}

// forget is for the beginning of a session: what was read before may never have been published.
func (m *memory) forget() { m.sets = nil }
