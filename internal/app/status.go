package app

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/capture"
	"lethe/capture/checkpoint"
	"lethe/config"
	"lethe/internal/kafkaconn"
)

// StatusReport is where everything stands, asked of the servers and not of any process. Where a server could not be
// asked, Error says why and the rest of its part is empty.
type StatusReport struct {
	At       time.Time       `json:"at"`
	Source   SourceStatus    `json:"source"`
	Kafka    KafkaStatus     `json:"kafka"`
	Replicas []ReplicaStatus `json:"replicas"`
}

// SourceStatus is the log of the source: PostgreSQL's slot, or the binary log.
type SourceStatus struct {
	Error    string `json:"error,omitempty"`
	Database string `json:"database,omitempty"` // postgres or mysql
	// Reading is set while a process reads from the slot, or holds the named lock.
	Reading       bool    `json:"reading"`
	LagBytes      int64   `json:"lag_bytes"`      // of log not acknowledged; -1: not known
	RetainedBytes int64   `json:"retained_bytes"` // of log held back for the slot; of MySQL all that the server keeps, -1: not known
	SafeBytes     int64   `json:"safe_bytes"`     // that can still be written before the slot is lost; -1: no limit
	SafeSeconds   float64 `json:"safe_seconds"`   // until MySQL may purge what is not acknowledged; -1: no limit
	OverLimit     bool    `json:"over_limit"`     // retained_bytes exceeds max_retained_wal, or lag_bytes max_binlog_lag
	// SlotState is reserved, extended, unreserved, lost or missing; of the binary log reserved, expiring or lost.
	SlotState string `json:"slot_state"`

	err error
}

// KafkaStatus is the checkpoint and the ends of the events topic.
type KafkaStatus struct {
	Error      string          `json:"error,omitempty"`
	Checkpoint *CheckpointInfo `json:"checkpoint,omitempty"`
	Gaps       []GapInfo       `json:"gaps,omitempty"`
	Pass       *PassInfo       `json:"pass,omitempty"` // that is being made, or was last
	Partitions []PartitionEnd  `json:"partitions,omitempty"`
	Events     int64           `json:"events"` // retained in the topic

	err error
}

// CheckpointInfo is the newest checkpoint.
type CheckpointInfo struct {
	Position    string    `json:"position"` // empty: a gap was resumed, and capture goes on where the log stands when it starts
	Incarnation uint32    `json:"incarnation"`
	CommittedAt time.Time `json:"committed_at,omitzero"`
	WrittenAt   time.Time `json:"written_at,omitzero"`
}

// GapInfo is a gap of the source's log.
type GapInfo struct {
	ID       string    `json:"id"`
	Cause    string    `json:"cause"`
	OpenedAt time.Time `json:"opened_at"`
	// Blocks: capture stands still at it until it is resumed.
	Blocks  bool `json:"blocks"`
	Resumed bool `json:"resumed"`
}

// PartitionEnd is the log of one partition.
type PartitionEnd struct {
	Partition int   `json:"partition"`
	First     int64 `json:"first"`
	End       int64 `json:"end"`
}

// ReplicaStatus is what the tables of one replica say.
type ReplicaStatus struct {
	Name  string `json:"name"`
	Mode  string `json:"mode"`
	Error string `json:"error,omitempty"`
	*Status
	MappingActive        bool           `json:"mapping_active"` // the active mapping is the config's
	LagEvents            int64          `json:"lag_events"`     // -1: unknown
	Partitions           []PartitionLag `json:"partitions,omitempty"`
	BehindSeconds        float64        `json:"behind_seconds"`
	OldestUnprovenSecond float64        `json:"oldest_unproven_erasure_seconds"`

	err error
}

// PartitionLag is one partition in one replica.
type PartitionLag struct {
	Partition int32     `json:"partition"`
	Next      int64     `json:"next_offset"`
	Lag       int64     `json:"lag"` // -1: unknown
	UpdatedAt time.Time `json:"updated_at"`
}

// Err tells what could not be asked, wrapping ErrUnreachable, or that a gap is open; nil where all is known and nothing
// is lost.
func (s *StatusReport) Err() error {
	var unreachable, unread []string
	note := func(where string, err error) {
		switch {
		case IsUnreachable(err):
			unreachable = append(unreachable, where)
		case err != nil:
			unread = append(unread, where)
		}
	}
	note(WhereSource, s.Source.err)
	note(WhereKafka, s.Kafka.err)
	for i := range s.Replicas {
		note(whereReplica+s.Replicas[i].Name, s.Replicas[i].err)
	}
	switch {
	case unreachable != nil:
		return fmt.Errorf("%w: %s", ErrUnreachable, strings.Join(append(unreachable, unread...), ", "))
	case IsGap(s.Source.err):
		return s.Source.err
	case unread != nil:
		return fmt.Errorf("could not be read: %s; `lethe check` says why", strings.Join(unread, ", "))
	case len(s.Kafka.Gaps) > 0:
		return &capture.GapError{Cause: s.Kafka.Gaps[0].Cause, Hint: "`lethe gap list` shows it"}
	}
	return nil
}

// ReadStatus asks all servers at once.
func ReadStatus(ctx context.Context, cfg *config.Config) *StatusReport {
	s := &StatusReport{At: time.Now().UTC(), Replicas: make([]ReplicaStatus, len(cfg.Replicas))}
	var wg sync.WaitGroup
	wg.Go(func() { s.Source = readSource(ctx, cfg) })
	wg.Go(func() { s.Kafka = readKafka(ctx, cfg) })
	for i, name := range ReplicaNames(cfg) {
		wg.Go(func() { s.Replicas[i] = readReplica(ctx, cfg, cfg.Replicas[name]) })
	}
	wg.Wait()
	for i := range s.Replicas {
		s.Replicas[i].lag(&s.Kafka)
	}
	return s
}

func readSource(ctx context.Context, cfg *config.Config) (s SourceStatus) {
	server, err := sourceOf(cfg)
	if err == nil {
		var log LogStatus
		log, err = server.status(ctx)
		s = SourceStatus{
			Database: server.database(), Reading: log.Reading, LagBytes: log.LagBytes, RetainedBytes: log.RetainedBytes,
			SafeBytes: log.SafeBytes, SafeSeconds: -1, OverLimit: log.OverLimit, SlotState: log.State,
		}
		if log.SafeFor >= 0 {
			s.SafeSeconds = log.SafeFor.Seconds()
		}
	}
	if err != nil {
		s.err, s.Error = err, err.Error()
		var gap *capture.GapError
		if errors.As(err, &gap) && gap.Cause == capture.GapSlotMissing {
			s.SlotState = "missing"
		}
	}
	return s
}

func readKafka(ctx context.Context, cfg *config.Config) (s KafkaStatus) {
	fail := func(err error) KafkaStatus {
		s.err, s.Error = err, err.Error()
		return s
	}
	conn, err := connectKafka(cfg)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	if err := conn.CheckConnect(ctx); err != nil {
		return fail(err)
	}
	c, err := loadCheckpoint(ctx, cfg, conn)
	if err != nil {
		return fail(err)
	}
	if c != nil {
		s.Checkpoint = &CheckpointInfo{Incarnation: c.Incarnation, CommittedAt: c.CommittedAt, WrittenAt: c.WrittenAt}
		if c.Position != (capture.Position{}) {
			s.Checkpoint.Position = c.Position.String()
		}
		s.Gaps = gapInfos(c.Gaps)
	}
	book, err := checkpoint.NewPasses(checkpoint.Options{Conn: conn, Source: cfg.Name}).Load(ctx)
	if err != nil {
		return fail(err)
	}
	s.Pass = passReport(book).Pass
	err = settled(ctx, func() error {
		s.Partitions, err = partitionEnds(ctx, conn)
		return err
	})
	if err != nil {
		return fail(err)
	}
	for _, p := range s.Partitions {
		s.Events += p.End - p.First
	}
	return s
}

func gapInfos(gaps []capture.OpenGap) []GapInfo {
	var out []GapInfo
	for _, g := range gaps {
		out = append(out, GapInfo{ID: g.ID, Cause: g.Cause, OpenedAt: g.OpenedAt, Blocks: g.Blocks(), Resumed: g.Resumed})
	}
	return out
}

// partitionEnds returns where the log of each partition of the events topic starts and ends, by partition.
func partitionEnds(ctx context.Context, conn *kafkaconn.Conn) ([]PartitionEnd, error) {
	topic := conn.EventsTopic()
	client, done := conn.FreshClient()
	defer done()
	m, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err == nil {
		err = m.Topics[0].Error
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the partitions of %s: %w (%s)", topic, err, kafkaconn.Hint(kafkaconn.Classify(err)))
	}
	var wanted []kafka.OffsetRequest
	for _, p := range m.Topics[0].Partitions {
		wanted = append(wanted, kafka.FirstOffsetOf(p.ID), kafka.LastOffsetOf(p.ID))
	}
	res, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: wanted}})
	if err != nil {
		return nil, fmt.Errorf("asking for the offsets of %s: %w", topic, err)
	}
	out := make([]PartitionEnd, len(m.Topics[0].Partitions))
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return nil, fmt.Errorf("asking for the offsets of %s[%d]: %w", topic, p.Partition, p.Error)
		}
		if p.Partition >= len(out) {
			return nil, fmt.Errorf("asking for the offsets of %s: the partitions are not numbered from 0", topic)
		}
		out[p.Partition] = PartitionEnd{Partition: p.Partition, First: p.FirstOffset, End: p.LastOffset}
	}
	return out, nil
}

func readReplica(ctx context.Context, cfg *config.Config, r *config.Replica) (s ReplicaStatus) {
	s = ReplicaStatus{Name: r.Name, Mode: r.Mode, LagEvents: -1}
	err := withDesk(ctx, cfg, r, func(d desk) (err error) {
		s.Status, err = d.Status(ctx)
		return err
	})
	if err != nil {
		s.Status, s.err, s.Error = nil, err, err.Error()
		return s
	}
	digest := r.Digest()
	s.MappingActive = s.Digest == hex.EncodeToString(digest[:])
	s.BehindSeconds, s.OldestUnprovenSecond = s.Behind.Seconds(), s.OldestProof.Seconds()
	return s
}

// lag compares the places with the ends of the partitions.
func (s *ReplicaStatus) lag(k *KafkaStatus) {
	if s.Status == nil {
		return
	}
	next := map[int]int64{}
	for _, p := range s.Places {
		lag := PartitionLag{Partition: p.Partition, Next: p.NextOffset, Lag: -1, UpdatedAt: p.UpdatedAt}
		if int(p.Partition) < len(k.Partitions) {
			lag.Lag = max(k.Partitions[p.Partition].End-p.NextOffset, 0)
		}
		next[int(p.Partition)] = p.NextOffset
		s.Partitions = append(s.Partitions, lag)
	}
	if k.Partitions == nil {
		return
	}
	s.LagEvents = 0
	for _, p := range k.Partitions {
		s.LagEvents += max(p.End-max(next[p.Partition], p.First), 0)
	}
}
