package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv"
	"lethe/internal/testenv/memnet"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/sinktest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const partitions = 3

// world is a broker, a replica and what a test does to them.
type world struct {
	t       *testing.T
	net     *memnet.Network
	cluster *kfake.Cluster
	model   *sinktest.Model
	admin   *kafkaconn.Conn
	buffer  int // of the feeds; 0: the default
	next    [partitions]int64
}

// inWorld runs a test in a synctest bubble: an hour costs nothing.
func inWorld(t *testing.T, brokers int, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: memnet.New(), model: sinktest.NewModel()}
		var err error
		w.cluster, err = kfake.NewCluster(kfake.NumBrokers(brokers), kfake.ListenFn(w.net.Listen),
			kfake.SeedTopics(partitions, "lethe.events", "lethe.receipts"))
		if err != nil {
			t.Fatal(err)
		}
		w.admin = w.conn("admin")
		test(t, w)
		if err := w.model.Check(); err != nil {
			t.Error(err)
		}
		w.admin.Close()
		w.cluster.Close()
		synctest.Wait()
	})
}

func (w *world) conn(client string) *kafkaconn.Conn {
	c, err := kafkaconn.New(config.Kafka{
		Brokers: w.cluster.ListenAddrs(), TopicPrefix: "lethe", Partitions: partitions, ReplicationFactor: 1,
	}, kafkaconn.Options{Dial: w.net.Dial(client), ClientID: client})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// member is a running worker.
type member struct {
	w      *world
	worker *sinks.Worker
	conn   *kafkaconn.Conn
	stop   context.CancelFunc
	done   chan error
}

// start runs a worker over the world's replica.
func (w *world) start(name string, change ...func(*sinks.WorkerOptions)) *member {
	conn := w.conn(name)
	feed, err := NewFeed(FeedOptions{
		Conn: conn, Group: GroupName("lethe", "marketing"), Decoder: plainCodec{}, Log: testLog(w.t), MaxBuffer: w.buffer,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	receipts := NewReceipts(conn)
	o := sinks.WorkerOptions{Name: "marketing", Replica: w.model, Feed: feed, Sender: receipts, Log: testLog(w.t)}
	for _, f := range change {
		f(&o)
	}
	worker, err := sinks.NewWorker(o)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	m := &member{w: w, worker: worker, conn: conn, stop: cancel, done: make(chan error, 1)}
	go func() {
		err := worker.Run(ctx)
		err = errors.Join(err, receipts.Close())
		conn.Close()
		m.done <- err
	}()
	return m
}

// end stops a worker and returns how long it took.
func (m *member) end() time.Duration {
	m.w.t.Helper()
	began := time.Now()
	m.stop()
	select {
	case err := <-m.done:
		if err != nil {
			m.w.t.Errorf("worker: %v", err)
		}
	case <-time.After(time.Minute):
		m.w.t.Error("the worker does not stop")
	}
	return time.Since(began)
}

func testLog(t *testing.T) zerolog.Logger {
	if testing.Verbose() {
		return zerolog.New(zerolog.NewTestWriter(t)).With().Timestamp().Logger()
	}
	return zerolog.Nop()
}

// eventually waits until cond holds, in virtual time.
func (w *world) eventually(within time.Duration, what string, cond func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > within {
			w.t.Fatalf("not within %v: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

func (w *world) produce(partition int32, recs ...kafkago.Record) {
	w.t.Helper()
	client := w.admin.Client()
	res, err := client.Produce(w.t.Context(), &kafkago.ProduceRequest{
		Addr: client.Addr, Topic: "lethe.events", Partition: int(partition), RequiredAcks: kafkago.RequireAll,
		Records: kafkago.NewRecordReader(recs...),
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		w.t.Fatalf("producing: %v", err)
	}
	w.next[partition] += int64(len(recs))
}

// event makes the n-th event of a subject.
func (w *world) event(subject byte, n uint64, body schema.Body) kafkago.Record {
	ref := schema.SubjectRef{subject}
	ev := &schema.Event{
		Header: schema.Header{
			Order: schema.NewOrder(1, 1, n, 0), SubjectRef: ref, CommittedAt: time.Now(),
		},
		Body: body,
	}
	binary.BigEndian.PutUint64(ev.EventID[1:], n)
	ev.EventID[0] = subject
	r := kafkago.Record{Value: kafkago.NewBytes(plainCodec{}.encode(ev))}
	if body.Type() != schema.TypeHeartbeat {
		r.Key = kafkago.NewBytes([]byte(ref.String()))
	}
	return r
}

func given() schema.Body {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentGiven, LegalBasis: "consent"}
}

func withdrawn() schema.Body {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentWithdrawn}
}

// applied reports whether everything produced is in the replica.
func (w *world) applied() bool {
	for i, n := range w.next {
		if w.model.Place(int32(i)).NextOffset != n {
			return false
		}
	}
	return true
}

// plainCodec stands in for the schema's codec, which has tests of its own.
type plainCodec struct{}

const plainSize = 16 + 20 + 8 + 2

func (plainCodec) encode(ev *schema.Event) []byte {
	b := append([]byte(nil), ev.EventID[:]...)
	b = append(b, ev.Order[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(ev.CommittedAt.UnixMilli()))
	state := schema.ConsentState(0)
	if c, ok := ev.Body.(*schema.ConsentChange); ok {
		state = c.State
	}
	b = append(b, byte(ev.Body.Type()), byte(state))
	if !ev.SubjectRef.IsZero() {
		b = ev.SubjectRef.AppendText(b)
	}
	return b
}

var errPlain = errors.New("not an event")

func (plainCodec) Decode(b []byte) (*schema.Event, error) {
	if len(b) < plainSize {
		return nil, errPlain
	}
	ev := &schema.Event{}
	copy(ev.EventID[:], b)
	copy(ev.Order[:], b[16:])
	ev.CommittedAt = time.UnixMilli(int64(binary.BigEndian.Uint64(b[36:])))
	ev.SubjectRef, _ = schema.ParseSubjectRef(string(b[plainSize:]))
	switch schema.Type(b[44]) {
	case schema.TypeConsentChange:
		c := given().(*schema.ConsentChange)
		c.State = schema.ConsentState(b[45])
		ev.Body = c
	case schema.TypeSubjectErasure:
		ev.Body = &schema.SubjectErasure{}
	case schema.TypeHeartbeat:
		ev.Body = &schema.Heartbeat{}
	default:
		return nil, errPlain
	}
	return ev, nil
}

// pass lets time pass in the bubble.
func pass(d time.Duration) { <-time.After(d) }
