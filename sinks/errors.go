package sinks

import (
	"errors"
	"strings"
)

// Class says what the worker does about an error of a replica.
type Class uint8

// The classes. The zero value is Transient: what nobody classified is tried again, loudly, and never skipped.
const (
	// Transient errors go away by themselves: the batch is tried again with backoff.
	Transient Class = iota
	// Permanent errors need a person: this sink stops applying, stays not ready and looks again at a slow pace.
	Permanent
	// Poison is an event that this replica refuses: the batch is bisected down to it and it is parked.
	Poison
	// Fenced means that another worker owns the partition by now: this generation is given up.
	Fenced
)

func (c Class) String() string {
	switch c {
	case Transient:
		return "transient"
	case Permanent:
		return "permanent"
	case Poison:
		return "poison"
	case Fenced:
		return "fenced"
	}
	return "unknown"
}

// Sentinels that Classify knows without an Error around them.
var (
	// ErrFenced is returned by Applier when a place is not where this worker left it: somebody else moved it.
	ErrFenced = errors.New("partition is owned by another worker")
	// ErrGap means that records between the place in the replica and the log are lost. It is never jumped over.
	ErrGap = errors.New("records are missing between the replica's place and the log")
	// ErrDigest means that the active mapping digest of the replica is not the one of this process.
	ErrDigest = errors.New("mapping digest is not the active one")
)

// CodePaused is the code of the errors by which a replica says that an operator holds it.
const CodePaused = "paused"

// Error is an error of a sink with what an operator needs. None of its fields may hold a personal value: Err is reduced
// to code and class (internal/pii) before it gets here.
type Error struct {
	Class Class
	Op    string // what was being done, as a gerund: "applying batch"
	Code  string // SQLSTATE or a code of Lethe's own; stored beside parked events and pending rows
	Hint  string // what to do next; empty where nothing can be done but wait
	Err   error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Code != "" {
		b.WriteString(" (" + e.Code + ")")
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Classify returns the class of err. Fenced beats everything else in the chain: whoever lost the partition must not act
// on any other finding. Errors that carry no class are Transient.
func Classify(err error) Class {
	if errors.Is(err, ErrFenced) {
		return Fenced
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	if errors.Is(err, ErrGap) || errors.Is(err, ErrDigest) {
		return Permanent
	}
	return Transient
}

// CodeOf returns the code of the first Error in err's chain, or the name of its class.
func CodeOf(err error) string {
	var e *Error
	switch {
	case errors.As(err, &e) && e.Code != "":
		return e.Code
	case errors.Is(err, ErrGap):
		return "gap"
	case errors.Is(err, ErrDigest):
		return "mapping_digest"
	}
	return Classify(err).String()
}

// HintOf returns the operator's hint of the first Error in err's chain; empty where there is none.
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}
