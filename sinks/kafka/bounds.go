package kafka

import (
	"context"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/fetch"

	"lethe/sinks"
)

// bounds reads, for each place, where the log starts and ends and the record in front of the place. One fetch tells all
// three; only where the record is not in the log are the bounds asked for by themselves. (kafka-go's ListOffsets opens a
// connection for each partition and question.)
func (f *Feed) bounds(ctx context.Context, places []sinks.Place) ([]sinks.Bounds, error) {
	out := make([]sinks.Bounds, len(places))
	for i, pl := range places {
		b, err := f.boundsOf(ctx, pl)
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

func (f *Feed) boundsOf(ctx context.Context, pl sinks.Place) (sinks.Bounds, error) {
	b := sinks.Bounds{Partition: pl.Partition, Hinted: -1}
	before := max(pl.NextOffset-1, 0)
	res, err := f.roundTrip(ctx, f.request([]fetch.RequestPartition{requestPartition(pl.Partition, before, 1)}, 0, 0))
	if err != nil {
		return b, err
	}
	p := partitionOf(res, pl.Partition)
	switch {
	case p == nil:
		return b, kafkago.UnknownTopicOrPartition
	case p.ErrorCode == int16(kafkago.OffsetOutOfRange):
		b.Start, b.End, err = f.listOffsets(ctx, pl.Partition)
		return b, err
	case p.ErrorCode != 0:
		return b, kafkago.Error(p.ErrorCode)
	}
	b.Start, b.End = p.LogStartOffset, p.HighWatermark
	recs, err := f.decode(p, before)
	if len(recs) > 0 && pl.NextOffset > 0 {
		b.Before = &recs[0]
		return b, nil
	}
	return b, err
}

func partitionOf(res *fetch.Response, id int32) *fetch.ResponsePartition {
	for i := range res.Topics {
		for j := range res.Topics[i].Partitions {
			if p := &res.Topics[i].Partitions[j]; p.Partition == id {
				return p
			}
		}
	}
	return nil
}

// listOffsets returns the first offset of a partition's log and its end.
func (f *Feed) listOffsets(ctx context.Context, id int32) (start, end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.o.RequestTimeout)
	defer cancel()
	client := f.o.Conn.Client()
	for _, at := range []kafkago.OffsetRequest{kafkago.FirstOffsetOf(int(id)), kafkago.LastOffsetOf(int(id))} {
		res, err := client.ListOffsets(ctx, &kafkago.ListOffsetsRequest{
			Addr: client.Addr, Topics: map[string][]kafkago.OffsetRequest{f.topic: {at}},
		})
		if err != nil {
			return 0, 0, err
		}
		answers := res.Topics[f.topic]
		if len(answers) != 1 {
			return 0, 0, kafkago.UnknownTopicOrPartition
		}
		if answers[0].Error != nil {
			return 0, 0, answers[0].Error
		}
		if at.Timestamp == kafkago.FirstOffset {
			start = answers[0].FirstOffset
		} else {
			end = answers[0].LastOffset
		}
	}
	return start, end, nil
}
