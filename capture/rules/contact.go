package rules

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"

	"lethe/capture"
	"lethe/config"
	"lethe/schema"
)

// KeyMaker makes match keys of what a row says of a person: one for each live version of the match key, and none for a text that does not
// normalise. internal/matchkey has one.
type KeyMaker interface {
	Email(text string) []schema.MatchKey
	Phone(text, region string) []schema.MatchKey
	Postal(parts []string) []schema.MatchKey
	Identity(name []string, birthDate string) []schema.MatchKey
}

// keyless is for commands that only check a mapping.
type keyless struct{}

func (keyless) Email(string) []schema.MatchKey              { return nil }
func (keyless) Phone(string, string) []schema.MatchKey      { return nil }
func (keyless) Postal([]string) []schema.MatchKey           { return nil }
func (keyless) Identity([]string, string) []schema.MatchKey { return nil }

// contactSpec is a table of contact points, or the identity in the subject's own row, which is an upsert of the same kind.
type contactSpec struct {
	path  string
	table string // the name under which contact references are made
	maker KeyMaker

	kind          schema.ContactKind
	past          bool
	value         []string // columns; of an identity the parts of the name
	second        string   // column: the number's region, or the birth date; empty: none
	secondPath    string
	key           []string // columns that tell the rows of a subject apart; empty: see contactColumns
	subject       []string
	erased        []string
	ignore        []string
	bound         bool // consents refer to its rows
	rule          string
	moved, delete string // the names of the rules for a row that is left and one that goes
}

// identityTable makes the reference of an identity differ from that of a contact point in the same row.
const identityTable = "/identity"

var contactKinds = map[string]schema.ContactKind{
	"email": schema.ContactEmail, "phone": schema.ContactPhone, "postal": schema.ContactPostal,
}

func (p *planner) contactPoint(path string, pl *plan, t *config.Table) *contactSpec {
	c := t.ContactPoint
	s := &contactSpec{
		path: path + ".contact_point", table: t.Name, maker: p.maker, kind: contactKinds[c.Kind], past: c.Past, value: c.Value,
		second: c.Region, secondPath: path + ".contact_point.region", key: c.Key, subject: pl.subject, erased: t.ErasedValues, ignore: c.Ignore,
		rule: RuleContactPoint, moved: RuleContactMoved, delete: RuleContactDelete,
	}
	if _, known := contactKinds[c.Kind]; !known {
		p.fault(s.path+".kind", "is none of email, phone and postal", "")
	}
	if len(c.Value) == 0 {
		p.fault(s.path+".value", "names no column", "name the column that holds the contact point")
	}
	for _, other := range p.cfg.Tables {
		if other.Consent != nil && other.Consent.BoundTo != nil {
			for _, table := range other.Consent.BoundTo.RowsOf {
				s.bound = s.bound || table == t.Name
			}
		}
	}
	return s
}

func (p *planner) identity(path string, pl *plan, t *config.Table) *contactSpec {
	if len(t.Identity.Name) == 0 {
		p.fault(path+".identity.name", "names no column", "name the columns that make one name")
	}
	return &contactSpec{
		path: path + ".identity", table: t.Name + identityTable, maker: p.maker, kind: schema.ContactIdentity, value: t.Identity.Name,
		second: t.Identity.BirthDate, secondPath: path + ".identity.birth_date", key: pl.subject, subject: pl.subject, erased: t.ErasedValues,
		rule: RuleIdentity, moved: RuleIdentityMoved, delete: RuleIdentityDelete,
	}
}

func (s *contactSpec) needs(n *TableNeeds) {
	n.Columns = append(append(n.Columns, s.value...), s.key...)
	if s.second != "" {
		n.Columns = append(n.Columns, s.second)
	}
	n.OldColumns = append(append(n.OldColumns, s.subject...), s.key...)
	n.ReadsDelete = true
}

func (s *contactSpec) bind(b *binder) rule {
	r := &contactRule{spec: s, second: -1, remember: s.rule + ":" + s.table}
	r.value = b.columns(s.path, s.value)
	r.all = slices.Clone(r.value)
	if s.second != "" {
		r.second = b.column(s.secondPath, s.second)
		r.all = append(r.all, r.second)
	}
	for _, column := range slices.Concat(s.subject, s.key) {
		b.old(s.path, column)
	}
	r.key = b.contactColumns(s)
	for _, text := range s.ignore {
		r.ignored = append(r.ignored, r.keysOf([]string{text}, "")...)
	}
	return r
}

// contactColumns finds the columns that a contact reference is made of. They have to be the same whenever and from wherever a row is read, and one where
// consents refer to them by one; so what the log's identity holds besides the CRM key will do, unless that is the whole row.
func (b *binder) contactColumns(s *contactSpec) []int {
	if len(s.key) > 0 {
		return b.columns(s.path+".key", s.key)
	}
	var key, own []int
	for i, c := range b.table.Columns {
		switch {
		case !c.Key:
		case slices.Contains(s.subject, c.Name):
			own = append(own, i)
		default:
			key = append(key, i)
		}
	}
	whole := len(key)+len(own) == len(b.table.Columns) && b.table.OldRow == capture.OldRowFull && len(b.table.Columns) > 1
	if len(key) == 0 {
		key = own // the row of the subject itself
	}
	if whole || len(key) == 0 || s.bound && len(key) != 1 {
		b.fault(&ColumnError{
			Path: s.path + ".key", Table: b.table.Name, Column: strings.Join(s.value, ", "), Reason: "is of rows of which the log does not tell the key",
			Hint: "write key: the column by which consents refer to these rows, else their primary key",
		})
	}
	for _, col := range key {
		b.contactKey = append(b.contactKey, b.table.Columns[col].Name)
	}
	return key
}

// contactRule makes a ContactPoint of every row that comes, changes or goes. A sink, which knows the keys that a point had, decides what that means.
type contactRule struct {
	spec       *contactSpec
	value      []int // columns
	second     int   // column, -1: none
	key        []int
	all        []int
	ignored    []schema.MatchKey
	remember   string
	body, left schema.ContactPoint
	parts      []string
}

func (*contactRule) ops() ops { return ops{insert: true, update: true, delete: true} }

func (r *contactRule) apply(x *row, out []Draft) ([]Draft, error) {
	if x.c.Op == capture.OpDelete {
		return r.gone(x, out, r.spec.delete)
	}
	moved := !x.isNew() && (x.arrived || r.otherKey(x))
	if !x.isNew() && !moved && x.same(r.all) {
		return out, nil
	}
	if moved {
		owner, err := x.subject(before)
		if err == nil && owner != nil {
			out, err = r.gone(x, out, r.spec.moved)
		}
		if err != nil {
			return out, err
		}
	}
	return r.says(x, out, moved)
}

// otherKey reports whether an UPDATE is known to have given the row another key.
func (r *contactRule) otherKey(x *row) bool { return x.knownBefore(r.key) && !x.same(r.key) }

// says drafts what the row is now. Where the log does not tell the old value each UPDATE of the row would say so again; the memory spares those that
// this run has read before. A row that is new with nothing in it has nothing to say, unless a pass reads it: what the log lacked is made good by that.
func (r *contactRule) says(x *row, out []Draft, moved bool) ([]Draft, error) {
	state, err := r.state(x)
	if err != nil {
		return out, err
	}
	pk, err := x.key(r.key, after)
	if err != nil || pk == nil {
		return out, err // a row without key: nothing can refer to it
	}
	given := len(out)
	out, err = x.draft(out, r.spec.rule, after, &r.body)
	if err != nil || len(out) == given {
		return out, err
	}
	d := &out[given]
	known := x.engine.memory.know(r.remember, x.append(d.SubjectKey, pk), state)
	told := x.isNew() || moved || x.knownBefore(r.all)
	if known && !told || state == nothing && x.c.Op == capture.OpInsert {
		return out[:given], nil
	}
	d.ContactTable, d.ContactPK = r.spec.table, pk
	return out, r.read(x, after, &r.body)
}

// gone says that the row is no contact point of its old subject any more.
func (r *contactRule) gone(x *row, out []Draft, rule string) ([]Draft, error) {
	pk, err := x.key(r.key, before)
	if err != nil || pk == nil {
		return out, err
	}
	given := len(out)
	out, err = x.draft(out, rule, before, &r.left)
	if err != nil || len(out) == given {
		return out, err
	}
	d := &out[given]
	d.ContactTable, d.ContactPK = r.spec.table, pk
	x.engine.memory.know(r.remember, x.append(d.SubjectKey, pk), nothing)
	r.left = schema.ContactPoint{Kind: r.spec.kind, Past: r.spec.past, Removed: true}
	if x.knownBefore(r.all) {
		if err = r.read(x, before, &r.left); err == nil {
			r.left.Removed = true
		}
	}
	return out, err
}

// nothing is the state of a row without a contact point in it.
const nothing = 1

// state tells values apart without making keys of them, which costs a thousand times as much.
func (r *contactRule) state(x *row) (uint64, error) {
	var h maphash.Hash
	h.SetSeed(x.engine.seed)
	some := false
	for _, col := range r.all {
		v, err := x.value(col, after)
		if err != nil {
			return 0, err
		}
		if r.blank(x, col, v) {
			_ = h.WriteByte(0) // a Hash never fails
			continue
		}
		some = some || col != r.second
		_, _ = h.Write(x.text(col, v))
		_ = h.WriteByte(1)
	}
	if !some {
		return nothing, nil
	}
	return h.Sum64() | 2, nil
}

// blank reports whether a value says nothing: NULL, empty, a placeholder, or what the CRM's procedure leaves behind.
func (r *contactRule) blank(x *row, col int, v capture.Value) bool {
	if v.State == capture.Null {
		return true
	}
	text := bytes.TrimSpace(x.text(col, v))
	is := func(s string) bool { return s == string(text) }
	return len(text) == 0 || slices.ContainsFunc(r.spec.erased, is) || slices.ContainsFunc(r.spec.ignore, is)
}

// read fills body with what an image says. A value that cannot be read is a contact point all the same, one that finds nobody; a placeholder is none.
// Of a point that is no more the keys are told that it had, where the log tells them: whoever never heard of it can still find a copy.
func (r *contactRule) read(x *row, img image, body *schema.ContactPoint) error {
	*body = schema.ContactPoint{Kind: r.spec.kind, Past: r.spec.past}
	var err error
	var some bool
	if body.Keys, some, err = r.keys(x, img); err != nil {
		return err
	}
	if some {
		return nil
	}
	body.Removed = true
	if img == after && !x.isNew() && !x.arrived && x.knownBefore(r.all) {
		body.Keys, _, err = r.keys(x, before)
	}
	return err
}

// keys makes the match keys of an image, and reports whether there is anything in it that is no placeholder.
func (r *contactRule) keys(x *row, img image) (keys []schema.MatchKey, some bool, err error) {
	r.parts = r.parts[:0]
	for _, col := range r.value {
		v, err := x.value(col, img)
		if err != nil {
			return nil, false, err
		}
		if !r.blank(x, col, v) {
			r.parts = append(r.parts, string(x.text(col, v)))
		}
	}
	if len(r.parts) == 0 {
		return nil, false, nil
	}
	second := ""
	if r.second >= 0 {
		v, err := x.value(r.second, img)
		if err != nil {
			return nil, false, err
		}
		if !r.blank(x, r.second, v) {
			second = string(x.text(r.second, v))
		}
	}
	found := r.keysOf(r.parts, second)
	keys = slices.DeleteFunc(found, func(k schema.MatchKey) bool { return slices.Contains(r.ignored, k) })
	if len(found) == 0 && img == after {
		x.notice(NoticeContactUnread)
	}
	return keys, len(keys) > 0 || len(found) == 0, nil
}

func (r *contactRule) keysOf(parts []string, second string) []schema.MatchKey {
	switch r.spec.kind {
	case schema.ContactEmail:
		return r.spec.maker.Email(parts[0])
	case schema.ContactPhone:
		return r.spec.maker.Phone(parts[0], second)
	case schema.ContactPostal:
		return r.spec.maker.Postal(parts)
	case schema.ContactIdentity:
		return r.spec.maker.Identity(parts, second)
	}
	return nil
}
