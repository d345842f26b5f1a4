// Package rules says which row change means which event. Rules are pure: they see the row and the commit time, never the
// clock, and do no I/O. So the same change gives the same drafts after every restart, which is what keeps event ids the
// same.
//
// The mapping of the config is compiled twice: New checks what can be known without the database (expressions, names of
// states), and the first change of a table binds its rules to the table's shape. Nearly every change of a busy CRM means
// nothing; the way such a change takes through Apply does not allocate.
package rules

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lethe/capture"
	"lethe/config"
	"lethe/schema"
)

// Draft is what a rule made of a change; the Pipeline adds identifiers, order and sealing.
type Draft = capture.Draft

// The names of the rules. They are part of every event id and must never change: a renamed rule would tell all its
// events a second time. No two rules make an event of one name from one change.
const (
	RuleErasedWhen     = "erased.when"
	RuleErasedMarker   = "erased.marker"
	RuleErasedDelete   = "erased.delete"
	RuleRestricted     = "restricted"
	RuleObjection      = "objection"
	RuleConsent        = "consent"
	RuleConsentMoved   = "consent.moved"  // the scope that a row left by an UPDATE
	RuleConsentDelete  = "consent.delete" // the scope of a deleted row
	RuleContactPoint   = "contact_point"
	RuleContactMoved   = "contact_point.moved"  // the subject or key that a row left by an UPDATE
	RuleContactDelete  = "contact_point.delete" // a row that is gone
	RuleIdentity       = "identity"
	RuleIdentityMoved  = "identity.moved"
	RuleIdentityDelete = "identity.delete"
	RuleMerged         = "merged"
	RulePresent        = "present" // of a pass: the subject's own row is there
	RuleTruncate       = "truncate"
	RuleHeartbeat      = "heartbeat"
)

// Options of an Engine.
type Options struct {
	// Registerer gets the metric lethe_rule_notices_total{kind,table}; nil: no metrics.
	Registerer prometheus.Registerer
	// Match makes the match keys of contact points and identities; nil: they have none, for commands that only check a mapping.
	Match KeyMaker
}

// Engine applies the rules of one source. It implements capture.Ruler: Apply and Bind belong to one goroutine, Notices
// may be called from any.
type Engine struct {
	plans map[string]*plan // by table name
	// bound holds the shape that is in force of each table; shapes that were replaced are dropped, so it stays as small
	// as the config.
	bound   map[*capture.Table]*binding
	current map[string]*capture.Table
	// contactKeys are the columns of contact references by table: the stream and a pass have to agree on them.
	contactKeys *contactKeys
	seed        maphash.Seed // of the states that the rules hash for the memory

	last    *binding // of the change before: changes come in runs of one table
	notices *notices
	memory  memory

	x         row
	gap       schema.Gap
	heartbeat schema.Heartbeat
	report    schema.SourceReport
}

var _ capture.Ruler = (*Engine)(nil)

// New compiles the mapping of a source as far as that needs no database. The error joins one *CompileError for every
// fault, so that an operator sees them all at once.
func New(cfg *config.Source, opts Options) (*Engine, error) {
	match := opts.Match
	if match == nil {
		match = keyless{}
	}
	plans, err := compile(cfg, match)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		plans:       plans,
		bound:       make(map[*capture.Table]*binding, len(plans)),
		current:     make(map[string]*capture.Table, len(plans)),
		contactKeys: &contactKeys{columns: make(map[string][]string)}, seed: maphash.MakeSeed(), notices: &notices{},
	}
	e.notices.init(plans)
	if opts.Registerer != nil {
		if err := opts.Registerer.Register(e.notices); err != nil {
			return nil, fmt.Errorf("registering the metrics of the rules: %w", err)
		}
	}
	return e, nil
}

// contactKeys are shared by an Engine and those beside it.
type contactKeys struct {
	mu      sync.Mutex
	columns map[string][]string // by table
}

// Beside returns an Engine of the same rules for another goroutine: it reads the tables, while e reads the log. It has shapes and
// a memory of its own; what either notices is counted in one place.
func (e *Engine) Beside() *Engine {
	return &Engine{
		plans: e.plans, notices: e.notices, contactKeys: e.contactKeys, seed: e.seed,
		bound: make(map[*capture.Table]*binding, len(e.plans)), current: make(map[string]*capture.Table, len(e.plans)),
	}
}

// Bind binds the rules of a table to its shape now instead of at its first change; a table that no rule reads is no
// error. The errors are *ColumnError and *CompileError, joined. A command that checks a mapping calls it with tables
// made from the catalog.
func (e *Engine) Bind(t *capture.Table) error {
	_, err := e.bind(t)
	return err
}

// Begin is called before a source is read, at first or again: what the log said before may not have been published.
func (e *Engine) Begin() { e.memory.forget() }

// bind returns nil for a table that no rule reads.
func (e *Engine) bind(t *capture.Table) (*binding, error) {
	if b := e.bound[t]; b != nil {
		return b, nil
	}
	p := e.plans[t.Name]
	if p == nil {
		return nil, nil
	}
	b, err := newBinding(p, t)
	if err != nil {
		return nil, err
	}
	if err := e.sameContactKey(t.Name, b); err != nil {
		return nil, err
	}
	if old := e.current[t.Name]; old != nil {
		delete(e.bound, old)
	}
	e.current[t.Name], e.bound[t] = t, b
	return b, nil
}

// sameContactKey refuses a shape that would give the rows of a table other references than the shape before: what is known of them would be known
// of others from then on.
func (e *Engine) sameContactKey(table string, b *binding) error {
	if b.contactKey == nil {
		return nil
	}
	e.contactKeys.mu.Lock()
	defer e.contactKeys.mu.Unlock()
	if known := e.contactKeys.columns[table]; known != nil && !slices.Equal(known, b.contactKey) {
		return &ColumnError{
			Path: "source.tables." + table + ".contact_point.key", Table: table, Column: strings.Join(b.contactKey, ", "),
			Reason: "would be the key now, and was " + strings.Join(known, ", ") + " before: the log's identity of the table changed, or is not its primary key",
			Hint:   "write key: the column by which consents refer to these rows, else their primary key",
		}
	}
	e.contactKeys.columns[table] = b.contactKey
	return nil
}

// Apply appends to out the drafts of one change and returns the extended slice. What a Draft points to is valid until
// the next call. Its errors are permanent: *UnmappedError, *ValueError, *UnavailableError, *ColumnError and
// *CompileError all say that this change cannot be understood with this mapping, and the same change gives them again.
func (e *Engine) Apply(tx *capture.Transaction, c *capture.Change, out []Draft) ([]Draft, error) {
	if c.Op == capture.OpMessage {
		return e.message(tx, c, out), nil
	}
	if c.Table == nil {
		return out, errors.New("applying rules: the change names no table")
	}
	if c.Op == capture.OpTruncate {
		return e.truncate(c, out), nil
	}
	b := e.last
	if b == nil || b.table != c.Table {
		var err error
		if b, err = e.bind(c.Table); err != nil || b == nil {
			return out, err
		}
		e.last = b
	}
	rules := b.rulesOf(c.Op)
	shows := c.Op == capture.OpRead && b.own
	if len(rules) == 0 && !shows {
		return out, nil
	}
	x := &e.x
	if err := x.reset(e, b, tx, c); err != nil {
		return out, err
	}
	given := len(out)
	for _, r := range rules {
		var err error
		if out, err = r.apply(x, out); err != nil {
			// Half of a change must not be published: with the rest it would get other ids after the fault is mended.
			return out[:given], err
		}
	}
	if shows && len(out) == given {
		// Whom a pass does not show is taken for absent, so it has to show everybody.
		e.report = schema.SourceReport{Aspect: schema.AspectPresent, Satisfied: true, CheckedAt: tx.CommittedAt}
		return x.draft(out, RulePresent, after, &e.report)
	}
	return out, nil
}

// truncate opens a gap: the log does not say whose rows are gone, and a TRUNCATE is never an erasure. The Pipeline names
// the gap. A shape that cannot be bound is no reason to keep silent about it.
func (e *Engine) truncate(c *capture.Change, out []Draft) []Draft {
	if e.plans[c.Table.Name] == nil {
		return out
	}
	if c.Lost != "" {
		e.gap = schema.Gap{Opened: true, Cause: c.Lost}
		return append(out, Draft{Rule: "gap." + c.Lost, Body: &e.gap})
	}
	e.gap = schema.Gap{Opened: true, Cause: capture.GapTruncate}
	return append(out, Draft{Rule: RuleTruncate, Body: &e.gap})
}

// heartbeatSkew is how far the clock that made a heartbeat may be from the source's.
const heartbeatSkew = 24 * time.Hour

// message reads a heartbeat. Its content is the time of sending in milliseconds since 1970, in decimal. Every user of the
// database may write a message under our prefix: one that is no heartbeat is counted, and is no reason to stop.
func (e *Engine) message(tx *capture.Transaction, c *capture.Change, out []Draft) []Draft {
	ms, err := strconv.ParseInt(string(c.Message), 10, 64)
	at := time.UnixMilli(ms).UTC()
	if err != nil || ms <= 0 || at.Sub(tx.CommittedAt).Abs() > heartbeatSkew {
		e.notices.messages.Add(1)
		return out
	}
	e.heartbeat.EmittedAt = at
	return append(out, Draft{Rule: RuleHeartbeat, Body: &e.heartbeat})
}
