package rules

import (
	"bytes"
	"slices"

	"lethe/config"
	"lethe/schema"
)

// mergedSpec says which rows join two subjects of the CRM.
type mergedSpec struct {
	path string
	cfg  *config.Merged
	when *expression // nil: every row with both keys
}

func (p *planner) merged(path string, m *config.Merged) *mergedSpec {
	s := &mergedSpec{path: path + ".merged", cfg: m}
	if m.When != "" {
		s.when = p.expression(s.path+".when", m.When)
	}
	if len(m.Survivor) != len(p.cfg.Subject.Key) || len(m.Absorbed) != len(p.cfg.Subject.Key) {
		p.fault(s.path, "has other than as many columns as source.subject.key in survivor and absorbed", "name one column for each column of the key, in the same order")
	}
	return s
}

func (s *mergedSpec) needs(n *TableNeeds) {
	n.reads(s.when)
	n.Columns = append(append(n.Columns, s.cfg.Survivor...), s.cfg.Absorbed...)
}

// compares names what spares events where it is in the replica identity.
func (s *mergedSpec) compares() []string {
	return slices.Concat(s.when.comparable(), s.cfg.Survivor, s.cfg.Absorbed)
}

func (s *mergedSpec) bind(b *binder) rule {
	r := &mergedRule{survivor: b.columns(s.path+".survivor", s.cfg.Survivor), absorbed: b.columns(s.path+".absorbed", s.cfg.Absorbed)}
	r.pair = slices.Concat(r.survivor, r.absorbed)
	if s.when != nil {
		r.when = b.predicate(s.when)
	}
	return r
}

// mergedRule says that a subject was joined into another. A join that is undone takes nothing back: what the two were told to be alike stays the
// stricter of both, and a person has to look.
type mergedRule struct {
	survivor, absorbed, pair []int
	when                     *predicate // nil: always
	body                     schema.SubjectMerged
	keys                     [1][]byte
}

func (*mergedRule) ops() ops { return ops{insert: true, update: true} }

func (r *mergedRule) apply(x *row, out []Draft) ([]Draft, error) {
	if !x.isNew() && x.same(r.pair) && (r.when == nil || r.when.unchanged(x)) {
		return out, nil
	}
	survivor, absorbed, err := r.joined(x, after)
	if err != nil {
		return out, err
	}
	told := x.isNew()
	if !told && x.knownBefore(r.pair) && (r.when == nil || !r.when.readsOld() && x.knownBefore(r.when.columns)) {
		told = true
		was, gone, err := r.joined(x, before)
		if err != nil || bytes.Equal(was, survivor) && bytes.Equal(gone, absorbed) {
			return out, err
		}
		if was != nil {
			x.notice(NoticeMergeUndone)
		}
	}
	if survivor == nil {
		return out, nil
	}
	if known := x.engine.memory.know(RuleMerged, x.append(survivor, absorbed), 1); known && !told {
		return out, nil
	}
	pk, err := x.identity()
	if err != nil {
		return out, err
	}
	if pk == nil {
		pk = survivor
	}
	r.keys[0] = absorbed
	return append(out, Draft{Rule: RuleMerged, PK: pk, SubjectKey: survivor, Absorbed: r.keys[:], Body: &r.body}), nil
}

// joined returns the two keys of an image; nil where it joins nobody.
func (r *mergedRule) joined(x *row, img image) (survivor, absorbed []byte, err error) {
	if r.when != nil {
		if held, err := r.when.holds(x, img); err != nil || !held {
			return nil, nil, err
		}
	}
	if survivor, err = x.key(r.survivor, img); err != nil || survivor == nil {
		return nil, nil, err
	}
	if absorbed, err = x.key(r.absorbed, img); err != nil || absorbed == nil || bytes.Equal(absorbed, survivor) {
		return nil, nil, err
	}
	return survivor, absorbed, nil
}
