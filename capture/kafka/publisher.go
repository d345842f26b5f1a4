// Package kafka publishes capture's units to the events topic (kafka-go), and makes and checks Lethe's topics.
package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"lethe/capture"
	"lethe/internal/kafkaconn"
	"lethe/schema"
)

// Options are what a Publisher is made of.
type Options struct {
	Conn *kafkaconn.Conn
	// UnitBytes bounds a unit before compression; default 4 MB.
	UnitBytes int
	// BatchBytes bounds what one partition gets of a unit, and a single record; default 950,000, which a broker's default
	// message.max.bytes (1,048,588) takes.
	BatchBytes int
	// Compress sends batches with zstd.
	Compress bool
	// Timeout of one attempt; default 15 s. A black-holed broker is noticed after it.
	Timeout time.Duration
	// TopicGrace is how long an unknown topic is waited for: a fresh topic, and a broker that starts, show none for a
	// while. Default 30 s.
	TopicGrace time.Duration
}

// defaultBatchBytes is below the default message.max.bytes of a broker (1,048,588).
const defaultBatchBytes = 950_000

// Publisher implements capture.Publisher. One attempt of a unit is one produce request for each
// broker that leads a partition of it; the caller repeats whole units.
type Publisher struct {
	o    Options
	conn *kafkaconn.Conn
	pack *zstd.Encoder

	partitions   int         // set by Open
	next         []int64     // the offset that each partition's next batch has at least
	missingSince time.Time   // of the topic; zero while it is known
	leaders      []leaderJob // reused
}

// leaderJob is one produce request.
type leaderJob struct {
	leader     int32
	partitions []rawproduce.RequestPartition
	readers    []bytes.Reader
}

// NewPublisher wires a Publisher; it opens nothing.
func NewPublisher(o Options) (*Publisher, error) {
	if o.UnitBytes <= 0 {
		o.UnitBytes = 4 << 20
	}
	if o.BatchBytes <= 0 {
		o.BatchBytes = defaultBatchBytes
	}
	if o.Timeout <= 0 {
		o.Timeout = 15 * time.Second
	}
	if o.TopicGrace <= 0 {
		o.TopicGrace = 30 * time.Second
	}
	p := &Publisher{o: o, conn: o.Conn}
	if o.Compress {
		var err error
		p.pack, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, fmt.Errorf("making the zstd encoder: %w", err)
		}
	}
	return p, nil
}

// Open implements capture.Publisher: it compares the topic's partition count with the config, which is fixed by contract,
// because another count sends a subject's later events to another partition.
func (p *Publisher) Open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	topic, err := p.topic(ctx)
	if err != nil {
		return err
	}
	if p.partitions == 0 {
		p.partitions = len(topic.Partitions)
		p.next = make([]int64, p.partitions)
	}
	return nil
}

// NewUnit implements capture.Publisher.
func (p *Publisher) NewUnit() capture.Unit {
	return newUnit(p.partitions, p.o.BatchBytes, p.o.UnitBytes)
}

// topic returns the events topic's metadata as the transport has it cached; it is at most a second old.
func (p *Publisher) topic(ctx context.Context) (*metadata.ResponseTopic, error) {
	name := p.conn.EventsTopic()
	m, err := p.conn.Transport().RoundTrip(ctx, p.conn.Addr(), &metadata.Request{TopicNames: []string{name}})
	if err != nil {
		return nil, p.failure("asking for the leaders of "+name, err)
	}
	topic := &m.(*metadata.Response).Topics[0] //nolint:forcetypeassert // the response's type is that of the request
	if topic.ErrorCode != 0 {
		return nil, p.failure("asking for the leaders of "+name, kafka.Error(topic.ErrorCode))
	}
	p.missingSince = time.Time{}
	want := p.conn.Partitions()
	if want <= 0 {
		want = p.partitions
	}
	if want > 0 && len(topic.Partitions) != want {
		return nil, &capture.StopError{
			Op: "opening topic " + name, Cause: "topic_shape",
			Err:  fmt.Errorf("%w: it has %d partitions and the contract says %d", capture.ErrTopicShape, len(topic.Partitions), want),
			Hint: "the number of partitions is fixed: make a new topic (another topic_prefix), or set kafka.partitions back",
		}
	}
	return topic, nil
}

// failure classifies an error: what a human must cure becomes a StopError.
func (p *Publisher) failure(op string, err error) error {
	class := kafkaconn.Classify(err)
	if class == kafkaconn.ClassTopicMissing {
		if p.missingSince.IsZero() {
			p.missingSince = time.Now()
		}
		if time.Since(p.missingSince) < p.o.TopicGrace {
			return fmt.Errorf("%s: %w", op, err)
		}
	} else if !class.Permanent() {
		return fmt.Errorf("%s: %w", op, err)
	}
	return &capture.StopError{
		Op: op, Cause: "kafka_" + string(class), Err: errors.New(kafkaconn.Reason(err)), Hint: kafkaconn.Hint(class),
	}
}

// Publish implements capture.Publisher.
func (p *Publisher) Publish(ctx context.Context, cu capture.Unit) error {
	u, ok := cu.(*unit)
	if !ok || len(u.batches) != p.partitions {
		return &capture.StopError{Op: "publishing a unit", Cause: "topic_shape", Err: capture.ErrTopicShape}
	}
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	u.seal(time.Now(), p.pack)
	topic, err := p.topic(ctx)
	if err != nil {
		return err
	}
	jobs := p.jobs(u, topic)
	if err := p.send(ctx, jobs); err != nil {
		// kafka-go may still be encoding a request that we gave up at its deadline. It cannot send it any more, because the
		// connection has the same deadline, but it reads: what it reads is never written again.
		p.leaders, u.abandoned = nil, true
		return err
	}
	return nil
}

// send runs the requests side by side, one for each broker.
func (p *Publisher) send(ctx context.Context, jobs []leaderJob) error {
	if len(jobs) == 1 {
		if err := p.roundTrip(ctx, &jobs[0]); err != nil {
			return p.worst([]error{err})
		}
		return nil
	}
	errs := make([]error, len(jobs))
	var all sync.WaitGroup
	for i := range jobs {
		all.Go(func() { errs[i] = p.roundTrip(ctx, &jobs[i]) })
	}
	all.Wait()
	return p.worst(errs)
}

// worst prefers an error that trying again cannot cure.
func (p *Publisher) worst(errs []error) error {
	var first error
	for _, err := range errs {
		if err == nil {
			continue
		}
		if err = p.failure("publishing a unit to "+p.conn.EventsTopic(), err); capture.IsPermanent(err) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// jobs groups the unit's batches by the broker that leads their partition. A partition without a leader goes with broker
// -1, whose request fails and is tried again with the unit.
func (p *Publisher) jobs(u *unit, topic *metadata.ResponseTopic) []leaderJob {
	jobs := p.leaders[:0]
	for _, part := range topic.Partitions {
		if int(part.PartitionIndex) >= len(u.batches) {
			continue
		}
		b := &u.batches[part.PartitionIndex]
		if b.count == 0 {
			continue
		}
		at := -1
		for i := range jobs {
			if jobs[i].leader == part.LeaderID {
				at = i
			}
		}
		if at < 0 {
			at = len(jobs)
			if at < cap(jobs) {
				jobs = jobs[:at+1]
			} else {
				jobs = append(jobs, leaderJob{})
			}
			j := &jobs[at]
			if cap(j.readers) < p.partitions {
				j.readers = make([]bytes.Reader, 0, p.partitions) // never grows: the partitions point into it
			}
			j.leader, j.partitions, j.readers = part.LeaderID, j.partitions[:0], j.readers[:0]
		}
		j := &jobs[at]
		j.readers = j.readers[:len(j.readers)+1]
		r := &j.readers[len(j.readers)-1]
		r.Reset(b.bytes())
		j.partitions = append(j.partitions, rawproduce.RequestPartition{
			Partition: part.PartitionIndex, RecordSet: protocol.RawRecordSet{Reader: r},
		})
	}
	p.leaders = jobs
	return jobs
}

// errRegressed says that a partition gave an offset that it had given before.
var errRegressed = errors.New("a partition's offsets went back: the topic was deleted and made anew, or lost acknowledged records")

// roundTrip sends one produce request with acks=all and looks at every partition's answer.
func (p *Publisher) roundTrip(ctx context.Context, job *leaderJob) error {
	m, err := p.conn.Transport().RoundTrip(ctx, p.conn.Addr(), &rawproduce.Request{
		Acks:    int16(kafka.RequireAll),
		Timeout: int32((p.o.Timeout * 2 / 3).Milliseconds()), //nolint:gosec // seconds
		Topics:  []rawproduce.RequestTopic{{Topic: p.conn.EventsTopic(), Partitions: job.partitions}},
	})
	if err != nil {
		return err
	}
	res, ok := m.(*produce.Response)
	if !ok || len(res.Topics) != 1 || len(res.Topics[0].Partitions) != len(job.partitions) {
		return errors.New("the broker's answer does not fit the request")
	}
	var errs []error
	for i := range res.Topics[0].Partitions {
		part := &res.Topics[0].Partitions[i]
		if part.ErrorCode != 0 {
			errs = append(errs, kafka.Error(part.ErrorCode))
			continue
		}
		if int(part.Partition) >= len(p.next) {
			continue
		}
		if part.BaseOffset < p.next[part.Partition] {
			return &capture.StopError{
				Op: fmt.Sprintf("publishing to %s[%d]", p.conn.EventsTopic(), part.Partition), Cause: "topic_regressed",
				Err: errRegressed, Hint: "find out who did it; after it every replica needs a snapshot",
			}
		}
		p.next[part.Partition] = part.BaseOffset + 1
	}
	return worstOf(errs)
}

// worstOf returns the error with the worst class.
func worstOf(errs []error) error {
	var worst error
	for _, err := range errs {
		if kafkaconn.Classify(err).Permanent() {
			return err
		}
		if worst == nil || kafkaconn.Classify(worst) == kafkaconn.ClassTransient {
			worst = err
		}
	}
	return worst
}

// PublishDecision sends one CaseDecision (`lethe release|hold|cancel`), keyed by its subject like every event of the case.
// It tries again until ctx ends.
func (p *Publisher) PublishDecision(ctx context.Context, enc capture.Encoder, ev *schema.Event) error {
	if _, ok := ev.Body.(*schema.CaseDecision); !ok || ev.SubjectRef.IsZero() {
		return errors.New("publishing a decision: the event is not a CaseDecision with a subject")
	}
	value, err := enc.Append(nil, ev)
	if err != nil {
		return fmt.Errorf("encoding the decision: %w", err)
	}
	if err := p.Open(ctx); err != nil {
		return err
	}
	u := p.NewUnit()
	if err := u.Append(ev.SubjectRef.AppendText(nil), value); err != nil {
		return fmt.Errorf("publishing a decision: %w", err)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := p.Publish(ctx, u)
		if err == nil || capture.IsPermanent(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("publishing a decision: %w", errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}
