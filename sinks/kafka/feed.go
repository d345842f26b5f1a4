// Package kafka is the Kafka side of the sinks: a sinks.Feed over kafka-go's consumer group, and the sender of receipts.
//
// kafka-go's group Reader is not used: it gives no hook at a rebalance and jumps silently over expired records. Here the
// group only shares out the partitions; reading starts where the replica says, and goes by one long poll per broker over
// all partitions that it leads, so that a busy topic costs one request at a time and not one per partition.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	kafkago "github.com/segmentio/kafka-go"

	"lethe/internal/kafkaconn"
	"lethe/schema"
	"lethe/sinks"
)

// Decoder turns the bytes of a record into an event; schema.Decoder is one. It is called by several goroutines.
type Decoder interface {
	Decode(value []byte) (*schema.Event, error)
}

// FeedOptions are what a Feed needs. Zero values take the defaults.
type FeedOptions struct {
	Conn    *kafkaconn.Conn // required
	Group   string          // consumer group, `<prefix>.<replica>`; required
	Decoder Decoder         // required
	Log     zerolog.Logger

	// MaxBuffer bounds the bytes of decoded records that wait for the worker; default 16 MiB, one more response comes on top.
	MaxBuffer int
	// MaxWait is the longest a long poll waits at the broker when there is nothing; default 500 ms. New records end it at once.
	MaxWait time.Duration
	// RequestTimeout is how long after MaxWait a request is given up (a black-holed broker); default 10 s.
	RequestTimeout time.Duration
	// Stalled is how long a partition may have a lag that no response brings nearer before its reading is rebuilt; default 15 s.
	Stalled time.Duration
	// SessionTimeout is how long the group waits for a member that went silent; default 6 s. With HeartbeatInterval (2 s), at
	// which the others learn of it, a killed worker's partitions are served again within 10 s.
	SessionTimeout, HeartbeatInterval time.Duration
	// RebalanceTimeout is how long the group waits for its members at a rebalance; default 10 s.
	RebalanceTimeout time.Duration
	// JoinBackoff is the wait before joining again after an error; default 500 ms.
	JoinBackoff time.Duration
	// HintInterval is how often Kafka is told the replica's offsets; default 1 s.
	HintInterval time.Duration
	// TopicCheck is how often the partition count is compared with the configured one; default 10 s.
	TopicCheck time.Duration
}

func (o *FeedOptions) validate() error {
	switch {
	case o.Conn == nil:
		return errors.New("starting Kafka feed: no connection given")
	case o.Group == "":
		return errors.New("starting Kafka feed: no group given")
	case o.Decoder == nil:
		return errors.New("starting Kafka feed: no decoder given")
	}
	if o.MaxBuffer <= 0 {
		o.MaxBuffer = 16 << 20
	}
	for d, fallback := range map[*time.Duration]time.Duration{
		&o.MaxWait:           500 * time.Millisecond,
		&o.RequestTimeout:    10 * time.Second,
		&o.Stalled:           15 * time.Second,
		&o.SessionTimeout:    6 * time.Second,
		&o.HeartbeatInterval: 2 * time.Second,
		&o.RebalanceTimeout:  10 * time.Second,
		&o.JoinBackoff:       500 * time.Millisecond,
		&o.HintInterval:      time.Second,
		&o.TopicCheck:        10 * time.Second,
	} {
		if *d <= 0 {
			*d = fallback
		}
	}
	return nil
}

// GroupName returns the consumer group of a replica.
func GroupName(topicPrefix, replica string) string { return topicPrefix + "." + replica }

// Feed implements sinks.Feed.
type Feed struct {
	o     FeedOptions
	log   zerolog.Logger
	topic string
}

// NewFeed wires a feed; nothing is opened.
func NewFeed(o FeedOptions) (*Feed, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Feed{o: o, log: o.Log.With().Str("group", o.Group).Logger(), topic: o.Conn.EventsTopic()}, nil
}

// Run implements sinks.Feed.
func (f *Feed) Run(ctx context.Context, h sinks.FeedHandler) error {
	for {
		err := f.checkTopic(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the caller asked for the end
		}
		h.Trouble(err)
		if err != nil {
			wait(ctx, time.Second)
			continue
		}
		if err := f.runGroup(ctx, h); err != nil {
			return err
		}
	}
}

// checkTopic compares the partition count with the configured one. It is fixed by contract: with another count the keys
// would fall on other partitions, and the order of a subject's events would be that of chance.
func (f *Feed) checkTopic(ctx context.Context) error {
	req, cancel := context.WithTimeout(ctx, f.o.RequestTimeout)
	defer cancel()
	n, err := f.partitionCount(req)
	if err != nil {
		return troubleOf("reading topic metadata", err)
	}
	if want := f.o.Conn.Partitions(); n != want {
		return &sinks.Error{
			Class: sinks.Permanent, Op: "reading topic metadata", Code: "partition_count",
			Hint: fmt.Sprintf("topic %s has %d partitions, kafka.partitions says %d: the count is fixed by contract, because keys would "+
				"move to other partitions; make a new topic prefix and a pass instead", f.topic, n, want),
			Err: errors.New("partition count has changed"),
		}
	}
	return nil
}

func (f *Feed) partitionCount(ctx context.Context) (int, error) {
	leaders, err := f.leaders(ctx)
	if err != nil {
		return 0, err
	}
	return len(leaders), nil
}

// leaders returns the leading broker's id of every partition of the topic, -1 where there is none now.
func (f *Feed) leaders(ctx context.Context) (map[int32]int, error) {
	client := f.o.Conn.Client()
	res, err := client.Metadata(ctx, &kafkago.MetadataRequest{Addr: client.Addr, Topics: []string{f.topic}})
	if err != nil {
		return nil, err
	}
	for _, t := range res.Topics {
		if t.Name != f.topic {
			continue
		}
		if t.Error != nil {
			return nil, t.Error
		}
		leaders := make(map[int32]int, len(t.Partitions))
		for _, p := range t.Partitions {
			leaders[int32(p.ID)] = p.Leader.ID //nolint:gosec // partition ids are int32 on the wire
			if p.Leader.Host == "" {
				leaders[int32(p.ID)] = -1 //nolint:gosec // as above
			}
		}
		return leaders, nil
	}
	return nil, kafkago.UnknownTopicOrPartition
}

// runGroup is one membership. It ends with ctx, or when the topic is no longer as configured.
func (f *Feed) runGroup(ctx context.Context, h sinks.FeedHandler) error {
	group, err := kafkago.NewConsumerGroup(kafkago.ConsumerGroupConfig{
		ID: f.o.Group, Brokers: f.o.Conn.Brokers(), Dialer: f.o.Conn.Dialer(), Topics: []string{f.topic},
		HeartbeatInterval: f.o.HeartbeatInterval, SessionTimeout: f.o.SessionTimeout, RebalanceTimeout: f.o.RebalanceTimeout,
		JoinGroupBackoff: f.o.JoinBackoff, Timeout: f.o.RequestTimeout / 2,
		// The offset of a partition without a hint; it is only looked at, reading starts where the replica says.
		StartOffset: kafkago.FirstOffset,
	})
	if err != nil {
		return fmt.Errorf("joining consumer group %q: %w", f.o.Group, err)
	}
	member, leave := context.WithCancel(ctx)
	defer leave()
	left := make(chan struct{})
	go func() {
		defer close(left)
		<-member.Done()
		// Close waits for the generation's work to end, then leaves, so that the partitions go to others at once.
		_ = group.Close()
	}()
	for member.Err() == nil {
		gen, err := group.Next(member)
		switch {
		case member.Err() != nil || errors.Is(err, kafkago.ErrGroupClosed):
		case errors.Is(err, kafkago.RebalanceInProgress):
		case err != nil:
			h.Trouble(troubleOf("joining consumer group", err))
		default:
			f.serve(member, leave, gen, h)
		}
	}
	leave()
	<-left
	return nil
}

// serve hands one generation to the worker and waits for its end.
func (f *Feed) serve(member context.Context, leave func(), gen *kafkago.Generation, h sinks.FeedHandler) {
	done := make(chan struct{})
	gen.Start(func(genCtx context.Context) {
		defer close(done)
		ctx, cancel := context.WithCancel(genCtx)
		defer cancel()
		defer context.AfterFunc(member, cancel)()
		if err := f.checkTopic(ctx); err != nil && sinks.Classify(err) == sinks.Permanent {
			leave() // Run's own check says why
			return
		}
		h.Trouble(nil)
		g := newGeneration(f, gen, h.Trouble, leave)
		defer g.close(ctx)
		h.Serve(ctx, g)
	})
	<-done
}

// troubleOf makes an error of Kafka one of the sinks, reduced to a code: brokers and libraries may quote anything.
func troubleOf(op string, err error) error {
	class := kafkaconn.Classify(err)
	e := &sinks.Error{Class: sinks.Transient, Op: op, Code: kafkaconn.Reason(err), Hint: kafkaconn.Hint(class), Err: errKafka}
	if class.Permanent() || class == kafkaconn.ClassTLS {
		e.Class = sinks.Permanent
	}
	return e
}

var errKafka = errors.New("kafka refuses or cannot be reached")

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
