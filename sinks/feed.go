package sinks

import (
	"context"
	"time"
)

// Feed is the log that a Worker reads, with its consumer group. sinks/kafka implements it.
type Feed interface {
	// Run joins the group and hands each generation to h, one at a time, until ctx ends; then it leaves the group. It
	// keeps trying while Kafka cannot be reached, and tells h of it. It returns nil after ctx's end.
	Run(ctx context.Context, h FeedHandler) error
}

// FeedHandler is the Worker as its Feed sees it.
type FeedHandler interface {
	// Serve works on a generation until ctx ends, and returns soon after: the group waits for it.
	Serve(ctx context.Context, g Generation)
	// Trouble tells what keeps the feed from giving a generation; nil: it is over.
	Trouble(err error)
}

// Generation is a set of partitions that this worker owns until the context it came with ends.
type Generation interface {
	Partitions() []int32
	// Open begins to read at the places and returns what the log says of each, in the order of places.
	Open(ctx context.Context, places []Place) ([]Bounds, error)
	// Poll waits until there are records, but no longer than wait (zero: not at all), and returns at most limit of them, by
	// partition, then offset. Nothing but the end of ctx is an error. A record whose Err wraps ErrGap says that its
	// partition cannot be read on; nothing follows it.
	Poll(ctx context.Context, wait time.Duration, limit int) ([]Record, error)
	// End returns the end offset of a partition as last seen.
	End(partition int32) int64
	// Committed tells up to where the replica has committed. The feed passes it on to Kafka as a hint, in its own time.
	Committed(places []Place)
}

// Bounds is what the log says of one partition at the start of a generation.
type Bounds struct {
	Partition int32
	Start     int64 // the first offset that the log still has
	End       int64 // the offset that the next record will get
	// Hinted is the offset that Kafka was last told, never ahead of what the replica had committed; -1: none. A replica
	// behind it was restored from a backup.
	Hinted int64
	// Before is the record in front of the place; nil where the log no longer has it, or has nothing in front.
	Before *Record
}

// Pauser says whether an operator holds this replica (`lethe pause`).
type Pauser interface {
	Paused(ctx context.Context) (bool, error)
}

// ReceiptSender publishes stored receipts, in order; it returns after Kafka has acknowledged them all.
type ReceiptSender interface {
	Send(ctx context.Context, receipts []OutboxReceipt) error
}
