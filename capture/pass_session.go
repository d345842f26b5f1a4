package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"lethe/internal/crashpoint"
	"lethe/schema"
)

// passer makes the passes of one session, one at a time. Its rows go into the same units as the stream's events, and a row
// counts as read when Kafka has acknowledged the unit that it was in. It never ends the session for what it meets at the
// source: that stands in the Pass, and is tried again.
//
// The source's goroutine has no part in it. Rules and encoder are the passer's own, and an event's order alone says what it
// is newer than, so that rows need not be published between two certain transactions.
type passer struct {
	s      *session
	o      *PassOptions
	source Snapshotter

	mu      sync.Mutex // guards what follows; the workers share it
	pass    *Pass      // as far as Kafka has acknowledged
	unsaved bool       // pass is ahead of what was saved

	emitting turn // one row at a time: it may have to wait for room
	assembly      // belongs to whose turn it is to emit

	marking  turn      // one mark at a time
	markedAt time.Time // when the newest mark that was passed was asked for; belongs to whose turn it is to mark

	given atomic.Uint32 // the ordinal that comes next

	pace pace

	// gapsBefore is session.gapsOpened when the begin marker was due. What was opened before this session is in the checkpoint,
	// or comes again.
	gapsBefore uint64
}

// firstPassOrdinal is above the ordinals of every transaction: what a pass has read in sight of a commit is newer than the
// commit, and older than the next one.
const firstPassOrdinal = 1 << 31

// resumedOrdinals are left out when a pass is taken up again: those given out since the last save are not known, and two
// events of one order must not differ.
const resumedOrdinals = 1 << 20

const (
	// markEvery is how old the last mark may be when a chunk is read. The order of a row is that of the newest commit that
	// the stream has handed over; the mark only sees to it that the stream is not far behind.
	markEvery = time.Second
	// saveEvery is the shortest time between two saves of a pass that goes on.
	saveEvery = time.Second
	// retryFull is how long the schedule leaves a source alone of which the last pass could not read every table.
	retryFull = 24 * time.Hour
)

var (
	// errPassVoid ends a pass whose begin marker does not hold any more.
	errPassVoid = errors.New("the source's history changed under the pass")
	// errPassCancelled ends a pass that was taken back.
	errPassCancelled = errors.New("the pass was taken back")
)

// newPasser returns nil where no passes are made.
func (s *session) newPasser() *passer {
	o := &s.p.o.Pass
	source, ok := s.p.o.Source.(Snapshotter)
	if o.Passes == nil || !ok {
		return nil
	}
	x := &passer{
		s: s, o: o, source: source, pace: pace{perSecond: o.RowsPerSecond}, emitting: make(turn, 1), marking: make(turn, 1),
	}
	x.assembly.init(s.p, o.Rules, o.Encoder)
	x.event.Kind = schema.KindSnapshot
	return x
}

// run makes passes until ctx ends. Its error is one of the session: another process has written, or an event of the pass
// cannot be published.
func (x *passer) run(ctx context.Context) error {
	retry := &backoff.ExponentialBackOff{
		InitialInterval: firstRetry, RandomizationFactor: 0.2, Multiplier: 2, MaxInterval: longestWait,
	}
	retry.Reset()
	// Before the stream runs another process may be the one that captures, and so makes the passes.
	select {
	case <-x.s.follows:
	case <-ctx.Done():
		return nil
	}
	defer func() { x.s.p.update(func(st *Status) { st.PassFailing = "" }) }()
	for {
		wait := x.o.Poll
		worked, err := x.once(ctx)
		var stop *StopError // of ours; what a source calls permanent ends no session: the stream does without
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrSuperseded) || errors.As(err, &stop):
			return err
		case err != nil:
			wait = retry.NextBackOff()
			x.s.p.totals.passErrors.Add(1)
			x.s.p.update(func(st *Status) { st.PassFailing = errText(err) })
			x.s.p.log.Warn().Err(err).Dur("wait", wait).Msg("the pass is tried again")
		default:
			retry.Reset()
			x.s.p.update(func(st *Status) { st.PassFailing = "" })
			if worked {
				continue
			}
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// once takes up the pass that is due, if any, and works until it ends.
func (x *passer) once(ctx context.Context) (worked bool, err error) {
	book, err := x.o.Passes.Load(ctx)
	if err != nil {
		// Not wrapped: a record that cannot be read stops passes, and never the stream.
		return false, errors.New("looking for passes: " + err.Error())
	}
	pass, err := x.takeUp(ctx, book)
	if err != nil {
		return false, err
	}
	if pass == nil {
		if book.Pass != nil {
			x.hold(book.Pass)
		}
		return false, nil
	}
	x.hold(pass)
	err = x.work(ctx)
	switch {
	case errors.Is(err, errPassCancelled):
		return true, x.finish(ctx, PassCancelled)
	case errors.Is(err, errPassVoid):
		return true, x.restart(ctx)
	case err != nil:
		// What was acknowledged is worth a last save: the next try begins there.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.s.p.o.StopWithin/2)
		defer cancel()
		return true, errors.Join(err, x.save(late))
	}
	return true, nil
}

// work brings the pass in hand to its end, through the states that are left.
func (x *passer) work(ctx context.Context) error {
	if x.pass.Request.Cancelled {
		return errPassCancelled
	}
	commit, err := x.sight(ctx)
	if err != nil {
		return err
	}
	if x.pass.State == PassBeginning {
		if err := x.begin(ctx, commit); err != nil {
			return err
		}
	} else if err := x.holds(commit); err != nil {
		return err
	}
	if x.pass.State == PassReading {
		if err := x.read(ctx); err != nil {
			return err
		}
	}
	return x.end(ctx)
}

// begin publishes the begin marker. A kill before the save publishes it once more, with the same run id.
func (x *passer) begin(ctx context.Context, at seenCommit) error {
	x.gapsBefore = x.s.gapsOpened.Load()
	tables, err := x.plan(ctx)
	if err != nil {
		return err
	}
	x.change(func(p *Pass) {
		p.Incarnation, p.Epoch, p.Gaps = x.s.incarnation, at.position.Epoch, x.s.p.gapIDs()
		p.Tables = tables
	})
	if err := x.publishMarker(ctx, at, true); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_begin")
	x.change(func(p *Pass) { p.State = PassReading })
	if err := x.save(ctx); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_begin_saved")
	x.s.p.log.Info().Str("run", x.pass.RunID).Str("cause", x.pass.Request.Cause).Int("tables", len(tables)).Msg("pass begun")
	return nil
}

// holds compares the pass with what holds now.
func (x *passer) holds(commit seenCommit) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.pass
	if p.Incarnation != x.s.incarnation || p.Epoch != commit.position.Epoch || x.s.gapsOpened.Load() != x.gapsBefore {
		return errPassVoid
	}
	for _, id := range x.s.p.gapIDs() {
		if !slices.Contains(p.Gaps, id) {
			return errPassVoid
		}
	}
	return nil
}

// end publishes the end marker, then closes the gaps that the pass was asked for, and only then is it over.
func (x *passer) end(ctx context.Context) error {
	x.markedAt = time.Time{} // the end stands behind everything that was committed while the pass read; the workers have ended
	commit, err := x.sight(ctx)
	if err != nil {
		return err
	}
	if err := x.holds(commit); err != nil {
		return err
	}
	crashpoint.Hit("pass.before_end")
	if err := x.publishMarker(ctx, commit, false); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_end")
	if err := x.closeGaps(ctx, commit); err != nil {
		return err
	}
	return x.finish(ctx, PassEnded)
}

// finish saves the last state, then takes the request away: a kill in between does so at the next look.
func (x *passer) finish(ctx context.Context, state PassState) error {
	now := time.Now().UTC()
	x.change(func(p *Pass) {
		p.State, p.EndedAt, p.Waiting = state, now, ""
		if state == PassEnded && p.Full {
			p.LastFull = FullPass{RunID: p.RunID, StartedAt: p.StartedAt, EndedAt: now, Tables: x.o.Tables, Replicas: x.covered(p)}
		}
	})
	if err := x.save(ctx); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_finish")
	p := x.pass
	rows, _ := p.Rows()
	x.s.p.log.Info().Str("run", p.RunID).Str("state", string(state)).Bool("full", p.Full).Uint64("rows", rows).
		Strs("gaps_closed", p.Closed).Msg("pass is over")
	if !p.Request.filed() {
		return nil
	}
	if err := x.o.Passes.Answered(ctx, p.Request.ID); err != nil {
		return fmt.Errorf("taking a request for a pass away: %w", err)
	}
	return nil
}

// restart makes the pass begin anew, as another run.
func (x *passer) restart(ctx context.Context) error {
	x.s.p.log.Warn().Str("run", x.pass.RunID).Msg("the pass begins anew: a gap was opened, or history forked, while it read")
	x.change(func(p *Pass) {
		p.RunID, p.State, p.Tables, p.Full = newRunID(), PassBeginning, nil, false
		p.Restarts++
		p.Waiting = ""
	})
	return x.save(ctx)
}

// turn is a mutex whose waiters end with their context.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) leave() { <-t }

// hold makes pass the one in hand.
func (x *passer) hold(pass *Pass) {
	x.mu.Lock()
	x.pass, x.unsaved = pass, false
	x.mu.Unlock()
	x.show()
}

// change alters the pass in hand; the next save has it.
func (x *passer) change(f func(*Pass)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f(x.pass)
	x.unsaved = true
}

// show puts the pass into the Pipeline's status.
func (x *passer) show() {
	x.mu.Lock()
	p := x.pass.clone()
	x.mu.Unlock()
	x.s.p.update(func(st *Status) { st.Pass = p })
}

// save writes what Kafka has acknowledged of the pass.
func (x *passer) save(ctx context.Context) error {
	ordinal := x.given.Load()
	x.mu.Lock()
	if !x.unsaved {
		x.mu.Unlock()
		return nil
	}
	x.pass.UpdatedAt, x.pass.Ordinal, x.unsaved = time.Now().UTC(), ordinal, false
	p := x.pass.clone()
	x.mu.Unlock()
	x.s.p.update(func(st *Status) { st.Pass = p })
	if err := x.o.Passes.Save(ctx, p); err != nil {
		x.mu.Lock()
		x.unsaved = true
		x.mu.Unlock()
		return fmt.Errorf("writing how far the pass is: %w", err)
	}
	return nil
}

// publishMarker publishes a PassMarker, and returns when Kafka has it.
func (x *passer) publishMarker(ctx context.Context, at seenCommit, begin bool) error {
	x.mu.Lock()
	p := x.pass
	body := &schema.PassMarker{Begin: begin, Replicas: p.Request.Replicas, Full: x.whole(p, begin)}
	for i := range p.Tables {
		if t := &p.Tables[i]; t.State == TableDone || begin && t.State != TableRefused {
			body.Tables = append(body.Tables, t.Name)
		}
	}
	p.Full = body.Full
	runID := p.RunID
	x.mu.Unlock()
	rule := "pass.end"
	if begin {
		rule = "pass.begin"
	}
	return x.publish(ctx, at, Draft{Rule: rule, PK: []byte(runID), Body: body})
}

// whole reports whether the pass reads every table that rules read.
func (x *passer) whole(p *Pass, begin bool) bool {
	for _, name := range x.o.Tables {
		known := false
		for i := range p.Tables {
			if t := &p.Tables[i]; t.Name == name {
				known = t.State == TableDone || begin && t.State != TableRefused
			}
		}
		if !known {
			return false
		}
	}
	return true
}

// publish emits events about nobody, and returns when Kafka has them.
func (x *passer) publish(ctx context.Context, at seenCommit, drafts ...Draft) error {
	if err := x.emitting.take(ctx); err != nil {
		return err
	}
	err := x.emitAll(at, drafts)
	x.emitting.leave()
	if err != nil {
		return err
	}
	return x.acknowledged(ctx, x.s.note())
}

func (x *passer) emitAll(at seenCommit, drafts []Draft) error {
	x.at(at)
	for i := range drafts {
		if err := x.s.emit(&x.assembly, OpRead, "", x.ordinal, &drafts[i]); err != nil {
			return err
		}
		x.ordinal++
		x.given.Store(x.ordinal)
	}
	return nil
}

// at says in sight of which commit the next events are; the caller has the turn to emit.
func (x *passer) at(commit seenCommit) {
	x.position = commit.position
	x.ordinal = max(x.ordinal, firstPassOrdinal) // it may have come round
	x.tx = Transaction{Position: commit.position, CommittedAt: commit.committedAt}
	x.detectedAt = time.Now()
	x.event.RunID = x.pass.RunID
	if x.tx.CommittedAt.IsZero() {
		x.tx.CommittedAt = x.detectedAt
	}
}

func (x *passer) acknowledged(ctx context.Context, note <-chan struct{}) error {
	select {
	case <-note:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
