package rules

import (
	"time"

	"lethe/capture"
	"lethe/config"
	"lethe/schema"
)

// consentSpec is the mapping of a table of consents (GDPR Art. 7).
type consentSpec struct {
	path    string
	cfg     *config.Consent
	subject []string
	history bool
}

func (s *consentSpec) needs(n *TableNeeds) {
	n.Columns = append(n.Columns, s.scopeColumns()...)
	n.Columns = append(n.Columns, s.contentColumns()...)
	for _, column := range []string{s.cfg.AsOf, s.cfg.Evidence, s.cfg.Method.Column, s.cfg.Notice.Column, s.cfg.Actor.Column} {
		if column != "" {
			n.Columns = append(n.Columns, column)
		}
	}
	n.OldColumns = append(append(n.OldColumns, s.subject...), s.scopeColumns()...)
	n.ReadsDelete = true
}

// scopeColumns tell which consent a row is about; a DELETE must carry them, and an UPDATE that changes them.
func (s *consentSpec) scopeColumns() (columns []string) {
	for _, column := range []string{s.cfg.Purpose.Column, s.cfg.Channel.Column} {
		if column != "" {
			columns = append(columns, column)
		}
	}
	if s.cfg.BoundTo != nil {
		columns = append(columns, s.cfg.BoundTo.Column)
	}
	return columns
}

// contentColumns tell what was consented.
func (s *consentSpec) contentColumns() (columns []string) {
	for _, column := range []string{s.cfg.State.Column, s.cfg.LegalBasis.Column, s.cfg.ValidUntil} {
		if column != "" {
			columns = append(columns, column)
		}
	}
	return columns
}

func (s *consentSpec) compares() []string { return s.contentColumns() }

func (s *consentSpec) bind(b *binder) rule {
	r := &consentRule{spec: s, contact: -1, validUntil: -1, asOf: -1, evidence: -1}
	r.purpose = b.mapped(s.path+".purpose", &s.cfg.Purpose)
	r.channel = b.mapped(s.path+".channel", &s.cfg.Channel)
	r.state = b.mapped(s.path+".state", &s.cfg.State)
	r.legalBasis = b.mapped(s.path+".legal_basis", &s.cfg.LegalBasis)
	r.method = b.mapped(s.path+".method", &s.cfg.Method)
	r.notice = b.mapped(s.path+".notice", &s.cfg.Notice)
	r.actor = b.mapped(s.path+".actor", &s.cfg.Actor)
	if s.cfg.BoundTo != nil {
		r.contact = b.column(s.path+".bound_to.column", s.cfg.BoundTo.Column)
	}
	if s.cfg.ValidUntil != "" {
		r.validUntil = b.date(s.path+".valid_until", s.cfg.ValidUntil)
	}
	if s.history {
		r.asOf = b.date(s.path+".as_of", s.cfg.AsOf)
	}
	if s.cfg.Evidence != "" {
		r.evidence = b.column(s.path+".evidence", s.cfg.Evidence)
	}
	for _, column := range append(append([]string(nil), s.subject...), s.scopeColumns()...) {
		b.old(s.path, column)
	}
	r.scopeCols = present(r.purpose.col, r.channel.col, r.contact)
	r.contentCols = present(r.state.col, r.legalBasis.col, r.validUntil)
	r.all = append(append(append([]int(nil), b.subject...), r.scopeCols...), r.contentCols...)
	r.all = append(r.all, present(r.asOf, r.evidence, r.method.col, r.notice.col, r.actor.col)...)
	return r
}

func present(columns ...int) (found []int) {
	for _, col := range columns {
		if col >= 0 {
			found = append(found, col)
		}
	}
	return found
}

// consentRule makes a ConsentChange of every row that comes, changes or goes.
type consentRule struct {
	spec                                *consentSpec
	purpose, channel, state, legalBasis mapped
	method, notice, actor               mapped // of the evidence: codes, "" where not mapped
	contact, validUntil, asOf, evidence int    // columns, -1: none
	scopeCols, contentCols, all         []int
	body, left                          schema.ConsentChange // what is said of the new scope and of the one left
	was                                 schema.ConsentChange // the content of the old row
}

func (*consentRule) ops() ops { return ops{insert: true, update: true, delete: true} }

func (r *consentRule) apply(x *row, out []Draft) ([]Draft, error) {
	switch {
	case x.c.Op == capture.OpDelete:
		return r.invalidate(x, out, RuleConsentDelete)
	case x.isNew():
		return r.insert(x, out)
	case x.same(r.all):
		return out, nil
	}
	if err := r.read(x, after, &r.body); err != nil {
		return out, err
	}
	moved, err := r.moved(x)
	if err != nil {
		return out, err
	}
	if moved {
		if out, err = r.invalidate(x, out, RuleConsentMoved); err != nil {
			return out, err
		}
	}
	if r.spec.history {
		if tells, err := r.takesAway(x, moved); err != nil || !tells {
			return out, err
		}
	}
	return r.draft(x, out, RuleConsent, after, &r.body)
}

func (r *consentRule) insert(x *row, out []Draft) ([]Draft, error) {
	subject, err := x.subject(after)
	if err != nil {
		return out, err
	}
	if subject == nil {
		x.nobody()
		return out, nil // before the maps, which need not know the codes of nobody's rows
	}
	if err := r.read(x, after, &r.body); err != nil {
		return out, err
	}
	if r.spec.history {
		if err := r.claimedTime(x, after); err != nil {
			return out, err
		}
	}
	return r.draft(x, out, RuleConsent, after, &r.body)
}

// moved reports whether an UPDATE made the row one of another subject, purpose, channel or contact point; r.body is what it
// says now. Codes that the maps take for the same do not count, nor does a contact point on a channel that has none: both events would have one place in the log, and of two
// facts in one place the stricter would stay.
func (r *consentRule) moved(x *row) (bool, error) {
	if x.arrived {
		return true, nil
	}
	if x.same(r.scopeCols) {
		return false, nil
	}
	purpose, err := r.purpose.optional(x, before)
	if err != nil {
		return false, err
	}
	channel, err := r.channel.optional(x, before)
	if err != nil {
		return false, err
	}
	if purpose != r.body.Purpose || channel != r.body.Channel {
		return true, nil
	}
	// On a channel without contact points the column says nothing.
	return r.contact >= 0 && r.spec.cfg.BoundTo.RowsOf[channel] != "" && !x.same([]int{r.contact}), nil
}

// read fills body with what an image says, but for AsOf.
func (r *consentRule) read(x *row, img image, body *schema.ConsentChange) error {
	*body = schema.ConsentChange{}
	var err error
	if body.Purpose, err = r.purpose.value(x, img); err != nil {
		return err
	}
	if body.Channel, err = r.channel.value(x, img); err != nil {
		return err
	}
	if err := r.readContent(x, img, body); err != nil {
		return err
	}
	for _, m := range []struct {
		from *mapped
		to   *string
	}{{&r.method, &body.Method}, {&r.notice, &body.Notice}, {&r.actor, &body.Actor}} {
		if *m.to, err = m.from.optional(x, img); err != nil {
			return err
		}
	}
	if r.evidence >= 0 {
		// Evidence that was not sent again is the same as before; the sinks do not need it to act.
		if v := x.after(r.evidence); v.State == capture.Present {
			body.Evidence = v.Text
		}
	}
	return nil
}

func (r *consentRule) readContent(x *row, img image, body *schema.ConsentChange) error {
	name, err := r.state.value(x, img)
	if err != nil {
		return err
	}
	body.State = consentStates[name]
	if body.LegalBasis, err = r.legalBasis.optional(x, img); err != nil {
		return err
	}
	if r.validUntil >= 0 {
		v, err := x.value(r.validUntil, img)
		if err != nil || v.State == capture.Null {
			return err
		}
		body.ValidUntil, err = x.end(r.validUntil, v.Text, 0)
		return err
	}
	return nil
}

func permits(s schema.ConsentState) bool {
	return s == schema.ConsentGiven || s == schema.ConsentRenewedGiven
}

// claimedTime sets the AsOf that an image of a row of a history claims. Without one a permission is older than all that is known, and
// anything else is as old as its commit; a time after the commit would beat what really came later.
func (r *consentRule) claimedTime(x *row, img image) error {
	v, err := x.value(r.asOf, img)
	if err != nil {
		return err
	}
	committed := x.tx.CommittedAt
	if v.State == capture.Null {
		x.notice(NoticeAsOfMissing)
		if !permits(r.body.State) {
			r.body.AsOf = committed
		}
		return nil
	}
	t, infinite, err := parseTime(v.Text)
	if err == nil && infinite != 0 {
		err = errInfinite
	}
	if err != nil {
		return &ValueError{Table: x.b.table.Name, Column: x.b.table.Columns[r.asOf].Name, Reason: err.Error()}
	}
	if t.After(committed) {
		x.notice(NoticeAsOfFuture)
		t = committed
	}
	r.body.AsOf = t
	return nil
}

// takesAway decides what an UPDATE in a history may say, and sets AsOf. A history is written by adding rows, so a changed
// row can take a permission away, as of now, and can never give one: an old row turned to "given" would otherwise undo
// what the person withdrew since; so would an old permission that claims a later time, and so what is left of it keeps the
// time that it had. A withdrawal may claim another time: that can only forbid more. In doubt (old values unknown) what
// forbids passes and what permits does not.
func (r *consentRule) takesAway(x *row, moved bool) (bool, error) {
	when := []int{r.asOf}
	known := !moved && x.knownBefore(r.contentCols) && x.knownBefore(when)
	r.was = schema.ConsentChange{}
	if known {
		if err := r.readContent(x, before, &r.was); err != nil {
			return false, err
		}
	}
	if !permits(r.body.State) {
		if known && !permits(r.was.State) {
			if x.same(when) {
				return false, nil
			}
			return true, r.claimedTime(x, after)
		}
		r.body.AsOf = x.tx.CommittedAt
		return true, nil
	}
	basisLost := r.was.LegalBasis != "" && r.body.LegalBasis == ""
	shortened := endsBefore(r.body.ValidUntil, r.was.ValidUntil)
	gains := r.was.LegalBasis == "" && r.body.LegalBasis != "" || endsBefore(r.was.ValidUntil, r.body.ValidUntil)
	if !known || !permits(r.was.State) || gains || !basisLost && !shortened {
		x.notice(NoticeHistoryNotGranted)
		return false, nil
	}
	return true, r.claimedTime(x, before)
}

// endsBefore compares ends of validity, of which the zero Time is none.
func endsBefore(a, b time.Time) bool {
	return !a.IsZero() && (b.IsZero() || a.Before(b))
}

// invalidate says that there is no consent any more where the row stood. An old row without purpose or channel was never
// told of, so there is nothing to take back.
func (r *consentRule) invalidate(x *row, out []Draft, rule string) ([]Draft, error) {
	r.left = schema.ConsentChange{State: schema.ConsentInvalidated}
	var err error
	if r.left.Purpose, err = r.purpose.optional(x, before); err != nil {
		return out, err
	}
	if r.left.Channel, err = r.channel.optional(x, before); err != nil {
		return out, err
	}
	if r.left.Purpose == "" || r.left.Channel == "" {
		x.notice(NoticeScopeNull)
		return out, nil
	}
	if r.spec.history {
		r.left.AsOf = x.tx.CommittedAt
	}
	return r.draft(x, out, rule, before, &r.left)
}

// draft adds whose contact point the consent is about. A channel that rows_of does not list has none.
func (r *consentRule) draft(x *row, out []Draft, rule string, img image, body *schema.ConsentChange) ([]Draft, error) {
	given := len(out)
	out, err := x.draft(out, rule, img, body)
	if err != nil || len(out) == given || r.contact < 0 {
		return out, err
	}
	table := r.spec.cfg.BoundTo.RowsOf[body.Channel]
	if table == "" {
		return out, nil
	}
	v, err := x.value(r.contact, img)
	if err != nil {
		return out, err
	}
	if v.State == capture.Present {
		d := &out[len(out)-1]
		d.ContactTable, d.ContactPK = table, x.append(x.text(r.contact, v))
	}
	return out, nil
}

// mapped is a column with the closed map that its values must be in, or a constant.
type mapped struct {
	path     string
	col      int // -1: constant
	values   map[string]string
	constant string
}

func (b *binder) mapped(path string, m *config.Mapped) mapped {
	bound := mapped{path: path + ".map", col: -1, values: m.Map, constant: m.Value}
	if m.Column != "" {
		bound.col = b.column(path+".column", m.Column)
	}
	return bound
}

// value returns what the map says; a value outside it is an error, NULL too unless the map has the key "".
func (m *mapped) value(x *row, img image) (string, error) {
	name, null, err := m.lookup(x, img)
	if err == nil && null {
		err = &UnmappedError{Path: m.path, Table: x.b.table.Name, Column: x.b.table.Columns[m.col].Name, Null: true}
	}
	return name, err
}

// optional is value for a column where NULL is no fault; it gives "" then.
func (m *mapped) optional(x *row, img image) (string, error) {
	name, _, err := m.lookup(x, img)
	return name, err
}

func (m *mapped) lookup(x *row, img image) (name string, null bool, err error) {
	if m.col < 0 {
		return m.constant, false, nil
	}
	v, err := x.value(m.col, img)
	if err != nil {
		return "", false, err
	}
	if v.State == capture.Null {
		name, known := m.values[""]
		return name, !known, nil
	}
	name, known := m.values[string(x.text(m.col, v))]
	if !known {
		return "", false, &UnmappedError{Path: m.path, Table: x.b.table.Name, Column: x.b.table.Columns[m.col].Name}
	}
	return name, false, nil
}
