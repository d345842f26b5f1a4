package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"lethe/config"
	"lethe/internal/crashpoint"
	"lethe/schema"
)

// reader asks the source about the cases that the stream opens, one question at a time, and publishes the answers. Like a
// passer it never ends the session for what it meets at the source.
//
// A case is noted by the stream's goroutine and durable before the checkpoint passes its commit: a crash before that brings the commit again.
// An answer is published, then noted: a crash in between publishes it once more, under the same id.
type reader struct {
	s      *session
	o      *ReadbackOptions
	source Snapshotter

	wake chan struct{} // capacity 1: a case was noted

	changing turn // one change of what is kept at a time
	loaded   bool // open holds what was kept; belongs to whose turn it is

	mu      sync.Mutex
	noted   []Readback // by the stream, not durable yet
	open    map[schema.CaseID]*Readback
	spilled bool // Readbacks holds cases that open does not

	assembly // of the reader's own goroutine
}

// noteLimit is how many cases of one commit are noted before the stream waits until they are durable.
const noteLimit = 1000

// newReader returns nil where nothing is asked.
func (s *session) newReader() *reader {
	o := &s.p.o.Readback
	source, ok := s.p.o.Source.(Snapshotter)
	if o.Readbacks == nil || !ok {
		return nil
	}
	x := &reader{
		s: s, o: o, source: source, wake: make(chan struct{}, 1), changing: make(turn, 1),
		open: map[schema.CaseID]*Readback{},
	}
	x.assembly.init(s.p, nil, o.Encoder)
	return x
}

// note remembers the case that an erasure of the stream opens or goes on with. revived says that the row has left the erased state.
func (x *reader) note(ev *schema.Event) error {
	var marked, revived bool
	switch body := ev.Body.(type) {
	case *schema.SubjectErasure:
		marked = body.Marker
	case *schema.SourceReport:
		revived = true
	default:
		return nil
	}
	sealed, err := x.o.Seal.AppendSeal(nil, ev.CRMKey, readbackContext(x.s.p.o.Name, ev.CaseID))
	if err != nil {
		return fmt.Errorf("sealing the key of a case: %w", err)
	}
	r := Readback{
		Case: ev.CaseID, Subject: sealed, Incarnation: ev.Order.Incarnation(), Epoch: x.s.position.Epoch, Number: x.s.position.Commit,
		OpenedAt: ev.CommittedAt, Marked: marked,
	}
	r.Complete.NextAt = ev.CommittedAt.Add(x.o.Window)
	if marked {
		r.Complete.NextAt = ev.CommittedAt
	}
	r.Complete.Done = revived || len(x.o.Tables) == 0
	r.Gate.Done, r.Gate.NextAt = !x.o.Gated, ev.CommittedAt
	r.Request.Done, r.Request.NextAt = x.o.Request == nil, ev.CommittedAt
	x.mu.Lock()
	x.noted = append(x.noted, r)
	full := len(x.noted) >= noteLimit
	x.mu.Unlock()
	if full {
		return x.flush(x.s.work)
	}
	return nil
}

// flush makes durable what was noted.
func (x *reader) flush(ctx context.Context) error {
	x.mu.Lock()
	empty := len(x.noted) == 0
	x.mu.Unlock()
	if empty {
		return nil
	}
	if err := x.changing.take(ctx); err != nil {
		return err
	}
	defer x.changing.leave()
	if err := x.load(ctx); err != nil {
		return err
	}
	x.mu.Lock()
	list := slices.Clone(x.noted)
	x.mu.Unlock()
	changed := x.merge(list)
	if len(changed) > 0 {
		if err := x.save(ctx, changed); err != nil {
			return err
		}
	}
	x.mu.Lock()
	x.noted = slices.Delete(x.noted, 0, len(list)) // only this removes, and others append
	x.mu.Unlock()
	crashpoint.Hit("readback.after_noted")
	poke(x.wake)
	return nil
}

// merge joins what the stream has noted with what is known of the same cases.
func (x *reader) merge(noted []Readback) []Readback {
	x.mu.Lock()
	defer x.mu.Unlock()
	known := map[schema.CaseID]*Readback{}
	var order []schema.CaseID
	for i := range noted {
		n := &noted[i]
		old := known[n.Case]
		if old == nil {
			if old = x.open[n.Case]; old != nil {
				c := *old
				old = &c
			}
		}
		if old == nil && n.Complete.Done && n.Gate.Done && n.Request.Done {
			continue // revived, and nothing was open
		}
		if known[n.Case] == nil {
			order = append(order, n.Case)
		}
		known[n.Case] = n
		if old != nil {
			old.again(n)
			known[n.Case] = old
		}
	}
	out := make([]Readback, len(order))
	for i, id := range order {
		out[i] = *known[id]
	}
	return out
}

// again takes in that the stream spoke of a case that is open. What comes again after a crash changes nothing but when it is asked next.
func (r *Readback) again(n *Readback) {
	r.Marked = r.Marked || n.Marked
	if n.Complete.Done { // revived: the source does not even say that it erased
		r.Complete.Done = true
		return
	}
	if r.Complete.Done && n.after(r) {
		r.Complete.Done = false
		r.Complete.NextAt = n.Complete.NextAt
	}
	if n.Marked && n.Complete.NextAt.Before(r.Complete.NextAt) {
		r.Complete.NextAt = n.Complete.NextAt
	}
}

func (r *Readback) after(o *Readback) bool {
	return cmp.Or(cmp.Compare(r.Incarnation, o.Incarnation), cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.Number, o.Number)) > 0
}

// save makes records durable, then takes them over. The caller has the turn to change.
func (x *reader) save(ctx context.Context, list []Readback) error {
	if err := x.o.Readbacks.Save(ctx, list); err != nil {
		return fmt.Errorf("writing what is to be asked of the source: %w", err)
	}
	x.mu.Lock()
	for i := range list {
		r := list[i]
		switch {
		case r.done():
			delete(x.open, r.Case)
		case x.open[r.Case] == nil && len(x.open) >= x.o.Most:
			x.spilled = true
		default:
			x.open[r.Case] = &r
		}
	}
	n := len(x.open)
	x.mu.Unlock()
	x.s.p.totals.readbacks.Store(int64(n))
	return nil
}

// run asks until ctx ends. Its error is one of the session.
func (x *reader) run(ctx context.Context) error {
	select {
	case <-x.s.follows:
	case <-ctx.Done():
		return nil
	}
	retry := &backoff.ExponentialBackOff{
		InitialInterval: firstRetry, RandomizationFactor: 0.2, Multiplier: 2, MaxInterval: longestWait,
	}
	retry.Reset()
	failing := false
	for {
		next, err := x.once(ctx)
		wait := time.Until(next)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // the end was asked for
		case IsPermanent(err):
			return err
		case err != nil:
			wait = retry.NextBackOff()
			x.s.p.totals.readbackErrors.Add(1)
			if !failing {
				x.s.p.log.Warn().Err(err).Msg("the source cannot be asked about erasures; it is tried again")
			}
		default:
			retry.Reset()
		}
		failing = err != nil
		t := time.NewTimer(min(max(wait, x.o.Pause), longestWait))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		case <-x.wake:
			t.Stop()
		}
	}
}

// load reads what was kept, once a session, and again where not all of it had room. The caller has the turn to change.
func (x *reader) load(ctx context.Context) error {
	x.mu.Lock()
	enough := x.loaded && (!x.spilled || len(x.open) >= x.o.Most/2)
	x.mu.Unlock()
	if enough {
		return nil
	}
	list, more, err := x.o.Readbacks.Load(ctx, x.o.Most)
	if err != nil {
		return fmt.Errorf("reading what is to be asked of the source: %w", err)
	}
	x.mu.Lock()
	clear(x.open)
	for i := range list {
		r := list[i]
		r.Gate.Done = r.Gate.Done || !x.o.Gated // the mapping may have changed since
		r.Request.Done = r.Request.Done || x.o.Request == nil
		r.Complete.Done = r.Complete.Done || len(x.o.Tables) == 0
		x.open[r.Case] = &r
	}
	x.spilled, x.loaded = more, true
	n := len(x.open)
	x.mu.Unlock()
	x.s.p.totals.readbacks.Store(int64(n))
	return nil
}

// once asks about every case that is due, and returns when the next one is.
func (x *reader) once(ctx context.Context) (next time.Time, err error) {
	if err := x.changing.take(ctx); err != nil {
		return next, err
	}
	err = x.load(ctx)
	x.changing.leave()
	if err != nil {
		return next, err
	}
	if err := x.flush(ctx); err != nil { // sooner than the next checkpoint
		return next, err
	}
	due, next := x.due(time.Now())
	for _, id := range due {
		err := x.work(ctx, id)
		switch {
		case errors.Is(err, errNotYet):
			next = time.Now().Add(time.Second)
			continue
		case err != nil:
			return next, err
		}
		if !sleep(ctx, x.o.Pause) {
			return next, ctx.Err()
		}
	}
	if len(due) > 0 {
		return time.Now(), nil
	}
	return next, nil
}

// mostDue bounds the cases of one round.
const mostDue = 256

func (x *reader) due(now time.Time) (list []schema.CaseID, next time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	next = now.Add(longestWait)
	for id, r := range x.open {
		at := r.next()
		switch {
		case at.After(now):
			if at.Before(next) {
				next = at
			}
		case len(list) < mostDue:
			list = append(list, id)
		}
	}
	slices.SortFunc(list, func(a, b schema.CaseID) int { return x.open[a].next().Compare(x.open[b].next()) })
	return list, next
}

// answer is what one question has come to.
type answer struct {
	asked *Asked
	rule  string
	told  string
	body  schema.Body
}

// work asks what is due about one case, publishes what is new, and notes it.
func (x *reader) work(ctx context.Context, id schema.CaseID) error {
	x.mu.Lock()
	kept := x.open[id]
	if kept == nil {
		x.mu.Unlock()
		return nil
	}
	r := *kept
	x.mu.Unlock()
	commit := x.s.newest()
	p := commit.position
	if p == (Position{}) || r.Incarnation == x.s.incarnation && r.Epoch == p.Epoch && p.Commit < r.Number {
		return errNotYet
	}
	crmKey, parts, err := r.key(x.o.Seal, x.s.p.o.Name)
	if err != nil {
		x.s.p.log.Error().Err(err).Stringer("case", id).Msg("a case cannot be asked about")
		return x.put(ctx, id, func(r *Readback) { r.postpone(time.Now().Add(x.o.Every)) })
	}
	a := &asker{source: x.source, o: x.o, seen: p, key: parts}
	answers, err := x.askAll(ctx, a, &r)
	if err != nil {
		return err
	}
	// Anew each time, so that a key of the ring that was rotated is needed no longer than the next question is away.
	if r.Subject, err = x.o.Seal.AppendSeal(nil, crmKey, readbackContext(x.s.p.o.Name, id)); err != nil {
		return fmt.Errorf("sealing the key of a case: %w", err)
	}
	if err := x.tell(ctx, commit, &r, crmKey, answers); err != nil {
		return err
	}
	crashpoint.Hit("readback.after_told")
	err = x.put(ctx, id, func(now *Readback) {
		marked := now.Marked && !r.Marked // meanwhile
		revived := now.Complete.Done
		*now = r
		now.Marked = now.Marked || marked
		now.Complete.Done = now.Complete.Done || revived
		if marked && !now.Complete.Done {
			now.Complete.NextAt = time.Now()
		}
	})
	crashpoint.Hit("readback.after_saved")
	return err
}

func (r *Readback) postpone(until time.Time) {
	for _, a := range []*Asked{&r.Complete, &r.Gate, &r.Request} {
		if a.NextAt.Before(until) {
			a.NextAt = until
		}
	}
}

// put changes a case that is open, durably.
func (x *reader) put(ctx context.Context, id schema.CaseID, change func(*Readback)) error {
	if err := x.changing.take(ctx); err != nil {
		return err
	}
	defer x.changing.leave()
	x.mu.Lock()
	kept := x.open[id]
	if kept == nil {
		x.mu.Unlock()
		return nil
	}
	r := *kept
	x.mu.Unlock()
	change(&r)
	return x.save(ctx, []Readback{r})
}

// askAll asks what is due and changes r as if the answers were told already.
func (x *reader) askAll(ctx context.Context, a *asker, r *Readback) (list []answer, err error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	missingRequest := false
	add := func(asked *Asked, rule, told string, body schema.Body) {
		asked.Attempts++
		if told != asked.Told {
			asked.Told = told
			asked.Number++
			list = append(list, answer{asked: asked, rule: rule, told: told, body: body})
		}
	}
	due := func(asked *Asked) bool { return !asked.Done && !asked.NextAt.After(now) }
	if x.o.Request != nil && (due(&r.Request) || due(&r.Gate)) {
		found, receivedAt, err := a.request(ctx)
		if err != nil && !errors.Is(err, errAsked) {
			return nil, err
		}
		body := &schema.SourceReport{Aspect: schema.AspectRequest, Satisfied: found, CheckedAt: now}
		switch {
		case err != nil:
			body.Missing = []string{CheckError}
			x.s.p.log.Error().Err(err).Msg("the request of an erasure cannot be looked for")
		case found:
			if !receivedAt.IsZero() {
				body.ReceivedAt, body.LegalDueAt = receivedAt.UTC(), legalDue.After(receivedAt.UTC())
			}
		default:
			body.Missing = []string{CheckRequest}
		}
		missingRequest = !found
		if !r.Request.Done {
			if r.Request.Told == "" && err == nil && !found {
				x.s.p.totals.unauthorised.Add(1)
				x.s.p.log.Error().Stringer("case", r.Case).Msg("somebody was erased at the source without a request on file: the copies are suppressed")
			}
			add(&r.Request, "readback.request", told(found, body.Missing)+body.ReceivedAt.Format(time.RFC3339Nano), body)
			r.Request.Done, r.Request.NextAt = found, now.Add(x.o.backoff(r.Request.Attempts))
		}
	}
	if due(&r.Gate) {
		failed, err := a.gate(ctx)
		if err != nil {
			return nil, err
		}
		if missingRequest {
			failed = append([]string{CheckRequest}, failed...)
		}
		x.gateAnswer(r, failed, now, add)
	}
	if due(&r.Complete) {
		missing, err := a.complete(ctx)
		if err != nil {
			return nil, err
		}
		body := &schema.SourceReport{Aspect: schema.AspectCompleteness, Satisfied: len(missing) == 0, Missing: missing, CheckedAt: now}
		if r.Complete.Told == "" && !body.Satisfied {
			x.s.p.totals.incomplete.Add(1)
		}
		add(&r.Complete, "readback.completeness", told(body.Satisfied, missing), body)
		r.Complete.Done, r.Complete.NextAt = body.Satisfied, now.Add(x.o.backoff(r.Complete.Attempts))
	}
	return list, nil
}

// legalDue is the time of GDPR Art. 12(3).
var legalDue = config.Period{Months: 1}

func told(satisfied bool, missing []string) string {
	if satisfied {
		return "satisfied"
	}
	return "missing " + strings.Join(missing, ",")
}

// gateAnswer says what the gate's checks come to. A gate that lets go when the case opens has not decided: it is asked again
// before phase 2.
func (x *reader) gateAnswer(r *Readback, failed []string, now time.Time, add func(*Asked, string, string, schema.Body)) {
	final := r.Again || x.o.CoolOff <= 0 || !now.Before(r.OpenedAt.Add(x.o.CoolOff))
	satisfied := len(failed) == 0
	if x.o.Enforced && (final || !satisfied) {
		body := &schema.CaseDecision{Decision: schema.DecisionProceed, DecidedBy: GateDecider, DecidedAt: now, Checks: failed}
		if !satisfied {
			body.Decision, body.Reason = schema.DecisionHold, "gate"
		}
		add(&r.Gate, "gate."+body.Decision.String(), "decided "+told(satisfied, failed), body)
	} else {
		body := &schema.SourceReport{Aspect: schema.AspectGate, Satisfied: satisfied, Missing: failed, CheckedAt: now}
		add(&r.Gate, "readback.gate", told(satisfied, failed), body)
	}
	r.Again = true
	switch {
	case final:
		r.Gate.Done, r.Gate.NextAt = satisfied, now.Add(x.o.Every)
	default:
		r.Gate.NextAt = r.OpenedAt.Add(x.o.CoolOff)
	}
	if !satisfied && slices.Contains(failed, CheckError) { // it may be mended sooner
		r.Gate.NextAt = now.Add(x.o.backoff(r.Gate.Attempts))
		r.Again = final
	}
}

// backoff is the time to the next question behind so many that were answered no.
func (o *ReadbackOptions) backoff(attempts uint32) time.Duration {
	wait := o.Every / 60
	for range min(attempts, 7) - 1 {
		wait *= 2
	}
	return min(wait, o.Every)
}

// tell publishes answers, and returns when Kafka has them.
func (x *reader) tell(ctx context.Context, at seenCommit, r *Readback, crmKey []byte, answers []answer) error {
	if len(answers) == 0 {
		return nil
	}
	now := time.Now()
	x.position = at.position
	x.tx = Transaction{Position: at.position, CommittedAt: at.committedAt}
	x.detectedAt = now
	if x.tx.CommittedAt.IsZero() {
		x.tx.CommittedAt = now
	}
	x.ordinal = reportOrdinal(now)
	for i := range answers {
		w := &answers[i]
		d := Draft{Rule: w.rule, SubjectKey: crmKey, Body: w.body, ID: &schema.EventKey{
			Incarnation: r.Incarnation, Epoch: r.Epoch, Number: r.Number, Table: "lethe.readback",
			PK: schema.CanonicalKey(nil, r.Case[:], []byte(w.told)), Op: uint8(OpMessage), Occurrence: w.asked.Number, Rule: w.rule,
		}}
		if err := x.s.emit(&x.assembly, OpRead, "", 0, &d); err != nil {
			return err
		}
	}
	select {
	case <-x.s.note():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reportsSince begins the seconds of reportOrdinal, 2026-01-01.
const reportsSince = 1767225600

// reportOrdinal is behind the ordinals of every transaction and before those of passes. It grows with time, so that of two
// answers in sight of one commit the later one is the newer, whichever process gave it.
func reportOrdinal(now time.Time) uint32 {
	return 1<<30 | uint32(max(now.Unix()-reportsSince, 0))&(1<<30-1) //nolint:gosec // cut to 30 bits, which last 34 years
}
