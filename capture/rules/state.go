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
}

func (s *objectionSpec) needs(n *TableNeeds) { n.reads(s.when) }
func (s *objectionSpec) compares() []string  { return s.when.comparable() }

func (s *objectionSpec) bind(b *binder) rule {
	return &objectionRule{when: b.predicate(s.when), scope: s.scope}
}

// objectionRule says raised or lifted when that changes. A row that is new to its subject only ever raises: without an
// objection there is nothing to lift. Where the log does not tell the old value (replica identity without the column),
// each UPDATE sends the present state, because the one change that matters cannot be told from the others.
type objectionRule struct {
	when  *predicate
	scope string
	body  schema.Objection
}

func (*objectionRule) ops() ops { return ops{insert: true, update: true} }

func (r *objectionRule) apply(x *row, out []Draft) ([]Draft, error) {
	if !x.arrived && r.when.unchanged(x) {
		return out, nil
	}
	raised, err := r.when.holds(x, after)
	if err != nil || x.arrived && !raised {
		return out, err
	}
	if !x.arrived {
		if held, known, err := r.when.was(x); err != nil || known && held == raised {
			return out, err
		}
	}
	r.body = schema.Objection{Raised: raised, Scope: r.scope}
	return x.draft(out, RuleObjection, after, &r.body)
}

// restrictedSpec is a restriction under GDPR Art. 18.
type restrictedSpec struct {
	when      *expression // nil: none
	until     string      // column; empty: none
	untilPath string
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
	r := &restrictedRule{}
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
	body  schema.ProcessingRestriction
}

func (*restrictedRule) ops() ops { return ops{insert: true, update: true} }

func (r *restrictedRule) apply(x *row, out []Draft) ([]Draft, error) {
	if !x.arrived && (r.when == nil || r.when.unchanged(x)) && x.same(r.until) {
		return out, nil
	}
	is, err := r.state(x, after)
	if err != nil || x.arrived && !is.Imposed {
		return out, err
	}
	if !x.arrived && r.known(x) {
		was, err := r.state(x, before)
		if err != nil || was.Imposed == is.Imposed && was.Until.Equal(is.Until) {
			return out, err
		}
	}
	r.body = is
	return x.draft(out, RuleRestricted, after, &r.body)
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
