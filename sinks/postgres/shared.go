package postgres

import "lethe/sinks/ledger"

// What the operator's commands read of a replica is the same for every dialect.
type (
	Case        = ledger.Case
	Finding     = ledger.Finding
	Gap         = ledger.Gap
	ParkedEvent = ledger.ParkedEvent
	Plan        = ledger.Plan
	Status      = ledger.Status
)

// The codes of findings that commands look for.
const (
	CodeLedger    = ledger.CodeLedger
	CodePrivilege = ledger.CodePrivilege
)
