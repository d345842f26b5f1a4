package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go"

	"lethe/internal/kafkaconn"
	"lethe/schema"
)

// Decoder reads an event (schema.Decoder).
type Decoder interface {
	Decode(value []byte) (*schema.Event, error)
}

// EventLog implements capture.EventLog on the events topic.
type EventLog struct {
	Conn    *kafkaconn.Conn
	Decoder Decoder
}

// Newest implements capture.EventLog. A last record that cannot be decoded counts as written and gives no order.
func (l *EventLog) Newest(ctx context.Context) (newest schema.Order, written bool, err error) {
	name := l.Conn.EventsTopic()
	client := l.Conn.Client()
	m, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{name}})
	if err != nil {
		return newest, false, fmt.Errorf("asking for the partitions of %s: %w", name, err)
	}
	if err := m.Topics[0].Error; err != nil {
		return newest, false, fmt.Errorf("asking for the partitions of %s: %w", name, err)
	}
	var wanted []kafka.OffsetRequest
	for _, part := range m.Topics[0].Partitions {
		wanted = append(wanted, kafka.FirstOffsetOf(part.ID), kafka.LastOffsetOf(part.ID))
	}
	offsets, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{name: wanted}})
	if err != nil {
		return newest, false, fmt.Errorf("asking for the offsets of %s: %w", name, err)
	}
	for _, part := range offsets.Topics[name] {
		if part.Error != nil {
			return newest, false, fmt.Errorf("asking for the offsets of %s[%d]: %w", name, part.Partition, part.Error)
		}
		written = written || part.LastOffset > 0
		if part.LastOffset <= part.FirstOffset {
			continue
		}
		order, err := l.last(ctx, client, name, part.Partition, part.LastOffset-1)
		if err != nil {
			return newest, written, err
		}
		if order.Compare(newest) > 0 {
			newest = order
		}
	}
	return newest, written, nil
}

func (l *EventLog) last(ctx context.Context, client *kafka.Client, topic string, partition int, offset int64) (schema.Order, error) {
	var zero schema.Order
	res, err := client.Fetch(ctx, &kafka.FetchRequest{
		Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: 2 << 20,
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return zero, fmt.Errorf("reading the last record of %s[%d]: %w", topic, partition, err)
	}
	for {
		rec, err := res.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return zero, nil
		}
		if err != nil {
			return zero, fmt.Errorf("reading the last record of %s[%d]: %w", topic, partition, err)
		}
		if rec.Offset != offset {
			continue
		}
		value, err := kafka.ReadAll(rec.Value)
		if err != nil {
			return zero, fmt.Errorf("reading the last record of %s[%d]: %w", topic, partition, err)
		}
		ev, err := l.Decoder.Decode(value)
		if err != nil {
			return zero, nil //nolint:nilerr // it was written, and says nothing to us
		}
		return ev.Order, nil
	}
}
