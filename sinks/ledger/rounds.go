package ledger

import (
	"sync"
	"time"

	"lethe/sinks"
)

// Grown remembers what has been done for the mapping as it is compiled: that is asked once an assignment, not at every
// chore. Safe for concurrent use.
type Grown struct {
	mu    sync.Mutex
	folds bool
	cases map[int32]bool // partitions whose cases of an older mapping are open again
}

// Forget makes everything asked for again.
func (g *Grown) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.folds, g.cases = false, nil
}

// Folds reports whether every fold has been asked for.
func (g *Grown) Folds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.folds
}

// AskedFolds notes that every fold has been asked for.
func (g *Grown) AskedFolds() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.folds = true
}

// Cases lists the partitions whose cases of an older mapping nobody has opened again.
func (g *Grown) Cases(places []sinks.Place) []int32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var parts []int32
	for _, p := range places {
		if !g.cases[p.Partition] {
			parts = append(parts, p.Partition)
		}
	}
	return parts
}

// ReopenedCases notes that the cases of some partitions are open again.
func (g *Grown) ReopenedCases(parts []int32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cases == nil {
		g.cases = map[int32]bool{}
	}
	for _, n := range parts {
		g.cases[n] = true
	}
}

// ResealRounds remembers how far a round through the sealed keys has come. Safe for concurrent use.
type ResealRounds struct {
	mu    sync.Mutex
	due   time.Time
	after []byte // the last subject of the round under way; nil: the next round begins
}

// Due returns when the next slice is, and the subject behind which it begins: empty, and not nil, at the beginning.
func (r *ResealRounds) Due() (due time.Time, after []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.after == nil {
		return r.due, []byte{}
	}
	return r.due, r.after
}

// Done notes the last subject of a slice, nil at the end of the round, and returns when the next slice is due.
func (r *ResealRounds) Done(last []byte) time.Time {
	next := time.Now()
	if last == nil {
		next = next.Add(ResealEvery)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due, r.after = next, last
	return next
}
