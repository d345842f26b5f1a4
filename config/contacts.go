package config

import (
	"fmt"
	"maps"
	"slices"
)

func (t *Table) decodeContactPoint(it item) {
	p := &ContactPoint{}
	t.ContactPoint = p
	it.fields(map[string]func(item){
		"kind":   enum(&p.Kind, "email", "phone", "postal"),
		"value":  columns(&p.Value),
		"region": reader(&p.Region, parseColumn),
		"ignore": texts(&p.Ignore, func(s string) (string, error) { return s, nil }),
		"past":   boolean(&p.Past),
		"key":    columns(&p.Key),
	}, "kind: email, phone or postal", "value")
	if p.Region != "" && p.Kind != "" && p.Kind != "phone" {
		it.below("region").fault("", "belongs to kind phone only")
	}
	if len(p.Value) > 1 && p.Kind != "" && p.Kind != "postal" {
		it.below("value").fault("", "must be one column for kind %s", p.Kind)
	}
}

func (t *Table) decodeIdentity(it item) {
	t.Identity = &Identity{}
	it.fields(map[string]func(item){
		"name":       columns(&t.Identity.Name),
		"birth_date": reader(&t.Identity.BirthDate, parseColumn),
	}, "name: the columns that make one name, for example [first_name, last_name]")
}

func (t *Table) decodeMerged(it item) {
	t.Merged = &Merged{}
	it.fields(map[string]func(item){
		"survivor": columns(&t.Merged.Survivor),
		"absorbed": columns(&t.Merged.Absorbed),
		"when":     text(&t.Merged.When),
	}, "survivor: the column with the CRM key that remains", "absorbed: the column with the CRM key that was joined into it")
}

func (p *Pass) decode(it item) {
	it.fields(map[string]func(item){
		"every":           duration(&p.Every),
		"chunk":           integer(&p.Chunk, 1, 100_000),
		"rows_per_second": integer(&p.RowsPerSecond, 0, 1_000_000_000),
	})
}

func (f *Find) decode(it item) {
	// One column is written as a scalar, as everywhere.
	tableColumns := func(into *[]string) func(item) {
		return func(it item) {
			if it.n.Content != nil {
				texts(into, parseTableColumn)(it)
				return
			}
			var s string
			if reader(&s, parseTableColumn)(it); s != "" {
				*into = []string{s}
			}
		}
	}
	it.fields(map[string]func(item){
		"email":      tableColumns(&f.Email),
		"phone":      tableColumns(&f.Phone),
		"name":       tableColumns(&f.Name),
		"birth_date": reader(&f.BirthDate, parseTableColumn),
		"postal":     tableColumns(&f.Postal),
		"changed":    tableColumns(&f.Changed),
		"scan":       duration(&f.Scan),
	})
	it.needOneOf("email", "phone", "name", "postal")
	if it.has("birth_date") && !it.has("name") {
		it.below("birth_date").fault("add name, the columns that make one name", "finds nobody without name")
	}
	if it.has("scan") && f.Scan <= 0 {
		it.below("scan").fault("for example 1h", "must be longer than nothing")
	}
}

// Tables are the tables that people are found in, sorted.
func (f *Find) Tables() []string {
	tables := make(map[string]bool)
	for _, name := range slices.Concat(f.Email, f.Phone, f.Name, f.Postal, []string{f.BirthDate}) {
		if table, _, err := splitTableColumn(name); err == nil {
			tables[table] = true
		}
	}
	return slices.Sorted(maps.Keys(tables))
}

// ChangedColumn is the column of a table that grows when a row changes; empty: there is none.
func (f *Find) ChangedColumn(table string) string {
	for _, name := range f.Changed {
		if t, column, err := splitTableColumn(name); err == nil && t == table {
			return column
		}
	}
	return ""
}

// channelContacts says of what kind the contact points of a channel are. The others are of no kind that a table could be mapped to.
var channelContacts = map[string]string{
	"email": "email", "sms": "phone", "phone_human": "phone", "phone_automated": "phone", "postal": "postal",
}

// contacts checks what a table says about who a person is and where they can be reached.
func (v *validator) contacts(path string, t *Table) {
	if p := t.ContactPoint; p != nil && p.Kind == "phone" && v.c.Locale == nil {
		v.fault(path+".contact_point", "add locale: {default_region: FR}",
			"needs locale.default_region: without a region only numbers in international form are read")
	}
	if t.Identity != nil && v.c.Source.Subject.Table != "" && t.Name != v.c.Source.Subject.Table {
		v.fault(path+".identity", "move it there", "belongs to the subject's own table, %s", v.c.Source.Subject.Table)
	}
	m := t.Merged
	if m == nil {
		return
	}
	want := len(v.c.Source.Subject.Key)
	for key, columns := range map[string][]string{"survivor": m.Survivor, "absorbed": m.Absorbed} {
		if want > 0 && len(columns) > 0 && len(columns) != want {
			v.fault(path+".merged."+key, "name them in the same order", "must name as many columns as source.subject.key (%d)", want)
		}
	}
	if len(m.Survivor) > 0 && slices.Equal(m.Survivor, m.Absorbed) {
		v.fault(path+".merged.absorbed", "name the columns of the other subject", "is the same as survivor: nobody is joined into himself")
	}
}

// boundKind checks that the rows that consents of a channel are bound to are contact points of that channel.
func (v *validator) boundKind(path, channel, table string) {
	t := v.c.Source.Tables[table]
	if t == nil || t.ContactPoint == nil || t.ContactPoint.Kind == "" {
		return
	}
	if len(t.ContactPoint.Key) > 1 {
		v.fault(at("source", "tables", table, "contact_point", "key"), "name the column that "+path+" holds the values of",
			"has %d columns, and consents refer to its rows by one", len(t.ContactPoint.Key))
	}
	if want, known := channelContacts[channel]; known && t.ContactPoint.Kind != want {
		v.fault(path, "name the table of the "+want+" contact points", "%s holds contact points of kind %s", table, t.ContactPoint.Kind)
	}
}

// find checks that the rows in which people are found belong to somebody.
func (v *validator) find(path string, r *Replica) {
	f := r.Find
	if f == nil {
		// A key that is there and wrong has its own faults.
		_, find := v.d.lines[path+".find"]
		_, key := v.d.lines[path+".person.crm_key"]
		if _, person := v.d.lines[path+".person"]; person && !find && !key {
			v.fault(path+".person.crm_key", "name the column that holds the CRM key, or add find",
				"is required without find: nothing says how a person is found")
		}
		return
	}
	path += ".find"
	if len(f.Phone) > 0 && v.c.Locale == nil {
		v.fault(path+".phone", "add locale: {default_region: FR}",
			"needs locale.default_region: without a region only numbers in international form are read")
	}
	lists := []struct {
		key   string
		names []string
		one   bool // all of one table
	}{
		{"email", f.Email, false}, {"phone", f.Phone, false}, {"name", f.Name, true}, {"postal", f.Postal, true},
	}
	for _, l := range lists {
		first := ""
		for i, name := range l.names {
			at := fmt.Sprintf("%s.%s[%d]", path, l.key, i)
			table, _, err := splitTableColumn(name)
			if err != nil {
				continue // has its own fault
			}
			v.reachable(at, table, r)
			if first == "" {
				first = table
			}
			if l.one && table != first {
				v.fault(at, "its parts are columns of one row", "is of another table than %s", l.names[0])
			}
		}
	}
	if table, _, err := splitTableColumn(f.BirthDate); err == nil && len(f.Name) > 0 {
		if of, _, err := splitTableColumn(f.Name[0]); err == nil && of != table {
			v.fault(path+".birth_date", "name and birth date are columns of one row", "is of another table than %s", f.Name[0])
		}
	}
	v.changed(path, f)
}

func (v *validator) reachable(path, table string, r *Replica) {
	_, held := r.Hold[table]
	if !held && table != r.Person.Table && r.Erase.Tables[table] == nil && r.Person.Table != "" {
		v.fault(path, fmt.Sprintf("add erase.tables.%s with by", table), "nothing says which rows of %s are the person's", table)
	}
}

func (v *validator) changed(path string, f *Find) {
	seen := make(map[string]bool)
	for i, name := range f.Changed {
		at := fmt.Sprintf("%s.changed[%d]", path, i)
		table, _, err := splitTableColumn(name)
		switch {
		case err != nil:
		case !slices.Contains(f.Tables(), table):
			v.fault(at, "remove it", "nobody is looked for in %s", table)
		case seen[table]:
			v.fault(at, "keep one", "is a second column of %s", table)
		}
		seen[table] = true
	}
}
