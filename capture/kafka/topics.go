package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/internal/kafkaconn"
)

// Topics makes and checks Lethe's topics.
type Topics struct {
	Conn *kafkaconn.Conn
	// Retention is how long events must stay in the topic: the largest age of a backup that a replica may be restored
	// from, and seven days. Default: seven days.
	Retention time.Duration
	// BatchBytes is the publisher's; the topic's max.message.bytes must take it. Default 950,000.
	BatchBytes int
}

// setting is a topic setting that Lethe needs.
type setting struct {
	name string
	want string
	// enough tells whether another value serves as well; nil: it must be the same.
	enough func(have string) bool
	why    string
}

// topicSpec is what a topic must look like.
type topicSpec struct {
	name       string
	partitions int
	// anyPartitions: more partitions are no harm.
	anyPartitions bool
	settings      []setting
}

// backlog is added to the age of the oldest backup: the time to notice that one was restored.
const backlog = 7 * 24 * time.Hour

// RetentionFor is what Topics.Retention must be for backups up to that age.
func RetentionFor(oldestBackup time.Duration) time.Duration { return oldestBackup + backlog }

func (t *Topics) specs() []topicSpec {
	retention := t.Retention
	if retention <= 0 {
		retention = backlog
	}
	batch := t.BatchBytes
	if batch <= 0 {
		batch = defaultBatchBytes
	}
	byTime := []setting{
		{"cleanup.policy", "delete", nil, "compaction would remove facts that a replica has not read yet"},
		{
			"retention.ms", strconv.FormatInt(retention.Milliseconds(), 10), atLeast(retention.Milliseconds()),
			"a replica that is restored from its oldest backup reads everything since again",
		},
	}
	size := setting{"max.message.bytes", strconv.Itoa(max(1048588, batch)), atLeast(int64(batch)), "a batch of the publisher must fit"}
	insync := setting{
		"min.insync.replicas", strconv.Itoa(t.minInsync()), atLeast(int64(t.minInsync())),
		"an acknowledged event must survive the loss of a broker",
	}
	partitions := max(t.Conn.Partitions(), 1)
	return []topicSpec{
		{name: t.Conn.EventsTopic(), partitions: partitions, settings: slices.Concat(byTime, []setting{size, insync})},
		{name: t.Conn.CheckpointsTopic(), partitions: 1, settings: []setting{
			{"cleanup.policy", "compact", nil, "the newest checkpoint must stay for ever"},
			// One record a second: without small segments the cleaner would begin after a week.
			{"segment.ms", "600000", atMost(24 * 3600 * 1000), "old checkpoints are removed a segment at a time"},
			insync,
		}},
		{name: t.Conn.ReceiptsTopic(), partitions: partitions, anyPartitions: true, settings: slices.Concat(byTime, []setting{insync})},
		{name: t.Conn.DeadLettersTopic(), partitions: 1, anyPartitions: true, settings: slices.Concat(byTime, []setting{insync})},
	}
}

func (t *Topics) minInsync() int {
	if t.Conn.ReplicationFactor() >= 3 {
		return 2
	}
	return 1
}

func atLeast(n int64) func(string) bool {
	return func(have string) bool {
		v, err := strconv.ParseInt(have, 10, 64)
		return err == nil && (v >= n || v == -1) // retention.ms -1: for ever
	}
}

func atMost(n int64) func(string) bool {
	return func(have string) bool {
		v, err := strconv.ParseInt(have, 10, 64)
		return err == nil && v <= n
	}
}

// Setup creates the topics that are missing and returns their names. It never alters one that exists: Check says what to
// change. It returns when the new topics can be written to.
func (t *Topics) Setup(ctx context.Context) (created []string, err error) {
	if err := t.Conn.CheckConnect(ctx); err != nil {
		return nil, err
	}
	var wanted []kafka.TopicConfig
	for _, spec := range t.specs() {
		c := kafka.TopicConfig{Topic: spec.name, NumPartitions: spec.partitions, ReplicationFactor: max(t.Conn.ReplicationFactor(), 1)}
		for _, s := range spec.settings {
			c.ConfigEntries = append(c.ConfigEntries, kafka.ConfigEntry{ConfigName: s.name, ConfigValue: s.want})
		}
		wanted = append(wanted, c)
	}
	res, err := t.Conn.Client().CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: wanted})
	if err != nil {
		return nil, fmt.Errorf("creating topics: %w", err)
	}
	var errs []error
	for _, c := range wanted {
		switch err := res.Errors[c.Topic]; {
		case err == nil:
			created = append(created, c.Topic)
		case !errors.Is(err, kafka.TopicAlreadyExists):
			errs = append(errs, fmt.Errorf("creating topic %s (%s): %w", c.Topic, createCommand(t.Conn.Brokers(), c), err))
		}
	}
	if err := errors.Join(errs...); err != nil || len(created) == 0 {
		return created, err
	}
	return created, t.visible(ctx, created)
}

// visible waits until the shared transport has the topics: a broker shows a fresh topic late, and the transport asks it
// only once a second.
func (t *Topics) visible(ctx context.Context, names []string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		m, err := t.Conn.Client().Metadata(ctx, &kafka.MetadataRequest{Topics: names})
		if err == nil && !slices.ContainsFunc(m.Topics, func(topic kafka.Topic) bool {
			return topic.Error != nil || len(topic.Partitions) == 0 ||
				slices.ContainsFunc(topic.Partitions, func(p kafka.Partition) bool { return p.Leader.Host == "" })
		}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the new topics to have leaders: %w", errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}
