package kafka

import (
	"errors"
	"strings"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lethe/capture"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/schema"
)

// untilPublished repeats a unit as the pipeline does.
func untilPublished(t testing.TB, p *Publisher, u capture.Unit) (attempts int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		attempts++
		err := p.Publish(t.Context(), u)
		if err == nil {
			return attempts
		}
		if capture.IsPermanent(err) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestOnePartitionFailing(t *testing.T) {
	c, conn := fake(t)
	p := publisher(t, Options{Conn: conn})
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Partitions: []int32{2}, Err: kerr.NotEnoughReplicas})
	u := p.NewUnit()
	fill(t, u, 0, 200)
	if err := p.Publish(t.Context(), u); !errors.Is(err, kgo.NotEnoughReplicas) {
		t.Fatalf("one partition failed and the unit says %v", err)
	}
	if n := untilPublished(t, p, u); n != 1 {
		t.Fatalf("%d attempts", n)
	}
	got := readAll(t, conn)
	once, twice := len(got[2]), len(got[0])+len(got[1])+len(got[3])
	if once+twice/2 != 200 {
		t.Errorf("the failed partition has %d records, the others %d: the whole unit goes again", once, twice)
	}
}

func TestLeadersOnSeveralBrokersThatMove(t *testing.T) {
	c, conn := fake(t, kfake.NumBrokers(3))
	p := publisher(t, Options{Conn: conn})
	u := p.NewUnit()
	for round := range 4 {
		u.Reset()
		fill(t, u, round*100, round*100+100)
		untilPublished(t, p, u)
		for n := range int32(testPartitions) {
			if err := c.MoveTopicPartition("lethe.events", n, (c.LeaderFor("lethe.events", n)+1)%3); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := map[string]bool{}
	for _, part := range readAll(t, conn) {
		for _, v := range part {
			seen[v] = true
		}
	}
	if len(seen) != 400 {
		t.Errorf("%d of 400 records after the leaders moved", len(seen))
	}
}

func TestPermanentErrorsSayWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		err   *kerr.Error
		cause string
	}{
		"no right":        {kerr.TopicAuthorizationFailed, "kafka_auth"},
		"too large":       {kerr.MessageTooLarge, "kafka_too_large"},
		"list too large":  {kerr.RecordListTooLarge, "kafka_too_large"},
		"invalid request": {kerr.InvalidRequest, "kafka_invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, conn := fake(t)
			p := publisher(t, Options{Conn: conn})
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: c.err, Partitions: []int32{1}})
			u := p.NewUnit()
			fill(t, u, 0, 100)
			err := p.Publish(t.Context(), u)
			var stop *capture.StopError
			if !errors.As(err, &stop) || stop.Cause != c.cause || stop.Hint == "" {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRecordThatFitsNoBatch(t *testing.T) {
	_, conn := fake(t)
	p := publisher(t, Options{Conn: conn, BatchBytes: 1000})
	u := p.NewUnit()
	if err := u.Append(key(1), make([]byte, 1000)); !errors.Is(err, errRecordTooLarge) {
		t.Errorf("got %v", err)
	}
	if err := u.AppendAll(make([]byte, 1000)); !errors.Is(err, errRecordTooLarge) {
		t.Errorf("got %v", err)
	}
	if u.Bytes() != 0 {
		t.Error("something of it is in the unit")
	}
}

func TestUnknownTopicIsWaitedForAWhile(t *testing.T) {
	c, conn := fake(t)
	if err := c.DeleteTopic("lethe.events"); err != nil {
		t.Fatal(err)
	}
	p, err := NewPublisher(Options{Conn: conn, TopicGrace: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Open(t.Context()); err == nil || capture.IsPermanent(err) {
		t.Fatalf("at first: %v, want something to try again", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for !capture.IsPermanent(err) && time.Now().Before(deadline) {
		err = p.Open(t.Context())
	}
	var stop *capture.StopError
	if !errors.As(err, &stop) || stop.Cause != "kafka_topic_missing" {
		t.Fatalf("after the grace: %v", err)
	}
	if err := c.CreateTopic("lethe.events", testPartitions, nil); err != nil {
		t.Fatal(err)
	}
	for err != nil && time.Now().Before(deadline) {
		err = p.Open(t.Context())
	}
	if err != nil {
		t.Fatalf("the topic is there: %v", err)
	}
	if err := c.DeleteTopic("lethe.events"); err != nil {
		t.Fatal(err)
	}
	for err == nil && time.Now().Before(deadline) {
		err = p.Open(t.Context())
	}
	if err == nil || capture.IsPermanent(err) {
		t.Fatalf("missing once more: %v, want something to try again", err)
	}
}

func TestEveryReplicaAcknowledges(t *testing.T) {
	c, conn := fake(t)
	p := publisher(t, Options{Conn: conn})
	weak := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Observe: true, When: func(r kmsg.Request) bool {
		return r.(*kmsg.ProduceRequest).Acks != -1 //nolint:forcetypeassert // by Keys
	}})
	u := p.NewUnit()
	fill(t, u, 0, 10)
	untilPublished(t, p, u)
	if weak.Hits() > 0 {
		t.Error("a unit was sent without acks=all")
	}
}

func TestPartitionCountIsFixed(t *testing.T) {
	c, conn := fake(t, kfake.SeedTopics(testPartitions+1, "lethe.events"))
	_ = c
	p, err := NewPublisher(Options{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Open(t.Context()); !errors.Is(err, capture.ErrTopicShape) || !capture.IsPermanent(err) {
		t.Fatalf("got %v", err)
	}
}

func TestTopicMadeAnewWhileRunning(t *testing.T) {
	c, conn := fake(t)
	p := publisher(t, Options{Conn: conn})
	u := p.NewUnit()
	for i := range 3 {
		u.Reset()
		fill(t, u, i*100, i*100+100)
		untilPublished(t, p, u)
	}
	if err := c.DeleteTopic("lethe.events"); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateTopic("lethe.events", testPartitions, nil); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	var err error
	for !capture.IsPermanent(err) && time.Now().Before(deadline) {
		err = p.Publish(t.Context(), u)
	}
	var stop *capture.StopError
	if !errors.As(err, &stop) || stop.Cause != "topic_regressed" {
		t.Fatalf("got %v", err)
	}
}

func TestBlackHoledBrokerIsNoticed(t *testing.T) {
	c, conn := fake(t)
	p := publisher(t, Options{Conn: conn, Timeout: 300 * time.Millisecond})
	u := p.NewUnit()
	fill(t, u, 0, 10)
	hang := make(chan struct{})
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.SleepControl(func() { <-hang })
		return nil, nil, false
	})
	err := p.Publish(t.Context(), u)
	close(hang)
	if err == nil || capture.IsPermanent(err) {
		t.Fatalf("got %v", err)
	}
	untilPublished(t, p, u)
}

func TestDecisionGoesToItsSubjectsPartition(t *testing.T) {
	_, conn := fake(t)
	p := publisher(t, Options{Conn: conn})
	ref := schema.SubjectRef{1, 2, 3}
	ev := &schema.Event{
		Header: schema.Header{SubjectRef: ref, Source: "crm", CommittedAt: time.Now(), DetectedAt: time.Now(), Rule: "decision"},
		Body:   &schema.CaseDecision{Decision: schema.DecisionHold, Reason: "test", DecidedBy: "operator", DecidedAt: time.Now()},
	}
	if err := p.PublishDecision(t.Context(), plain{}, ev); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, conn)[partitionOf([]byte(ref.String()), testPartitions)]
	if len(got) != 1 || got[0] != "CaseDecision" {
		t.Errorf("got %q", got)
	}
	ev.Body = &schema.Objection{}
	if err := p.PublishDecision(t.Context(), plain{}, ev); err == nil {
		t.Error("another event was taken for a decision")
	}
}

// plain encodes an event as its type.
type plain struct{}

func (plain) Append(dst []byte, ev *schema.Event) ([]byte, error) {
	return append(dst, ev.Body.Type().String()...), nil
}

func TestNewestOrderInTheTopic(t *testing.T) {
	_, conn := fake(t)
	log := &EventLog{Conn: conn, Decoder: ordersOnly{}}
	if _, written, err := log.Newest(t.Context()); written || err != nil {
		t.Fatalf("an empty topic: %v, %v", written, err)
	}
	p := publisher(t, Options{Conn: conn})
	u := p.NewUnit()
	for i := range 50 {
		o := schema.NewOrder(2, 1, uint64(i), 0)
		if err := u.Append(key(i), o[:]); err != nil {
			t.Fatal(err)
		}
	}
	untilPublished(t, p, u)
	newest, written, err := log.Newest(t.Context())
	if want := schema.NewOrder(2, 1, 49, 0); err != nil || !written || newest != want {
		t.Fatalf("got %s, %v, %v; want %s", newest, written, err, want)
	}
	u.Reset()
	if err := u.AppendAll([]byte("garbage")); err != nil {
		t.Fatal(err)
	}
	untilPublished(t, p, u)
	if newest, written, err = log.Newest(t.Context()); err != nil || !written || newest != (schema.Order{}) {
		t.Fatalf("after garbage: %s, %v, %v", newest, written, err)
	}
}

func TestExpiredRecordsCountAsWritten(t *testing.T) {
	c, conn := fake(t)
	p := publisher(t, Options{Conn: conn})
	u := p.NewUnit()
	fill(t, u, 0, 50)
	untilPublished(t, p, u)
	for i := range int32(testPartitions) {
		if err := c.DeleteRecords("lethe.events", i, c.PartitionInfo("lethe.events", i).HighWatermark); err != nil {
			t.Fatal(err)
		}
	}
	newest, written, err := (&EventLog{Conn: conn, Decoder: ordersOnly{}}).Newest(t.Context())
	if err != nil || !written || newest != (schema.Order{}) {
		t.Errorf("%s, %v, %v", newest, written, err)
	}
}

// ordersOnly reads events that are their order.
type ordersOnly struct{}

func (ordersOnly) Decode(value []byte) (*schema.Event, error) {
	ev := &schema.Event{}
	if len(value) != len(ev.Order) {
		return nil, schema.ErrMalformed
	}
	copy(ev.Order[:], value)
	return ev, nil
}

func TestCheckNamesARefusedLogin(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "lethe", "right"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	conn, err := kafkaconn.New(config.Kafka{
		Brokers: c.ListenAddrs(), TopicPrefix: "lethe",
		SASL: &config.SASL{Mechanism: "PLAIN", Username: "lethe", Password: config.NewSecret("hunter2")},
	}, kafkaconn.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	list := (&Topics{Conn: conn}).Check(t.Context())
	if len(list) != 1 || list[0].Code != CodeAuth || strings.Contains(list[0].Message, "hunter2") {
		t.Errorf("%+v", list)
	}
}
