package capture

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lethe/schema"
)

// passWorld is a world whose source can be read beside its log, and whose log goes on while it is followed.
type passWorld struct {
	*world

	tables map[string]*fakeTable
	grown  chan struct{} // closed when the script grows; guarded by world.mu

	// onChunk is asked before each chunk, with the number of chunks so far.
	onChunk func(n int, c ChunkRequest) error
	chunks  int
	reading int // chunks being read now
	most    int
	marks   int
	silent  bool // the stream does not begin
	passes  *fakePasses
}

type fakeTable struct {
	rows    []fakeRow // by key
	refused *TableRefusedError
	walk    string
	shape   *Table
}

type fakeRow struct{ key, subject string }

func newPassWorld(t *testing.T, tables map[string]int) *passWorld {
	w := &passWorld{world: newWorld(t), tables: map[string]*fakeTable{}, grown: make(chan struct{}), passes: &fakePasses{requests: map[string]PassRequest{}}}
	for name, rows := range tables {
		w.table(name, rows)
	}
	w.add("s0")
	return w
}

func (w *passWorld) table(name string, rows int) *fakeTable {
	f := &fakeTable{walk: "id", shape: &Table{Name: name, Columns: []Column{{Name: "id", Key: true}, {Name: "subject"}}}}
	for i := range rows {
		f.rows = append(f.rows, fakeRow{fmt.Sprintf("%06d", i), fmt.Sprintf("%s-%06d", name, i)})
	}
	w.tables[name] = f
	return f
}

func (w *passWorld) options(change ...func(*PassOptions)) func(*Options) {
	return func(o *Options) {
		o.Source = w
		o.Pass = PassOptions{Passes: w.passes, Rules: &passRules{w: w}, Encoder: passEncoder{}, Seal: fakeSeal{}, Chunk: 100}
		for name := range w.tables {
			o.Pass.Tables = append(o.Pass.Tables, name)
		}
		slices.Sort(o.Pass.Tables)
		for _, f := range change {
			f(&o.Pass)
		}
	}
}

// append adds a transaction to a log that is being followed.
func (w *passWorld) append(subjects ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.appendLocked(subjects...)
}

func (w *passWorld) appendLocked(subjects ...string) {
	w.add(subjects...)
	close(w.grown)
	w.grown = make(chan struct{})
}

// Run implements Source: the script, and then what is appended to it.
func (w *passWorld) Run(ctx context.Context, from *Checkpoint, h Handler) error {
	w.mu.Lock()
	w.runs++
	var refused error
	if w.onRun != nil {
		refused = w.onRun(w.runs)
	}
	silent := w.silent
	w.mu.Unlock()
	if refused != nil {
		return refused
	}
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	h.(Follower).Follows()
	table := &Table{Name: "public.customer"}
	full, _ := h.(Throttle)
	for i := 0; ; i++ {
		w.mu.Lock()
		for i == len(w.script) {
			grown := w.grown
			w.mu.Unlock()
			select {
			case <-grown:
			case <-ctx.Done():
				return ctx.Err()
			}
			w.mu.Lock()
		}
		s := w.script[i]
		err := w.sourceErrs[i]
		delete(w.sourceErrs, i)
		w.mu.Unlock()
		if from != nil && s.tx.Position.End <= from.Position.End {
			continue
		}
		if err != nil {
			return fmt.Errorf("scripted: %w", err)
		}
		if err := hand(ctx, h, full, table, &s); err != nil {
			return err
		}
	}
}

func hand(ctx context.Context, h Handler, full Throttle, table *Table, s *scripted) error {
	if err := h.Begin(&s.tx); err != nil {
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
		if err := h.Change(&Change{Op: OpUpdate, Table: table, Message: []byte(subject)}); err != nil {
			return err
		}
	}
	return h.Commit(&s.tx)
}

type fakeMark Position

func (m fakeMark) Passed(p Position) bool { return p.Epoch == m.Epoch && p.Commit >= m.Commit }

// Watermark implements Snapshotter.
func (w *passWorld) Watermark(context.Context) (Mark, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marks++
	w.appendLocked("")
	return fakeMark(w.last()), nil
}

// PassTable implements Snapshotter.
func (w *passWorld) PassTable(_ context.Context, name string) (PassTable, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.tables[name]
	if f.refused != nil {
		return PassTable{}, f.refused
	}
	return PassTable{Key: []string{"id"}, Walk: f.walk, Rows: int64(len(f.rows))}, nil
}

// ReadChunk implements Snapshotter.
func (w *passWorld) ReadChunk(ctx context.Context, c ChunkRequest, fn func(*Change) error) ([][]byte, bool, error) {
	w.mu.Lock()
	w.chunks++
	n := w.chunks
	w.reading++
	w.most = max(w.most, w.reading)
	f, onChunk := w.tables[c.Table], w.onChunk
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.reading--
		w.mu.Unlock()
	}()
	if onChunk != nil {
		if err := onChunk(n, c); err != nil {
			return nil, false, err
		}
	}
	if !sleep(ctx, 3*time.Millisecond) {
		return nil, false, ctx.Err()
	}
	start := 0
	if c.After != nil {
		start, _ = slices.BinarySearchFunc(f.rows, string(c.After[0])+"\x00", func(r fakeRow, key string) int { return cmp.Compare(r.key, key) })
	}
	rows := f.rows[start:min(start+c.Limit, len(f.rows))]
	var last [][]byte
	for _, r := range rows {
		last = [][]byte{[]byte(r.key)}
		if err := fn(&Change{Op: OpRead, Table: f.shape, New: []Value{{Present, []byte(r.key)}, {Present, []byte(r.subject)}}}); err != nil {
			return nil, false, err
		}
	}
	return last, len(rows) < c.Limit, nil
}

// At implements Snapshotter.
func (w *passWorld) At(context.Context, Position, func(context.Context, Querier) error) error {
	return errors.ErrUnsupported
}

// passRules make one event of each row; they belong to one goroutine at a time.
type passRules struct {
	w  *passWorld
	mu sync.Mutex
}

func (*passRules) Begin() {}

func (r *passRules) Apply(_ *Transaction, c *Change, out []Draft) ([]Draft, error) {
	if !r.mu.TryLock() {
		r.w.mu.Lock()
		r.w.problem("two rows of a pass at once")
		r.w.mu.Unlock()
	} else {
		defer r.mu.Unlock()
	}
	subject := slices.Clone(c.New[1].Text)
	if string(subject) == "?" {
		return out, errors.New("value is not in the map")
	}
	return append(out, Draft{Rule: "objection", PK: subject, SubjectKey: subject, Body: &schema.Objection{Raised: true}}), nil
}

// passEncoder keeps the events of a pass apart from those of the stream.
type passEncoder struct{}

func (passEncoder) Append(dst []byte, ev *schema.Event) ([]byte, error) {
	what := ev.Body.Type().String()
	switch body := ev.Body.(type) {
	case *schema.PassMarker:
		what = "end"
		if body.Begin {
			what = "begin"
		}
		what += fmt.Sprintf(":%t:%s", body.Full, strings.Join(body.Tables, ","))
	case *schema.Gap:
		what = "closed:" + body.GapID
	}
	if ev.Kind != schema.KindSnapshot {
		return dst, fmt.Errorf("an event of a pass has kind %d", ev.Kind)
	}
	return fmt.Appendf(dst, "%s P%x %s %s %s", what, ev.Order[:], ev.EventID, ev.RunID, ev.CRMKey), nil
}

// fakeSeal turns the bits round, so that a key in clear is seen.
type fakeSeal struct{}

func (fakeSeal) AppendSeal(dst, plain, ad []byte) ([]byte, error) {
	for _, b := range plain {
		dst = append(dst, ^b)
	}
	return append(dst, ad...), nil
}

func (fakeSeal) Open(sealed, ad []byte) ([]byte, error) {
	sealed, ok := bytes.CutSuffix(sealed, ad)
	if !ok {
		return nil, errors.New("sealed for something else")
	}
	plain := slices.Clone(sealed)
	for i := range plain {
		plain[i] = ^plain[i]
	}
	return plain, nil
}

// fakePasses implements Passes.
type fakePasses struct {
	mu       sync.Mutex
	pass     *Pass
	requests map[string]PassRequest
	saves    int
	saveErr  func(n int) error
	history  []Pass
	loadErr  error
}

func (f *fakePasses) Load(context.Context) (*PassBook, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loadErr != nil {
		return nil, f.loadErr
	}
	book := &PassBook{}
	if f.pass != nil {
		book.Pass = f.pass.clone()
	}
	for _, r := range f.requests {
		book.Requests = append(book.Requests, r)
	}
	slices.SortFunc(book.Requests, func(a, b PassRequest) int {
		return cmp.Or(a.RequestedAt.Compare(b.RequestedAt), cmp.Compare(a.ID, b.ID))
	})
	return book, nil
}

func (f *fakePasses) Save(_ context.Context, p *Pass) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saves++
	if f.saveErr != nil {
		if err := f.saveErr(f.saves); err != nil {
			return err
		}
	}
	f.pass = p.clone()
	f.history = append(f.history, *p.clone())
	return nil
}

func (f *fakePasses) Ask(_ context.Context, r PassRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests[r.ID] = r
	return nil
}

func (f *fakePasses) Answered(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.requests, id)
	return nil
}

func (f *fakePasses) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.history)
}

func (f *fakePasses) now() *Pass {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pass == nil {
		return &Pass{}
	}
	return f.pass.clone()
}

func (f *fakePasses) ask(id string, change ...func(*PassRequest)) {
	r := PassRequest{ID: id, Cause: PassAsked, RequestedAt: time.Now()}
	for _, c := range change {
		c(&r)
	}
	_ = f.Ask(context.Background(), r) // never fails
}

// passEvent is an event of a pass in one partition.
type passEvent struct {
	what, order, id, run, subject string
}

func (w *passWorld) passEvents(partition int) []passEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []passEvent
	for _, r := range w.log[partition] {
		f := strings.Fields(r.value)
		if !strings.HasPrefix(f[1], "P") {
			continue
		}
		e := passEvent{what: f[0], order: f[1][1:], id: f[2], run: f[3]}
		if len(f) > 4 {
			e.subject = f[4]
		}
		list = append(list, e)
	}
	return list
}

// untilPass waits for a state of the pass of a request.
func (w *passWorld) untilPass(request string, state PassState) *Pass {
	w.t.Helper()
	var p *Pass
	w.until(request+" "+string(state), func() bool {
		p = w.passes.now()
		return p.State == state && (request == "" || p.Request.ID == request)
	})
	return p
}

// shown counts how often each row of a table was published by a run.
func (w *passWorld) shown(run string) map[string]int {
	seen := map[string]int{}
	for n := range partitions {
		for _, e := range w.passEvents(n) {
			if e.what == "Objection" && e.run == run {
				seen[e.subject]++
			}
		}
	}
	return seen
}
