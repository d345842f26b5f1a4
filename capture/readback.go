package capture

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lethe/schema"
)

// Readback is what is still to be asked of the source about one case: is everything gone that should be, was the erasure asked
// for, does the gate let it go on. It is kept durably until every question has its last answer, so that a restart, or another
// process, goes on with it. Nothing in it is personal: the subject's key is sealed.
type Readback struct {
	Case    schema.CaseID
	Subject []byte // sealed CRM key
	// Incarnation, Epoch and Number are those of the commit that opened the case, OpenedAt is its time.
	Incarnation uint32
	Epoch       uint32
	Number      uint64
	OpenedAt    time.Time
	// Marked: the CRM's procedure has said that it has ended.
	Marked bool

	Complete Asked
	Gate     Asked
	Request  Asked
	// Again: the gate was asked when the case opened; what is left is the question before phase 2.
	Again bool
}

// Asked is how far one question is.
type Asked struct {
	Done     bool
	Attempts uint32    // that the source has answered
	Told     string    // what was told last, in codes and names of columns; empty: nothing
	Number   uint32    // of what was told: part of its id
	NextAt   time.Time // not before
}

// done reports whether nothing is left to ask.
func (r *Readback) done() bool { return r.Complete.Done && r.Gate.Done && r.Request.Done }

// next is when something is due.
func (r *Readback) next() time.Time {
	var next time.Time
	for _, a := range []*Asked{&r.Complete, &r.Gate, &r.Request} {
		if !a.Done && (next.IsZero() || a.NextAt.Before(next)) {
			next = a.NextAt
		}
	}
	return next
}

// Readbacks keeps Readbacks durably beside the checkpoint (capture/checkpoint). Safe for concurrent use.
type Readbacks interface {
	// Load returns up to most of what is kept; more says that there are others.
	Load(ctx context.Context, most int) (list []Readback, more bool, err error)
	// Save returns when all of them are durable, each in the place of the one before of its case. Those of which nothing is left to ask are forgotten.
	Save(ctx context.Context, list []Readback) error
}

// Finished reports whether nothing is left to ask, so that a Readbacks may forget it.
func (r *Readback) Finished() bool { return r.done() }

// SQLForm is how the source's server writes SQL.
type SQLForm uint8

// The forms.
const (
	PostgresSQL SQLForm = iota // "name", $1
	MySQLSQL                   // `name`, ?
)

// ErasedTable is what should be gone from one table of the source once a subject is erased there.
type ErasedTable struct {
	Name    string
	Subject []string // columns of the CRM key
	Columns []string // should be NULL, empty or one of Values
	Values  []string
	Row     bool           // the row itself should be gone
	State   map[string]any // column: what the procedure sets it to (string, int64, float64, bool or nil)
}

// GateCheck is a condition in SQL that has to hold before phase 2; $1, $2, … stand for the columns of the CRM key.
type GateCheck struct {
	Name string
	SQL  string
}

// RequestTable is where the CRM notes that somebody asked.
type RequestTable struct {
	Name    string
	Subject []string // columns of the CRM key
	Columns []string // that Read wants, in this order
	// Read tells whether a row is a request, and when it was received.
	Read func(t *Table, row []Value) (asked bool, receivedAt time.Time, err error)
}

// ReadbackOptions are what a Pipeline needs to ask the source about cases.
type ReadbackOptions struct {
	// Readbacks; nil: nothing is asked, and neither is it of a Source that is no Snapshotter.
	Readbacks Readbacks
	// Encoder is used for reports alone, beside that of the stream.
	Encoder Encoder
	Seal    schema.AEAD // hides the subjects' keys
	SQL     SQLForm

	Tables []ErasedTable
	// Window is how long after its opening a case is read back where no marker comes first; default 15 min.
	Window time.Duration

	Request *RequestTable // nil: not looked for
	Checks  []GateCheck
	// Gated: the gate is asked, for its Checks and for the Request. Enforced: what it says decides.
	Gated, Enforced bool
	// CoolOff is how long after its opening the gate is asked again: the longest of the replicas that wait for it.
	CoolOff time.Duration

	// Every is the time between two questions that are answered no; default 1 h. An incomplete erasure and a missing request are asked for sooner at
	// first.
	Every time.Duration
	// Within bounds one question; default 10 s.
	Within time.Duration
	// Pause is the least time between two cases; default 20 ms.
	Pause time.Duration
	// Most is how many cases are held in memory; default 50,000. Others wait in Readbacks.
	Most int
}

func (o *ReadbackOptions) validate() error {
	if o.Readbacks == nil {
		return nil
	}
	for _, part := range []struct {
		name    string
		missing bool
	}{{"Encoder", o.Encoder == nil}, {"Seal", o.Seal == nil}} {
		if part.missing {
			return fmt.Errorf("making the capture pipeline: Readback.%s is missing", part.name)
		}
	}
	setDefault(&o.Window, 15*time.Minute)
	setDefault(&o.Every, time.Hour)
	setDefault(&o.Within, 10*time.Second)
	setDefault(&o.Pause, 20*time.Millisecond)
	if o.Most <= 0 {
		o.Most = 50_000
	}
	return nil
}

// The words of a report's Missing that are no column and no check of the config.
const (
	// CheckRequest is the check that fails where somebody was erased without a request on file.
	CheckRequest = "request"
	// CheckError stands beside the checks that could not be asked: a gate that cannot be asked holds.
	CheckError = "gate_error"
	// unreadable goes before the name of a table that could not be read back.
	unreadable = "unreadable:"
)

// GateDecider is CaseDecision.DecidedBy of what the gate says. No person decides under this name.
const GateDecider = "gate"

// errNotYet says that the stream has not come to the commit that opened a case: it is read again after a crash.
var errNotYet = errors.New("the stream has not come to the case yet")
