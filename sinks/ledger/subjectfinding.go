package ledger

import (
	"time"

	"lethe/schema"
)

// The kinds of SubjectFinding that are counted from other tables, besides those of Noted.
const (
	FindingAmbiguous = "ambiguous"        // matches that wait for a person: `lethe review`
	FindingUnmapped  = "unmapped_columns" // erasures that are not called verified, because columns that look personal have no mapping
)

// SubjectFinding is something that somebody ought to know about a subject of a replica, or how often it is so. It names nobody: the
// reference is the replica's own.
type SubjectFinding struct {
	Kind    string
	Ref     *Ref   // nil: a count of many
	Scope   string // of facts; empty where it is about none
	EventID schema.EventID
	Times   int64 // events; of a count: subjects, values or cases
	FirstAt time.Time
	LastAt  time.Time
}
