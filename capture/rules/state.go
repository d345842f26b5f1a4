package rules

import (
	"time"

	"lethe/capture"
	"lethe/schema"
)

// objectionSpec is an objection under GDPR Art. 21.
type objectionSpec struct {
	when  *expression
	scope string
	own   bool // the table is that of the subjects
	// contact is the contact point that the rows are, where they are some; nil in the table of the subjects: there it is said of
	// the person.
	contact *contactSpec
}

func (s *objectionSpec) needs(n *TableNeeds) { n.reads(s.when) }
func (s *objectionSpec) compares() []string  { return s.when.comparable() }

func (s *objectionSpec) bind(b *binder) rule {
	r := &objectionRule{when: b.predicate(s.when), scope: s.scope, own: s.own, contact: s.contact, remember: RuleObjection + ":" + s.scope}
	if s.contact != nil {
		r.key = b.contactColumns(s.contact)
	}
	return r
}

// objectionRule says raised or lifted when that changes. A row that is new to its subject only ever raises: without an
// objection there is nothing to lift. Where the log does not tell the old value (replica identity without the column),
// each UPDATE sends the present state, because the one change that matters cannot be told from the others; unless this
// run has read the same state of that subject before (see memory).
type objectionRule struct {
	when     *predicate
	scope    string
	own      bool
	contact  *contactSpec // nil: it is said of the person
	key      []int        // of contact
	remember string       // objections of other scopes, from whatever table, are other states
	body     schema.Objection
}

func (*objectionRule) ops() ops { return ops{insert: true, update: true} }

func (r *objectionRule) apply(x *row, out []Draft) ([]Draft, error) {
	if !x.arrived && r.when.unchanged(x) {
		return out, nil
	}
	raised, err := r.when.holds(x, after)
	if err != nil {
		return out, err
	}
	told := x.arrived
	if !x.arrived {
		var held bool
		if held, told, err = r.when.was(x); err != nil || told && held == raised {
			return out, err
		}
	}
	state := uint64(0)
	if raised {
		state = 1
	}
	r.body = schema.Objection{Raised: raised, Scope: r.scope}
	news := news{rule: RuleObjection, remember: r.remember, state: state, told: told, silent: x.silent(raised, r.own), own: r.own}
	if r.contact != nil {
		if news.row, err = x.key(r.key, after); err != nil {
			return out, err
		}
	}
	given := len(out)
	if out, err = x.restate(out, &r.body, news); err == nil && len(out) > given && news.row != nil {
		out[given].ContactTable, out[given].ContactPK = r.contact.table, news.row
	}
	return out, err
}

// restrictedSpec is a restriction under GDPR Art. 18.
type restrictedSpec struct {
	when      *expression // nil: none
	until     string      // column; empty: none
	untilPath string
	own       bool // the table is that of the subjects
}

func (s *restrictedSpec) needs(n *TableNeeds) {
	n.reads(s.when)
	if s.until != "" {
		n.Columns = append(n.Columns, s.until)
	}
}

func (s *restrictedSpec) compares() []string {
	columns := append([]string(nil), s.when.comparable()...)
	if s.until != "" {
		columns = append(columns, s.until)
	}
	return columns
}

func (s *restrictedSpec) bind(b *binder) rule {
	r := &restrictedRule{own: s.own}
	if s.when != nil {
		r.when = b.predicate(s.when)
	}
	if s.until != "" {
		r.until = append(r.until, b.date(s.untilPath, s.until))
	}
	return r
}

// restrictedRule says imposed or lifted when that, or the end, changes; for unknown old values see objectionRule. Either
// of when and until restricts: a person of whom one column says "restricted" is.
type restrictedRule struct {
	when  *predicate
	until []int // none or one column
	own   bool
	body  schema.ProcessingRestriction
}

func (*restrictedRule) ops() ops { return ops{insert: true, update: true} }

func (r *restrictedRule) apply(x *row, out []Draft) ([]Draft, error) {
	if !x.arrived && (r.when == nil || r.when.unchanged(x)) && x.same(r.until) {
		return out, nil
	}
	is, err := r.state(x, after)
	if err != nil {
		return out, err
	}
	told := x.arrived
	if !x.arrived && r.known(x) {
		told = true
		was, err := r.state(x, before)
		if err != nil || was.Imposed == is.Imposed && was.Until.Equal(is.Until) {
			return out, err
		}
	}
	r.body = is
	return x.restate(out, &r.body, news{
		rule: RuleRestricted, remember: RuleRestricted, state: restrictionState(&is), told: told, silent: x.silent(is.Imposed, r.own), own: r.own,
	})
}

// restrictionState tells restrictions apart for the memory. Until is zero, or a time in microseconds as PostgreSQL has it.
func restrictionState(s *schema.ProcessingRestriction) uint64 {
	switch {
	case !s.Imposed:
		return 0
	case s.Until.IsZero():
		return 1
	}
	return uint64(s.Until.UnixMicro())<<1 | 1<<63
}

// news is what a row says of its subject's state.
type news struct {
	rule     string
	remember string // what the memory keeps the state under: the rule and its scope
	state    uint64
	told     bool   // the log tells the old state, and it was another one
	silent   bool   // a new row with nothing to say
	own      bool   // the row is the subject's own
	row      []byte // key of the row, where a subject has several that each have a state; nil: the subject has one
}

// silent reports whether a new row has nothing to say, because it raises nothing and so has nothing to lift. The subject's
// own row in a pass does lift: what the log lacked is made good by it. Another row in a pass never does, because a second row
// of the same subject may have raised.
func (x *row) silent(raised, own bool) bool {
	return x.arrived && !raised && (x.c.Op != capture.OpRead || !own)
}

// restate drafts the present state of the row's subject. It is left away where there is nothing to say, and where the old
// value is not told by the log but known from earlier in this run to be the same. A new row that says nothing is
// remembered only where it makes the subject new: elsewhere another row of the same subject may have said something.
func (x *row) restate(out []Draft, body schema.Body, n news) ([]Draft, error) {
	if n.silent && !n.own {
		return out, nil
	}
	given := len(out)
	out, err := x.draft(out, n.rule, after, body)
	if err != nil || len(out) == given {
		return out, err
	}
	whose := out[given].SubjectKey
	if n.row != nil {
		whose = x.append(whose, n.row)
	}
	if n.silent {
		x.engine.memory.arrive(n.remember, whose, n.state)
		return out[:given], nil
	}
	if known := x.engine.memory.know(n.remember, whose, n.state); known && !n.told {
		return out[:given], nil
	}
	return out, nil
}

// known reports whether the old image tells the state as it was.
func (r *restrictedRule) known(x *row) bool {
	return x.knownBefore(r.until) && (r.when == nil || !r.when.readsOld() && x.knownBefore(r.when.columns))
}

func (r *restrictedRule) state(x *row, img image) (s schema.ProcessingRestriction, err error) {
	if r.when != nil {
		if s.Imposed, err = r.when.holds(x, img); err != nil {
			return s, err
		}
	}
	for _, col := range r.until {
		v, err := x.value(col, img)
		if err != nil || v.State == capture.Null {
			return s, err
		}
		s.Imposed = true
		// A restriction until a day holds on that day too; for a consent the day would be the first one without it.
		if s.Until, err = x.end(col, v.Text, 24*time.Hour); err != nil {
			return s, err
		}
	}
	return s, nil
}

// end reads the end of a period; the zero Time is none. A date without time ends it after the given part of that day.
func (x *row) end(col int, text []byte, ofDay time.Duration) (time.Time, error) {
	t, infinite, err := parseTime(text)
	switch {
	case err == nil && infinite > 0:
		return time.Time{}, nil
	case err == nil && infinite < 0:
		err = errInfinite
	}
	if err != nil {
		return time.Time{}, &ValueError{Table: x.b.table.Name, Column: x.b.table.Columns[col].Name, Reason: err.Error()}
	}
	if x.b.kinds[col] == kindDate {
		t = t.Add(ofDay)
	}
	return t, nil
}
