package capture

import (
	"context"

	"lethe/schema"
)

// Publisher sends units to the events topic (capture/kafka). One goroutine uses it at a time.
type Publisher interface {
	// Open compares the topic with the contract. It is called before each start of the source.
	Open(ctx context.Context) error
	// NewUnit makes an empty unit; Open has succeeded before.
	NewUnit() Unit
	// Publish sends the whole unit once and returns nil when every partition has acknowledged its batch (acks=all). After
	// an error any part of it may be in the topic; the caller sends the same unit again, and IsPermanent says when not to.
	Publish(ctx context.Context, u Unit) error
}

// Unit gathers the records of one Publish, one batch for each partition. It copies what it is given.
type Unit interface {
	// Append adds a record to the partition of its key (Murmur2, as in Java's default partitioner). ErrUnitFull asks to
	// publish first; any other error says that the record is too large even alone.
	Append(key, value []byte) error
	// AppendAll adds a record without key to every partition, or to none of them.
	AppendAll(value []byte) error
	// Full reports whether it is time to publish; some records more still fit.
	Full() bool
	// Bytes is the size of the batches before compression.
	Bytes() int
	// Reset empties the unit and keeps its buffers.
	Reset()
}

// Encoder turns an event into the bytes of a record (schema.Encoder).
type Encoder interface {
	Append(dst []byte, ev *schema.Event) ([]byte, error)
}

// Checkpoints keeps a source's Checkpoint (capture/checkpoint). Safe for concurrent use.
type Checkpoints interface {
	// Load returns the newest checkpoint, or nil where there never was one.
	Load(ctx context.Context) (*Checkpoint, error)
	// Save returns when c is durable. It refuses, with a permanent error, to move back within an incarnation, and with
	// ErrSuperseded to write over a checkpoint that neither Load nor Save of this process has seen.
	Save(ctx context.Context, c *Checkpoint) error
}

// EventLog tells what the events topic already holds: it decides whether a missing checkpoint is a first start or a loss.
type EventLog interface {
	// Newest returns the greatest order among the last records of all partitions. written is false when no record was ever
	// appended; an order of zero with written true says that none of the records can be read any more.
	Newest(ctx context.Context) (newest schema.Order, written bool, err error)
}
