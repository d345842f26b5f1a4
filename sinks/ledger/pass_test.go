package ledger_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// shelf keeps subjects in memory, as a dialect does in tables: every person has a row.
type shelf struct {
	core     *ledger.Core
	subjects map[ledger.Ref]ledger.Subject
	written  int // facts
}

func newShelf(t *testing.T) *shelf {
	return &shelf{core: newCore(t, &config.Replica{Name: "marketing", Mode: ledger.ModeErase}), subjects: map[ledger.Ref]ledger.Subject{}}
}

func (s *shelf) apply(events ...*schema.Event) (*ledger.Unit, error) {
	records := make([]sinks.Record, len(events))
	for i, ev := range events {
		records[i] = sinks.Record{Offset: int64(i), Event: ev}
	}
	u, err := s.core.NewUnit(1, records)
	if err != nil {
		return nil, err
	}
	for _, x := range u.Set.List {
		if old, known := s.subjects[x.Ref]; known {
			x.Known, x.State, x.ErasedOrder, x.Facts, x.Sealed = true, old.State, old.ErasedOrder, slices.Clone(old.Facts), []byte{}
		}
	}
	u.Dispatch()
	for _, x := range u.Set.List {
		x.Effect.Matched = true
	}
	u.Settle()
	for _, x := range u.Set.List {
		if x.Dirty || len(x.Fresh) > 0 {
			s.written += len(x.Fresh)
			s.subjects[x.Ref] = ledger.Subject{State: x.State, ErasedOrder: x.ErasedOrder, Facts: slices.Clone(x.Facts)}
		}
	}
	return u, nil
}

func (s *shelf) verdict(ref ledger.Ref, now time.Time) sinks.Verdict {
	x, known := s.subjects[ref]
	return sinks.Fold(x.Facts, known && x.Erased(), now)
}

const passPeople = 3

func drawFact(t *rapid.T) schema.Body {
	switch rapid.IntRange(0, 39).Draw(t, "kind") {
	case 39: // few, because they absorb everything
		return &schema.SubjectErasure{}
	case 0, 1, 2, 3, 4, 5, 6, 7:
		return &schema.Objection{Raised: rapid.Bool().Draw(t, "raised"), Scope: rapid.SampledFrom([]string{"direct_marketing", "all", "profiling"}).Draw(t, "scope")}
	case 8, 9, 10, 11:
		return &schema.ProcessingRestriction{Imposed: rapid.Bool().Draw(t, "imposed")}
	}
	return &schema.ConsentChange{
		Purpose: "newsletter", Channel: "email", LegalBasis: "consent", Contact: schema.ContactRef{byte(rapid.IntRange(1, 2).Draw(t, "contact"))},
		State: schema.ConsentState(rapid.IntRange(int(schema.ConsentUnknown), int(schema.ConsentInvalidated)).Draw(t, "state")),
	}
}

// present is what a pass says of one person whose rows it reads behind a part of the log, at the place of an earlier commit.
func present(topic *sinktest.Topic, key string, log []*schema.Event, at uint64, ordinal *uint32) []*schema.Event {
	ref := topic.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(key)))
	newest, order := map[string]schema.Body{}, []string(nil)
	for _, ev := range log {
		if ev.SubjectRef != ref {
			continue
		}
		row := "erased"
		if f, _, ok := sinks.FactOf(ev); ok {
			row = f.Scope + f.Contact.String()
		}
		if newest[row] == nil {
			order = append(order, row)
		}
		newest[row] = ev.Body
	}
	var out []*schema.Event
	for _, row := range order {
		*ordinal++
		ev := topic.EventAt(key, at, newest[row])
		ev.Kind, ev.RunID, ev.Order = schema.KindSnapshot, "R1", schema.NewOrder(0, 1, at, 1<<31+*ordinal)
		out = append(out, ev)
	}
	return out
}

// A pass anywhere in a log, its rows read at one time and delivered at another, ends where the log alone ends, whatever is
// delivered twice, and although a part of the log before it is lost; and what is known it does not write.
func TestPassAnywhereChangesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		topic := sinktest.NewTopic(1, func(*schema.Event) []byte { return nil })
		log := make([]*schema.Event, rapid.IntRange(20, 40).Draw(rt, "length"))
		for i := range log {
			log[i] = topic.Event(fmt.Sprint(rapid.IntRange(1, passPeople).Draw(rt, "person")), drawFact(rt))
		}
		// What is lost lies before the pass. Small numbers are drawn most, and say most here.
		began := len(log) - 1 - rapid.IntRange(0, len(log)-1).Draw(rt, "behind the begin")
		lostTo := began - rapid.IntRange(0, began).Draw(rt, "between")
		lostFrom := rapid.IntRange(0, lostTo).Draw(rt, "lost from")
		lost := func(i int) bool { return i >= lostFrom && i < lostTo }
		at := log[began].Order.Number()
		due, ordinal := map[int][]*schema.Event{}, uint32(0)
		for i := 1; i <= passPeople; i++ {
			read := rapid.IntRange(began, len(log)-1).Draw(rt, "read")
			comes := rapid.IntRange(began, len(log)-1).Draw(rt, "comes")
			due[comes] = append(due[comes], present(topic, fmt.Sprint(i), log[:read+1], at, &ordinal)...)
		}
		alone, with := newShelf(t), newShelf(t)
		play := func(s *shelf, events ...*schema.Event) {
			if _, err := s.apply(events...); err != nil {
				rt.Fatal(err)
			}
		}
		for i, ev := range log {
			play(alone, ev)
			if !lost(i) {
				play(with, ev)
			}
			if rows := due[i]; len(rows) > 0 {
				play(with, rows...)
			}
			if rapid.IntRange(0, 5).Draw(rt, "again") == 0 { // a unit is sent again as a whole
				from := rapid.IntRange(0, i).Draw(rt, "from")
				for k := from; k <= i; k++ {
					play(alone, log[k])
					if !lost(k) {
						play(with, log[k])
					}
					if rows := due[k]; len(rows) > 0 {
						play(with, rows...)
					}
				}
			}
		}
		now := time.Now()
		for i := 1; i <= passPeople; i++ {
			ref := alone.core.Ref(topic.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(fmt.Sprint(i)))))
			a, b := alone.verdict(ref, now), with.verdict(ref, now)
			if a.Erased() != b.Erased() {
				rt.Fatalf("person %d: erased %v without the pass, %v with it", i, a.Erased(), b.Erased())
			}
			if a.Erased() {
				continue // permissions are refused from the suppression on, and a pass may suppress earlier
			}
			if a.Permitted("newsletter", "email") != b.Permitted("newsletter", "email") || a.Restricted() != b.Restricted() ||
				a.Objected("direct_marketing") != b.Objected("direct_marketing") || a.Objected("profiling") != b.Objected("profiling") {
				rt.Fatalf("person %d: %+v without the pass, %+v with it", i, a, b)
			}
		}
		// Behind the log a whole pass over everybody has nothing to write.
		before := with.written
		for i := 1; i <= passPeople; i++ {
			play(with, present(topic, fmt.Sprint(i), log, log[len(log)-1].Order.Number(), &ordinal)...)
		}
		if with.written != before {
			rt.Fatalf("a pass that says what is known wrote %d facts", with.written-before)
		}
	})
}

// Absences go along all references part by part, and nobody who was shown late is called absent.
func TestAbsenceWalk(t *testing.T) {
	var tables fakeAbsence
	for i := range 1000 {
		var ref ledger.Ref
		binary.BigEndian.PutUint64(ref[:], uint64(i)*0x4189374bc6a7f0) // spread over all of them
		tables.subjects = append(tables.subjects, ref)
	}
	for i, ref := range tables.subjects {
		switch {
		case i%10 == 0: // absent
		case i%3 == 0:
			tables.late = append(tables.late, ref[:ledger.SeenSize]...)
		default:
			tables.seen = append(tables.seen, ref[:ledger.SeenSize]...)
		}
	}
	var a ledger.Absences
	places := []sinks.Place{{Partition: 3, NextOffset: 7}}
	for range 100 {
		_, done, err := a.Look(context.Background(), places, &tables)
		if err != nil {
			t.Fatal(err)
		}
		if done == nil {
			continue
		}
		if done.Absent != 100 || done.Fresh != 100 || tables.loads != 4 {
			t.Errorf("%d absent, %d of them new, %d parts; want 100, 100 and 4", done.Absent, done.Fresh, tables.loads)
		}
		for _, ref := range tables.absent {
			if i := slices.IndexFunc(tables.subjects, func(r ledger.Ref) bool { return bytes.Equal(r[:], ref) }); i%10 != 0 {
				t.Errorf("subject %d was shown and is called absent", i)
			}
		}
		return
	}
	t.Fatal("the walk does not end")
}

// fakeAbsence has shown so much that the references are walked in four parts.
type fakeAbsence struct {
	subjects   []ledger.Ref
	seen, late []byte
	absent     [][]byte
	loads      int
}

func (*fakeAbsence) Ended(context.Context, []int32) (string, []int32, int64, error) {
	return "R1", []int32{3}, 4 << 20, nil
}

func (f *fakeAbsence) Seen(_ context.Context, _ string, _ int32, fn func([]byte)) error {
	f.loads++
	fn(f.seen)
	return nil
}

func (f *fakeAbsence) Compare(_ context.Context, _ []sinks.Place, w *ledger.AbsenceWalk, _ int) (last []byte, err error) {
	const limit = 90
	var c ledger.Comparison
	n := 0
	for _, ref := range f.subjects {
		if bytes.Compare(ref[:], w.After) <= 0 || w.Until != nil && bytes.Compare(ref[:], w.Until) >= 0 || n == limit {
			continue
		}
		n++
		last = bytes.Clone(ref[:])
		c.Add(w, ref, 3, true, false, ledger.AppendSeen(nil, f.late))
	}
	if w.Since(3) != 7 {
		return nil, fmt.Errorf("what is late is looked for from offset %d on, want 7", w.Since(3))
	}
	w.Fresh += c.Fresh
	f.absent = append(f.absent, c.Absent...)
	return last, nil
}

func (f *fakeAbsence) Compared(context.Context, []sinks.Place, *ledger.AbsenceWalk) (int, error) {
	return len(f.absent), nil
}
