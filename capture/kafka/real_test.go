package kafka

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"

	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv"
	"lethe/schema"
)

// real gives a connection to the shared Apache Kafka, under topic names that no other test has.
func real(t testing.TB, change ...func(*config.Kafka)) *kafkaconn.Conn {
	t.Helper()
	cfg := config.Kafka{
		Brokers: testenv.SharedKafka(t).Brokers(), TopicPrefix: testenv.UniqueName("cap"),
		Partitions: testPartitions, ReplicationFactor: 1,
	}
	for _, f := range change {
		f(&cfg)
	}
	conn, err := kafkaconn.New(cfg, kafkaconn.Options{Dial: (&net.Dialer{}).DialContext})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func codes(list []Finding) (codes []string) {
	for _, f := range list {
		codes = append(codes, f.Code+" "+string(f.Severity)+" "+f.Object[strings.LastIndex(f.Object, ".")+1:])
	}
	return codes
}

func TestSetupMakesWhatCheckWants(t *testing.T) {
	conn := real(t)
	topics := &Topics{Conn: conn, Retention: 30 * 24 * time.Hour}
	if got := codes(topics.Check(t.Context())); len(got) != 4 || got[0] != "topic_missing error events" {
		t.Fatalf("before setup: %q", got)
	}
	created, err := topics.Setup(t.Context())
	if err != nil || len(created) != 4 {
		t.Fatalf("created %q, %v", created, err)
	}
	if got := topics.Check(t.Context()); len(got) != 0 {
		t.Fatalf("after setup: %+v", got)
	}
	if created, err = topics.Setup(t.Context()); err != nil || len(created) != 0 {
		t.Fatalf("again: created %q, %v", created, err)
	}
	// A backup may be older than was thought, and the factor was raised in the config only.
	topics.Retention = 60 * 24 * time.Hour
	got := topics.Check(t.Context())
	if c := codes(got); !slices.Equal(c, []string{
		"topic_setting error events", "topic_setting error receipts", "topic_setting error dead-letters",
	}) || !strings.Contains(got[0].Fix, "retention.ms=5184000000") {
		t.Fatalf("with a longer retention: %q %q", c, got[0].Fix)
	}
}

func TestCheckFindsWhatIsWrongWithATopic(t *testing.T) {
	conn := real(t, func(k *config.Kafka) { k.ReplicationFactor = 3 })
	res, err := conn.Client().CreateTopics(t.Context(), &kgo.CreateTopicsRequest{Topics: []kgo.TopicConfig{
		{Topic: conn.EventsTopic(), NumPartitions: testPartitions + 2, ReplicationFactor: 1, ConfigEntries: []kgo.ConfigEntry{
			{ConfigName: "cleanup.policy", ConfigValue: "compact"},
			{ConfigName: "retention.ms", ConfigValue: "1000"},
			{ConfigName: "max.message.bytes", ConfigValue: "1000"},
			{ConfigName: "min.insync.replicas", ConfigValue: "1"},
		}},
		{Topic: conn.CheckpointsTopic(), NumPartitions: 1, ReplicationFactor: 1},
		{Topic: conn.ReceiptsTopic(), NumPartitions: 9, ReplicationFactor: 1},
		{Topic: conn.DeadLettersTopic(), NumPartitions: 3, ReplicationFactor: 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for topic, err := range res.Errors {
		if err != nil {
			t.Fatalf("creating %s: %v", topic, err)
		}
	}
	names := []string{conn.EventsTopic(), conn.CheckpointsTopic(), conn.ReceiptsTopic(), conn.DeadLettersTopic()}
	if err := (&Topics{Conn: conn}).visible(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range (&Topics{Conn: conn}).Check(t.Context()) {
		setting, _, _ := strings.Cut(f.Message, " is ")
		if f.Code != CodeSetting {
			setting = ""
		}
		got = append(got, strings.TrimSpace(f.Object[strings.LastIndex(f.Object, ".")+1:]+" "+f.Code+" "+setting))
	}
	for _, want := range []string{
		"events topic_partitions", "events topic_replication", "events topic_setting cleanup.policy", "events topic_setting retention.ms",
		"events topic_setting max.message.bytes", "events topic_setting min.insync.replicas",
		"checkpoints topic_setting cleanup.policy", "checkpoints topic_setting segment.ms", "receipts topic_replication",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("Check did not find %q; it found %q", want, got)
		}
	}
	if slices.Contains(got, "receipts topic_partitions") {
		t.Error("more partitions of receipts are no harm")
	}
}

func TestCheckNamesAnUnreachableBroker(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	list := (&Topics{Conn: connect(t, []string{addr})}).Check(t.Context())
	if len(list) != 1 || list[0].Code != CodeUnreachable || !strings.Contains(list[0].Message, addr) {
		t.Errorf("%+v", list)
	}
}

func TestRealKafkaTakesOurBatches(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress=%v", compress), func(t *testing.T) {
			conn := real(t)
			if _, err := (&Topics{Conn: conn}).Setup(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := publisher(t, Options{Conn: conn, Compress: compress})
			u := p.NewUnit()
			fill(t, u, 0, 20_000)
			if err := u.AppendAll([]byte("all")); err != nil {
				t.Fatal(err)
			}
			untilPublished(t, p, u) // a fresh partition may not be ready yet: then all of it comes twice
			seen := map[string]bool{}
			for _, part := range readAll(t, conn) {
				for _, v := range part {
					seen[v] = true
				}
				if part[len(part)-1] != "all" {
					t.Error("the record to all partitions is not the last")
				}
			}
			if len(seen) != 20_001 {
				t.Errorf("%d different records", len(seen))
			}
			log := &EventLog{Conn: conn, Decoder: ordersOnly{}}
			if _, written, err := log.Newest(t.Context()); !written || err != nil {
				t.Errorf("%v, %v", written, err)
			}
		})
	}
}

// events makes what a consent change looks like on the wire: real ids, so that compression is measured honestly.
func events(b *testing.B, n int) (keys, values [][]byte) {
	b.Helper()
	ids := schema.NewIdentifiers(prf{}, "crm")
	enc := schema.NewEncoder(randomAEAD{})
	for i := range n {
		crm := schema.CanonicalKey(nil, fmt.Appendf(nil, "%d", i%20_000))
		ev := &schema.Event{
			Header: schema.Header{
				EventID:    ids.EventID(schema.EventKey{Incarnation: 1, Epoch: 1, Number: uint64(i), Table: "public.consent", PK: crm, Op: 2, Rule: "c"}),
				Order:      schema.NewOrder(1, 1, uint64(i)*180, 0),
				SubjectRef: ids.SubjectRef(crm), Source: "crm", CommittedAt: time.Now(), DetectedAt: time.Now(),
				Rule: "consent.public.consent", ConfigDigest: sha256.Sum256([]byte("c")),
			},
			Body:   &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentGiven, LegalBasis: "consent"},
			CRMKey: crm,
		}
		value, err := enc.Append(nil, ev)
		if err != nil {
			b.Fatal(err)
		}
		keys, values = append(keys, []byte(ev.SubjectRef.String())), append(values, value)
	}
	return keys, values
}

type prf struct{}

func (prf) Compute(dst *[32]byte, data []byte) {
	h := hmac.New(sha256.New, []byte("test"))
	h.Write(data)
	h.Sum(dst[:0])
}

// randomAEAD has the size and the entropy of the real one.
type randomAEAD struct{}

func (randomAEAD) AppendSeal(dst, plaintext, _ []byte) ([]byte, error) {
	sealed := make([]byte, len(plaintext)+33)
	_, err := rand.Read(sealed)
	return append(dst, sealed...), err
}

func (randomAEAD) Open(ciphertext, _ []byte) ([]byte, error) { return ciphertext, nil }

// BenchmarkPublish compares ways to send the same events to the real Kafka with acks=all: our batches with and without
// zstd, kafka-go's Client.Produce for each partition, and its Writer with one call outstanding.
func BenchmarkPublish(b *testing.B) {
	const unitEvents = 8000
	keys, values := events(b, unitEvents)
	partitions := 12
	setup := func(b *testing.B) *kafkaconn.Conn {
		conn := real(b, func(k *config.Kafka) { k.Partitions = partitions })
		if _, err := (&Topics{Conn: conn}).Setup(b.Context()); err != nil {
			b.Fatal(err)
		}
		return conn
	}
	finish := func(b *testing.B) {
		b.ReportMetric(float64(unitEvents*b.N)/b.Elapsed().Seconds(), "events/s")
	}
	for _, compress := range []bool{false, true} {
		b.Run(fmt.Sprintf("batches/zstd=%v", compress), func(b *testing.B) {
			p := publisher(b, Options{Conn: setup(b), Compress: compress})
			u := p.NewUnit()
			b.ReportAllocs()
			for b.Loop() {
				u.Reset()
				for i := range keys {
					if err := u.Append(keys[i], values[i]); err != nil {
						b.Fatal(err)
					}
				}
				untilPublished(b, p, u)
			}
			finish(b)
			sent := 0
			for i := range u.(*unit).batches { //nolint:forcetypeassert // ours
				sent += len(u.(*unit).batches[i].bytes()) //nolint:forcetypeassert // ours
			}
			b.ReportMetric(float64(sent)/unitEvents, "sent_B/event")
		})
	}
	b.Run("client.Produce", func(b *testing.B) {
		conn := setup(b)
		client := conn.Client()
		b.ReportAllocs()
		for b.Loop() {
			records := make([][]kgo.Record, partitions)
			for i := range keys {
				n := partitionOf(keys[i], partitions)
				records[n] = append(records[n], kgo.Record{Key: kgo.NewBytes(keys[i]), Value: kgo.NewBytes(values[i])})
			}
			done := make(chan error, partitions)
			for n := range records {
				go func() {
					for {
						res, err := client.Produce(b.Context(), &kgo.ProduceRequest{
							Topic: conn.EventsTopic(), Partition: n, RequiredAcks: kgo.RequireAll, Records: kgo.NewRecordReader(records[n]...),
						})
						if err == nil && errors.Is(res.Error, kgo.NotLeaderForPartition) {
							continue // a fresh topic
						}
						if err == nil {
							err = res.Error
						}
						done <- err
						return
					}
				}()
			}
			for range records {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		}
		finish(b)
	})
	b.Run("Writer", func(b *testing.B) {
		conn := setup(b)
		w := &kgo.Writer{
			Addr: conn.Addr(), Topic: conn.EventsTopic(), Balancer: kgo.Murmur2Balancer{}, RequiredAcks: kgo.RequireAll,
			BatchSize: unitEvents, BatchBytes: defaultBatchBytes, BatchTimeout: 2 * time.Millisecond, Transport: conn.Transport(),
		}
		defer w.Close()
		b.ReportAllocs()
		for b.Loop() {
			messages := make([]kgo.Message, len(keys))
			for i := range keys {
				messages[i] = kgo.Message{Key: keys[i], Value: values[i]}
			}
			if err := w.WriteMessages(b.Context(), messages...); err != nil {
				b.Fatal(err)
			}
		}
		finish(b)
	})
}

// BenchmarkPublishOne is the latency of a unit with one event: what a quiet CRM sees.
func BenchmarkPublishOne(b *testing.B) {
	conn := real(b, func(k *config.Kafka) { k.Partitions = 12 })
	if _, err := (&Topics{Conn: conn}).Setup(b.Context()); err != nil {
		b.Fatal(err)
	}
	keys, values := events(b, 1000)
	p := publisher(b, Options{Conn: conn})
	u := p.NewUnit()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		u.Reset()
		if err := u.Append(keys[i%1000], values[i%1000]); err != nil {
			b.Fatal(err)
		}
		untilPublished(b, p, u)
	}
}
