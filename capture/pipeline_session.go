package capture

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"lethe/schema"
)

// session is one life of the source's stream: from reading the checkpoint to the first error. Nothing of it survives but
// what is in Kafka.
//
// Three goroutines work in it. The source's own calls Begin, Change and Commit and encodes into the unit that gathers; the
// sender publishes the unit before that; the checkpointer writes the newest acknowledged commit and tells the source. While a
// pass is made its workers put rows into the gathering unit too.
type session struct {
	p           *Pipeline
	incarnation uint32
	identity    Identity

	assembly         // used by the source's goroutine only
	reader   *reader // nil: the source is not asked about cases

	// work ends all three goroutines.
	work context.Context

	mu        sync.Mutex
	gathering *shipment     // being filled by the source's goroutine
	spare     *shipment     // nil while the sender has it
	room      chan struct{} // closed when the sender takes the gathering shipment; nil: nobody waits
	drained   chan struct{} // closed when there is nothing left to send; nil: nobody waits
	stopping  bool

	wake  chan struct{} // capacity 1: there may be something to send
	hurry chan struct{} // capacity 1: do not linger
	never chan struct{} // is never closed
	// follows is closed when the source reads the log.
	follows chan struct{}

	seen  seenCommit    // the newest commit that the source handed over; guarded by mu
	moved chan struct{} // closed when seen moves; nil: nobody waits; guarded by mu
	// gapsOpened counts the gaps that the stream met.
	gapsOpened atomic.Uint64

	// The checkpointer's part.
	ackMu   sync.Mutex
	acked   mark // newest commit acknowledged by Kafka
	dirty   bool // acked is newer than checkpoint
	current Checkpoint
	saving  chan struct{} // capacity 1: serialises Save
}

// mark is the commit up to which a shipment is complete.
type mark struct {
	position    Position
	xid         uint32
	committedAt time.Time
	gaps        []OpenGap
	set         bool
}

// seenCommit is a commit that the source has handed over.
type seenCommit struct {
	position    Position
	committedAt time.Time
}

// shipment is a unit with what becomes true when it is acknowledged.
type shipment struct {
	unit    Unit
	mark    mark
	commits int
	events  [schema.TypeLast + 1]uint32
	filled  bool // holds at least one record
	ripe    bool // worth sending although no commit is in it
	// notes are closed when all that was put before them is acknowledged.
	notes []chan struct{}
}

func (s *shipment) reset() {
	s.unit.Reset()
	s.mark, s.commits = mark{}, 0
	s.events = [schema.TypeLast + 1]uint32{}
	s.filled, s.ripe, s.notes = false, false, nil
}

// runSession returns nil only after a graceful stop.
func (p *Pipeline) runSession(ctx context.Context) error {
	if err := p.o.Publisher.Open(ctx); err != nil {
		return fmt.Errorf("opening the events topic: %w", err)
	}
	c, err := p.startingPoint(ctx)
	if err != nil {
		return err
	}
	return p.stillGap(ctx, c, p.runFrom(ctx, c))
}

// stillGap looks whether a gap is one beside the newest checkpoint too. Between reading the checkpoint and looking at the
// slot the active process may have moved both and ended: to a standby that slot is ahead of the checkpoint that it read.
// c is what the session knew last.
func (p *Pipeline) stillGap(ctx context.Context, c *Checkpoint, err error) error {
	if ctx.Err() != nil || !errors.As(err, new(*GapError)) {
		return err
	}
	newest, loadErr := p.o.Checkpoints.Load(ctx)
	switch {
	case loadErr != nil:
		return fmt.Errorf("reading the checkpoint once more before a gap is announced: %w", loadErr)
	case newest != nil && (newest.Incarnation != c.Incarnation || newest.Position != c.Position):
		return fmt.Errorf("comparing the source with the checkpoint: %w", ErrSuperseded)
	}
	return err
}

// runFrom works from c until an error; it leaves in c what it checkpointed last.
func (p *Pipeline) runFrom(ctx context.Context, c *Checkpoint) error {
	identity, err := p.o.Source.Identity(ctx)
	if err != nil {
		return fmt.Errorf("asking the source who it is: %w", err)
	}
	if err := compareIdentity(c, identity); err != nil {
		return err
	}
	if c.Identity.Start != "" || c.Position != (Position{}) {
		identity.Start = c.Identity.Start // where the first session began
	}
	if c.Position == (Position{}) && c.Identity != identity && c.Identity.Start == "" {
		// The slot was made since: without its generation nobody would notice that it is made once more.
		c.Identity, c.WrittenAt = identity, time.Now().UTC()
		if err := p.o.Checkpoints.Save(ctx, c); err != nil {
			return fmt.Errorf("writing the checkpoint: %w", err)
		}
	}
	s := &session{
		p: p, incarnation: c.Incarnation, identity: identity, current: *c,
		gathering: &shipment{unit: p.o.Publisher.NewUnit()},
		spare:     &shipment{unit: p.o.Publisher.NewUnit()},
		wake:      make(chan struct{}, 1),
		saving:    make(chan struct{}, 1),
		hurry:     make(chan struct{}, 1),
		never:     make(chan struct{}),
		follows:   make(chan struct{}),
	}
	s.assembly.init(p, p.o.Rules, p.o.Encoder)
	s.seen = seenCommit{position: c.Position, committedAt: c.CommittedAt}
	p.update(func(st *Status) {
		st.Incarnation, st.Gaps, st.Failing = c.Incarnation, c.Gaps, ""
		st.Checkpoint, st.CheckpointAt = c.Position, c.WrittenAt
	})
	from := *c // the source may outlive its session
	err = s.run(ctx, resumeFrom(&from))
	*c = s.current
	return err
}

// resumeFrom is what the source compares itself with; a checkpoint without a position (first start, or a gap resumed)
// has nothing to compare where a slot keeps the place.
func resumeFrom(c *Checkpoint) *Checkpoint {
	if c.Position == (Position{}) && c.Identity.Start == "" {
		return nil
	}
	return c
}

// run works until an error or until ctx ends; then it stops gracefully.
func (s *session) run(ctx context.Context, from *Checkpoint) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.work = work
	source := make(chan error, 1)
	failed := make(chan error, 5)
	var others sync.WaitGroup
	others.Go(func() { failed <- contained(s.p, "publishing", nil, func() error { return s.send(work) }) })
	others.Go(func() {
		failed <- contained(s.p, "writing checkpoints", nil, func() error { return s.checkpoints(work) })
	})
	others.Go(func() { s.beat(work) })
	passing, stopPassing := context.WithCancel(work)
	defer stopPassing()
	if x := s.newPasser(); x != nil {
		others.Go(func() {
			if err := contained(s.p, "making a pass", nil, func() error { return x.run(passing) }); err != nil {
				failed <- err
			}
		})
	}
	if s.reader = s.newReader(); s.reader != nil {
		others.Go(func() {
			if err := contained(s.p, "reading back", nil, func() error { return s.reader.run(passing) }); err != nil {
				failed <- err
			}
		})
	}
	s.p.o.Rules.Begin()
	go func() {
		source <- contained(s.p, "reading the log", &s.position, func() error { return s.p.o.Source.Run(work, from, s) })
	}()

	var err error
	sourceEnded := false
	select {
	case err = <-source:
		sourceEnded = true
		stopPassing()
		if err == nil {
			err = errors.New("the source ended its stream without an error")
		}
		if IsPermanent(err) && !panicked(err) {
			// Nobody reads on before a person has acted, perhaps under another mapping, which the log in front of this place may
			// not fit: what was read up to here must not have to be read again. What Kafka does not take now is read again.
			if late := s.stopGracefully(work); late != nil {
				s.p.log.Warn().Err(late).Msg("capture stops without the acknowledgement of all that was read")
			}
		}
	case err = <-failed:
	case gap := <-s.p.reports:
		err = gap
	case <-ctx.Done():
		stopPassing()
		err = s.stopGracefully(work)
	}
	cancel()
	others.Wait()
	if !sourceEnded {
		err = errors.Join(err, s.awaitSource(source))
	} else if s.failure != nil && !errors.Is(err, s.failure) {
		err = errors.Join(s.failure, err) // a source that does not wrap what the handler said
	}
	// What Kafka has acknowledged is worth a last checkpoint even after an error: a source that fails every second would
	// else read the same second for ever.
	return errors.Join(err, s.lastCheckpoint(ctx))
}

// awaitSource bounds the wait for a source that ignores its context, so that the process can end.
func (s *session) awaitSource(source <-chan error) error {
	t := time.NewTimer(s.p.o.StopWithin)
	defer t.Stop()
	select {
	case err := <-source:
		// It was told to stop: only what it says about the log itself still counts.
		if IsPermanent(err) || errors.As(err, new(*GapError)) {
			return err
		}
		return nil
	case <-t.C:
		return fmt.Errorf("stopping the source: it did not end within %v", s.p.o.StopWithin)
	}
}

// contained turns a panic into a permanent error. Of the panic's value only what cannot hold a row's data is kept.
func contained(p *Pipeline, op string, at *Position, f func() error) (err error) {
	defer contain(p, op, at, &err)
	return f()
}

// contain is deferred. at is the position that the panicking goroutine owns; nil: none.
func contain(p *Pipeline, op string, at *Position, err *error) {
	v := recover()
	if v == nil {
		return
	}
	stop := &StopError{
		Op: op, Cause: "panic", Err: errors.New(panicText(v)),
		Hint: "this is a defect of Lethe: report it with the position and the log",
	}
	if at != nil {
		stop.Position = *at
	}
	*err = stop
	p.log.Error().Str("op", op).Strs("stack", callers()).Msg("panic contained")
}

// panicText keeps the runtime's own errors (index out of range …), which speak of sizes only; any other value is reduced
// to its type, because it may quote a row.
func panicText(v any) string {
	if e, ok := v.(runtime.Error); ok {
		return "panic: " + e.Error()
	}
	return fmt.Sprintf("panic with a value of type %v", reflect.TypeOf(v))
}

// panicked reports whether an error was a panic, after which nothing in memory is to be trusted.
func panicked(err error) bool {
	var stop *StopError
	return errors.As(err, &stop) && stop.Cause == "panic"
}

// callers are the functions on the stack above the panic, without arguments.
func callers() []string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var list []string
	for {
		f, more := frames.Next()
		list = append(list, fmt.Sprintf("%s:%d", f.Function, f.Line))
		if !more {
			return list
		}
	}
}

// beat calls Heart at its interval. A missing heartbeat shows as lag; it never stops the stream.
func (s *session) beat(ctx context.Context) {
	if s.p.o.Heart == nil {
		return
	}
	tick := time.NewTicker(s.p.o.Heartbeat)
	defer tick.Stop()
	healthy := true
	for {
		once, cancel := context.WithTimeout(ctx, s.p.o.Heartbeat)
		err := s.p.o.Heart(once)
		cancel()
		if err != nil && ctx.Err() == nil {
			s.p.totals.heartbeatErrors.Add(1)
			if healthy {
				s.p.log.Warn().Err(err).Msg("heartbeat could not be written to the source")
			}
		}
		healthy = err == nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stopGracefully stops taking (Full never gives room again), lets Kafka acknowledge what was taken, checkpoints it and
// tells the source, all within StopWithin; the caller then closes.
func (s *session) stopGracefully(work context.Context) error {
	bound, cancel := context.WithTimeout(work, s.p.o.StopWithin)
	defer cancel()
	s.mu.Lock()
	s.stopping = true
	drained := make(chan struct{})
	s.drained = drained
	s.mu.Unlock()
	poke(s.wake)
	poke(s.hurry)
	select {
	case <-drained:
	case <-bound.Done():
		return fmt.Errorf("stopping capture: Kafka did not acknowledge within %v; what is missing is read again at the next start",
			s.p.o.StopWithin)
	}
	return s.saveAcked(bound)
}

// lastCheckpoint writes what is acknowledged and not yet checkpointed. After a graceful stop there is nothing left to do.
func (s *session) lastCheckpoint(ctx context.Context) error {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.p.o.StopWithin/2)
	defer cancel()
	return s.saveAcked(bound)
}
