package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lethe/internal/crashpoint"
)

// read reads every table that is left, some side by side, and saves now and then how far they are.
func (x *passer) read(ctx context.Context) error {
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	todo := make(chan int)
	var workers sync.WaitGroup
	for range x.o.Parallel {
		workers.Go(func() {
			for i := range todo {
				if err := contained(x.s.p, "reading a table", nil, func() error { return x.table(reading, i) }); err != nil {
					stop(err)
				}
			}
		})
	}
	workers.Go(func() {
		defer close(todo)
		for i := range x.pass.Tables {
			if state := x.tableState(i); state != TableWaiting && state != TableReading {
				continue
			}
			select {
			case todo <- i:
			case <-reading.Done():
				return
			}
		}
	})
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()
	err := x.attend(reading, done)
	if err == nil {
		err = errTablesRead
	}
	stop(err)
	<-done
	if cause := context.Cause(reading); !errors.Is(cause, errTablesRead) {
		return cause
	}
	x.change(func(p *Pass) { p.State, p.Waiting = PassClosing, "" })
	if err := x.save(ctx); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_read_saved")
	return nil
}

// errTablesRead is the cause for which reading ends where nothing went wrong.
var errTablesRead = errors.New("every table was read")

// attend looks after the workers until they are done: it saves, and looks whether somebody took the pass back or history
// was changed under it.
func (x *passer) attend(ctx context.Context, done <-chan struct{}) error {
	saving := time.NewTicker(saveEvery)
	defer saving.Stop()
	looking := time.NewTicker(x.o.Poll)
	defer looking.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-saving.C:
			if x.s.gapsOpened.Load() != x.gapsBefore {
				return errPassVoid
			}
			if err := x.save(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			crashpoint.Hit("pass.after_save")
		case <-looking.C:
			book, err := x.o.Passes.Load(ctx)
			if err != nil {
				continue // the next save tells
			}
			for _, r := range book.Requests {
				if r.ID == x.pass.Request.ID && r.Cancelled {
					return errPassCancelled
				}
			}
		}
	}
}

func (x *passer) tableState(i int) TableState {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.pass.Tables[i].State
}

// table reads one table to its end. What is wrong with the table is noted in it, and is no error here.
func (x *passer) table(ctx context.Context, i int) error {
	for changed := 0; ; changed++ {
		x.mu.Lock()
		t := x.pass.Tables[i]
		x.mu.Unlock()
		if err := x.ask(ctx, &t); err != nil { // again: the pass may have been taken up long after it was begun
			return err
		}
		if t.State == TableWaiting {
			t.State = TableReading
		}
		x.change(func(p *Pass) { p.Tables[i] = t })
		if t.State != TableReading {
			return nil
		}
		err := x.chunks(ctx, i, &t)
		var refused *TableRefusedError
		var stop *StopError
		switch {
		case err == nil:
			x.change(func(p *Pass) { p.Tables[i].State = TableDone })
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrTableChanged) && changed < fewChanges:
			x.s.p.log.Warn().Str("table", t.Name).Msg("the table's key was changed: the pass reads it again from its start")
			x.change(func(p *Pass) { p.Tables[i].Restarts++ })
		case errors.As(err, &refused):
			x.change(func(p *Pass) { x.refuse(&p.Tables[i], refused.Cause, refused.Hint) })
			return nil
		case errors.As(err, &stop) && stop.Cause == "rule":
			x.change(func(p *Pass) { x.refuse(&p.Tables[i], stop.Cause, stop.Error()) })
			return nil
		default:
			return fmt.Errorf("reading %s for the pass: %w", t.Name, err)
		}
	}
}

// fewChanges is how often in a row a table may change under its reader before the pass waits a while.
const fewChanges = 3

// yield lets the stream go first: nothing is added to a unit that is full already.
func (x *passer) yield(ctx context.Context) error {
	for {
		room := x.s.Full()
		if room == nil {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// row makes the events of one row.
func (x *passer) row(ctx context.Context, commit seenCommit, c *Change) error {
	if err := x.emitting.take(ctx); err != nil {
		return err
	}
	defer x.emitting.leave()
	if err := ctx.Err(); err != nil {
		return err
	}
	x.at(commit)
	err := x.s.apply(&x.assembly, c)
	x.given.Store(x.ordinal)
	return err
}

// waits shows what the pass waits for.
func (x *passer) waits(why string) {
	x.change(func(p *Pass) { p.Waiting = why })
	x.s.p.log.Info().Str("for", why).Msg("the pass waits")
}

// sight returns the newest commit that the stream has handed over. It sees to it that the stream is not far behind: a mark
// that is older than markEvery is followed by another one, which the stream has to pass first.
func (x *passer) sight(ctx context.Context) (seenCommit, error) {
	if err := x.marking.take(ctx); err != nil {
		return seenCommit{}, err
	}
	defer x.marking.leave()
	if time.Since(x.markedAt) < markEvery {
		return x.s.newest(), nil
	}
	asked := time.Now()
	m, err := x.source.Watermark(ctx)
	if err != nil {
		return seenCommit{}, fmt.Errorf("marking the end of the log: %w", err)
	}
	behind := time.AfterFunc(waitsAfter, func() { x.waits("the stream, which is behind the end of the log") })
	defer behind.Stop()
	commit, err := x.s.pass(ctx, m)
	if err == nil {
		x.markedAt = asked
	}
	return commit, err
}

// waitsAfter is how long the stream may be behind before that is told.
const waitsAfter = 3 * time.Second

// newest returns the newest commit that the source handed over.
func (s *session) newest() seenCommit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// pass waits until the stream has passed a mark.
func (s *session) pass(ctx context.Context, m Mark) (seenCommit, error) {
	for {
		s.mu.Lock()
		seen := s.seen
		if s.moved == nil {
			s.moved = make(chan struct{})
		}
		moved := s.moved
		s.mu.Unlock()
		if m.Passed(seen.position) {
			return seen, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return seenCommit{}, ctx.Err()
		}
	}
}

// pace spreads rows over time.
type pace struct {
	perSecond int // 0: as fast as it goes

	mu   sync.Mutex
	next time.Time
}

// take returns when rows more may have been read.
func (p *pace) take(ctx context.Context, rows int) error {
	if p.perSecond <= 0 || rows == 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	if now := time.Now(); p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(rows) * time.Second / time.Duration(p.perSecond))
	wait := time.Until(p.next)
	p.mu.Unlock()
	if !sleep(ctx, wait) {
		return ctx.Err()
	}
	return nil
}
