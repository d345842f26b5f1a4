package kafka

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lethe/capture"
	"lethe/capture/checkpoint"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv/memnet"
	"lethe/schema"
)

// steady is a source that commits a transaction every 50 ms and starts again where it is told to.
type steady struct {
	t     *testing.T
	total int
	began time.Time

	mu    sync.Mutex
	acked capture.Position
}

func at(n int) capture.Position {
	return capture.Position{Epoch: 1, Commit: uint64(n) * 100, End: uint64(n)*100 + 10}
}

func (s *steady) Run(ctx context.Context, from *capture.Checkpoint, h capture.Handler) error {
	full := h.(capture.Throttle) //nolint:forcetypeassert // the pipeline is one
	first := 1
	if from != nil {
		first = int(from.Position.Commit/100) + 1
	}
	for n := first; n <= s.total; n++ {
		select { // the transaction is committed when its time has come, whether anybody reads or not
		case <-time.After(time.Until(s.began.Add(time.Duration(n) * 50 * time.Millisecond))):
		case <-ctx.Done():
			return ctx.Err()
		}
		tx := capture.Transaction{Position: at(n), XID: 1, CommittedAt: time.Now()}
		if err := h.Begin(&tx); err != nil {
			return err
		}
		for i := range n % 4 {
			for room := full.Full(); room != nil; room = full.Full() {
				select {
				case <-room:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			c := capture.Change{Op: capture.OpUpdate, Table: &capture.Table{Name: "t"}, Message: fmt.Appendf(nil, "s%d", (n+i)%31)}
			if err := h.Change(&c); err != nil {
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

// Acknowledge compares with the checkpoint that another process would load at that moment.
func (s *steady) Acknowledge(p capture.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = p
}

func (s *steady) position() capture.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

func (*steady) Identity(context.Context) (capture.Identity, error) {
	return capture.Identity{SystemID: "1", Epoch: 1, Slot: "lethe", SlotGeneration: "a"}, nil
}

func (*steady) Begin() {}

func (*steady) Apply(_ *capture.Transaction, c *capture.Change, out []capture.Draft) ([]capture.Draft, error) {
	return append(out, capture.Draft{Rule: "objection", PK: c.Message, SubjectKey: c.Message, Body: &schema.Objection{Raised: true}}), nil
}

// orderText writes events that are their order.
type orderText struct{}

func (orderText) Append(dst []byte, ev *schema.Event) ([]byte, error) {
	return fmt.Appendf(dst, "%x", ev.Order[:]), nil
}

// TestOutagesInVirtualTime runs the pipeline with the real publisher and the real checkpoints through an hour without
// Kafka, lost acknowledgements, failing partitions, moving leaders and kills between which only Kafka remembers.
func TestOutagesInVirtualTime(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { outage(t, seed) }) })
	}
}

func outage(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	network := memnet.New()
	c, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.ListenFn(network.Listen),
		kfake.SeedTopics(testPartitions, "lethe.events"), kfake.SeedTopics(1, "lethe.checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := kafkaconn.New(config.Kafka{
		Brokers: c.ListenAddrs(), TopicPrefix: "lethe", Partitions: testPartitions, ReplicationFactor: 1,
	}, kafkaconn.Options{Dial: network.Dial("capture")})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := &steady{t: t, total: 3 * 3600 * 20 / 10, began: time.Now()} // 18 minutes of commits
	start := func() (kill func()) {
		p, err := NewPublisher(Options{Conn: conn})
		if err != nil {
			t.Fatal(err)
		}
		pipeline, err := capture.NewPipeline(capture.Options{
			Name: "crm", Source: s, Rules: s, IDs: schema.NewIdentifiers(prf{}, "crm"), Encoder: orderText{}, Publisher: p,
			Log: &EventLog{Conn: conn, Decoder: ordersOnly{}}, Checkpoints: checkpoint.New(checkpoint.Options{Conn: conn, Source: "crm"}),
			Logger: zerolog.Nop(), StopWithin: time.Millisecond, // as good as a kill
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = pipeline.Run(ctx) // says that it left something behind; that is the test
		}()
		return func() { cancel(); <-done }
	}
	kill := start()
	codes := []*kerr.Error{kerr.RequestTimedOut, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.NotLeaderForPartition}
	for range 40 {
		time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond)
		switch r.IntN(5) {
		case 0, 1:
			c.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Err: codes[r.IntN(len(codes))], Partitions: []int32{r.Int32N(testPartitions)}, Count: 1 + r.IntN(3),
			})
		case 2:
			if err := c.MoveTopicPartition("lethe.events", r.Int32N(testPartitions), r.Int32N(3)); err != nil {
				t.Fatal(err)
			}
		case 3:
			kill()
			kill = start()
		case 4:
			network.Cut("capture")
			time.Sleep(time.Duration(r.IntN(3)) * 20 * time.Minute)
			network.Mend("capture")
		}
	}
	deadline := time.Now().Add(time.Hour)
	for s.position() != at(s.total) {
		if time.Now().After(deadline) {
			t.Fatalf("stands at %s, want %s", s.position(), at(s.total))
		}
		time.Sleep(time.Second)
	}
	kill()
	store := checkpoint.New(checkpoint.Options{Conn: conn, Source: "crm"})
	saved, err := store.Load(t.Context())
	for ; err != nil && time.Now().Before(deadline); saved, err = store.Load(t.Context()) {
		time.Sleep(time.Second) // a connection that the last outage had closed
	}
	if err != nil || saved.Position != at(s.total) {
		t.Fatalf("checkpoint %+v, %v", saved, err)
	}
	checkTopic(t, conn, s.total)
}

// checkTopic asserts that every event is there, and that the last record of a key in its partition is its newest.
func checkTopic(t *testing.T, conn *kafkaconn.Conn, total int) {
	t.Helper()
	seen := map[string]bool{}
	for n, part := range readRecords(t, conn) {
		newest, last := map[string]string{}, map[string]string{}
		for _, r := range part {
			seen[r.value] = true
			newest[r.key], last[r.key] = max(newest[r.key], r.value), r.value
		}
		for key := range newest {
			if newest[key] != last[key] {
				t.Errorf("partition %d: the last record of a key is not its newest", n)
			}
		}
	}
	want := 0
	for n := 1; n <= total; n++ {
		for i := range n % 4 {
			want++
			if o := schema.NewOrder(1, 1, at(n).Commit, uint32(i)); !seen[fmt.Sprintf("%x", o[:])] {
				t.Fatalf("event %s is not in the topic", o)
			}
		}
	}
	if len(seen) != want {
		t.Errorf("%d different events, want %d", len(seen), want)
	}
}
