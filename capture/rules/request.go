package rules

import (
	"slices"
	"time"

	"lethe/capture"
	"lethe/config"
)

// Requests reads the rows in which the CRM notes that somebody asked (source.request). It sees rows that were asked for, not
// the log, and belongs to one goroutine.
type Requests struct {
	plan  *plan
	when  *expression
	at    string
	shape *capture.Table
	b     *binding
	rule  *requestRule
	x     row
}

// NewRequests compiles the condition.
func NewRequests(cfg *config.Request) (*Requests, error) {
	when, err := parseExpression("source.request.when", cfg.When)
	if err != nil {
		return nil, err
	}
	r := &Requests{when: when, at: cfg.ReceivedAt}
	r.plan = &plan{rules: []spec{requestSpec{r}}}
	return r, nil
}

// Columns are those that Read wants, in this order.
func (r *Requests) Columns() []string {
	return distinct(append(slices.Clone(r.when.columns), r.at))
}

// Read tells whether a row is a request, and when it was received. t has Columns.
func (r *Requests) Read(t *capture.Table, values []capture.Value) (asked bool, receivedAt time.Time, err error) {
	if r.shape == nil || !slices.Equal(r.shape.Columns, t.Columns) {
		b, err := newBinding(r.plan, t)
		if err != nil {
			return false, receivedAt, err
		}
		r.shape, r.b = t, b
	}
	c := capture.Change{Op: capture.OpRead, Table: r.shape, New: values}
	if err := r.x.reset(nil, r.b, &capture.Transaction{}, &c); err != nil {
		return false, receivedAt, err
	}
	if asked, err = r.rule.when.holds(&r.x, after); err != nil || !asked {
		return false, receivedAt, err
	}
	v, err := r.x.value(r.rule.at, after)
	if err != nil || v.State == capture.Null {
		return true, receivedAt, err
	}
	receivedAt, infinite, err := parseTime(v.Text)
	if err == nil && infinite != 0 {
		err = errInfinite
	}
	if err != nil {
		return false, receivedAt, &ValueError{Table: t.Name, Column: r.at, Reason: err.Error()}
	}
	return true, receivedAt, nil
}

// requestSpec binds a Requests to the shape of its table.
type requestSpec struct{ of *Requests }

func (s requestSpec) needs(*TableNeeds) {}

func (s requestSpec) bind(b *binder) rule {
	s.of.rule = &requestRule{when: b.predicate(s.of.when), at: b.date("source.request.received_at", s.of.at)}
	return s.of.rule
}

// requestRule is asked by Requests.Read alone.
type requestRule struct {
	when *predicate
	at   int
}

func (*requestRule) ops() ops                                   { return ops{} }
func (*requestRule) apply(_ *row, out []Draft) ([]Draft, error) { return out, nil }
