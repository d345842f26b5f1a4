// Package rules says which row change means which event. Rules are pure: they see the row and the commit time, never the
// clock, and do no I/O.
package rules

import (
	"lethe/schema"
)

// Draft is what a rule made of a change: the body and what identifies it. Identifiers, order and sealing are added by the
// pipeline. PK and SubjectKey are valid only until the next call of Engine.Apply.
type Draft struct {
	Rule       string
	PK         []byte // canonical primary key of the row (its identity columns)
	SubjectKey []byte // canonical CRM key; nil for Gap and Heartbeat
	Body       schema.Body
}
