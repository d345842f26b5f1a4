package ledger

import (
	"bytes"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Unit is the work of one transaction: some records, their subjects, and what becomes of both. It is used in this order:
// NewUnit; the dialect reads Now, the subjects in Set with their facts, the open Gaps and the Passes; Dispatch; the dialect
// writes the mapped rows of Set and notes their Effects; Settle; the dialect writes what Rows, Receipts and Set hold.
type Unit struct {
	Core    *Core
	Now     time.Time // by the replica's clock, at the beginning of the transaction
	Set     *Set
	Results []Result
	Gaps    map[string]bool // open gaps
	Passes  []Pass          // that some partition is not done with
	// Replaying says that the records come from the table parked: their subjects are blocked because of them.
	Replaying bool

	Cases    []*Result // erasures that opened a case
	Readback []*Result // objections and restrictions to be read back
	// Streamed are the subjects whose erasure the log tells, of whom a case is known: what a pass has found of one, it has found
	// of one person, and the case is one of its own.
	Streamed []*Subject
	Life     Life

	ofPass bool // some record is of a pass
	passes passing
}

// Result is one record and what became of it.
type Result struct {
	Record     *sinks.Record
	Event      *schema.Event
	Subject    *Subject // nil for records that speak of none
	Strictness sinks.Strictness
	Outcome    string // empty until the statements have shown it
	own        bool   // has a receipt of its own, if it takes effect
	keys       []StoredKey
}

// NewUnit resolves the subjects of the records, whose CRM keys have so many parts (0: any number). It touches no database: what cannot
// be used at all is Poison here.
func (c *Core) NewUnit(keyParts int, records []sinks.Record) (*Unit, error) {
	u := &Unit{Core: c, Set: NewSet(len(records)), Results: make([]Result, len(records)), Gaps: map[string]bool{}}
	for i := range records {
		rec := &records[i]
		x := &u.Results[i]
		x.Record, x.Event = rec, rec.Event
		if rec.Event == nil || rec.Err != nil {
			return nil, Poison(CodeUndecodable, "the record is not an event of this Lethe")
		}
		u.ofPass = u.ofPass || rec.Event.Kind == schema.KindSnapshot || rec.Event.Body.Type() == schema.TypePassMarker
		if err := u.resolve(x, keyParts); err != nil {
			return nil, err
		}
	}
	u.Set.NeedContacts = u.Set.NeedContacts || c.Config.Find != nil
	u.Set.Sort()
	return u, nil
}

// resolve finds the subject of a record that can change its facts or state.
func (u *Unit) resolve(x *Result, keyParts int) error {
	switch body := x.Event.Body.(type) {
	case *schema.ConsentChange:
		u.Set.NeedContacts = u.Set.NeedContacts || !body.Contact.IsZero()
	case *schema.ContactPoint, *schema.SubjectMerged:
		u.Set.NeedContacts = true
	case *schema.Objection:
		u.Set.NeedContacts = u.Set.NeedContacts || !body.Contact.IsZero()
	case *schema.ProcessingRestriction, *schema.SubjectErasure:
	default:
		return nil
	}
	s := u.Set.Get(u.Core.Ref(x.Event.SubjectRef), x.Record.Partition)
	x.Subject = s
	if s.Key == nil {
		parts, err := schema.SplitKey(x.Event.CRMKey)
		if err != nil || keyParts > 0 && len(parts) != keyParts {
			return Poison(CodeKeyParts, "the CRM key has another number of columns than person.crm_key")
		}
		s.Key = parts
	}
	return nil
}

// Dispatch takes every record in, in order. Nothing here touches the database.
func (u *Unit) Dispatch() {
	u.takePasses()
	u.lookAhead()
	for i := range u.Results {
		x := &u.Results[i]
		if x.Outcome == OutcomeElsewhere {
			continue
		}
		switch body := x.Event.Body.(type) {
		case *schema.ContactPoint:
			u.takeContact(x, body)
		case *schema.SubjectMerged:
			u.takeMerged(x, body)
		case *schema.ConsentChange, *schema.Objection, *schema.ProcessingRestriction:
			u.takeFact(x)
		case *schema.SubjectErasure:
			x.Strictness = sinks.Erasure
			u.takeErasure(x)
		case *schema.Gap:
			if body.Opened {
				u.Gaps[body.GapID] = true
			}
			x.Outcome = OutcomeRecorded
		case *schema.CaseDecision, *schema.Heartbeat, *schema.PassMarker, *schema.SourceReport:
			x.Outcome = OutcomeRecorded
		default:
			x.Outcome = OutcomeUnsupported
			u.Core.Log.Warn().Stringer("type", x.Event.Body.Type()).Stringer("event", x.Event.EventID).
				Msg("event of a kind that this version does not apply")
		}
	}
}

// takeFact merges what a consent, objection or restriction says into the facts of its subject.
func (u *Unit) takeFact(x *Result) {
	s := x.Subject
	f, strictness, _ := sinks.FactOf(x.Event)
	x.Strictness = strictness
	switch {
	case s.State == SubjectErased:
		// Erasure absorbs: no fact of this subject can change anything any more.
		x.Outcome = OutcomeUnchanged
		if strictness == sinks.Permission {
			x.Outcome = OutcomeRefused
			u.note(x, FindingRefused, f.Scope)
		}
		return
	case strictness == sinks.Permission && s.refuses(x.Event):
		x.Outcome = OutcomeRefused
		u.note(x, FindingRefused, f.Scope)
		return
	case s.Blocked != "" && !u.Replaying && !passes(s, f, strictness):
		x.Outcome = OutcomeParked
		return
	case u.tellsNothing(x, &f):
		x.Outcome = OutcomeUnchanged
		return
	}
	x.Outcome = u.merge(x, f)
	if x.Outcome == "" && x.Event.Body.Type() != schema.TypeConsentChange {
		x.own, u.Readback = true, append(u.Readback, x)
	}
}

// passes reports whether an event of a blocked subject may be applied before the one that blocks: what forbids always,
// what is neutral only where it takes no prohibition's place.
func passes(s *Subject, f sinks.Fact, strictness sinks.Strictness) bool {
	if strictness.Prohibits() {
		return true
	}
	if strictness == sinks.Permission {
		return false
	}
	old := s.Find(f.Scope, f.Contact)
	return old == nil || !old.State.Strictness().Prohibits()
}

// takeErasure opens a case, unless the subject has one: then a further marker is counted, and its order remembered, so
// that it does not open the case again if it is delivered once more after a cancel.
func (u *Unit) takeErasure(x *Result) {
	s := x.Subject
	older := s.ErasedOrder != nil && bytes.Compare(x.Event.Order[:], s.ErasedOrder) <= 0
	switch {
	case older:
		x.Outcome = OutcomeStale
		return
	case u.takeErasedRow(x):
		return
	case s.State != SubjectLive:
		x.Outcome = OutcomeUnchanged
		u.Streamed = append(u.Streamed, s)
	default:
		s.State = SubjectSuppressed
		s.Suppress, s.Touched = true, true
		x.own, u.Cases = true, append(u.Cases, x)
		u.touch(s, TouchSpread)
	}
	s.ErasedOrder = bytes.Clone(x.Event.Order[:])
	s.Dirty = true
}

// Settle says what became of the records, now that the statements have run, and what that means for their subjects.
func (u *Unit) Settle() {
	for i := range u.Results {
		x := &u.Results[i]
		if x.Outcome != "" {
			continue
		}
		switch {
		case x.Subject.Effect.Doubt() != "" && (x.Strictness == sinks.Erasure || x.Strictness == sinks.Permission):
			x.Outcome = OutcomeAmbiguous
		case !x.Subject.Effect.Matched:
			x.Outcome = OutcomeNoMatch
		case u.Core.Config.Mode == ModeObserve:
			x.Outcome = OutcomeObserved
		case x.Event.Kind == schema.KindSnapshot:
			x.Outcome = OutcomeReconciled
		case x.Subject.Effect.AnyChanged():
			x.Outcome = OutcomeApplied
		default:
			x.Outcome = OutcomeUnchanged
		}
	}
	for _, s := range u.Set.List {
		u.Core.SettleSubject(s, u.Now)
	}
}

// SettleSubject brings the subject's row up to date after its statements have run.
func (c *Core) SettleSubject(s *Subject, now time.Time) {
	if !s.Touched && !s.Suppress {
		return
	}
	if !s.Known || s.Sealed == nil {
		s.Dirty = true
	}
	next := sinks.Fold(s.Facts, s.Erased(), now).NextChange()
	if !next.Equal(s.NextChange) {
		s.NextChange, s.Dirty = next, true
	}
	switch {
	case s.Effect.Matched && (!s.UnmatchedSince.IsZero() || !s.RecheckAt.IsZero()):
		s.UnmatchedSince, s.RecheckAt, s.Dirty = time.Time{}, time.Time{}, true
	case !s.Effect.Matched && s.RecheckAt.IsZero() && !s.GivenUp:
		s.UnmatchedSince, s.RecheckAt, s.Dirty = now, now.Add(c.RecheckFirst), true
	}
}

// PlacesAfter returns where the partitions stand after a batch.
func PlacesAfter(b *sinks.Batch) []sinks.Place {
	out := make([]sinks.Place, len(b.From))
	copy(out, b.From)
	at := make(map[int32]*sinks.Place, len(out))
	for i := range out {
		at[out[i].Partition] = &out[i]
	}
	for i := range b.Records {
		p := at[b.Records[i].Partition]
		if p == nil {
			continue
		}
		p.NextOffset = b.Records[i].Offset + 1
		if ev := b.Records[i].Event; ev != nil {
			p.LastEventID, p.LastOrder = ev.EventID, ev.Order
		}
	}
	return out
}

// LastTimes returns the newest commit time and heartbeat among the unit's records of one partition; nil where there is
// none.
func (u *Unit) LastTimes(part int32) (committed, beat *time.Time) {
	for i := range u.Results {
		x := &u.Results[i]
		if x.Record.Partition != part || x.Event == nil {
			continue
		}
		if t := x.Event.CommittedAt; committed == nil || t.After(*committed) {
			committed = &t
		}
		if h, ok := x.Event.Body.(*schema.Heartbeat); ok && (beat == nil || h.EmittedAt.After(*beat)) {
			beat = &h.EmittedAt
		}
	}
	return committed, beat
}

// Outcome counts what became of the records. committing is the replica's clock at the commit.
func (u *Unit) Outcome(places []sinks.Place, committing time.Time) sinks.Outcome {
	out := sinks.Outcome{Places: places}
	for i := range u.Results {
		x := &u.Results[i]
		switch x.Outcome {
		case OutcomeApplied, OutcomeObserved:
			out.Applied++
		case OutcomeReconciled:
			out.Reconciled++
		case OutcomeStale:
			out.Stale++
		case OutcomeNoMatch:
			out.NoMatch++
		case OutcomeRefused:
			out.Refused++
		case OutcomeParked:
			out.Parked++
		default:
			out.Unchanged++
		}
		if x.Outcome == OutcomeApplied && x.Strictness.Prohibits() {
			out.Unusable = append(out.Unusable, max(0, committing.Sub(x.Event.CommittedAt)))
		}
	}
	return out
}

// Counts is how many records had each outcome.
func (u *Unit) Counts() map[string]int {
	counts := map[string]int{}
	for i := range u.Results {
		counts[u.Results[i].Outcome]++
	}
	return counts
}
