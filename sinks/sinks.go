// Package sinks applies events to replicas: the Worker takes batches from Kafka and hands each to a Replica in one
// transaction that also moves the offsets; Fold says what follows from all facts of a subject.
package sinks

import (
	"context"
	"time"

	"lethe/schema"
)

// Record is one Kafka record of lethe.events. Event is nil when the bytes could not be decoded: Err then says why.
type Record struct {
	Partition int32
	Offset    int64
	Key       []byte // subject_ref in text form; empty for records to every partition
	Value     []byte
	Event     *schema.Event
	Err       error
}

// Place is the durable position of one partition in a replica.
type Place struct {
	Partition   int32
	NextOffset  int64 // the offset that the next record must have; 0 where nothing was applied yet
	LastEventID schema.EventID
	LastOrder   schema.Order
	UpdatedAt   time.Time
}

// Batch is what one sink transaction covers: for each partition contiguous records from Place.NextOffset on. A worker
// that lost a partition fails the compare-and-set on From and gets ErrFenced.
type Batch struct {
	From    []Place
	Records []Record // by partition, then offset
}

// Outcome is what became of a batch.
type Outcome struct {
	Places  []Place // after the commit
	Applied int
	// Reconciled are what a pass has read that was not known.
	Reconciled int
	Unchanged  int
	Stale      int
	NoMatch    int
	Refused    int
	Parked     int
	// Unusable is the commit-to-commit latency of each erasure, objection, restriction and withdrawal in the batch.
	Unusable []time.Duration
}

// Applier is the part of a replica that the worker drives for each batch.
type Applier interface {
	// Assign reads the places of the partitions now owned, creating rows that do not exist.
	Assign(ctx context.Context, partitions []int32) ([]Place, error)
	// Apply runs one sink transaction. Its error classifies through Classify; ErrFenced means that another worker owns a
	// partition by now.
	Apply(ctx context.Context, b *Batch) (Outcome, error)
	// Park stores one poison record, blocks its subject and moves the offset past it, in one transaction.
	Park(ctx context.Context, from Place, r *Record, code string) (Place, error)
}

// Chores is the part of a replica that runs beside the batches, for the partitions that this worker owns and that are
// caught up to the end offset read at assignment.
type Chores interface {
	// RunDue does what is due: unmatched subjects looked up again, phase 2, verification, parked events. It returns when
	// nothing more is due, with the time at which it wants to be called again.
	RunDue(ctx context.Context, places []Place) (next time.Time, err error)
}

// Outbox holds signed receipts until they are in Kafka.
type Outbox interface {
	Unsent(ctx context.Context, partitions []int32, limit int) ([]OutboxReceipt, error)
	MarkSent(ctx context.Context, ids []schema.ReceiptID) error
}

// OutboxReceipt is a stored receipt.
type OutboxReceipt struct {
	ID     schema.ReceiptID
	CaseID schema.CaseID // the Kafka key of its record
	Body   []byte        // Avro SignedReceipt, single-object encoded
}

// Replica is one downstream database.
type Replica interface {
	Applier
	Chores
	Outbox
}
