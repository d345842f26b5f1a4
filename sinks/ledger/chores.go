package ledger

import (
	"context"
	"errors"
	"time"

	"lethe/sinks"
)

// Chore does what is due for the partitions and returns when it wants to be called again; zero: nothing in sight. Where there
// is much to do it does one slice and asks to be called again at once, so that prohibitions come in between.
type Chore func(ctx context.Context, places []sinks.Place) (next time.Time, err error)

// RunChores does the chores in their order and returns when the first of them wants to be called again. A paused replica is
// asked again soon.
func RunChores(ctx context.Context, places []sinks.Place, paused func(context.Context) (bool, error), chores []Chore) (time.Time, error) {
	held, err := paused(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if held {
		return time.Now().Add(PausedRetry), nil
	}
	var next time.Time
	for _, c := range chores {
		at, err := c(ctx, places)
		if err != nil {
			return time.Time{}, err
		}
		next = Sooner(next, at)
	}
	return next, nil
}

// WorkDue does one slice of what is due. slice works on up to limit subjects in one transaction, and returns which ones they
// were, also with an error. A slice that the replica refuses is halved down to the one subject that it refuses (a
// constraint, a trigger): leave puts that one off, so that it holds up neither the others nor the chores behind this one.
// more says that there may be something left to do at once.
func WorkDue(limit int, slice func(limit int) (refs [][]byte, err error), leave func(ref []byte, refused error) error) (more bool, err error) {
	for {
		refs, err := slice(limit)
		switch {
		case err == nil:
			return len(refs) == limit, nil
		case sinks.Classify(err) != sinks.Poison || len(refs) == 0:
			return false, err
		case len(refs) == 1:
			return true, leave(refs[0], err)
		}
		limit = len(refs) / 2
	}
}

// EraseDue does phase 2 of one slice of the cases that are due. batch erases up to limit cases in one transaction, and
// returns how many were due; alone, a case that the replica refuses is a RefusedError. Where the replica refuses the
// statements of a slice its cases are tried one by one, so that one case holds up no other, and each refusal is recorded.
// more says that there may be something left to do at once.
func EraseDue(batch func(limit int) (due int, err error), record func(*RefusedError) error) (more bool, err error) {
	n, err := batch(Phase2Limit)
	if err == nil || sinks.Classify(err) != sinks.Poison {
		return n == Phase2Limit, err
	}
	for range Phase2Limit {
		n, err := batch(1)
		var refused *RefusedError
		switch {
		case errors.As(err, &refused):
			if err := record(refused); err != nil {
				return false, err
			}
		case err != nil:
			return false, err
		case n == 0:
			return false, nil
		}
	}
	return true, nil
}
