package rules

import (
	"lethe/capture"
	"lethe/schema"
)

// erasedSpec is erased.when or erased.marker (GDPR Art. 17).
type erasedSpec struct {
	name string
	when *expression
	body schema.SubjectErasure
}

func (s *erasedSpec) needs(n *TableNeeds) { n.reads(s.when) }
func (s *erasedSpec) compares() []string  { return s.when.comparable() }

func (s *erasedSpec) bind(b *binder) rule {
	return &erasedRule{name: s.name, when: b.predicate(s.when), body: s.body}
}

// comparable returns the columns whose old values spare events; an expression that reads old.x has what it needs.
func (e *expression) comparable() []string {
	if e == nil || len(e.old) > 0 {
		return nil
	}
	return e.columns
}

// erasedRule makes an erasure of a row that becomes one of an erased subject. Where the old image is unknown, every
// UPDATE of such a row says so again: further markers of a known case are no-ops in the sinks.
type erasedRule struct {
	name string
	when *predicate
	body schema.SubjectErasure // the same for every subject
}

func (*erasedRule) ops() ops { return ops{insert: true, update: true} }

func (r *erasedRule) apply(x *row, out []Draft) ([]Draft, error) {
	if !x.arrived && r.when.unchanged(x) {
		return out, nil
	}
	if held, err := r.when.holds(x, after); err != nil || !held {
		return out, err
	}
	if !x.arrived {
		if held, known, err := r.when.was(x); err != nil || known && held {
			return out, err
		}
	}
	return x.draft(out, r.name, after, &r.body)
}

// deletedSpec is source.subject.on_delete.
type deletedSpec struct {
	key   []string
	alert bool
	body  schema.SubjectErasure
}

func (s *deletedSpec) needs(n *TableNeeds) {
	n.OldColumns = append(n.OldColumns, s.key...)
	n.ReadsDelete = true
}

func (s *deletedSpec) bind(b *binder) rule {
	for _, column := range s.key {
		b.old("source.subject.on_delete", column)
	}
	return &deletedRule{alert: s.alert, body: s.body}
}

// deletedRule takes the deletion of a subject's row for an erasure, or only counts it.
type deletedRule struct {
	alert bool
	body  schema.SubjectErasure
}

func (*deletedRule) ops() ops { return ops{delete: true} }

func (r *deletedRule) apply(x *row, out []Draft) ([]Draft, error) {
	if r.alert {
		x.notice(NoticeDeletedSubject)
		return out, nil
	}
	return x.draft(out, RuleErasedDelete, before, &r.body)
}

// keyChangeSpec watches the subject's own table for new CRM keys.
type keyChangeSpec struct{}

func (keyChangeSpec) needs(*TableNeeds) {}
func (keyChangeSpec) bind(*binder) rule { return keyChangeRule{} }

// keyChangeRule notices that a subject got another CRM key. No event says so: it is neither an erasure nor a merger, but
// copies that hold the old key are out of reach from then on.
type keyChangeRule struct{}

func (keyChangeRule) ops() ops { return ops{update: true} }

func (keyChangeRule) apply(x *row, out []Draft) ([]Draft, error) {
	if x.c.Op == capture.OpUpdate && x.arrived {
		x.notice(NoticeSubjectKeyChanged)
	}
	return out, nil
}
