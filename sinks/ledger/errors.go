package ledger

import (
	"fmt"
	"time"

	"lethe/sinks"
)

// Poison is the error of a record that cannot be used by itself.
func Poison(code, hint string) error {
	return &sinks.Error{Class: sinks.Poison, Op: "reading record", Code: code, Hint: hint}
}

// ErrPaused is the error by which a replica says that an operator holds it.
func ErrPaused(replica string) error {
	return &sinks.Error{
		Class: sinks.Transient, Op: "applying batch", Code: sinks.CodePaused,
		Hint: "an operator has paused this replica: lethe resume " + replica,
	}
}

// ErrDigestChanged is the error of a worker under whose feet Setup has activated another mapping.
func ErrDigestChanged() error {
	return &sinks.Error{
		Class: sinks.Permanent, Op: "comparing mapping digest", Code: "mapping_digest",
		Hint: "another mapping is active since: restart with its config, or run `lethe setup`", Err: sinks.ErrDigest,
	}
}

// ErrPartsStop is the error of bytes that name no subject: they cannot be parked, because nothing could hold back what
// follows them.
func ErrPartsStop(rec *sinks.Record) error {
	return &sinks.Error{
		Class: sinks.Permanent, Op: "parking record", Code: CodeUndecodable,
		Hint: fmt.Sprintf("partition %d stops at offset %d, whose key and bytes are not Lethe's: who else writes this topic?",
			rec.Partition, rec.Offset),
	}
}

// ErrFactsMoved is the error of facts whose rows are not where they were read.
func ErrFactsMoved() error {
	return &sinks.Error{
		Class: sinks.Transient, Op: "writing facts", Code: "facts_moved", Hint: "does anybody but Lethe write into its tables?",
	}
}

// RefusedError is the replica's refusal to erase one case.
type RefusedError struct {
	Ref  Ref
	Code string
	Err  error
}

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// Sooner returns the earlier of two times; a zero time is none.
func Sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// UntilDue turns a pause in seconds by the replica's clock into a time of ours. nil: nothing in sight.
func UntilDue(seconds *float64) time.Time {
	if seconds == nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(max(0, *seconds) * float64(time.Second)))
}

// PartsOf lists the partitions of some places.
func PartsOf(places []sinks.Place) []int32 {
	parts := make([]int32, len(places))
	for i, p := range places {
		parts[i] = p.Partition
	}
	return parts
}
