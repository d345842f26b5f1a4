package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// validator checks what no single value can tell: references between the parts of the file.
type validator struct {
	c *Config
	d *decoder
}

func (v *validator) fault(path, hint, format string, args ...any) {
	v.d.faults = append(v.d.faults, Fault{
		Path: path, Line: nearestLine(v.d.lines, path), Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// at joins path elements as the decoder does.
func at(parts ...string) string {
	for i, p := range parts {
		parts[i] = pathElement(p)
	}
	return strings.Join(parts, ".")
}

// list writes names for a message.
func list(names []string) string { return strings.Join(names, ", ") }

func (v *validator) run() {
	v.source()
	dsns := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(v.c.Replicas)) {
		r := v.c.Replicas[name]
		v.replica(r)
		if p := r.Postgres; p != nil && p.DSN != "" {
			key := p.DSN + "\x00" + p.Schema
			if other, twice := dsns[key]; twice {
				v.fault(at("replicas", name, "postgres", "dsn"), "give each its own database, or its own schema for Lethe's tables",
					"is the same database as replica %s, with the same schema for Lethe's tables", other)
			}
			dsns[key] = name
		}
		if m := r.MySQL; m != nil && m.DSN != "" {
			key := m.DSN + "\x00" + m.Prefix
			if other, twice := dsns[key]; twice {
				v.fault(at("replicas", name, "mysql", "dsn"), "give each its own database, or its own prefix for Lethe's tables",
					"is the same database as replica %s, with the same prefix for Lethe's tables", other)
			}
			dsns[key] = name
		}
	}
}

func (v *validator) source() {
	s := &v.c.Source
	if t := s.Subject.Table; t != "" && s.Tables[t] == nil {
		v.fault("source.tables", nearest(t, slices.Sorted(maps.Keys(s.Tables))), "has no entry for the subject's table %s", t)
	}
	if m := s.Erased.Marker; m != nil {
		v.keyLength("source.erased.marker", m.Subject)
	}
	if r := s.Request; r != nil {
		v.keyLength("source.request", r.Subject)
	}
	v.gate()
	purposes, _, _ := v.c.scopes()
	scopes := append([]string{"direct_marketing", "profiling", "all"}, slices.Sorted(maps.Keys(purposes))...)
	for _, name := range slices.Sorted(maps.Keys(s.Tables)) {
		t, path := s.Tables[name], at("source", "tables", name)
		v.keyLength(path, t.Subject)
		v.tableColumns(path, t)
		v.contacts(path, t)
		if o := t.Objection; o != nil && o.Scope != "" && !slices.Contains(scopes, o.Scope) {
			v.fault(path+".objection.scope", nearest(o.Scope, scopes), "%s is neither a purpose that a table maps nor one of direct_marketing, profiling, all", o.Scope)
		}
		if t.Consent != nil {
			v.consent(path+".consent", t.Consent)
		}
	}
}

func (v *validator) keyLength(path string, subject []string) {
	if want := len(v.c.Source.Subject.Key); want > 0 && len(subject) != want {
		v.fault(path+".subject", "name them in the same order", "must name as many columns as source.subject.key (%d)", want)
	}
}

func (v *validator) tableColumns(path string, t *Table) {
	empty := true
	for _, key := range []string{"erase", "state", "contact_point", "identity", "merged", "objection", "restricted", "consent"} {
		_, given := v.d.lines[path+"."+key]
		empty = empty && !given
	}
	source := &v.c.Source
	named := t.Name == source.Subject.Table || source.Erased.Marker != nil && t.Name == source.Erased.Marker.Table ||
		source.Request != nil && t.Name == source.Request.Table
	if empty && !named {
		v.fault(path, "say what an erasure does to it (erase: row), or remove it", "maps nothing")
	}
	for i, column := range t.Erase {
		at := fmt.Sprintf("%s.erase[%d]", path, i)
		if slices.Contains(t.Subject, column) {
			v.fault(at, "to lose the row, write erase: row", "%s is the CRM key: without it the erasure could not be told from others", column)
		}
		if _, both := t.State[column]; both {
			v.fault(at, "keep one of the two", "%s is also in state", column)
		}
	}
}

func (v *validator) consent(path string, c *Consent) {
	if c.Kind == "current" {
		v.injective(path+".purpose.map", c.Purpose.Map)
		v.injective(path+".channel.map", c.Channel.Map)
	}
	if c.BoundTo == nil {
		return
	}
	channels := c.Channel.outcomes()
	for _, channel := range slices.Sorted(maps.Keys(c.BoundTo.RowsOf)) {
		at := at(path, "bound_to", "rows_of", channel)
		if len(channels) > 0 && !slices.Contains(channels, channel) {
			v.fault(at, "", "is a channel that these consents never have (they have %s)", list(channels))
		}
		if table := c.BoundTo.RowsOf[channel]; table != "" && v.c.Source.Tables[table] == nil {
			v.fault(at, nearest(table, slices.Sorted(maps.Keys(v.c.Source.Tables))), "%s has no entry in source.tables", table)
		}
		v.boundKind(at, channel, c.BoundTo.RowsOf[channel])
	}
}

// injective refuses two codes for one purpose or channel where each row is the present state of its scope: the rows would
// overwrite each other's fact, and a withdrawal could be hidden by the other row's grant.
func (v *validator) injective(path string, m map[string]string) {
	first := make(map[string]string)
	for _, from := range slices.Sorted(maps.Keys(m)) {
		if other, twice := first[m[from]]; twice && m[from] != "" {
			v.fault(path+"."+pathElement(from), "map them to two purposes, or say kind: history",
				"is a second rule for %s besides %s: with kind current their rows would overwrite each other", m[from], other)
		}
		first[m[from]] = from
	}
}

// outcomes are the words that a column may become.
func (m *Mapped) outcomes() []string {
	if m.Value != "" {
		return []string{m.Value}
	}
	all := make(map[string]bool)
	for _, to := range m.Map {
		if to != "" {
			all[to] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// scopes collects what the source can say: purpose → its channels, the scopes of objections, and whether a table maps
// restrictions.
func (c *Config) scopes() (purposes map[string][]string, objections []string, restricted bool) {
	purposes = make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(c.Source.Tables)) {
		t := c.Source.Tables[name]
		if t.Consent != nil {
			for _, p := range t.Consent.Purpose.outcomes() {
				purposes[p] = append(purposes[p], t.Consent.Channel.outcomes()...)
			}
		}
		if t.Objection != nil && t.Objection.Scope != "" {
			objections = append(objections, t.Objection.Scope)
		}
		restricted = restricted || t.Restricted != nil
	}
	return purposes, objections, restricted
}

func (v *validator) replica(r *Replica) {
	path := at("replicas", r.Name)
	if want := len(v.c.Source.Subject.Key); want > 0 && len(r.Person.CRMKey) > 0 && len(r.Person.CRMKey) != want {
		v.fault(path+".person.crm_key", "name them in the same order", "must name as many columns as source.subject.key (%d)", want)
	}
	v.find(path, r)
	v.mode(path, r)
	for _, name := range slices.Sorted(maps.Keys(r.Erase.Tables)) {
		v.eraseTable(at(path, "erase", "tables", name), name, r)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Hold)) {
		if r.Erase.Tables[name] != nil {
			v.fault(at(path, "hold", name), "keep one of the two", "is also in erase.tables")
		}
	}
	v.actions(path, r)
	if word, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(r.Audience)), " "); r.Audience != "" && word != "select" && word != "with" {
		v.fault(path+".audience", "it must return person.key of everybody who can be contacted", "must be a query (select or with)")
	}
}

func (v *validator) mode(path string, r *Replica) {
	// A section that is there and wrong has its own faults.
	_, suppressGiven := v.d.lines[path+".suppress"]
	_, eraseGiven := v.d.lines[path+".erase"]
	_, tablesGiven := v.d.lines[path+".erase.tables"]
	switch {
	case suppressGiven:
	case r.Mode == "erase" && r.Erase.CoolOff != 0:
		v.fault(path+".suppress", "add suppress actions, or erase.cool_off: 0",
			"is required with mode erase: until the cool-off has passed nothing else protects the person")
	case r.Mode == "suppress":
		v.fault(path+".suppress", "", "is required with mode suppress")
	}
	if r.Mode == "erase" && len(r.Erase.Tables) == 0 && eraseGiven == tablesGiven {
		v.fault(path+".erase.tables", "say what is erased, or use mode suppress", "is required with mode erase")
	}
}

func (v *validator) eraseTable(path, name string, r *Replica) {
	t := r.Erase.Tables[name]
	if name == r.Person.Table {
		if t.By != "" {
			v.fault(path+".by", "remove it", "the person's own table is found by person.crm_key")
		}
		if t.Unlink {
			v.fault(path+".unlink", "use set or delete", "the person's own row refers to nobody")
		}
	} else if t.By == "" && r.Person.Table != "" {
		v.fault(path+".by", "name the column that refers to person.key", "is required: nothing says which rows are the person's")
	}
	if _, set := t.Set[t.By]; set && t.By != "" {
		v.fault(at(path, "set", t.By), "to cut the reference, write unlink: true", "is the column of by, which finds the row again")
	}
	if _, set := t.Set[r.Person.Key]; set && name == r.Person.Table && t.By != r.Person.Key {
		v.fault(at(path, "set", r.Person.Key), "remove it", "is person.key, by which other rows are found")
	}
}

// actions checks suppress, consent, objection and restricted.
func (v *validator) actions(path string, r *Replica) {
	owners := make(map[string]string) // table.column → the action that writes it
	suppressed := make(map[string]string)
	for i := range r.Suppress {
		v.set(fmt.Sprintf("%s.suppress[%d]", path, i), r.Suppress[i].Set, r, suppressed)
	}
	purposes, objections, restricted := v.c.scopes()
	for i, a := range r.Consent {
		at := fmt.Sprintf("%s.consent[%d]", path, i)
		known := slices.Sorted(maps.Keys(purposes))
		if a.Purpose != "" && purposes[a.Purpose] == nil {
			v.fault(at+".purpose", nearest(a.Purpose, known), "no table of the source maps the purpose %s (only %s)", a.Purpose, orNone(known))
		} else if a.Channel != "" && a.Purpose != "" && !slices.Contains(purposes[a.Purpose], a.Channel) {
			v.fault(at+".channel", "", "no table of the source maps %s for %s (only %s)", a.Channel, a.Purpose, orNone(purposes[a.Purpose]))
		}
		v.set(at, a.Set, r, owners)
	}
	for i, a := range r.Objection {
		at := fmt.Sprintf("%s.objection[%d]", path, i)
		if a.Scope != "" && !slices.Contains(objections, a.Scope) {
			v.fault(at+".scope", nearest(a.Scope, objections), "no table of the source maps an objection of scope %s (only %s)", a.Scope, orNone(objections))
		}
		v.set(at, a.Set, r, owners)
	}
	if a := r.Restricted; a != nil {
		if !restricted {
			v.fault(path+".restricted", "add restricted to a table in source.tables", "no table of the source maps a restriction")
		}
		v.set(path+".restricted", a.Set, r, owners)
	}
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return list(names)
}

// set checks that the rows can be found and that no other action writes the same column.
func (v *validator) set(path string, set map[string]map[string]Value, r *Replica, owners map[string]string) {
	for _, table := range slices.Sorted(maps.Keys(set)) {
		_, held := r.Hold[table]
		reachable := held || table == r.Person.Table || r.Erase.Tables[table] != nil
		for _, column := range slices.Sorted(maps.Keys(set[table])) {
			name := table + "." + column
			at := at(path, "set", name)
			if !reachable && r.Person.Table != "" {
				v.fault(at, fmt.Sprintf("add erase.tables.%s with by", table), "nothing says which rows of %s are the person's", table)
			}
			if table == r.Person.Table && (column == r.Person.Key || slices.Contains(r.Person.CRMKey, column)) {
				v.fault(at, "remove it", "is a key of the person")
			}
			if set[table][column].Kind == KindNow {
				continue // A time of change may be shared.
			}
			if other, twice := owners[name]; twice {
				v.fault(at, "give each its own column", "is written by %s too", other)
			}
			owners[name] = path
		}
	}
}
