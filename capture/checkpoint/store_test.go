package checkpoint

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"lethe/capture"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fake(t *testing.T) (*kfake.Cluster, *kafkaconn.Conn) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "lethe.checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	conn, err := kafkaconn.New(config.Kafka{Brokers: c.ListenAddrs(), TopicPrefix: "lethe", Partitions: 1},
		kafkaconn.Options{Dial: (&net.Dialer{}).DialContext})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return c, conn
}

func sample(commit uint64) *capture.Checkpoint {
	at := time.Date(2026, 5, 4, 3, 2, 1, 500e6, time.UTC)
	return &capture.Checkpoint{
		Source:      "crm",
		Identity:    capture.Identity{SystemID: "7412", Epoch: 2, Slot: "lethe", SlotGeneration: "g1", Start: "0-1-1"},
		Incarnation: 3, XID: 77, CommittedAt: at, WrittenAt: at.Add(time.Second),
		Position: capture.Position{Epoch: 2, Commit: commit, End: commit + 1<<60, GTID: "0-1-2", Before: "0-1-1"},
		Epochs:   []capture.Epoch{{Number: 1, Origin: "u", From: 7}, {Number: 2, Origin: "v:tag", From: 1 << 62}},
		Gaps: []capture.OpenGap{
			{ID: "a", Cause: capture.GapTruncate, From: schema.NewOrder(3, 2, commit, 5), OpenedAt: at},
			{ID: "b", Cause: capture.GapSlotLost, From: schema.NewOrder(1, 2, 3, 4), OpenedAt: at, Resumed: true},
		},
	}
}

func TestSavedCheckpointIsLoadedByAnotherProcess(t *testing.T) {
	_, conn := fake(t)
	ctx := t.Context()
	if c, err := New(Options{Conn: conn, Source: "crm"}).Load(ctx); c != nil || err != nil {
		t.Fatalf("empty topic: %v, %v", c, err)
	}
	first, other := New(Options{Conn: conn, Source: "crm"}), New(Options{Conn: conn, Source: "shop"})
	for i := range uint64(5) {
		if err := first.Save(ctx, sample(100+i)); err != nil {
			t.Fatal(err)
		}
	}
	// More records of another source than Load reads in its first step.
	for i := range uint64(tail + 50) {
		c := sample(i)
		c.Source = "shop"
		if err := other.Save(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	got, err := New(Options{Conn: conn, Source: "crm"}).Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(104), got); diff != "" {
		t.Fatal(diff)
	}
}

func TestCheckpointNeverMovesBackWithinAnIncarnation(t *testing.T) {
	_, conn := fake(t)
	s := New(Options{Conn: conn, Source: "crm"})
	if err := s.Save(t.Context(), sample(100)); err != nil {
		t.Fatal(err)
	}
	again := New(Options{Conn: conn, Source: "crm"})
	if _, err := again.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := again.Save(t.Context(), sample(99)); !errors.Is(err, errBack) || !capture.IsPermanent(err) {
		t.Fatalf("one commit back: %v", err)
	}
	older := sample(200)
	older.Position.Epoch = 1
	if err := again.Save(t.Context(), older); !errors.Is(err, errBack) {
		t.Fatalf("an earlier timeline: %v", err)
	}
	raised := sample(1)
	raised.Incarnation++
	if err := again.Save(t.Context(), raised); err != nil {
		t.Fatalf("a later incarnation may start anywhere: %v", err)
	}
}

func TestProcessThatWasFrozenDoesNotWriteOverItsStandby(t *testing.T) {
	c, conn := fake(t)
	frozen, standby := New(Options{Conn: conn, Source: "crm"}), New(Options{Conn: conn, Source: "crm"})
	if _, err := frozen.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A save whose acknowledgement is lost is its own, and no standby's.
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut})
	if err := frozen.Save(t.Context(), sample(100)); err == nil {
		t.Fatal("the fault did not show")
	}
	for i := range uint64(3) {
		if err := frozen.Save(t.Context(), sample(100+i)); err != nil {
			t.Fatalf("after a lost acknowledgement: %v", err)
		}
	}
	if _, err := standby.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Save(t.Context(), sample(200)); err != nil {
		t.Fatal(err)
	}
	if err := frozen.Save(t.Context(), sample(150)); !errors.Is(err, capture.ErrSuperseded) || capture.IsPermanent(err) {
		t.Fatalf("got %v", err)
	}
	got, err := frozen.Load(t.Context())
	if err != nil || got.Position.Commit != 200 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := frozen.Save(t.Context(), sample(201)); err != nil {
		t.Fatalf("when it has read the standby's checkpoint: %v", err)
	}
}

// TestLateWriteOfAFrozenProcessIsPassedOver: its look was before the standby's write, and its own write comes after it.
func TestLateWriteOfAFrozenProcessIsPassedOver(t *testing.T) {
	_, conn := fake(t)
	put := func(value []byte) {
		t.Helper()
		rec := kgo.Record{Key: kgo.NewBytes([]byte("crm"))}
		if value != nil {
			rec.Value = kgo.NewBytes(value)
		}
		res, err := conn.Client().Produce(t.Context(), &kgo.ProduceRequest{
			Topic: conn.CheckpointsTopic(), RequiredAcks: kgo.RequireAll, Records: kgo.NewRecordReader(rec),
		})
		if err != nil || res.Error != nil {
			t.Fatal(err, res.Error)
		}
	}
	load := func(want uint64) {
		t.Helper()
		c, err := New(Options{Conn: conn, Source: "crm"}).Load(t.Context())
		if err != nil || (c == nil) != (want == 0) || c != nil && c.Position.Commit != want {
			t.Fatalf("got %+v, %v; want %d", c, err, want)
		}
	}
	late, err := encode(sample(100))
	if err != nil {
		t.Fatal(err)
	}
	standby := New(Options{Conn: conn, Source: "crm"})
	if err := standby.Save(t.Context(), sample(200)); err != nil {
		t.Fatal(err)
	}
	put(late)
	load(200)
	if err := standby.Save(t.Context(), sample(201)); !errors.Is(err, capture.ErrSuperseded) {
		t.Fatalf("got %v", err)
	}
	if _, err := standby.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Save(t.Context(), sample(201)); err != nil {
		t.Fatal(err)
	}
	load(201)
	put(nil) // a person deletes it: the gap that follows is theirs to resume
	load(0)
	put(late)
	load(100)
}

func TestUnreadableCheckpointIsRefused(t *testing.T) {
	good, err := encode(sample(1))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"garbage":       "\x00\x01",
		"later version": strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"other source":  strings.Replace(string(good), `"crm"`, `"shop"`, 1),
		"unknown field": strings.Replace(string(good), `"source"`, `"sourc3":"x","source"`, 1),
		"no position":   `{"version":1,"source":"crm"}`,
		"short order":   strings.Replace(string(good), `"from":"00`, `"from":"`, 1),
		"two documents": string(good) + string(good),
	} {
		t.Run(name, func(t *testing.T) {
			_, conn := fake(t)
			res, err := conn.Client().Produce(t.Context(), &kgo.ProduceRequest{
				Topic: conn.CheckpointsTopic(), RequiredAcks: kgo.RequireAll,
				Records: kgo.NewRecordReader(kgo.Record{Key: kgo.NewBytes([]byte("crm")), Value: kgo.NewBytes([]byte(value))}),
			})
			if err != nil || res.Error != nil {
				t.Fatal(err, res.Error)
			}
			c, err := New(Options{Conn: conn, Source: "crm"}).Load(t.Context())
			if c != nil || !capture.IsPermanent(err) {
				t.Fatalf("got %v, %v; want a refusal", c, err)
			}
		})
	}
}

func TestSaveSaysWhatABrokerRefuses(t *testing.T) {
	c, conn := fake(t)
	s := New(Options{Conn: conn, Source: "crm"})
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas})
	if err := s.Save(t.Context(), sample(1)); !errors.Is(err, kgo.NotEnoughReplicas) || capture.IsPermanent(err) {
		t.Fatalf("too few replicas: %v, want something to try again", err)
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed})
	if err := s.Save(t.Context(), sample(1)); !capture.IsPermanent(err) {
		t.Fatalf("no right to write: %v, want a permanent error", err)
	}
	if err := s.Save(t.Context(), sample(1)); err != nil {
		t.Fatal(err)
	}
}

func TestLoadEndsAtItsDeadline(t *testing.T) {
	c, conn := fake(t)
	c.Close()
	s := New(Options{Conn: conn, Source: "crm", LoadWithin: 200 * time.Millisecond})
	if _, err := s.Load(context.Background()); err == nil {
		t.Fatal("a closed cluster gave a checkpoint")
	}
}

func FuzzDecode(f *testing.F) {
	good, err := encode(sample(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"source":"crm","incarnation":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decode("crm", b)
		if err != nil {
			return
		}
		again, err := encode(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode("crm", again)
		if err != nil || !cmp.Equal(c, back) {
			t.Fatalf("round trip: %v", err)
		}
	})
}
