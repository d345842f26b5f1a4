package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"lethe/config"
	"lethe/schema"
)

// plan is what the config says of one table, before its shape is known.
type plan struct {
	subject     []string // the columns that hold the CRM key
	subjectPath string
	own         bool // the subjects' own table
	rules       []spec
}

// spec is one rule as the config states it.
type spec interface {
	// needs adds what the rule has to find in the log.
	needs(n *TableNeeds)
	// bind finds the columns in the table's shape; it notes faults in b, after which the result is not used.
	bind(b *binder) rule
}

// planner collects the plans and every fault of the mapping.
type planner struct {
	cfg    *config.Source
	maker  KeyMaker
	plans  map[string]*plan
	faults []error
}

func compile(cfg *config.Source, maker KeyMaker) (map[string]*plan, error) {
	p := &planner{cfg: cfg, maker: maker, plans: make(map[string]*plan)}
	if cfg.Subject.Table == "" || len(cfg.Subject.Key) == 0 {
		p.fault("source.subject", "names no table or no key", "write subject: {table: schema.table, key: column, on_delete: erasure}")
		return nil, errors.Join(p.faults...)
	}
	p.erasures()
	for _, name := range slices.Sorted(maps.Keys(cfg.Tables)) {
		p.table(name, cfg.Tables[name])
	}
	if len(p.faults) > 0 {
		return nil, errors.Join(p.faults...)
	}
	return p.plans, nil
}

func (p *planner) fault(path, reason, hint string) {
	p.faults = append(p.faults, &CompileError{Path: path, Reason: reason, Hint: hint})
}

// plan returns the plan of a table, with the columns that say whose a row is.
func (p *planner) plan(table string) *plan {
	if known := p.plans[table]; known != nil {
		return known
	}
	made := &plan{subject: p.cfg.Subject.Key, subjectPath: "source.subject.key"}
	if t := p.cfg.Tables[table]; t != nil && len(t.Subject) > 0 {
		made.subject, made.subjectPath = t.Subject, "source.tables."+table+".subject"
	}
	if len(made.subject) != len(p.cfg.Subject.Key) {
		p.fault(made.subjectPath, fmt.Sprintf("has %d columns and source.subject.key has %d", len(made.subject), len(p.cfg.Subject.Key)),
			"name one column for each column of the key, in the same order")
	}
	p.plans[table] = made
	return made
}

// marker returns the plan of the marker's table, which may be mapped for other reasons too.
func (p *planner) marker(m *config.Marker) *plan {
	made := p.plan(m.Table)
	if len(m.Subject) == 0 || slices.Equal(m.Subject, made.subject) {
		return made
	}
	if p.cfg.Tables[m.Table] != nil || m.Table == p.cfg.Subject.Table {
		p.fault("source.erased.marker.subject", "names other columns than "+made.subjectPath, "a table has one owner a row; leave one of the two out")
		return made
	}
	if len(m.Subject) != len(p.cfg.Subject.Key) {
		p.fault("source.erased.marker.subject", fmt.Sprintf("has %d columns and source.subject.key has %d", len(m.Subject), len(p.cfg.Subject.Key)),
			"name one column for each column of the key, in the same order")
	}
	made.subject, made.subjectPath = m.Subject, "source.erased.marker.subject"
	return made
}

func (p *planner) expression(path, source string) *expression {
	e, err := parseExpression(path, source)
	if err != nil {
		p.faults = append(p.faults, err)
	}
	return e
}

func (p *planner) erasures() {
	phase2 := schema.Phase2Automatic
	switch p.cfg.Erased.Phase2 {
	case "", "automatic":
	case "on_decision":
		phase2 = schema.Phase2OnDecision
	default:
		p.fault("source.erased.phase2", "is neither automatic nor on_decision", "")
	}
	body := func(marker bool) schema.SubjectErasure {
		return schema.SubjectErasure{Ground: p.cfg.Erased.Ground, Phase2: phase2, Marker: marker}
	}
	subject := p.plan(p.cfg.Subject.Table)
	subject.own = true
	if p.cfg.Erased.When != "" {
		when := p.expression("source.erased.when", p.cfg.Erased.When)
		subject.rules = append(subject.rules, &erasedSpec{name: RuleErasedWhen, when: when, body: body(false)}, &revivedSpec{when: when})
	}
	if m := p.cfg.Erased.Marker; m != nil {
		marker := p.marker(m)
		marker.rules = append(marker.rules, &erasedSpec{
			name: RuleErasedMarker, when: p.expression("source.erased.marker.when", m.When), body: body(true),
		})
	}
	deleted := &deletedSpec{key: subject.subject, body: body(false)}
	switch p.cfg.Subject.OnDelete {
	case "erasure":
	case "alert":
		deleted.alert = true
	default:
		p.fault("source.subject.on_delete", "is neither erasure nor alert", "say what the deletion of a subject's row means")
	}
	subject.rules = append(subject.rules, deleted, keyChangeSpec{})
}

func (p *planner) table(name string, t *config.Table) {
	path := "source.tables." + name
	pl := p.plan(name)
	own := name == p.cfg.Subject.Table
	if r := t.Restricted; r != nil {
		s := &restrictedSpec{until: r.Until, untilPath: path + ".restricted.until", own: own}
		switch {
		case r.When != "":
			s.when = p.expression(path+".restricted.when", r.When)
		case r.Until == "":
			p.fault(path+".restricted", "has neither when nor until", "give one of them or both")
		}
		pl.rules = append(pl.rules, s)
	}
	var contact *contactSpec
	if t.ContactPoint != nil {
		contact = p.contactPoint(path, pl, t)
	}
	if o := t.Objection; o != nil {
		s := &objectionSpec{when: p.expression(path+".objection.when", o.When), scope: o.Scope, own: own}
		if !own {
			s.contact = contact
		}
		pl.rules = append(pl.rules, s)
	}
	if contact != nil {
		pl.rules = append(pl.rules, contact)
	}
	if t.Identity != nil {
		// First, so that whoever is erased by the same change is known by what the row said of them.
		pl.rules = slices.Insert(pl.rules, 0, spec(p.identity(path, pl, t)))
	}
	if t.Merged != nil {
		pl.rules = append(pl.rules, p.merged(path, t.Merged))
	}
	if c := t.Consent; c != nil {
		pl.rules = append(pl.rules, p.consent(path, pl, c))
	}
}

func (p *planner) consent(path string, pl *plan, c *config.Consent) *consentSpec {
	s := &consentSpec{path: path + ".consent", cfg: c, subject: pl.subject, history: c.Kind == "history"}
	switch {
	case c.Kind != "current" && c.Kind != "history":
		p.fault(s.path+".kind", "is neither current nor history", "current: one row per purpose, channel and contact point; history: a row per change, ordered by as_of")
	case s.history && c.AsOf == "":
		p.fault(s.path+".as_of", "is missing", "with kind: history the rows are ordered by a column that tells their time")
	}
	for _, m := range []struct {
		key      string
		m        *config.Mapped
		required bool
	}{{"purpose", &c.Purpose, true}, {"channel", &c.Channel, true}, {"state", &c.State, true}, {"legal_basis", &c.LegalBasis, false}} {
		if m.required && m.m.Column == "" && m.m.Value == "" {
			p.fault(s.path+"."+m.key, "is missing", "give a column with a map, or a value")
		}
	}
	for _, name := range slices.Sorted(maps.Values(c.State.Map)) {
		p.knownState(s.path+".state.map", name)
	}
	if c.State.Column == "" && c.State.Value != "" {
		p.knownState(s.path+".state.value", c.State.Value)
	}
	return s
}

// consentStates are the names of the W3C DPV states in the config.
var consentStates = map[string]schema.ConsentState{
	"unknown": schema.ConsentUnknown, "requested": schema.ConsentRequested, "request_deferred": schema.ConsentRequestDeferred,
	"given": schema.ConsentGiven, "renewed_given": schema.ConsentRenewedGiven, "refused": schema.ConsentRefused,
	"withdrawn": schema.ConsentWithdrawn, "revoked": schema.ConsentRevoked, "expired": schema.ConsentExpired,
	"invalidated": schema.ConsentInvalidated,
}

func (p *planner) knownState(path, name string) {
	if _, known := consentStates[name]; !known {
		p.fault(path, fmt.Sprintf("names the unknown state %q", name),
			"known are "+strings.Join(slices.Sorted(maps.Keys(consentStates)), ", "))
	}
}
