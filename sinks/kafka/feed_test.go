package kafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lethe/schema"
	"lethe/sinks"
)

// fill produces n consents over all partitions.
func (w *world) fill(from, n int) {
	for p := range int32(partitions) {
		recs := make([]kafkago.Record, n)
		for i := range recs {
			recs[i] = w.event(byte(p), uint64(from+i+1), given())
		}
		w.produce(p, recs...)
	}
}

func (w *world) hinted() map[int32]int64 {
	client := w.admin.Client()
	res, err := client.OffsetFetch(w.t.Context(), &kafkago.OffsetFetchRequest{
		Addr: client.Addr, GroupID: "lethe.marketing", Topics: map[string][]int{"lethe.events": {0, 1, 2}},
	})
	if err != nil {
		w.t.Fatalf("reading hints: %v", err)
	}
	out := map[int32]int64{}
	for _, p := range res.Topics["lethe.events"] {
		out[int32(p.Partition)] = p.CommittedOffset
	}
	return out
}

func TestWorkerFollowsTheLog(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.fill(0, 2500)
		m := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		took := time.Duration(0)
		for i := range 20 {
			w.fill(3000+i, 1)
			took = max(took, w.eventually(time.Second, "a new event is applied", w.applied))
			pass(37 * time.Millisecond)
		}
		if took > 50*time.Millisecond {
			t.Errorf("a new event took %v to be applied", took)
		}
		if st := m.worker.Status(); !st.Ready || st.State != sinks.StateRunning || len(st.Partitions) != partitions || st.LagEvents != 0 {
			t.Errorf("status: %+v", st)
		}
		w.eventually(3*time.Second, "Kafka is told the offsets", func() bool { return w.hinted()[1] == w.next[1] })
		w.fill(4000, 1)
		w.eventually(time.Second, "the last events are applied", w.applied)
		if took := m.end(); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		for p, offset := range w.hinted() {
			if offset != w.next[p] {
				t.Errorf("partition %d: Kafka was told %d at the stop, want %d", p, offset, w.next[p])
			}
		}
		if info := w.cluster.GroupInfo("lethe.marketing"); info != nil && len(info.Members) != 0 {
			t.Errorf("the worker has not left the group: %d members", len(info.Members))
		}
	})
}

func TestTwoWorkersShareAndTakeOver(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.fill(0, 100)
		a := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		b := w.start("b")
		w.eventually(15*time.Second, "both have partitions", func() bool {
			return len(a.worker.Status().Partitions) > 0 && len(b.worker.Status().Partitions) > 0
		})
		w.fill(100, 100)
		w.eventually(5*time.Second, "both apply", w.applied)
		// The process that holds b's connections dies: nobody leaves the group.
		w.net.Cut("b")
		w.fill(200, 100)
		if took := w.eventually(time.Minute, "the dead worker's partitions are served", w.applied); took > 10*time.Second {
			t.Errorf("taking over took %v, want at most 10s", took)
		}
		w.net.Mend("b")
		w.eventually(time.Minute, "the lost one comes back", func() bool {
			return len(a.worker.Status().Partitions) > 0 && len(b.worker.Status().Partitions) > 0
		})
		w.fill(300, 100)
		w.eventually(5*time.Second, "both apply again", w.applied)
		a.end()
		w.fill(400, 100)
		if took := w.eventually(time.Minute, "the partitions of a worker that left are served", w.applied); took > 5*time.Second {
			t.Errorf("taking over after a leave took %v", took)
		}
		b.end()
	})
}

// A worker that is frozen in the middle of a transaction (SIGSTOP, a swapped-out machine) wakes up long after its partitions
// went to another one.
func TestZombieIsFenced(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		frozen, wake := make(chan struct{}), make(chan struct{})
		var once sync.Once
		a := w.start("a", func(o *sinks.WorkerOptions) {
			o.Replica = freezing{w.model, func() { once.Do(func() { close(frozen); <-wake }) }}
		})
		w.eventually(10*time.Second, "it has partitions", func() bool { return len(a.worker.Status().Partitions) == partitions })
		w.fill(0, 10)
		<-frozen
		w.net.Cut("a")
		b := w.start("b")
		if took := w.eventually(time.Minute, "the other one applies", w.applied); took > 10*time.Second {
			t.Errorf("taking over took %v", took)
		}
		w.fill(10, 10)
		w.eventually(5*time.Second, "and goes on", w.applied)
		pass(5 * time.Minute)
		w.net.Mend("a")
		close(wake)
		w.eventually(time.Minute, "the zombie is a member again", func() bool {
			return len(a.worker.Status().Partitions) > 0 && len(b.worker.Status().Partitions) > 0
		})
		w.fill(20, 10)
		w.eventually(5*time.Second, "both apply", w.applied)
		a.end()
		b.end()
	})
}

// freezing calls freeze in front of each transaction.
type freezing struct {
	sinks.Replica
	freeze func()
}

func (f freezing) Apply(ctx context.Context, b *sinks.Batch) (sinks.Outcome, error) {
	f.freeze()
	return f.Replica.Apply(ctx, b)
}

// Every broker's loop waits for room: none may be forgotten when the worker takes records.
func TestFullQueuesOfManyBrokers(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.buffer = 1
		for p := range int32(partitions) {
			if err := w.cluster.MoveTopicPartition("lethe.events", p, p); err != nil {
				t.Fatal(err)
			}
		}
		pass(5 * time.Second)
		for i := range 5 {
			w.fill(1000*i, 1000)
		}
		m := w.start("a", func(o *sinks.WorkerOptions) { o.MaxBatch = 700 })
		if took := w.eventually(time.Minute, "the backlog is applied", w.applied); took > 10*time.Second {
			t.Errorf("draining took %v", took)
		}
		m.end()
	})
}

func TestReplicaAwayForTenMinutes(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		var down atomic.Bool
		w.model.Before = func(string, []sinks.Record) error {
			if down.Load() {
				return errors.New("connection refused")
			}
			return nil
		}
		m := w.start("a")
		w.fill(0, 10)
		w.eventually(10*time.Second, "it applies", w.applied)
		down.Store(true)
		w.fill(10, 100)
		pass(10 * time.Minute)
		if st := m.worker.Status(); st.Ready || st.State != sinks.StateRetrying || st.LagEvents != 300 || st.LagSeconds < 590 {
			t.Errorf("status: %+v", st)
		}
		down.Store(false)
		w.eventually(30*time.Second, "it goes on", w.applied)
		w.eventually(5*time.Second, "it is ready", func() bool { return m.worker.Status().Ready })
		m.end()
	})
}

func TestKafkaAwayForAnHour(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.fill(0, 10)
		a := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		w.net.Cut("a")
		w.fill(10, 10)
		pass(time.Hour)
		if st := a.worker.Status(); st.Ready {
			t.Errorf("ready without Kafka: %+v", st)
		}
		w.net.Mend("a")
		if took := w.eventually(time.Minute, "it goes on", w.applied); took > 15*time.Second {
			t.Errorf("going on took %v", took)
		}
		w.eventually(time.Minute, "it is ready", func() bool { return a.worker.Status().Ready })
		a.end()
	})
}

func TestLeaderMoves(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.fill(0, 10)
		a := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		for i := range 6 {
			for p := range int32(partitions) {
				if err := w.cluster.MoveTopicPartition("lethe.events", p, int32(i+int(p))%3); err != nil {
					t.Fatal(err)
				}
			}
			w.eventually(10*time.Second, "the producer knows the leaders", func() bool {
				client := w.admin.Client()
				res, err := client.Produce(t.Context(), &kafkago.ProduceRequest{
					Addr: client.Addr, Topic: "lethe.events", Partition: 0, RequiredAcks: kafkago.RequireAll,
					Records: kafkago.NewRecordReader(w.event(0, uint64(1000+i), given())),
				})
				if err == nil && res.Error == nil {
					w.next[0]++
					return true
				}
				return false
			})
			if took := w.eventually(time.Minute, "it follows the leader", w.applied); took > 10*time.Second {
				t.Errorf("following took %v", took)
			}
		}
		a.end()
	})
}

func (w *world) deleteRecords(partition int32, before int64) {
	if err := w.cluster.DeleteRecords("lethe.events", partition, before); err != nil {
		w.t.Fatal(err)
	}
}

func gapOf(m *member, partition int32) string {
	for _, p := range m.worker.Status().Partitions {
		if p.Partition == partition && p.State == sinks.PartitionGap {
			return p.Cause
		}
	}
	return ""
}

func TestRetentionPassedIsAGap(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.fill(0, 10)
		a := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		a.end()
		w.fill(10, 10)
		w.deleteRecords(1, 15)
		before := w.model.Place(1)
		b := w.start("b")
		w.eventually(20*time.Second, "the gap is seen", func() bool { return gapOf(b, 1) == "retention_passed" })
		w.eventually(5*time.Second, "the others go on", func() bool {
			return w.model.Place(0).NextOffset == w.next[0] && w.model.Place(2).NextOffset == w.next[2]
		})
		if st := b.worker.Status(); st.Ready || st.Cause != "retention_passed" || st.Hint == "" {
			t.Errorf("status: %+v", st)
		}
		if w.model.Place(1) != before {
			t.Errorf("the place moved over the gap: %+v", w.model.Place(1))
		}
		b.end()
	})
}

func TestNewReplicaBeginsAtTheLogsStart(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.fill(0, 10)
		w.deleteRecords(1, 5)
		a := w.start("a")
		w.eventually(20*time.Second, "what is there is applied", w.applied)
		if !a.worker.Status().Ready {
			t.Errorf("status: %+v", a.worker.Status())
		}
		a.end()
	})
}

func TestRecreatedTopicIsAGap(t *testing.T) {
	for name, stopped := range map[string]bool{"while stopped": true, "while running": false} {
		for grown, events := range map[string]int{"shorter": 3, "longer": 30} {
			t.Run(name+" "+grown, func(t *testing.T) {
				inWorld(t, 1, func(t *testing.T, w *world) {
					w.fill(0, 10)
					a := w.start("a")
					w.eventually(10*time.Second, "the backlog is applied", w.applied)
					if stopped {
						a.end()
					}
					if err := w.cluster.DeleteTopic("lethe.events"); err != nil {
						t.Fatal(err)
					}
					pass(3 * time.Second)
					w.createTopic(partitions)
					w.fill(500, events)
					if stopped {
						a = w.start("b")
					}
					want := map[string]string{"shorter": "log_shorter", "longer": "topic_recreated"}[grown]
					w.eventually(time.Minute, "the gap is seen", func() bool { return gapOf(a, 0) == want })
					if got := w.model.Place(0).NextOffset; got != 10 {
						t.Errorf("the place moved to %d", got)
					}
					a.end()
				})
			})
		}
	}
}

func (w *world) createTopic(n int32) {
	w.t.Helper()
	if err := w.cluster.CreateTopic("lethe.events", n, nil); err != nil {
		w.t.Fatal(err)
	}
	w.eventually(10*time.Second, "the topic is known", func() bool {
		client := w.admin.Client()
		res, err := client.Metadata(w.t.Context(), &kafkago.MetadataRequest{Addr: client.Addr, Topics: []string{"lethe.events"}})
		return err == nil && len(res.Topics) == 1 && res.Topics[0].Error == nil && len(res.Topics[0].Partitions) == int(n)
	})
}

func TestPartitionCountChanged(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.fill(0, 10)
		a := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		client := w.admin.Client()
		_, err := client.CreatePartitions(t.Context(), &kafkago.CreatePartitionsRequest{
			Addr: client.Addr, Topics: []kafkago.TopicPartitionsConfig{{Name: "lethe.events", Count: partitions + 1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.eventually(time.Minute, "it halts", func() bool {
			st := a.worker.Status()
			return st.State == sinks.StateHalted && st.Cause == "partition_count" && !st.Ready && len(st.Partitions) == 0
		})
		a.end()
	})
}

func TestReplicaRestoredFromBackup(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.fill(0, 10)
		a := w.start("a")
		w.eventually(10*time.Second, "the backlog is applied", w.applied)
		backup := w.model.Place(1)
		w.fill(10, 10)
		w.eventually(10*time.Second, "more is applied", w.applied)
		a.end()
		w.model.SetPlace(backup)
		var open atomic.Bool
		var tries atomic.Int32
		w.model.Before = func(op string, _ []sinks.Record) error {
			if op == "apply" && tries.Add(1) > 1 && !open.Load() {
				return &sinks.Error{Class: sinks.Transient, Op: "applying", Code: "busy"}
			}
			return nil
		}
		b := w.start("b", func(o *sinks.WorkerOptions) { o.MaxBatch = 3 })
		w.eventually(20*time.Second, "the restore is seen", func() bool {
			for _, p := range b.worker.Status().Partitions {
				if p.Partition == 1 && p.State == sinks.PartitionRestored {
					return !b.worker.Status().Ready
				}
			}
			return false
		})
		w.eventually(5*time.Second, "it goes a part of the way", func() bool { return w.model.Place(1).NextOffset == 13 })
		pass(3 * time.Second)
		if got := w.hinted()[1]; got != 20 {
			t.Errorf("the witness was destroyed: hint %d", got)
		}
		open.Store(true)
		w.eventually(30*time.Second, "it is applied again", w.applied)
		w.eventually(time.Second, "it counts again", func() bool { return b.worker.Status().Ready })
		b.end()
	})
}

func TestUndecodableRecords(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		ref := schema.SubjectRef{7}
		w.produce(0, w.event(7, 1, given()))
		w.produce(0, kafkago.Record{Key: kafkago.NewBytes([]byte(ref.String())), Value: kafkago.NewBytes([]byte("junk"))})
		w.produce(0, w.event(7, 2, given()), w.event(7, 3, withdrawn()), w.event(8, 4, given()))
		w.produce(1, w.event(9, 1, given()), kafkago.Record{Value: kafkago.NewBytes([]byte("junk"))}, w.event(9, 2, withdrawn()))
		a := w.start("a")
		w.eventually(10*time.Second, "the keyed one is parked", func() bool { return w.model.Place(0).NextOffset == 5 })
		if got := w.model.Parked(ref.String()); got != 2 {
			t.Errorf("%d events parked, want the junk and the permission behind it", got)
		}
		if w.model.Verdict(ref.String(), time.Now()).Permitted("newsletter", "email") {
			t.Error("the withdrawal behind the junk was held back")
		}
		if !w.model.Verdict(schema.SubjectRef{8}.String(), time.Now()).Permitted("newsletter", "email") {
			t.Error("another subject was held back")
		}
		w.eventually(10*time.Second, "the other partition stops", func() bool {
			st := a.worker.Status()
			return st.Partitions[1].State == sinks.PartitionStopped && !st.Ready
		})
		if got := w.model.Place(1).NextOffset; got != 1 {
			t.Errorf("partition 1 is at %d, want in front of the junk", got)
		}
		a.end()
		// What was parked leaves nothing to compare with; it is no gap.
		b := w.start("b")
		w.produce(2, w.event(1, 1, given()))
		w.eventually(10*time.Second, "a restart goes on", func() bool { return w.model.Place(2).NextOffset == 1 })
		if cause := gapOf(b, 0); cause != "" {
			t.Errorf("partition 0 is in a gap: %s", cause)
		}
		b.end()
	})
}

func TestReceiptsReachKafka(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.produce(0, w.event(1, 1, &schema.SubjectErasure{}), w.event(2, 2, &schema.SubjectErasure{}))
		a := w.start("a")
		w.eventually(10*time.Second, "the receipts are sent", func() bool {
			rs, _ := w.model.Unsent(t.Context(), nil, 10)
			return w.applied() && len(rs) == 0
		})
		a.end()
		total := int64(0)
		for p := range partitions {
			total += w.endOf("lethe.receipts", p)
		}
		if total != 2 {
			t.Errorf("%d receipts in Kafka, want 2", total)
		}
	})
}

func (w *world) endOf(topic string, partition int) int64 {
	client := w.admin.Client()
	res, err := client.ListOffsets(w.t.Context(), &kafkago.ListOffsetsRequest{
		Addr: client.Addr, Topics: map[string][]kafkago.OffsetRequest{topic: {kafkago.LastOffsetOf(partition)}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Topics[topic][0].LastOffset
}
