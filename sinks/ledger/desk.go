package ledger

import (
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Case is one erasure in one replica. It names no person: the case id is keyed.
type Case struct {
	ID        schema.CaseID
	State     string // observed, suppressed, applied, verified; cancelled where only receipts tell of it
	Wait      string // none, cool_off, decision, breaker, gap, gate; held, review and no_row beat them
	Since     time.Time
	Due       time.Time // zero: not by itself; where a person has to decide about a row: until when
	Overdue   bool      // that is over
	Attempts  int
	ErrorCode string
	Receipt   string // state of the effective receipt; empty: none yet
	Run       string // the pass that found it; empty: the log told of it
	Source    SourceView
}

// RunCases are the cases that one pass has found in a replica and that wait for their release.
type RunCases struct {
	Waiting int
	Case    schema.CaseID // one of them: its release releases all; see Desk.RunCases
}

// RunningPass is a pass for a replica that has begun and not ended in every partition.
type RunningPass struct {
	RunID   string    `json:"run_id"`
	Whole   bool      `json:"whole"` // reads every mapped table
	BeganAt time.Time `json:"began_at"`
	Begun   int       `json:"begun"` // in so many partitions
	Ended   int       `json:"ended"`
}

// Gap is a hole in the source's log that a replica was told of.
type Gap struct {
	ID       string
	Cause    string
	OpenedAt time.Time
	ClosedAt time.Time // zero: open
	Known    int       // to so many partitions of the replica
	Closed   int       // in so many of them
}

// ParkedEvent is an event that a replica refused, or that waits behind one. It holds nothing personal.
type ParkedEvent struct {
	Partition int32
	Offset    int64
	EventID   schema.EventID // zero where the bytes could not be decoded
	Code      string
	Tries     int
	Want      string // replay or discard, while the partition's owner has not done it yet
	ParkedAt  time.Time
	DoneAt    time.Time // zero: still parked
	Outcome   string
}

// Status is where a replica stands, by its own tables. Nothing in it is personal.
type Status struct {
	Replica   string         `json:"replica"`
	Source    string         `json:"source"`
	Paused    bool           `json:"paused"`
	PausedBy  string         `json:"paused_by,omitempty"`
	Digest    string         `json:"mapping_digest"` // the active one
	Places    []sinks.Place  `json:"-"`
	Erasures  map[string]int `json:"erasures"`           // cases by state
	Waiting   map[string]int `json:"waiting"`            // cases that are not proven, by what they wait for: held, no_row, wait, or the error code
	Errors    map[string]int `json:"errors,omitempty"`   // cases with an error code
	Receipts  map[string]int `json:"receipts,omitempty"` // effective receipts of cases by state
	Parked    int            `json:"parked"`
	Blocked   int            `json:"blocked"`         // subjects that wait behind a parked event
	Unmatched int            `json:"unmatched"`       // subjects without a row, looked up again
	Unsent    int            `json:"unsent_receipts"` // waiting for Kafka
	Reviews   int            `json:"reviews"`         // rows of which a person has to say whether they are a subject
	Overdue   int            `json:"reviews_overdue"` // those of them that should have been decided
	OpenGaps  []string       `json:"open_gaps,omitempty"`
	// Incomplete: no whole pass has shown yet who is in the source. Where Unproven is set nothing is called verified before.
	Incomplete  bool          `json:"incomplete"`
	Unproven    bool          `json:"incomplete_unproven"`
	Absent      int           `json:"absent"` // subjects that the last whole pass did not show
	Passes      []RunningPass `json:"passes,omitempty"`
	OldestProof time.Duration `json:"-"` // age of the oldest erasure that is not proven; 0: none
	Behind      time.Duration `json:"-"` // age of the newest commit or heartbeat seen on the partition that is most behind
}

// Plan is what the two phases would do about one person in one replica: keys of the replica's own, and counts.
type Plan struct {
	Replica string     `json:"replica"`
	Mode    string     `json:"mode"`
	Found   int        `json:"found"`   // rows of the person's table
	Persons []string   `json:"persons"` // person.key of each
	Steps   []PlanStep `json:"steps"`
}

// PlanStep is one table in one phase.
type PlanStep struct {
	Phase   int      `json:"phase"`  // 1: suppress, at once and reversible; 2: erase
	Active  bool     `json:"active"` // the present mode does it; else a later one would
	Table   string   `json:"table"`
	Action  string   `json:"action"` // suppress, insert, consent, set, delete, unlink, hold
	Columns []string `json:"columns,omitempty"`
	By      string   `json:"by"` // how rows are found: the CRM key's columns, or the column that refers to person.key
	Rows    int64    `json:"rows"`
}
