package ledger

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// FoundAttempt is the attempt of receipts made when a row appeared: above every offset's, so that they are the effective
// ones.
const FoundAttempt = math.MaxUint32

// replayAttempt is the attempt of the receipt of a replayed event.
const replayAttempt = FoundAttempt - 1

// Receipt is a receipt on its way into the table receipt.
type Receipt struct {
	schema.Receipt
	Ref  []byte // of the subject; nil for a receipt of many
	Part int32
}

// ReceiptRow is a receipt as the table receipt holds it: as signed, so that what is sent later, and again, is the same to
// the byte. A row with the same id that is there already stays.
type ReceiptRow struct {
	ID      schema.ReceiptID
	EventID schema.EventID
	CaseID  []byte // nil: NULL
	Ref     []byte // nil: NULL
	Part    int32
	State   string
	Attempt int64
	Body    []byte
}

// Sign signs a receipt.
func (c *Core) Sign(rc *Receipt) (ReceiptRow, error) {
	body, err := schema.SignReceipt(c.Signer, &rc.Receipt)
	if err != nil {
		return ReceiptRow{}, fmt.Errorf("signing receipt: %w", err)
	}
	row := ReceiptRow{
		ID: rc.ReceiptID, EventID: rc.EventID, Ref: rc.Ref, Part: rc.Part, State: rc.State.String(), Attempt: int64(rc.Attempt), Body: body,
	}
	if !rc.CaseID.IsZero() {
		row.CaseID = bytes.Clone(rc.CaseID[:])
	}
	return row, nil
}

// Receipts are the signed receipts of a settled unit: one each for erasures, objections and restrictions that took
// effect, one for everything else together, because a signature costs as much as two events.
func (u *Unit) Receipts() ([]ReceiptRow, error) {
	var others []*Result
	var out []ReceiptRow
	add := func(rc *Receipt) error {
		row, err := u.Core.Sign(rc)
		out = append(out, row)
		return err
	}
	for i := range u.Results {
		x := &u.Results[i]
		if x.Subject == nil || x.Outcome == OutcomeRecorded || x.quiet() {
			continue
		}
		state, ok := u.ownReceipt(x)
		if !ok {
			others = append(others, x)
			continue
		}
		if err := add(u.receiptOf(x, state)); err != nil {
			return nil, err
		}
	}
	if len(others) > 0 {
		if err := add(u.batchReceipt(others)); err != nil {
			return nil, err
		}
	}
	notices, err := u.reconsents()
	return append(out, notices...), err
}

// ownReceipt reports whether a record gets a receipt of its own, and its state: erasures that opened a case, objections
// and restrictions that became facts.
func (u *Unit) ownReceipt(x *Result) (schema.ReceiptState, bool) {
	if !x.own {
		return 0, false
	}
	switch x.Outcome {
	case OutcomeNoMatch:
		return schema.ReceiptNoMatch, true
	case OutcomeAmbiguous:
		return schema.ReceiptAmbiguous, x.Event.Body.Type() == schema.TypeSubjectErasure
	case OutcomeObserved:
		return schema.ReceiptPlanned, true
	case OutcomeApplied, OutcomeReconciled, OutcomeUnchanged:
		if x.Event.Body.Type() == schema.TypeSubjectErasure {
			return schema.ReceiptSuppressed, true
		}
		return schema.ReceiptApplied, true
	}
	return 0, false
}

func (u *Unit) receiptOf(x *Result, state schema.ReceiptState) *Receipt {
	rc := u.Core.NewReceipt(x.Event.EventID, x.Event.Body.Type(), state, 0)
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest = x.Event.CaseID, x.Event.CommittedAt, x.Event.ConfigDigest
	rc.Rows, rc.MadeAt, rc.Gaps = x.Subject.Effect.Rows, u.Now, u.openGaps()
	rc.Ref, rc.Part = x.Subject.Ref[:], x.Subject.Part
	rc.MatchMethod = x.Subject.Effect.MatchMethod()
	switch state {
	case schema.ReceiptNoMatch:
		rc.Reason, rc.Evidence = ReasonNoRow, schema.EvidenceAttempted
	case schema.ReceiptAmbiguous:
		rc.Reason, rc.Evidence = ReasonAmbiguous, schema.EvidenceApplied
	case schema.ReceiptPlanned:
		rc.Reason, rc.Evidence = ReasonObserve, schema.EvidenceAttempted
	default:
		rc.Evidence = schema.EvidenceApplied
	}
	return rc
}

// batchReceipt lists events with their outcomes. Its attempt is the offset of the first record: the same event delivered
// again lies at another offset, and so its receipt is another one. A replayed event was at its offset already, in the
// receipt that called it parked.
func (u *Unit) batchReceipt(list []*Result) *Receipt {
	first := list[0]
	attempt := uint32(first.Record.Offset & 0xffffffff)
	if u.Replaying {
		attempt = replayAttempt
	}
	state, evidence := schema.ReceiptApplied, schema.EvidenceApplied
	if u.Core.Config.Mode == ModeObserve {
		state, evidence = schema.ReceiptPlanned, schema.EvidenceAttempted
	}
	rc := u.Core.NewReceipt(first.Event.EventID, schema.TypeConsentChange, state, attempt)
	rc.CommittedAt, rc.ConfigDigest = first.Event.CommittedAt, first.Event.ConfigDigest
	rc.MadeAt, rc.Gaps, rc.Evidence = u.Now, u.openGaps(), evidence
	rc.Part = first.Record.Partition
	rc.Events = make([]schema.EventOutcome, len(list))
	for i, x := range list {
		rc.Events[i] = schema.EventOutcome{EventID: x.Event.EventID, Outcome: x.Outcome}
	}
	rc.Rows = u.consentRows()
	return rc
}

// consentRows counts the rows of subjects that have no receipt of their own.
func (u *Unit) consentRows() []schema.TableRows {
	own := map[*Subject]bool{}
	for _, x := range append(slices.Clone(u.Cases), u.Readback...) {
		own[x.Subject] = true
	}
	var total Effect
	for _, s := range u.Set.List {
		if own[s] {
			continue
		}
		for _, row := range s.Effect.Rows {
			total.Changed(row.Table, row.Action, row.Changed)
		}
	}
	return total.Rows
}

func (u *Unit) openGaps() []string {
	ids := make([]string, 0, len(u.Gaps))
	for id := range u.Gaps {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// NewReceipt fills in what every receipt of this replica says.
func (c *Core) NewReceipt(event schema.EventID, typ schema.Type, state schema.ReceiptState, attempt uint32) *Receipt {
	return &Receipt{Receipt: schema.Receipt{
		ReceiptID: c.ids.ReceiptID(event, c.Name, state, attempt), EventID: event, EventType: typ,
		Source: c.Source, Replica: c.Name, Recipient: c.Config.Recipient.Name, State: state, Attempt: attempt,
		MatchMethod: MatchCRMKey, MappingDigest: c.MappingDigest, Version: c.Version,
	}}
}

// CaseReceipt is the receipt of a case in a state. attempt 0 is phase 1 and what waits; phase 2 counts from 1.
func (c *Core) CaseReceipt(x *OpenedCase, state schema.ReceiptState, attempt int, reason string, gaps []string, now time.Time) *Receipt {
	rc := c.NewReceipt(x.Event, schema.TypeSubjectErasure, state, uint32(attempt)) //nolint:gosec // attempts are few
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest, rc.MadeAt = x.ID, x.Committed, x.Digest, now
	rc.Reason, rc.Gaps, rc.Ref, rc.Part = reason, gaps, x.Ref[:], x.Part
	if x.Work.Method != "" {
		rc.MatchMethod = x.Work.Method
	}
	return rc
}

// foundWords are the state, reason and evidence of receipts about a subject whose row has appeared.
func (c *Core) foundWords(done schema.ReceiptState) (schema.ReceiptState, string, schema.EvidenceLevel) {
	if c.Config.Mode == ModeObserve {
		return schema.ReceiptPlanned, ReasonObserve, schema.EvidenceAttempted
	}
	return done, ReasonRowFound, schema.EvidenceApplied
}

// FoundCase is the receipt of an erasure whose subject's row has appeared.
func (c *Core) FoundCase(s *Subject, o OpenCase, gaps []string, now time.Time) *Receipt {
	state, reason, evidence := c.foundWords(schema.ReceiptSuppressed)
	rc := c.NewReceipt(o.Event, schema.TypeSubjectErasure, state, 0)
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest, rc.MadeAt = o.CaseID, o.Committed, o.Digest, now
	rc.Reason, rc.Evidence, rc.Rows, rc.Gaps = reason, evidence, s.Effect.Rows, gaps
	rc.Ref, rc.Part, rc.MatchMethod = s.Ref[:], s.Part, s.Effect.MatchMethod()
	return rc
}

// FoundFollowed is the receipt of an objection or restriction whose subject's row has appeared.
func (c *Core) FoundFollowed(s *Subject, f *Followed, gaps []string, now time.Time) *Receipt {
	state, reason, evidence := c.foundWords(schema.ReceiptApplied)
	rc := c.NewReceipt(f.Event, f.Kind, state, 0)
	rc.Reason, rc.Evidence, rc.Rows, rc.Gaps = reason, evidence, s.Effect.Rows, gaps
	rc.CommittedAt, rc.MadeAt, rc.Ref, rc.Part, rc.ConfigDigest = f.Committed, now, s.Ref[:], s.Part, f.Digest
	rc.MatchMethod = s.Effect.MatchMethod()
	return rc
}

// FoundConsents states that the consents of a subject are in force, by the events that its facts come from; nil where
// there is nothing to state. The commit times of those events are no longer known here: the time at which the first of
// them found no row stands for them.
func (c *Core) FoundConsents(s *Subject, gaps []string, now time.Time) *Receipt {
	var events []schema.EventOutcome
	var newest *sinks.Fact // the receipt is named for it: a row may vanish and be found again
	for i := range s.Facts {
		f := &s.Facts[i]
		if !strings.HasPrefix(f.Scope, ConsentPrefix) {
			continue
		}
		events = append(events, schema.EventOutcome{EventID: f.EventID, Outcome: OutcomeApplied})
		if newest == nil || bytes.Compare(f.Order[:], newest.Order[:]) > 0 {
			newest = f
		}
	}
	if len(events) == 0 || c.Config.Mode == ModeObserve {
		return nil
	}
	rc := c.NewReceipt(newest.EventID, schema.TypeConsentChange, schema.ReceiptApplied, FoundAttempt)
	rc.Reason, rc.Evidence, rc.Events, rc.Rows, rc.Gaps = ReasonRowFound, schema.EvidenceApplied, events, s.Effect.Rows, gaps
	rc.CommittedAt, rc.MadeAt, rc.Part = s.WaitedSince, now, s.Part
	return rc
}

// VerifiedReceipt is the proof of a case: nothing was found at a time.
func (c *Core) VerifiedReceipt(x *OpenedCase, at time.Time) *Receipt {
	rc := c.CaseReceipt(x, schema.ReceiptVerified, x.Attempts, "", nil, at)
	rc.Evidence, rc.Residuals = schema.EvidenceReadBack, append(Residuals(c.Config, at), x.Held...)
	rc.Verification = &schema.Verification{Method: VerifyMethod, At: at}
	return rc
}

// FollowedReceipt is the receipt of an objection or restriction that was read back with so many rows that do not follow.
func (c *Core) FollowedReceipt(f *Followed, remaining int64, gaps []string, at time.Time) *Receipt {
	state, reason, evidence := schema.ReceiptVerified, "", schema.EvidenceReadBack
	if remaining > 0 {
		state, reason, evidence = schema.ReceiptFailed, ReasonNotFollowed, schema.EvidenceAttempted
	}
	rc := c.NewReceipt(f.Event, f.Kind, state, uint32(f.Attempts)) //nolint:gosec // at most MaxAttempts
	rc.CommittedAt, rc.ConfigDigest, rc.MadeAt, rc.Gaps = f.Committed, f.Digest, at, gaps
	rc.Reason, rc.Evidence, rc.Ref, rc.Part = reason, evidence, f.Ref[:], f.Part
	rc.Verification = &schema.Verification{Method: VerifyMethod, Remaining: remaining, At: at}
	return rc
}

// AwaitingReceipt is the receipt of a case that the breaker keeps until somebody releases it.
func (c *Core) AwaitingReceipt(x *OpenedCase, gaps []string, now time.Time) *Receipt {
	reason := ReasonBreaker
	if x.Snapshot {
		reason = ReasonSnapshot
	}
	rc := c.CaseReceipt(x, schema.ReceiptAwaitingRelease, x.Attempts, reason, gaps, now)
	rc.Evidence = schema.EvidenceApplied
	return rc
}

// Destroyed brings the subject of a case that phase 2 has run for up to date, and returns the receipt of the attempt: of one
// that was lost (see OpenedCase.Lost), or of one that was applied, with the work that the read-back needs.
func (c *Core) Destroyed(x *OpenedCase, crmErased bool, gaps []string, now time.Time) (rc *Receipt, work []byte, lost bool, err error) {
	s := x.Subject
	s.Dirty = true
	if x.Lost(crmErased) {
		if s.Effect.Doubt() != "" {
			rc = c.CaseReceipt(x, schema.ReceiptAmbiguous, x.Attempts+1, ReasonAmbiguous, gaps, now)
			rc.Evidence, rc.MatchMethod = schema.EvidenceApplied, s.Effect.MatchMethod()
			return rc, nil, true, nil
		}
		s.UnmatchedSince, s.RecheckAt = now, now.Add(c.RecheckFirst)
		rc = c.CaseReceipt(x, schema.ReceiptNoMatch, x.Attempts+1, ReasonGone, gaps, now)
		rc.Evidence = schema.EvidenceAttempted
		return rc, nil, true, nil
	}
	if s.Effect.By != 0 {
		x.Work.Method = s.Effect.MatchMethod()
	}
	s.State = SubjectErased
	rc = c.CaseReceipt(x, schema.ReceiptApplied, x.Attempts+1, "", gaps, now)
	rc.Evidence, rc.Rows = schema.EvidenceApplied, s.Effect.Rows
	persons := slices.Concat(x.Work.Persons, s.Effect.Persons)
	slices.Sort(persons)
	work, err = CaseWork{Persons: slices.Compact(persons), Method: x.Work.Method}.Encode()
	return rc, work, false, err
}

// FailedReceipt is the receipt of a case whose last attempt did not succeed.
func (c *Core) FailedReceipt(x *OpenedCase, code string, gaps []string, now time.Time) *Receipt {
	rc := c.CaseReceipt(x, schema.ReceiptFailed, x.Attempts, code, gaps, now)
	rc.Evidence = schema.EvidenceAttempted
	return rc
}

// DecidedReceipt is the receipt of a case that a decision has changed.
func (c *Core) DecidedReceipt(x *OpenedCase, state schema.ReceiptState, gaps []string, now time.Time) *Receipt {
	rc := c.CaseReceipt(x, state, x.Attempts, ReasonDecision, gaps, now)
	rc.Evidence = schema.EvidenceApplied
	return rc
}
