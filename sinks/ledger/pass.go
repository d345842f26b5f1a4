package ledger

import (
	"encoding/binary"
	"slices"

	"lethe/schema"
	"lethe/sinks"
)

// Pass is a pass over the source's present state, in one partition: begun, and not done with, because its end has not come
// or absence has not been looked for behind it.
type Pass struct {
	RunID string
	Part  int32
	Whole bool // reads every mapped table
	Named bool // is for this replica
	Ended bool
}

// PassRow begins or ends a pass in one partition in the table pass. A beginning that is there already changes nothing; one
// that is new gives up the passes that began before it and have not ended, because capture makes one at a time. A pass that
// has ended is done with, unless it was a whole one for this replica: then absence is looked for behind it. What was no whole
// pass at its beginning or is none at its end is none.
type PassRow struct {
	Part  int32
	RunID string
	Named bool
	Order schema.Order
	*schema.PassMarker
}

// SeenRow is what one batch has shown of a whole pass in one partition, for the table seen.
type SeenRow struct {
	RunID string
	Part  int32
	Off   int64
	Refs  []byte // the first SeenSize bytes of references
}

// SeenSize is how much of a reference is kept of a subject that a pass has shown. References are pseudo-random: among
// 10 million subjects shown, one of 10 that are not is taken for another with a chance of 10^-11.
const SeenSize = 8

// passing is what a unit learns of passes from its records.
type passing struct {
	taken bool
	rows  []PassRow
	shown []shown
}

// shown is a subject that a pass has shown.
type shown struct {
	run  string
	part int32
	ref  Ref
}

// takePasses takes the markers of passes in, in order, notes whom they show, and passes over what is for other replicas.
func (u *Unit) takePasses() {
	if u.passes.taken || !u.ofPass {
		return
	}
	u.passes.taken = true
	for i := range u.Results {
		x := &u.Results[i]
		if body, ok := x.Event.Body.(*schema.PassMarker); ok {
			u.takeMarker(x, body)
			continue
		}
		if x.Event.Kind != schema.KindSnapshot || x.Event.SubjectRef.IsZero() {
			continue
		}
		p := u.pass(x.Event.RunID, x.Record.Partition)
		switch {
		case p == nil:
		case !p.Named:
			x.Outcome = OutcomeElsewhere
		case p.Whole && !u.Replaying:
			s := shown{run: p.RunID, part: p.Part}
			if x.Subject != nil {
				s.ref = x.Subject.Ref
			} else {
				s.ref = u.Core.Ref(x.Event.SubjectRef)
			}
			u.passes.shown = append(u.passes.shown, s)
		}
	}
}

func (u *Unit) pass(run string, part int32) *Pass {
	i := slices.IndexFunc(u.Passes, func(p Pass) bool { return p.RunID == run && p.Part == part })
	if i < 0 {
		return nil
	}
	return &u.Passes[i]
}

func (u *Unit) takeMarker(x *Result, body *schema.PassMarker) {
	row := PassRow{
		Part: x.Record.Partition, RunID: x.Event.RunID, Order: x.Event.Order, PassMarker: body,
		Named: len(body.Replicas) == 0 || slices.Contains(body.Replicas, u.Core.Name),
	}
	u.passes.rows = append(u.passes.rows, row)
	p := u.pass(row.RunID, row.Part)
	switch {
	case p != nil && !body.Begin:
		p.Ended, p.Whole = true, p.Whole && body.Full
	case p == nil && body.Begin:
		u.Passes = append(u.Passes, Pass{RunID: row.RunID, Part: row.Part, Whole: body.Full, Named: row.Named})
	}
}

// PassRows are the beginnings and ends of passes, in the order of the records.
func (u *Unit) PassRows() []PassRow { return u.passes.rows }

// SeenRows are whom whole passes have shown, for a settled unit. A subject that the replica hears of for the first time
// counts as shown, also behind a pass's end as long as nobody has compared: a pass that began before somebody was known
// cannot call him absent.
func (u *Unit) SeenRows() []SeenRow {
	if u.Replaying {
		return nil
	}
	var out []SeenRow
	for i := range u.Passes {
		p := &u.Passes[i]
		if !p.Whole || !p.Named {
			continue
		}
		var refs []uint64
		for _, s := range u.passes.shown {
			if s.run == p.RunID && s.part == p.Part {
				refs = append(refs, SeenKey(s.ref[:]))
			}
		}
		for _, s := range u.Set.List {
			if !s.Known && s.Part == p.Part {
				refs = append(refs, SeenKey(s.Ref[:]))
			}
		}
		if len(refs) == 0 {
			continue
		}
		slices.Sort(refs)
		row := SeenRow{RunID: p.RunID, Part: p.Part, Off: u.firstOffset(p.Part)}
		for _, ref := range slices.Compact(refs) {
			row.Refs = binary.BigEndian.AppendUint64(row.Refs, ref)
		}
		out = append(out, row)
	}
	return out
}

// SeenKey is what SeenRow.Refs has of a reference, as a number that sorts like it.
func SeenKey(ref []byte) uint64 { return binary.BigEndian.Uint64(ref[:SeenSize]) }

// firstOffset is where the unit begins in a partition; 0: nowhere.
func (u *Unit) firstOffset(part int32) int64 {
	for i := range u.Results {
		if r := u.Results[i].Record; r.Partition == part {
			return r.Offset
		}
	}
	return 0
}

// tellsNothing reports whether a row that a pass has read says what is known already. Then nothing is written: neither the
// fact's own place, nor a column, nor a receipt, so that a pass over a million people costs what differs.
//
// That the fact keeps its older place is safe. A pass emits a row behind every event of the log up to the place that the row
// has, so what comes with a place between the fact's and the row's has come before: it is in the fact, or was older than it. Not so
// where the subject is blocked: the event that blocks it lies between and is applied one day, so the row has to wait for it
// like any other. And a lift of what nobody has raised says nothing: stored, it would only make columns follow that the
// replica's owner fills until somebody objects.
func (u *Unit) tellsNothing(x *Result, f *sinks.Fact) bool {
	s := x.Subject
	if x.Event.Kind != schema.KindSnapshot || s.Blocked != "" || u.Replaying {
		return false
	}
	old := s.Find(f.Scope, f.Contact)
	if old == nil {
		return f.State == sinks.StateLifted
	}
	return old.State == f.State && old.ValidUntil.Equal(f.ValidUntil) && old.AsOf.Equal(f.AsOf)
}

// takeErasedRow takes in that a pass has read the row of somebody whom the source has erased, and reports whether that
// was all. A case that is known stays as it is. So does a subject whose case was cancelled: the row was erased then, and
// somebody has decided; only the log can say that it was erased anew.
func (u *Unit) takeErasedRow(x *Result) (done bool) {
	if x.Event.Kind != schema.KindSnapshot || x.Subject.State == SubjectLive && x.Subject.ErasedOrder == nil {
		return false
	}
	x.Outcome = OutcomeUnchanged
	return true
}

// quiet reports whether a record leaves nothing in a receipt: it was not for this replica, or a pass has read what is known.
func (x *Result) quiet() bool {
	switch x.Outcome {
	case OutcomeElsewhere:
		return true
	case OutcomeUnchanged, OutcomeStale:
		return x.Event.Kind == schema.KindSnapshot
	}
	return false
}
