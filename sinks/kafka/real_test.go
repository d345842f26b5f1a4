package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/sinktest"
)

// real is a topic of its own on a real Apache Kafka.
type real struct {
	tb     testing.TB
	conn   *kafkaconn.Conn
	broker *testenv.Kafka
	prefix string
	model  *sinktest.Model
	next   map[int32]int64
}

func newReal(tb testing.TB, broker *testenv.Kafka, n int) *real {
	tb.Helper()
	r := &real{tb: tb, broker: broker, prefix: testenv.UniqueName("sink"), model: sinktest.NewModel(), next: map[int32]int64{}}
	r.conn = r.connect(n)
	client := r.conn.Client()
	res, err := client.CreateTopics(tb.Context(), &kafkago.CreateTopicsRequest{Addr: client.Addr, Topics: []kafkago.TopicConfig{
		{Topic: r.conn.EventsTopic(), NumPartitions: n, ReplicationFactor: 1},
		{Topic: r.conn.ReceiptsTopic(), NumPartitions: 1, ReplicationFactor: 1},
	}})
	if err == nil {
		err = errors.Join(res.Errors[r.conn.EventsTopic()], res.Errors[r.conn.ReceiptsTopic()])
	}
	if err != nil {
		tb.Fatalf("creating topics: %v", err)
	}
	tb.Cleanup(r.conn.Close)
	return r
}

func (r *real) connect(n int) *kafkaconn.Conn {
	c, err := kafkaconn.New(config.Kafka{Brokers: r.broker.Brokers(), TopicPrefix: r.prefix, Partitions: n, ReplicationFactor: 1},
		kafkaconn.Options{})
	if err != nil {
		r.tb.Fatal(err)
	}
	return c
}

// start runs a worker and returns it with the function that stops it.
func (r *real) start(n int, change ...func(*sinks.WorkerOptions)) (*sinks.Worker, func()) {
	conn := r.connect(n)
	feed, err := NewFeed(FeedOptions{Conn: conn, Group: GroupName(r.prefix, "marketing"), Decoder: plainCodec{}})
	if err != nil {
		r.tb.Fatal(err)
	}
	receipts := NewReceipts(conn)
	o := sinks.WorkerOptions{Name: "marketing", Replica: r.model, Feed: feed, Sender: receipts}
	for _, f := range change {
		f(&o)
	}
	worker, err := sinks.NewWorker(o)
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	return worker, sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, receipts.Close()); err != nil {
			r.tb.Errorf("worker: %v", err)
		}
		conn.Close()
	})
}

func consentOf(subject byte, n uint64, at time.Time) kafkago.Record {
	ref := schema.SubjectRef{subject}
	ev := &schema.Event{Header: schema.Header{Order: schema.NewOrder(1, 1, n, 0), SubjectRef: ref, CommittedAt: at}, Body: given()}
	binary.BigEndian.PutUint64(ev.EventID[1:], n)
	ev.EventID[0] = subject
	return kafkago.Record{
		Key: kafkago.NewBytes([]byte(ref.String())), Value: kafkago.NewBytes(append(plainCodec{}.encode(ev), make([]byte, 250)...)),
	}
}

// produce writes until Kafka has acknowledged; records may be doubled when an answer is lost.
func (r *real) produce(partition int32, recs func() []kafkago.Record) {
	r.tb.Helper()
	client := r.conn.Client()
	testenv.Eventually(r.tb, 60*time.Second, func() error {
		res, err := client.Produce(r.tb.Context(), &kafkago.ProduceRequest{
			Addr: client.Addr, Topic: r.conn.EventsTopic(), Partition: int(partition), RequiredAcks: kafkago.RequireAll,
			Records: kafkago.NewRecordReader(recs()...),
		})
		if err == nil {
			err = res.Error
		}
		if err == nil {
			r.next[partition] = res.BaseOffset + int64(len(recs()))
		}
		return err
	})
}

func (r *real) fill(n, perPartition int, from uint64) {
	for p := range int32(n) {
		for done := 0; done < perPartition; done += 1000 {
			r.produce(p, func() []kafkago.Record {
				recs := make([]kafkago.Record, min(1000, perPartition-done))
				for i := range recs {
					recs[i] = consentOf(byte(p), from+uint64(done+i), time.Now())
				}
				return recs
			})
		}
	}
}

func (r *real) applied() error {
	for p, n := range r.next {
		if got := r.model.Place(p).NextOffset; got < n {
			return fmt.Errorf("partition %d is at %d of %d", p, got, n)
		}
	}
	return r.model.Check()
}

func TestOnRealKafka(t *testing.T) {
	const n = 4
	r := newReal(t, testenv.SharedKafka(t), n)
	r.fill(n, 5000, 1)
	a, stopA := r.start(n)
	defer stopA()
	testenv.Eventually(t, 30*time.Second, r.applied)
	b, stopB := r.start(n)
	defer stopB()
	testenv.Eventually(t, 30*time.Second, func() error {
		if x, y := len(a.Status().Partitions), len(b.Status().Partitions); x != n/2 || y != n/2 {
			return fmt.Errorf("%d and %d partitions", x, y)
		}
		return nil
	})
	r.fill(n, 1000, 10_000)
	testenv.Eventually(t, 10*time.Second, r.applied)
	stopB()
	r.fill(n, 1000, 20_000)
	testenv.Eventually(t, 15*time.Second, r.applied)
	testenv.Eventually(t, 5*time.Second, func() error { // Status follows the commit by a moment
		if st := a.Status(); !st.Ready || st.LagEvents != 0 {
			return fmt.Errorf("status: %+v", st)
		}
		return nil
	})
	stopA()
	client := r.conn.Client()
	res, err := client.OffsetFetch(t.Context(), &kafkago.OffsetFetchRequest{
		Addr: client.Addr, GroupID: GroupName(r.prefix, "marketing"), Topics: map[string][]int{r.conn.EventsTopic(): {0, 1, 2, 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Topics[r.conn.EventsTopic()] {
		if p.CommittedOffset != 7000 {
			t.Errorf("partition %d: hint %d at the stop, want 7000", p.Partition, p.CommittedOffset)
		}
	}
}

func TestRealKafkaKilledAndBack(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a broker of its own")
	}
	const n = 2
	broker := testenv.NewKafka(t, testenv.KafkaOptions{HeapMB: 256})
	r := newReal(t, broker, n)
	w, stop := r.start(n)
	defer stop()
	r.fill(n, 100, 1)
	testenv.Eventually(t, 30*time.Second, r.applied)
	if err := broker.Kill(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		if w.Status().Ready {
			return errors.New("ready without Kafka")
		}
		return nil
	})
	if err := broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.fill(n, 100, 1000)
	testenv.Eventually(t, 30*time.Second, r.applied)
	testenv.Eventually(t, 10*time.Second, func() error {
		if st := w.Status(); !st.Ready {
			return fmt.Errorf("not ready: %s", st.Cause)
		}
		return nil
	})
}

func TestRealKafkaRetentionIsAGap(t *testing.T) {
	const n = 1
	r := newReal(t, testenv.SharedKafka(t), n)
	r.fill(n, 100, 1)
	_, stop := r.start(n)
	testenv.Eventually(t, 30*time.Second, r.applied)
	stop()
	r.fill(n, 100, 1000)
	r.deleteRecords(150)
	w, stop := r.start(n)
	defer stop()
	testenv.Eventually(t, 30*time.Second, func() error {
		st := w.Status()
		if len(st.Partitions) != 1 || st.Partitions[0].State != sinks.PartitionGap || st.Partitions[0].Cause != "retention_passed" {
			return fmt.Errorf("status %+v", st)
		}
		return nil
	})
	if got := r.model.Place(0).NextOffset; got != 100 {
		t.Errorf("the place moved to %d", got)
	}
}

// deleteRecords moves the log's start, as retention does. kafka-go does not speak DeleteRecords: the protocol message is the
// fake broker's.
func (r *real) deleteRecords(before int64) {
	client, err := kgo.NewClient(kgo.SeedBrokers(r.broker.Brokers()...))
	if err != nil {
		r.tb.Fatal(err)
	}
	defer client.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = r.conn.EventsTopic()
	part := kmsg.NewDeleteRecordsRequestTopicPartition()
	part.Partition, part.Offset = 0, before
	topic.Partitions = append(topic.Partitions, part)
	req.Topics = append(req.Topics, topic)
	res, err := req.RequestWith(r.tb.Context(), client)
	if err == nil && res.Topics[0].Partitions[0].ErrorCode != 0 {
		err = fmt.Errorf("code %d", res.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		r.tb.Fatalf("deleting records: %v", err)
	}
}

// timed is a replica that takes a while for each transaction and notes how old each event is at its commit.
type timed struct {
	*sinktest.Model
	takes time.Duration
	mu    sync.Mutex
	ages  []time.Duration
}

func (m *timed) Apply(ctx context.Context, b *sinks.Batch) (sinks.Outcome, error) {
	wait(ctx, m.takes)
	out, err := m.Model.Apply(ctx, b)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range b.Records {
		m.ages = append(m.ages, time.Since(b.Records[i].Event.CommittedAt))
	}
	return out, err
}

// BenchmarkLatency produces 1,000 events a second into 12 partitions for five seconds; the replica takes 4 ms a transaction.
func BenchmarkLatency(b *testing.B) {
	const n = 12
	r := newReal(b, testenv.SharedKafka(b), n)
	m := &timed{Model: r.model, takes: 4 * time.Millisecond}
	_, stop := r.start(n, func(o *sinks.WorkerOptions) { o.Replica = m })
	defer stop()
	r.fill(n, 10, 1)
	testenv.Eventually(b, 30*time.Second, r.applied)
	m.mu.Lock()
	m.ages = nil
	m.mu.Unlock()
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	for i := range 1250 {
		<-tick.C
		at := time.Now()
		r.produce(rand.Int32N(n), func() []kafkago.Record {
			recs := make([]kafkago.Record, 4)
			for j := range recs {
				recs[j] = consentOf(1, uint64(1000+4*i+j), at)
			}
			return recs
		})
	}
	testenv.Eventually(b, 30*time.Second, r.applied)
	m.mu.Lock()
	defer m.mu.Unlock()
	slices.Sort(m.ages)
	b.ReportMetric(float64(m.ages[len(m.ages)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(m.ages[len(m.ages)*99/100].Microseconds())/1e3, "p99-ms")
	b.ReportMetric(float64(len(r.model.Batches()))/5, "tx/s")
}

// BenchmarkDrain applies a backlog of 300,000 events of about 350 bytes.
func BenchmarkDrain(b *testing.B) {
	const n, each = 12, 25_000
	r := newReal(b, testenv.SharedKafka(b), n)
	r.fill(n, each, 1)
	_, stop := r.start(n)
	defer stop()
	testenv.Eventually(b, 30*time.Second, func() error {
		if r.model.Records() == 0 {
			return errors.New("nothing applied yet")
		}
		return nil
	})
	before := r.model.Records()
	began := time.Now()
	testenv.Eventually(b, 60*time.Second, r.applied)
	b.ReportMetric(float64(n*each-before)/time.Since(began).Seconds(), "events/s")
}
