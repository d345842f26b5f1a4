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
	Doubts    []*Target         // rows found while reading back that a person has to decide about
	Held      []schema.Residual // what verification found to be held, and until when

	Burst    int // cases opened within the breaker's window around this one
	Released bool
	Snapshot bool
}

// CaseWork is what phase 2 leaves for verification: which persons the subject was found as. It holds the replica's own
// keys, and goes when the case is verified.
type CaseWork struct {
	Persons []string `json:"persons,omitempty"` // person.key in text form
	Method  string   `json:"method,omitempty"`  // how they were found, where not by the CRM key
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

	// In a replica that finds persons by match keys, where every case of the subject is looked at:
	State    string
	Matched  bool // a row was certain when it was last looked at, and phase 1 done
	Code     string
	Attempts int
	Undo     []UndoEntry
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

// Residuals says where bytes of what was erased at a time may still lie, and until when.
func Residuals(cfg *config.Replica, at time.Time) []schema.Residual {
	var out []schema.Residual
	for _, kind := range slices.Sorted(maps.Keys(cfg.Residuals)) {
		out = append(out, schema.Residual{Kind: kind, Until: cfg.Residuals[kind].After(at)})
	}
	return out
}

// Trips reports whether the breaker keeps a due case waiting for a release: it is one of a burst or of a pass.
func (x *OpenedCase) Trips(cfg *config.Replica) bool {
	return !x.Released && (x.Snapshot || x.Burst > cfg.Breaker.NewCases)
}

// Lost reports whether a case that phase 2 has run for counts as one without a row, which is looked up again. A subject that
// has lost its row since phase 1 does; one whose phase 2 has run before does not, because phase 2 may have deleted it: the
// read-back says whether anything is left. Where phase 2 takes the CRM key it cannot say so, because nobody can tell a row
// that is gone from one that has lost its key.
func (x *OpenedCase) Lost(crmErased bool) bool {
	return !x.Subject.Effect.Found() && (!x.Erased || crmErased)
}

// Failed counts an attempt of a case that did not succeed; suppressed says that phase 2 did not run. over says that it was
// the last of its round: the case is failed, and stays suppressed until a release. Else it is tried again after pause.
func (c *Core) Failed(x *OpenedCase, suppressed bool) (pause time.Duration, over bool) {
	pause = c.RecheckFirst * time.Duration((max(x.Attempts, 1)-1)%MaxAttempts)
	if suppressed {
		x.Attempts++
	}
	return pause, x.Attempts%MaxAttempts == 0
}

// Postponed says why a case of which nothing was found is not called verified yet, and how long it is left alone; 0: it is.
func Postponed(now Standing, unmapped []string) (wait, code string, pause time.Duration) {
	switch reason := now.Waits(); {
	case reason != "":
		return WaitGap, reason, GapRecheck
	case len(unmapped) > 0:
		return WaitNone, ReasonUnmapped, UnmappedRecheck
	}
	return "", "", 0
}

// PersonKeys are the replica's keys of some persons (person.key in text form), each with the place of the case or subject
// that it belongs to.
type PersonKeys struct {
	Places []int32
	Keys   []string
}

// Add adds a key, unless it is there already.
func (p *PersonKeys) Add(place int, key string) {
	for i, k := range p.Keys {
		if k == key && int(p.Places[i]) == place {
			return
		}
	}
	p.Places, p.Keys = append(p.Places, int32(place)), append(p.Keys, key) //nolint:gosec // at most VerifyLimit
}
