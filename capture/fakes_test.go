package capture

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/schema"
)

// world is everything around a Pipeline: a source that plays a script, rules, a topic and a checkpoint store that fail when
// told to, and a journal of what became durable in which order.
type world struct {
	t *testing.T

	mu         sync.Mutex
	script     []scripted
	runs       int
	begun      int           // the rules, which must forget at each run
	from       []*Checkpoint // of each Run
	acked      Position
	sourceErrs map[int]error // before the transaction of that index, once
	onRun      func(n int) error
	panicAt    int // the change's global number; -1: never
	identity   Identity
	changes    int
	maxHeld    int // bytes of units alive at once
	stuck      chan struct{}
	running    bool
	inChange   bool // although the source heeds Full
	lateAcks   int  // given when the source had ended

	log       [partitions][]logged
	have      map[string]int // records by the order without its ordinal
	publishes int
	onPublish func(n int) (part int, err error) // partitions below part take their batch, then err
	openErr   error

	saved    *Checkpoint
	saves    int
	saveErr  func(n int) error
	problems []string
}

const partitions = 3

type logged struct {
	key, value string
}

// scripted is a transaction whose changes each give one event of the subject named; "" gives none, "*" a heartbeat, "!" a
// truncate gap.
type scripted struct {
	tx       Transaction
	subjects []string
}

type prf struct{}

func (prf) Compute(dst *[32]byte, data []byte) {
	h := hmac.New(sha256.New, []byte("test"))
	h.Write(data)
	h.Sum(dst[:0])
}

// textEncoder writes events so that a test can read them.
type textEncoder struct{}

func (textEncoder) Append(dst []byte, ev *schema.Event) ([]byte, error) {
	return fmt.Appendf(dst, "%s %x %s %s", ev.Body.Type(), ev.Order[:], ev.EventID, ev.CRMKey), nil
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, panicAt: -1, have: map[string]int{}, sourceErrs: map[int]error{},
		identity: Identity{SystemID: "1", Epoch: 1, Slot: "lethe", SlotGeneration: "a"},
	}
}

// add appends a transaction to the script.
func (w *world) add(subjects ...string) {
	n := uint64(len(w.script)+1) * 100
	w.script = append(w.script, scripted{
		tx: Transaction{
			Position: Position{Epoch: 1, Commit: n, End: n + 10}, XID: uint32(n),
			CommittedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Second),
		},
		subjects: subjects,
	})
}

func (w *world) last() Position { return w.script[len(w.script)-1].tx.Position }

func (w *world) pipeline(change ...func(*Options)) *Pipeline {
	w.t.Helper()
	o := Options{
		Name: "crm", Source: w, Rules: w, IDs: schema.NewIdentifiers(prf{}, "crm"), Encoder: textEncoder{},
		Publisher: w, Log: w, Checkpoints: w, Logger: zerolog.Nop(), StopWithin: 5 * time.Second,
	}
	for _, f := range change {
		f(&o)
	}
	p, err := NewPipeline(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// Run implements Source.
func (w *world) Run(ctx context.Context, from *Checkpoint, h Handler) error {
	w.mu.Lock()
	w.runs++
	if w.begun != w.runs {
		w.problem("the rules were begun %d times before run %d", w.begun, w.runs)
	}
	w.running = true
	defer func() {
		w.mu.Lock()
		w.running = false
		w.mu.Unlock()
	}()
	w.from = append(w.from, from)
	var refused error
	if w.onRun != nil {
		refused = w.onRun(w.runs)
	}
	w.mu.Unlock()
	if refused != nil {
		return refused
	}
	table := &Table{Name: "public.customer"}
	full, _ := h.(Throttle)
	for i := range w.script {
		s := &w.script[i]
		if from != nil && s.tx.Position.End <= from.Position.End {
			continue
		}
		w.mu.Lock()
		err := w.sourceErrs[i]
		delete(w.sourceErrs, i)
		w.mu.Unlock()
		if err != nil {
			return fmt.Errorf("scripted: %w", err)
		}
		tx := s.tx
		if err := h.Begin(&tx); err != nil {
			return err
		}
		for _, subject := range s.subjects {
			for room := full.Full(); room != nil; room = full.Full() {
				select {
				case <-room:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			w.setInChange(true)
			err := h.Change(&Change{Op: OpUpdate, Table: table, Message: []byte(subject)})
			w.setInChange(false)
			if err != nil {
				return err
			}
		}
		if err := h.Commit(&tx); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (w *world) setInChange(in bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inChange = in
}

// Acknowledge implements Source. Nothing may be acknowledged that is not in the topic and in the checkpoint.
func (w *world) Acknowledge(p Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.saved == nil || w.saved.Position.End < p.End {
		w.problem("acknowledged %s before its checkpoint", p)
	}
	w.complete("acknowledged", p)
	w.acked = p
	if !w.running {
		w.lateAcks++
	}
}

// complete checks that every event of every transaction up to p is in the topic; the caller holds mu.
func (w *world) complete(what string, p Position) {
	for i := range w.script {
		s := &w.script[i]
		if s.tx.Position.End > p.End {
			return
		}
		want := 0
		for _, subject := range s.subjects {
			switch subject {
			case "":
			case "*", "!":
				want += partitions
			default:
				want++
			}
		}
		inc := uint32(1)
		if w.saved != nil {
			inc = w.saved.Incarnation
		}
		o := schema.NewOrder(inc, s.tx.Position.Epoch, s.tx.Position.Commit, 0)
		if got := w.have[fmt.Sprintf("%x", o[:16])]; got < want {
			w.problem("%s %s when Kafka held %d of %d events of %s", what, p, got, want, s.tx.Position)
		}
	}
}

func (w *world) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// Identity implements Source.
func (w *world) Identity(context.Context) (Identity, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.identity, nil
}

// Begin implements Ruler.
func (w *world) Begin() { w.begun++ }

// Apply implements Ruler.
func (w *world) Apply(_ *Transaction, c *Change, out []Draft) ([]Draft, error) {
	w.mu.Lock()
	n := w.changes
	w.changes++
	w.mu.Unlock()
	if n == w.panicAt {
		panic("secret@example.org")
	}
	switch subject := string(c.Message); subject {
	case "":
		return out, nil
	case "*":
		return append(out, Draft{Rule: "heartbeat", Body: &schema.Heartbeat{}}), nil
	case "!":
		return append(out, Draft{Rule: "truncate", Body: &schema.Gap{Opened: true, Cause: GapTruncate}}), nil
	case "?":
		return out, errors.New("value is not in the map")
	default:
		key := []byte(subject)
		return append(out, Draft{Rule: "objection", PK: key, SubjectKey: key, Body: &schema.Objection{Raised: true}}), nil
	}
}

// fakeUnit implements Unit with bounds of 40 records a partition and 100 in all.
type fakeUnit struct {
	w       *world
	parts   [partitions][]logged
	bytes   int
	records int
}

func (u *fakeUnit) Append(key, value []byte) error {
	h := fnv.New32()
	h.Write(key)
	n := h.Sum32() % partitions
	if len(u.parts[n]) >= 40 {
		return ErrUnitFull
	}
	u.add(int(n), key, value)
	return nil
}

func (u *fakeUnit) AppendAll(value []byte) error {
	for n := range u.parts {
		if len(u.parts[n]) >= 40 {
			return ErrUnitFull
		}
	}
	for n := range u.parts {
		u.add(n, nil, value)
	}
	return nil
}

func (u *fakeUnit) add(n int, key, value []byte) {
	u.parts[n] = append(u.parts[n], logged{string(key), string(value)})
	u.bytes += len(key) + len(value)
	u.records++
}

func (u *fakeUnit) Full() bool {
	for n := range u.parts {
		if len(u.parts[n]) >= 30 {
			return true
		}
	}
	return false
}
func (u *fakeUnit) Bytes() int { return u.bytes }
func (u *fakeUnit) Reset()     { *u = fakeUnit{w: u.w} }

// Open implements Publisher.
func (w *world) Open(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.openErr
}

// NewUnit implements Publisher.
func (w *world) NewUnit() Unit { return &fakeUnit{w: w} }

// Publish implements Publisher.
func (w *world) Publish(ctx context.Context, cu Unit) error {
	u := cu.(*fakeUnit)
	w.mu.Lock()
	stuck := w.stuck
	w.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	time.Sleep(2 * time.Millisecond) // a round trip, in the bubble's time
	w.mu.Lock()
	defer w.mu.Unlock()
	w.publishes++
	part, err := partitions, error(nil)
	if w.onPublish != nil {
		part, err = w.onPublish(w.publishes)
	}
	for n := range part {
		w.log[n] = append(w.log[n], u.parts[n]...)
		for _, r := range u.parts[n] {
			w.have[strings.Fields(r.value)[1][:32]]++
		}
	}
	w.maxHeld = max(w.maxHeld, u.records)
	return err
}

// Newest implements EventLog.
func (w *world) Newest(context.Context) (o schema.Order, written bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.log {
		written = written || len(w.log[n]) > 0
	}
	if written {
		o = schema.NewOrder(4, 1, 1, 1)
	}
	return o, written, nil
}

// Load implements Checkpoints.
func (w *world) Load(context.Context) (*Checkpoint, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.saved == nil {
		return nil, nil
	}
	c := *w.saved
	return &c, nil
}

// Save implements Checkpoints.
func (w *world) Save(_ context.Context, c *Checkpoint) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saves++
	if w.saveErr != nil {
		if err := w.saveErr(w.saves); err != nil {
			return err
		}
	}
	w.complete("checkpointed", c.Position)
	if w.saved != nil && c.Incarnation == w.saved.Incarnation && c.Position.Commit < w.saved.Position.Commit {
		w.problem("checkpoint moved back from %s to %s", w.saved.Position, c.Position)
	}
	d := *c
	w.saved = &d
	return nil
}

// run starts p and gives a function that stops it and checks what the world saw.
func (w *world) run(p *Pipeline) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return func() error {
		cancel()
		err := <-done
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, s := range w.problems {
			if i == 10 {
				break
			}
			w.t.Error(s)
		}
		return err
	}
}

// until waits, in the bubble's time, for a condition; mu is held while it is asked.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	for range 100_000 {
		w.mu.Lock()
		ok := cond()
		w.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("never came about: %s", what)
}
