package kafka

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/config"
	"lethe/internal/keys"
	"lethe/schema"
)

// flood is a source of transactions with one or two changes each, as fast as the pipeline takes them, with rules that
// cost nothing.
type flood struct {
	left  int
	done  chan struct{}
	body  schema.ConsentChange
	key   []byte
	saved atomic.Pointer[capture.Checkpoint]
}

func (f *flood) Run(ctx context.Context, _ *capture.Checkpoint, h capture.Handler) error {
	table := &capture.Table{Name: "public.consent"}
	full := h.(capture.Throttle) //nolint:forcetypeassert // the pipeline is one
	tx := capture.Transaction{CommittedAt: time.Now()}
	change := capture.Change{Op: capture.OpUpdate, Table: table}
	for n := range f.left {
		tx.Position = capture.Position{Epoch: 1, Commit: uint64(n+1) * 100, End: uint64(n+1)*100 + 50}
		if err := h.Begin(&tx); err != nil {
			return err
		}
		for room := full.Full(); room != nil; room = full.Full() {
			select {
			case <-room:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := h.Change(&change); err != nil {
			return err
		}
		if err := h.Commit(&tx); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *flood) Acknowledge(p capture.Position) {
	if p.Commit == uint64(f.left)*100 {
		close(f.done)
	}
}

func (f *flood) Identity(context.Context) (capture.Identity, error) {
	return capture.Identity{SystemID: "1", Epoch: 1, Slot: "lethe", SlotGeneration: "a"}, nil
}

func (f *flood) Begin() {}

func (f *flood) Apply(tx *capture.Transaction, _ *capture.Change, out []capture.Draft) ([]capture.Draft, error) {
	n := tx.Position.Commit / 100 % 20_000
	f.key = append(f.key[:0], 4, byte('0'+n/1000%10), byte('0'+n/100%10), byte('0'+n/10%10), byte('0'+n%10))
	return append(out, capture.Draft{Rule: "consent.public.consent", PK: f.key, SubjectKey: f.key, Body: &f.body}), nil
}

func (f *flood) Load(context.Context) (*capture.Checkpoint, error) { return f.saved.Load(), nil }

func (f *flood) Save(_ context.Context, c *capture.Checkpoint) error {
	d := *c
	f.saved.Store(&d)
	return nil
}

// BenchmarkPipeline is the way of a change through the pipeline into the acknowledgement of the real Kafka, with the real
// keys and the real encoder. An operation is one transaction with one change that gives one event.
func BenchmarkPipeline(b *testing.B) {
	dir := b.TempDir()
	if _, err := keys.Init(dir, nil); err != nil {
		b.Fatal(err)
	}
	ring, err := keys.Open(dir, keys.RoleCapture)
	if err != nil {
		b.Fatal(err)
	}
	conn := real(b, func(k *config.Kafka) { k.Partitions = 12 })
	if _, err := (&Topics{Conn: conn}).Setup(b.Context()); err != nil {
		b.Fatal(err)
	}
	p, err := NewPublisher(Options{Conn: conn})
	if err != nil {
		b.Fatal(err)
	}
	f := &flood{left: b.N, done: make(chan struct{}), body: schema.ConsentChange{
		Purpose: "newsletter", Channel: "email", State: schema.ConsentGiven, LegalBasis: "consent",
	}}
	pipeline, err := capture.NewPipeline(capture.Options{
		Name: "crm", Source: f, Rules: f, IDs: schema.NewIdentifiers(ring.Subject(), "crm"), Encoder: schema.NewEncoder(ring.Seal()),
		Publisher: p, Log: &EventLog{Conn: conn, Decoder: schema.NewDecoder(ring.Seal())}, Checkpoints: f,
		CheckpointEvery: 10 * time.Millisecond, Logger: zerolog.Nop(),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ReportAllocs()
	b.ResetTimer()
	go func() { ended <- pipeline.Run(ctx) }()
	<-f.done
	b.StopTimer()
	s := pipeline.Status()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
	b.ReportMetric(float64(b.N)/float64(s.Units), "tx/unit")
	stop()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}
