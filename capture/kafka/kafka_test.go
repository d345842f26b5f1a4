package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lethe/capture"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const testPartitions = 4

// fake starts an in-process cluster with Lethe's events topic and gives a connection to it.
func fake(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, *kafkaconn.Conn) {
	t.Helper()
	opts = append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.SeedTopics(testPartitions, "lethe.events"), kfake.SeedTopics(1, "lethe.checkpoints"),
	}, opts...)
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, connect(t, c.ListenAddrs())
}

func connect(t testing.TB, brokers []string) *kafkaconn.Conn {
	t.Helper()
	conn, err := kafkaconn.New(config.Kafka{
		Brokers: brokers, TopicPrefix: "lethe", Partitions: testPartitions, ReplicationFactor: 1,
	}, kafkaconn.Options{Dial: (&net.Dialer{}).DialContext})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func publisher(t testing.TB, o Options) *Publisher {
	t.Helper()
	p, err := NewPublisher(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// endOffset asks the partition's leader. The caller's client is fresh: a cached leader may have moved.
func endOffset(ctx context.Context, t testing.TB, client *kgo.Client, topic string, partition int) int64 {
	t.Helper()
	offsets, err := client.ListOffsets(ctx, &kgo.ListOffsetsRequest{
		Topics: map[string][]kgo.OffsetRequest{topic: {kgo.LastOffsetOf(partition)}},
	})
	if err == nil {
		err = offsets.Topics[topic][0].Error
	}
	if err != nil {
		t.Fatal(err)
	}
	return offsets.Topics[topic][0].LastOffset
}

type record struct{ key, value string }

// readRecords reads the whole events topic: for each partition its records in order.
func readRecords(t testing.TB, conn *kafkaconn.Conn) [][]record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, done := conn.FreshClient()
	defer done()
	all := make([][]record, testPartitions)
	for i := range all {
		end := endOffset(ctx, t, client, conn.EventsTopic(), i)
		for next := int64(0); next < end; {
			res, err := client.Fetch(ctx, &kgo.FetchRequest{
				Topic: conn.EventsTopic(), Partition: i, Offset: next, MinBytes: 1, MaxBytes: 8 << 20,
			})
			if err == nil {
				err = res.Error
			}
			if err != nil {
				t.Fatal(err)
			}
			for {
				rec, err := res.Records.ReadRecord()
				if err != nil {
					break
				}
				if rec.Offset < next {
					continue
				}
				k, kerr := kgo.ReadAll(rec.Key)
				v, verr := kgo.ReadAll(rec.Value)
				if err := errors.Join(kerr, verr); err != nil {
					t.Fatal(err)
				}
				all[i] = append(all[i], record{string(k), string(v)})
				next = rec.Offset + 1
			}
		}
	}
	return all
}

// readAll is readRecords without the keys.
func readAll(t testing.TB, conn *kafkaconn.Conn) [][]string {
	t.Helper()
	all := make([][]string, testPartitions)
	for i, part := range readRecords(t, conn) {
		for _, r := range part {
			all[i] = append(all[i], r.value)
		}
	}
	return all
}

func key(i int) []byte   { return fmt.Appendf(nil, "SUBJECT%d", i) }
func value(i int) []byte { return fmt.Appendf(nil, "value-%06d", i) }

func fill(t testing.TB, u capture.Unit, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := u.Append(key(i%17), value(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPublishPutsEachKeyInOrderIntoItsPartition(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress=%v", compress), func(t *testing.T) {
			_, conn := fake(t)
			p := publisher(t, Options{Conn: conn, Compress: compress})
			u := p.NewUnit()
			fill(t, u, 0, 5000)
			if err := u.AppendAll([]byte("to all")); err != nil {
				t.Fatal(err)
			}
			if err := p.Publish(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			u.Reset()
			fill(t, u, 5000, 6000)
			if err := p.Publish(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			want := make([][]string, testPartitions)
			for i := range 6000 {
				if i == 5000 {
					for n := range want {
						want[n] = append(want[n], "to all")
					}
				}
				n := (kgo.Murmur2Balancer{}).Balance(kgo.Message{Key: key(i % 17)}, 0, 1, 2, 3)
				want[n] = append(want[n], string(value(i)))
			}
			got := readAll(t, conn)
			for n := range want {
				if len(got[n]) != len(want[n]) {
					t.Fatalf("partition %d: %d records, want %d", n, len(got[n]), len(want[n]))
				}
				for i := range want[n] {
					if got[n][i] != want[n][i] {
						t.Fatalf("partition %d, record %d: %s, want %s", n, i, got[n][i], want[n][i])
					}
				}
			}
		})
	}
}

func TestLostAckOnlyDuplicates(t *testing.T) {
	c, conn := fake(t)
	p := publisher(t, Options{Conn: conn})
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut})
	u := p.NewUnit()
	fill(t, u, 0, 100)
	err := p.Publish(t.Context(), u)
	if !errors.Is(err, kgo.RequestTimedOut) || capture.IsPermanent(err) {
		t.Fatalf("first attempt: %v, want a request that timed out and may be sent again", err)
	}
	if err := p.Publish(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, conn)
	total := 0
	for n := range got {
		half := len(got[n]) / 2
		total += half
		for i := range half {
			if got[n][i] != got[n][half+i] {
				t.Fatalf("partition %d: the unit sent again differs at record %d", n, i)
			}
		}
	}
	if total != 100 {
		t.Fatalf("%d records twice, want 100", total)
	}
}
