package ledger

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"lethe/sinks"
)

// AbsenceLimit is how many subjects one slice compares: it holds the rows of its partitions meanwhile.
const AbsenceLimit = 2000

// maxSeen is how many references a walk holds at once, of 8 bytes each.
const maxSeen = 1 << 20

// FindingAbsent says that the last whole pass did not show a subject: its row is gone from the source, and nobody was told.
// It erases nothing: whether the person was erased or a table was emptied by mistake is for somebody to find out.
const FindingAbsent = "absent"

// AbsenceTables are what a walk behind a pass needs of a dialect.
type AbsenceTables interface {
	// Ended returns a whole pass for this replica that has ended in some of the partitions and was not looked behind there, with
	// those partitions and how many references it has shown in them; no partitions where there is none.
	Ended(ctx context.Context, parts []int32) (run string, ended []int32, shown int64, err error)
	// Seen calls fn with each row of what a pass has shown in a partition: SeenRow.Refs.
	Seen(ctx context.Context, run string, part int32, fn func(refs []byte)) error
	// Compare works in one transaction that holds the partitions as places has them: it reads up to limit subjects from
	// After to Until, asks whether each is Missing, and writes who is absent and who is no longer. last is the last of them;
	// nil: there were none.
	Compare(ctx context.Context, places []sinks.Place, w *AbsenceWalk, limit int) (last []byte, err error)
	// Compared notes that the pass is done with in the partitions, takes away what it has shown there, and returns how many
	// subjects of them are absent.
	Compared(ctx context.Context, places []sinks.Place, w *AbsenceWalk) (absent int, err error)
}

// AbsenceWalk is one walk through the subjects of some partitions behind the end of a pass. It goes along the references,
// part after part of them, so that what it holds of a pass has a bound.
type AbsenceWalk struct {
	Run   string
	Parts []int32
	After []byte // the last subject that was compared; empty, and not nil, at the beginning
	Until []byte // where this part of the references ends; nil: with the last

	Absent int // of the partitions' subjects, once the walk is over
	Fresh  int // those of them that were not absent before

	cut    uint // how many bits of a reference tell the part that it is in
	part   uint64
	since  map[int32]int64
	seen   []uint64 // sorted
	loaded bool
}

// Since is the offset from which on rows of seen in a partition are not in the walk yet.
func (w *AbsenceWalk) Since(part int32) int64 { return w.since[part] }

// Missing reports whether the pass has not shown a subject; late are the references in the rows that Since tells of.
func (w *AbsenceWalk) Missing(ref []byte, late []uint64) bool {
	key := SeenKey(ref)
	_, found := slices.BinarySearch(w.seen, key)
	return !found && !slices.Contains(late, key)
}

// AppendSeen appends the references of a SeenRow as SeenKey has them.
func AppendSeen(into []uint64, refs []byte) []uint64 {
	for ; len(refs) >= SeenSize; refs = refs[SeenSize:] {
		into = append(into, binary.BigEndian.Uint64(refs))
	}
	return into
}

// load reads what the pass has shown of one part of the references. The offsets come first: what is committed meanwhile lies
// behind them, and is read once more at each comparison.
func (w *AbsenceWalk) load(ctx context.Context, places []sinks.Place, t AbsenceTables) error {
	w.seen, w.since = w.seen[:0], make(map[int32]int64, len(places))
	for _, p := range places {
		w.since[p.Partition] = p.NextOffset
	}
	var row []uint64
	for _, part := range w.Parts {
		err := t.Seen(ctx, w.Run, part, func(refs []byte) {
			row = AppendSeen(row[:0], refs)
			for _, key := range row {
				if w.cut == 0 || key>>(64-w.cut) == w.part {
					w.seen = append(w.seen, key)
				}
			}
		})
		if err != nil {
			return err
		}
	}
	slices.Sort(w.seen)
	w.loaded = true
	return nil
}

// next goes on to the next part of the references; false: there is none.
func (w *AbsenceWalk) next() bool {
	if w.Until == nil {
		return false
	}
	w.After, w.part, w.loaded = w.Until, w.part+1, false
	w.bound()
	return true
}

// bound sets where the part ends.
func (w *AbsenceWalk) bound() {
	w.Until = nil
	if w.part+1 < 1<<w.cut {
		w.Until = binary.BigEndian.AppendUint64(nil, (w.part+1)<<(64-w.cut))
	}
}

// Absences walks behind passes, one slice a call. A walk that a process has begun and not finished is begun anew by the next
// one. Safe for concurrent use.
type Absences struct {
	mu   sync.Mutex
	walk *AbsenceWalk
}

// Look does one slice of the walk that is due, and returns when it wants to be called again. done is the walk whose last slice
// it was, nil for any other.
func (a *Absences) Look(ctx context.Context, places []sinks.Place, t AbsenceTables) (next time.Time, done *AbsenceWalk, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.walk
	a.walk = nil // an error begins anew
	if w == nil || !owns(places, w.Parts) {
		run, parts, shown, err := t.Ended(ctx, PartsOf(places))
		if err != nil || len(parts) == 0 {
			return time.Time{}, nil, err
		}
		w = &AbsenceWalk{Run: run, Parts: parts, After: []byte{}}
		for shown>>w.cut > maxSeen {
			w.cut++
		}
		w.bound()
	}
	if !w.loaded {
		if err := w.load(ctx, places, t); err != nil {
			return time.Time{}, nil, err
		}
	}
	last, err := t.Compare(ctx, places, w, AbsenceLimit)
	if err != nil {
		return time.Time{}, nil, err
	}
	switch {
	case last != nil:
		w.After, a.walk = last, w
	case w.next():
		a.walk = w
	default:
		if w.Absent, err = t.Compared(ctx, places, w); err != nil {
			return time.Time{}, nil, err
		}
		return time.Now(), w, nil
	}
	return time.Now(), nil, nil
}

// owns reports whether every partition is among the places.
func owns(places []sinks.Place, parts []int32) bool {
	have := PartsOf(places)
	return !slices.ContainsFunc(parts, func(n int32) bool { return !slices.Contains(have, n) })
}

// Comparison is what one slice of a walk has found.
type Comparison struct {
	Absent  [][]byte // to be listed
	Parts   []int32  // theirs
	Present [][]byte // listed, and not absent any more
	Fresh   int      // of the absent those who were not listed
}

// Add compares one subject. known says that it can be absent: it is the walk's, it is live and not blocked, and it was not joined into
// another one; listed that the last pass did not show it.
func (c *Comparison) Add(w *AbsenceWalk, ref Ref, part int32, known, listed bool, late []uint64) {
	switch {
	case known && w.Missing(ref[:], late):
		c.Absent, c.Parts = append(c.Absent, ref[:]), append(c.Parts, part)
		if !listed {
			c.Fresh++
		}
	case listed:
		c.Present = append(c.Present, ref[:])
	}
}

// Report tells an operator of whom the pass did not show.
func (w *AbsenceWalk) Report(log zerolog.Logger) {
	if w.Absent == 0 {
		return
	}
	log.Error().Str("run", w.Run).Int("absent", w.Absent).Int("new", w.Fresh).
		Msg("people whom the replica knows are gone from the source and nobody was told of an erasure: `lethe findings` lists them; nothing was erased")
}

// Standing is what keeps a replica from calling anything verified.
type Standing struct {
	Gaps       []string // that are open
	Incomplete bool     // no whole pass has shown who is in the source
}

// Waits is the reason why nothing may be called verified now; empty: it may.
func (s Standing) Waits() string {
	switch {
	case len(s.Gaps) > 0:
		return ReasonGap
	case s.Incomplete:
		return ReasonIncomplete
	}
	return ""
}
