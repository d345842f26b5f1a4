// Package rules says which row change means which event. Rules are pure: they see the row and the commit time, never the
// clock, and do no I/O.
package rules

import "lethe/capture"

// Draft is what a rule made of a change; the Pipeline adds identifiers, order and sealing.
type Draft = capture.Draft
