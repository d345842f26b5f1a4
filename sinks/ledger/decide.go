package ledger

import (
	"fmt"

	"lethe/schema"
	"lethe/sinks"
)

// Unchanged says what becomes of a decision that does not change its case; empty where it is to be carried out. A case
// whose phase 2 has run (erased) is suppressed again where a value was left, a backup was restored or the mapping has
// grown: its undo is gone, and a cancel would only make the erased person usable again.
func Unchanged(d schema.Decision, state string, held, erased bool) (outcome string) {
	switch {
	case state != PendingSuppressed, erased && (d == schema.DecisionCancel || d == schema.DecisionHold):
		return DecisionTooLate
	case d == schema.DecisionProceed && held:
		return DecisionHeld
	}
	return ""
}

// RefusesDecision reports whether an error is the replica's refusal of one decision, and no other's: the decision is
// closed, so that it holds up nothing else, and its case is held, because whoever wanted a cancel did not want an erasure.
func RefusesDecision(err error) bool {
	code := sinks.CodeOf(err)
	return err != nil && (sinks.Classify(err) == sinks.Poison || code == CodeUndoTable || code == CodeUndoColumn)
}

const opUndo = "taking phase 1 back"

// ErrUndoTable is the error of a prior value whose table is no longer mapped.
func ErrUndoTable(table string) error {
	return &sinks.Error{
		Class: sinks.Permanent, Op: opUndo, Code: CodeUndoTable,
		Hint: fmt.Sprintf("table %s was mapped when the case opened and is not now: put it back into the mapping, then cancel again", table),
	}
}

// ErrUndoColumn is the error of a prior value whose column is gone.
func ErrUndoColumn(table, column string) error {
	return &sinks.Error{
		Class: sinks.Permanent, Op: opUndo, Code: CodeUndoColumn,
		Hint: fmt.Sprintf("column %s.%s no longer exists: set the case's flags by hand, then release or cancel", table, column),
	}
}
