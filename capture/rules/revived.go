package rules

import (
	"lethe/capture"
	"lethe/schema"
)

// RuleRevived reports a subject's row that leaves the erased state again.
const RuleRevived = "erased.revived"

// revivedSpec watches the condition erased.when.
type revivedSpec struct{ when *expression }

func (s *revivedSpec) needs(n *TableNeeds) { n.reads(s.when) }
func (s *revivedSpec) compares() []string  { return s.when.comparable() }

func (s *revivedSpec) bind(b *binder) rule {
	return &revivedRule{when: b.predicate(s.when), table: b.table.Name}
}

// revivedRule needs the old values: where the replica identity lacks the columns of erased.when nothing tells a row that was
// never erased from one that is not any more, and it says nothing. `lethe check` recommends the columns.
type revivedRule struct {
	when  *predicate
	table string
	body  schema.SourceReport
}

func (*revivedRule) ops() ops { return ops{update: true} }

func (r *revivedRule) apply(x *row, out []Draft) ([]Draft, error) {
	if x.c.Op != capture.OpUpdate || x.arrived || r.when.unchanged(x) {
		return out, nil
	}
	held, known, err := r.when.was(x)
	if err != nil || !known || !held {
		return out, err
	}
	if held, err = r.when.holds(x, after); err != nil || held {
		return out, err
	}
	r.body = schema.SourceReport{Aspect: schema.AspectRevived, Missing: []string{r.table}, CheckedAt: x.tx.CommittedAt}
	return x.draft(out, RuleRevived, after, &r.body)
}
