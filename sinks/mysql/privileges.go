package mysql

import (
	"fmt"
	"slices"
	"strings"

	"lethe/sinks/ledger"
)

// privileges are what the run role needs on one mapped table, and nothing more.
type privileges struct {
	table  *table
	read   map[string]bool
	update map[string]bool
	insert map[string]bool
	delete bool
	locks  bool // SELECT … FOR UPDATE, which wants UPDATE on some column
}

// tablePrivileges are the privileges by table.
type tablePrivileges map[[2]string]*privileges

func (all tablePrivileges) of(t *table) *privileges {
	key := [2]string{t.schema, t.name}
	if all[key] == nil {
		all[key] = &privileges{table: t, read: map[string]bool{}, update: map[string]bool{}, insert: map[string]bool{}}
	}
	return all[key]
}

// privileges says what the statements of this package need in a mode, by table.
func (m *Mapping) privileges(mode string) tablePrivileges {
	all := tablePrivileges{}
	writes := mode != ledger.ModeObserve
	person := all.of(m.person)
	person.read[m.key.name] = true
	for _, c := range m.crm {
		person.read[c.name] = true
	}
	person.locks = writes
	for i := range m.folds {
		m.foldPrivileges(all, &m.folds[i], writes)
	}
	for i := range m.suppress {
		m.suppressPrivileges(all, &m.suppress[i], writes)
	}
	for i := range m.erase {
		m.erasePrivileges(all, &m.erase[i], mode == ledger.ModeErase)
	}
	for i := range m.finds {
		m.findPrivileges(all, &m.finds[i], writes)
	}
	return all
}

// findPrivileges are for reading by what a person is found; rows are locked while it is decided whose they are.
func (m *Mapping) findPrivileges(all tablePrivileges, ft *findTable, writes bool) {
	p := ft.needs(all)
	for _, c := range ft.key {
		p.read[c.name] = true
	}
	for _, c := range ft.columns {
		p.read[c.name] = true
	}
	if ft.changed != nil {
		p.read[ft.changed.name] = true
	}
	p.locks = p.locks || writes
}

func (j join) needs(all tablePrivileges) *privileges {
	p := all.of(j.table)
	if j.by != nil {
		p.read[j.by.name] = true
	}
	return p
}

func (p *privileges) readKey() {
	for _, name := range p.table.primary { // for the undo of a cancel
		p.read[name] = true
	}
}

func (p *privileges) updates(c *column, writes bool) { p.update[c.name] = p.update[c.name] || writes }

func (m *Mapping) foldPrivileges(all tablePrivileges, ft *foldTable, writes bool) {
	p := ft.needs(all)
	p.readKey()
	for _, c := range ft.columns {
		p.read[c.column.name] = true
		p.updates(c.column, writes)
	}
	for _, c := range ft.now {
		p.updates(c, writes)
	}
}

func (m *Mapping) suppressPrivileges(all tablePrivileges, a *suppressAction, writes bool) {
	p := a.needs(all)
	p.readKey()
	if a.insert && writes { // ON DUPLICATE KEY UPDATE leaves the first column as it is, and wants to be allowed to
		p.read[a.set[0].column.name] = true
		for k := range a.set {
			if k == 0 || m.server.mariadb { // which asks for all that are inserted
				p.updates(a.set[k].column, true)
			}
		}
	}
	for _, as := range a.set {
		switch {
		case !a.insert:
			p.read[as.column.name] = true
			p.updates(as.column, writes)
		case writes:
			p.insert[as.column.name] = true
			if as.held.sql != "" {
				p.read[as.column.name] = true
			}
		}
	}
	p.delete = p.delete || a.insert && writes // a cancel takes the row away
}

func (m *Mapping) erasePrivileges(all tablePrivileges, step *eraseStep, writes bool) {
	p := step.needs(all)
	p.delete = p.delete || step.delete && writes
	if step.from != nil {
		p.read[step.from.name] = true
	}
	if step.unlink && writes {
		p.updates(step.by, true)
	}
	for _, as := range step.set {
		p.read[as.column.name] = true
		p.updates(as.column, writes)
	}
}

// grantee is an account with what it may do.
type grantee struct {
	account
	grants *grants
}

func (a account) label() string { return a.user + "@" + a.host }

// compare compares what an account may do with what is needed, one finding a table and privilege. readOnly looks at SELECT
// alone.
func (c *checker) compare(needs tablePrivileges, g *grantee, readOnly bool) {
	var order []*privileges
	for _, p := range needs {
		order = append(order, p)
	}
	slices.SortFunc(order, func(a, b *privileges) int { return strings.Compare(a.table.label(), b.table.label()) })
	for _, p := range order {
		c.compareColumns(p, g, "SELECT", p.read)
		if readOnly {
			continue
		}
		if p.locks && len(trueKeys(p.update)) == 0 && !g.grants.mayAny("UPDATE", p.table.schema, p.table.name) {
			p.update[slices.Min(ledger.SortedKeys(p.read))] = true
		}
		c.compareColumns(p, g, "UPDATE", p.update)
		c.compareColumns(p, g, "INSERT", p.insert)
		if p.delete && !g.grants.may("DELETE", p.table.schema, p.table.name, "") {
			c.fault(ledger.CodePrivilege, p.table.label(), fmt.Sprintf("login %s may not delete from the table", g.label()),
				"GRANT DELETE ON "+p.table.sql()+" TO "+g.sql()+";")
		}
	}
}

// trueKeys are the sorted keys of what is true in a set.
func trueKeys(set map[string]bool) []string {
	return slices.DeleteFunc(ledger.SortedKeys(set), func(k string) bool { return !set[k] })
}

func (c *checker) compareColumns(p *privileges, g *grantee, privilege string, columns map[string]bool) {
	missing := slices.DeleteFunc(trueKeys(columns), func(name string) bool {
		return g.grants.may(privilege, p.table.schema, p.table.name, name)
	})
	if len(missing) == 0 {
		return
	}
	quoted := make([]string, len(missing))
	for i, name := range missing {
		quoted[i] = quote(name)
	}
	c.fault(ledger.CodePrivilege, p.table.label(), fmt.Sprintf("login %s lacks %s on %s", g.label(), privilege, strings.Join(missing, ", ")),
		fmt.Sprintf("GRANT %s (%s) ON %s TO %s;", privilege, strings.Join(quoted, ", "), p.table.sql(), g.sql()))
}
