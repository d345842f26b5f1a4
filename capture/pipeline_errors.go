package capture

import (
	"errors"
	"fmt"
)

// ErrSlotInUse is wrapped by a Source's error when another process reads the same slot. The Pipeline waits: a standby.
var ErrSlotInUse = errors.New("the replication slot is in use by another process")

// ErrSuperseded is wrapped by Checkpoints.Save when another process has written this source's checkpoint meanwhile: this one
// was stopped for so long that a standby took over. What it has in memory is void; it reads the checkpoint again.
var ErrSuperseded = errors.New("another process has written this source's checkpoint")

// ErrUnitFull is returned by Unit.Append when the record does not fit beside what the unit already holds.
var ErrUnitFull = errors.New("the unit is full")

// ErrTopicShape is wrapped by errors that speak of an events topic that is not what the contract says, for example one
// whose number of partitions changed.
var ErrTopicShape = errors.New("the events topic is not as configured")

// StopError says that capture cannot go on until somebody changed something: the same input would fail again. It never
// carries a value of a row.
type StopError struct {
	Op       string   // what was done, for example "applying the rules to an update of public.customer"
	Cause    string   // a code for states and metrics: rule, panic, decode, kafka_auth, …
	Position Position // of the transaction concerned; zero where none is
	Hint     string   // what the operator does next
	Err      error
}

func (e *StopError) Error() string {
	s := e.Op
	if e.Position != (Position{}) {
		s += " at " + e.Position.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *StopError) Unwrap() error { return e.Err }

// Permanent marks the error for IsPermanent.
func (e *StopError) Permanent() bool { return true }

// IsPermanent reports whether err, or one that it wraps, says Permanent() true: another try cannot cure it.
func IsPermanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}

// String gives the commit's place as PostgreSQL writes it, after its timeline; or the GTID where there is one. A transaction
// of MySQL or MariaDB that has not ended is told by its epoch and number.
func (p Position) String() string {
	switch {
	case p.GTID != "":
		return p.GTID
	case p.Before != "":
		return fmt.Sprintf("%d:%d", p.Epoch, p.Commit)
	}
	return fmt.Sprintf("%d:%X/%X", p.Epoch, p.Commit>>32, uint32(p.Commit)) //nolint:gosec // the lower half is wanted
}

// Blocks reports whether capture stands still because of the gap: what happened to one table leaves the log whole.
func (g OpenGap) Blocks() bool {
	switch g.Cause {
	case GapTruncate, GapDropped, GapPublication, GapStatement, GapXA:
		return false
	}
	return !g.Resumed
}
