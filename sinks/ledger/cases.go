package ledger

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"lethe/config"
	"lethe/schema"
)

// MaxAttempts is how often phase 2 is run before the case is failed and left to a person. Attempts are never counted from
// the start again, because a receipt's id holds the attempt: the proof of a second round (after a release, a restore, a
// larger mapping) would have the id of the first, and be dropped. A round ends at each multiple of MaxAttempts, and the
// next one starts from (attempts + 2) / 3 * 3.
const MaxAttempts = 3

// The sizes of the chores' transactions: each holds the rows of its partitions meanwhile, and so holds up the batches.
const (
	DueLimit    = 500 // subjects whose fold or row is looked at again
	Phase2Limit = 100 // cases: rows that hang on them are locked
	VerifyLimit = 100 // cases or events of one read-back
	DecideLimit = 100 // decisions
	ParkedLimit = 50  // parked events that one call works through
	ResealLimit = 500 // sealed keys
)

// How soon the chores come back to what only a person can bring further, or what is looked at again and again.
const (
	GapRecheck      = time.Minute
	UnmappedRecheck = time.Hour
	PausedRetry     = 5 * time.Second
	WitnessEvery    = 10 * time.Second
	ResealEvery     = time.Hour // a key is rotated once in months, and the processes restart for it
	MappingAge      = time.Minute
)

// The defaults of an operator's settings.
const (
	DefaultRecheckFirst = time.Minute
	DefaultRecheckLater = time.Hour
	defaultRecheckDays  = 90
)

// OpenedCase is a row of the table pending while a transaction works on it.
type OpenedCase struct {
	Ref       Ref
	Event     schema.EventID
	ID        schema.CaseID
	Part      int32
	Attempts  int
	Committed time.Time
	Digest    [32]byte
	Work      CaseWork
	Erased    bool // phase 2 has run once: what it destroyed does not come back by a decision
	Subject   *Subject
	Held      []schema.Residual // what verification found to be held, and until when

	Burst    int // cases opened within the breaker's window around this one
	Released bool
	Snapshot bool
}

// CaseWork is what phase 2 leaves for verification: which persons the subject was found as. It holds the replica's own
// keys, and goes when the case is verified.
type CaseWork struct {
	Persons []string `json:"persons,omitempty"` // person.key in text form
}

// Encode returns the JSON of the work; nil where there is none.
func (w CaseWork) Encode() ([]byte, error) {
	if len(w.Persons) == 0 {
		return nil, nil
	}
	return json.Marshal(w)
}

// OpenCase is an erasure whose phase 1 is still to be done, because its subject had no row or the mode was observe.
type OpenCase struct {
	Event     schema.EventID
	CaseID    schema.CaseID
	Committed time.Time
	Digest    [32]byte
}

// Followed is an objection or restriction that took effect and is to be read back.
type Followed struct {
	Event     schema.EventID
	Ref       Ref
	Part      int32
	Kind      schema.Type
	Committed time.Time
	Digest    [32]byte
	Attempts  int
	Subject   *Subject
}

// RefsOf lists the references of some cases.
func RefsOf(cases []*OpenedCase) [][]byte {
	out := make([][]byte, len(cases))
	for i, c := range cases {
		out[i] = c.Ref[:]
	}
	return out
}

// RecheckAgain returns when a subject that is still unmatched is looked up again; zero: no more.
func (c *Core) RecheckAgain(s *Subject, now time.Time) time.Time {
	keep := c.Config.Recheck
	if keep.IsZero() {
		keep = config.Period{Days: defaultRecheckDays}
	}
	age := now.Sub(s.UnmatchedSince)
	switch {
	case s.UnmatchedSince.IsZero():
		return now.Add(c.RecheckFirst)
	case !now.Before(keep.After(s.UnmatchedSince)):
		return time.Time{}
	case age >= time.Hour:
		return now.Add(c.RecheckLater)
	}
	return now.Add(c.RecheckFirst)
}

// RetryPause is the pause after a failed attempt of phase 2, by how many there have been.
func (c *Core) RetryPause(attempts int) time.Duration {
	return c.RecheckFirst * time.Duration((max(attempts, 1)-1)%MaxAttempts)
}

// Residuals says where bytes of what was erased at a time may still lie, and until when.
func Residuals(cfg *config.Replica, at time.Time) []schema.Residual {
	var out []schema.Residual
	for _, kind := range slices.Sorted(maps.Keys(cfg.Residuals)) {
		out = append(out, schema.Residual{Kind: kind, Until: cfg.Residuals[kind].After(at)})
	}
	return out
}
