package simulation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"lethe/capture"
)

// slot is the CRM server's side of the stream: what it believes to be acknowledged, and who reads.
type slot struct {
	mu        sync.Mutex
	confirmed capture.Position
	durable   capture.Position // what is left of confirmed after the server was killed
	reader    *process
	freeAt    time.Time // until then the server believes that a dead reader still reads
	broken    chan struct{}
}

var errServer = errors.New("the connection to the source ended")

// acquire gives the slot to one reader.
func (s *slot) acquire(p *process) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reader != nil && s.reader != p || time.Now().Before(s.freeAt) {
		return nil, fmt.Errorf("starting replication: %w", capture.ErrSlotInUse)
	}
	s.reader, s.broken = p, make(chan struct{})
	return s.broken, nil
}

func (s *slot) release(p *process, lingers time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reader == p {
		s.reader, s.freeAt = nil, time.Now().Add(lingers)
	}
}

// interrupt ends the connection of whoever reads; crash also forgets acknowledgements, as kill -9 of the server does.
func (s *slot) interrupt(crash bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if crash {
		s.confirmed = s.durable
	}
	if s.reader != nil && s.broken != nil {
		close(s.broken)
		s.reader, s.broken = nil, nil
	}
}

// source implements capture.Source over the CRM's log, for one process.
type source struct {
	s *simulation
	p *process
}

// Identity implements capture.Source.
func (o *source) Identity(context.Context) (capture.Identity, error) {
	if o.p.dead() {
		return capture.Identity{}, errDead
	}
	return capture.Identity{SystemID: "7000", Epoch: 1, Slot: "lethe", SlotGeneration: "db1"}, nil
}

// Acknowledge implements capture.Source.
func (o *source) Acknowledge(p capture.Position) {
	if o.p.dead() {
		return
	}
	o.s.check.acknowledged(p)
	o.s.slot.confirm(o.p, p, o.s.toss(30))
	o.p.hit("after_ack")
}

func (s *slot) confirm(by *process, p capture.Position, durable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reader != by {
		return
	}
	if p.End > s.confirmed.End {
		s.confirmed = p
	}
	if durable {
		s.durable = s.confirmed
	}
}

// Run implements capture.Source. As PostgreSQL does it reads again whatever the slot has not confirmed; as the real source
// does it hands over only what comes after the checkpoint.
func (o *source) Run(ctx context.Context, from *capture.Checkpoint, h capture.Handler) error {
	broken, err := o.s.slot.acquire(o.p)
	if err != nil {
		return err
	}
	defer o.s.slot.release(o.p, 0)
	o.s.slot.mu.Lock()
	start := o.s.slot.confirmed.End
	o.s.slot.mu.Unlock()
	if from != nil {
		if start > from.Position.End {
			o.s.check.fail("I5: the slot stands at %X and the checkpoint at %X: a crash here would have lost what lies between", start, from.Position.End)
			return &capture.GapError{Cause: capture.GapSlotAhead, Hint: "simulated"}
		}
		start = from.Position.End
	}
	o.s.tracef("%s: the source streams from %X", o.p.name, start)
	run := &stream{o: o, h: h, broken: broken, tables: tables(), rng: o.s.fork()}
	run.full, _ = h.(capture.Throttle)
	for i := o.s.crm.after(start); ; {
		tx, grown := o.s.crm.at(i)
		if tx == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-broken:
				return errServer
			case <-grown:
			}
			continue
		}
		if err := run.deliver(ctx, tx); err != nil {
			return err
		}
		i++
	}
}

// stream is one connection.
type stream struct {
	o      *source
	h      capture.Handler
	full   capture.Throttle
	broken <-chan struct{}
	tables map[string]*capture.Table
	rng    *rand.Rand
	buf    []byte
}

// deliver hands one transaction over. It may end in the middle of it.
func (r *stream) deliver(ctx context.Context, tx *transaction) error {
	head := tx.Transaction
	if err := r.h.Begin(&head); err != nil {
		return err
	}
	for i := range tx.changes {
		if err := r.room(ctx); err != nil {
			return err
		}
		r.o.p.hit("change")
		if r.o.p.dead() || r.rng.IntN(20_000) == 0 {
			return errServer
		}
		if len(tx.changes) > 20 && r.rng.IntN(10) == 0 {
			if err := r.pause(ctx); err != nil {
				return err
			}
		}
		r.o.s.check.delivered(tx, i)
		if err := r.change(&tx.changes[i]); err != nil {
			return err
		}
	}
	if err := r.room(ctx); err != nil {
		return err
	}
	r.o.p.hit("commit")
	if r.o.p.dead() {
		return errServer
	}
	return r.h.Commit(&head)
}

// pause lets time pass in the middle of a transaction, so that checkpoints are written meanwhile.
func (r *stream) pause(ctx context.Context) error {
	t := time.NewTimer(time.Duration(r.rng.IntN(300)) * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-r.broken:
		return errServer
	case <-ctx.Done():
		return ctx.Err()
	}
}

// room waits for the handler, as a source that keeps its connection alive does.
func (r *stream) room(ctx context.Context) error {
	for {
		wait := r.full.Full()
		if wait == nil {
			select {
			case <-r.broken:
				return errServer
			default:
				return ctx.Err()
			}
		}
		select {
		case <-wait:
		case <-r.broken:
			return errServer
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change hands one change over in a buffer that is overwritten right after: nothing may be kept of it.
func (r *stream) change(ch *change) error {
	r.buf = r.buf[:0]
	c := capture.Change{Op: ch.op, Table: r.tables[ch.table], Message: []byte(ch.message)}
	if n := size(ch.old) + size(ch.new); cap(r.buf) < n {
		r.buf = make([]byte, 0, 2*n)
	}
	if ch.old != nil {
		c.Old = r.image(ch.old)
		if ch.op == capture.OpDelete && !shapes[ch.table].full {
			for i := range c.Old {
				if !c.Table.Columns[i].Key {
					c.Old[i] = capture.Value{State: capture.Null}
				}
			}
		}
	}
	if ch.new != nil {
		c.New = r.image(ch.new)
	}
	err := r.h.Change(&c)
	for i := range r.buf {
		r.buf[i] = '#'
	}
	return err
}

func size(row []cell) (n int) {
	for _, v := range row {
		if v != nil {
			n += len(*v)
		}
	}
	return n
}

func (r *stream) image(row []cell) []capture.Value {
	out := make([]capture.Value, len(row))
	for i, v := range row {
		out[i].State = capture.Null
		if v != nil {
			at := len(r.buf)
			r.buf = append(r.buf, *v...)
			out[i] = capture.Value{State: capture.Present, Text: r.buf[at:len(r.buf):len(r.buf)]}
		}
	}
	return out
}
