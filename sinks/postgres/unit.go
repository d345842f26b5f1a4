package postgres

import (
	"bytes"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// What became of one record; the words that receipts use.
const (
	outcomeApplied     = "applied"
	outcomeUnchanged   = "unchanged"
	outcomeStale       = "stale"
	outcomeNoMatch     = "no_match"
	outcomeRefused     = "refused"
	outcomeObserved    = "observed"
	outcomeParked      = "parked"
	outcomeRecorded    = "recorded"    // of no subject's rows: decisions, gaps, heartbeats
	outcomeUnsupported = "unsupported" // of a kind that this version does not produce
)

// The codes of events that this replica refuses by themselves.
const (
	codeUndecodable = "undecodable"
	codeKeyParts    = "crm_key_parts"
	codeBlocked     = "subject_blocked" // parked behind the event that blocks its subject
)

// unit is the work of one transaction: some records, their subjects, and what becomes of both.
type unit struct {
	r       *Replica
	m       *Mapping
	now     time.Time // by the replica's clock, at the beginning of the transaction
	set     *subjects
	results []result
	gaps    map[string]bool // open gaps
	// replaying says that the records come from lethe.parked: their subjects are blocked because of them.
	replaying bool

	cases    []*result // erasures that opened a case
	readback []*result // objections and restrictions to be read back
}

// result is one record and what became of it.
type result struct {
	record     *sinks.Record
	event      *schema.Event
	subject    *subject // nil for records that speak of none
	strictness sinks.Strictness
	outcome    string // empty until the statements have shown it
	own        bool   // has a receipt of its own, if it takes effect
}

// newUnit resolves the subjects of the records. It touches no database: what cannot be used at all is Poison here.
func (r *Replica) newUnit(m *Mapping, records []sinks.Record) (*unit, error) {
	u := &unit{
		r: r, m: m, set: newSubjects(len(records)), results: make([]result, len(records)), gaps: map[string]bool{},
	}
	for i := range records {
		rec := &records[i]
		x := &u.results[i]
		x.record, x.event = rec, rec.Event
		if rec.Event == nil || rec.Err != nil {
			return nil, poison(codeUndecodable, "the record is not an event of this Lethe")
		}
		if err := u.resolve(x); err != nil {
			return nil, err
		}
	}
	u.set.sort()
	return u, nil
}

// resolve finds the subject of a record that can change its facts or state.
func (u *unit) resolve(x *result) error {
	switch x.event.Body.(type) {
	case *schema.ConsentChange, *schema.Objection, *schema.ProcessingRestriction, *schema.SubjectErasure:
	default:
		return nil
	}
	s := u.set.get(refKey(u.r.ref(x.event.SubjectRef)), x.record.Partition)
	x.subject = s
	if s.key == nil {
		parts, err := schema.SplitKey(x.event.CRMKey)
		if err != nil || len(parts) != len(u.m.crm) {
			return poison(codeKeyParts, "the CRM key has another number of columns than person.crm_key")
		}
		s.key = parts
	}
	return nil
}

func poison(code, hint string) error {
	return &sinks.Error{Class: sinks.Poison, Op: "reading record", Code: code, Hint: hint}
}

// dispatch takes every record in, in order. Nothing here touches the database.
func (u *unit) dispatch() {
	for i := range u.results {
		x := &u.results[i]
		switch body := x.event.Body.(type) {
		case *schema.ConsentChange, *schema.Objection, *schema.ProcessingRestriction:
			u.takeFact(x)
		case *schema.SubjectErasure:
			x.strictness = sinks.Erasure
			u.takeErasure(x)
		case *schema.Gap:
			if body.Opened {
				u.gaps[body.GapID] = true
			}
			x.outcome = outcomeRecorded
		case *schema.CaseDecision, *schema.Heartbeat, *schema.PassMarker:
			x.outcome = outcomeRecorded
		default:
			x.outcome = outcomeUnsupported
			u.r.log.Warn().Stringer("type", x.event.Body.Type()).Stringer("event", x.event.EventID).
				Msg("event of a kind that this version does not apply")
		}
	}
}

// takeFact merges what a consent, objection or restriction says into the facts of its subject.
func (u *unit) takeFact(x *result) {
	s := x.subject
	f, strictness, _ := sinks.FactOf(x.event)
	x.strictness = strictness
	switch {
	case s.state == subjectErased:
		// Erasure absorbs: no fact of this subject can change anything any more.
		x.outcome = outcomeUnchanged
		if strictness == sinks.Permission {
			x.outcome = outcomeRefused
		}
		return
	case s.state == subjectSuppressed && strictness == sinks.Permission:
		x.outcome = outcomeRefused
		return
	case s.blocked != "" && !u.replaying && !passes(s, f, strictness):
		x.outcome = outcomeParked
		return
	}
	if !s.merge(f) {
		x.outcome = outcomeStale
		return
	}
	s.touched = true
	switch {
	case f.State == sinks.StateNoBasis:
		x.outcome = outcomeRefused
	case x.event.Body.Type() != schema.TypeConsentChange:
		x.own, u.readback = true, append(u.readback, x)
	}
}

// passes reports whether an event of a blocked subject may be applied before the one that blocks: what forbids always,
// what is neutral only where it takes no prohibition's place.
func passes(s *subject, f sinks.Fact, strictness sinks.Strictness) bool {
	if strictness.Prohibits() {
		return true
	}
	if strictness == sinks.Permission {
		return false
	}
	old := s.find(f.Scope, f.Contact)
	return old == nil || !old.State.Strictness().Prohibits()
}

// takeErasure opens a case, unless the subject has one: then a further marker is counted, and its order remembered, so
// that it does not open the case again if it is delivered once more after a cancel.
func (u *unit) takeErasure(x *result) {
	s := x.subject
	older := s.erasedOrder != nil && bytes.Compare(x.event.Order[:], s.erasedOrder) <= 0
	switch {
	case older:
		x.outcome = outcomeStale
		return
	case s.state != subjectLive:
		x.outcome = outcomeUnchanged
	default:
		s.state = subjectSuppressed
		s.suppress, s.touched = true, true
		x.own, u.cases = true, append(u.cases, x)
	}
	s.erasedOrder = bytes.Clone(x.event.Order[:])
	s.dirty = true
}

func (u *unit) effects() *effects {
	return &effects{r: u.r, m: u.m, cfg: u.r.cfg, now: u.now}
}

// settle says what became of the records, now that the statements have run, and what that means for their subjects.
func (u *unit) settle() {
	for i := range u.results {
		x := &u.results[i]
		if x.outcome != "" {
			continue
		}
		switch {
		case !x.subject.effect.matched:
			x.outcome = outcomeNoMatch
		case u.r.cfg.Mode == modeObserve:
			x.outcome = outcomeObserved
		case x.subject.effect.anyChanged():
			x.outcome = outcomeApplied
		default:
			x.outcome = outcomeUnchanged
		}
	}
	for _, s := range u.set.list {
		u.r.settleSubject(s, u.now)
	}
}

// settleSubject brings the subject's row up to date after its statements have run.
func (r *Replica) settleSubject(s *subject, now time.Time) {
	if !s.touched && !s.suppress {
		return
	}
	if !s.known || s.sealed == nil {
		s.dirty = true
	}
	next := sinks.Fold(s.facts, s.erased(), now).NextChange()
	if !next.Equal(s.nextChange) {
		s.nextChange, s.dirty = next, true
	}
	switch {
	case s.effect.matched && (!s.unmatchedSince.IsZero() || !s.recheckAt.IsZero()):
		s.unmatchedSince, s.recheckAt, s.dirty = time.Time{}, time.Time{}, true
	case !s.effect.matched && s.recheckAt.IsZero() && !s.givenUp:
		s.unmatchedSince, s.recheckAt, s.dirty = now, now.Add(r.opts.RecheckFirst), true
	}
}
