package rules

import (
	"slices"

	"lethe/config"
)

// TableNeeds is what the log must carry of one table for its rules to work. The lists are sorted and without doubles, except
// SubjectColumns, which has the order of the CRM key.
type TableNeeds struct {
	Columns        []string // everything that is read, the two below included
	OldColumns     []string // must be in the replica identity
	SubjectColumns []string // hold the CRM key
	ReadsDelete    bool     // a DELETE means something
	ReadsRows      bool     // a row as it is means something: passes read the table
}

// Needs returns what must be in the log, for every mapped table and for those that erased.* names. A mapped table
// without rules is in it too, with its subject columns only: its TRUNCATE has to be seen.
func Needs(cfg *config.Source) (map[string]TableNeeds, error) {
	plans, err := compile(cfg, keyless{})
	if err != nil {
		return nil, err
	}
	all := make(map[string]TableNeeds, len(plans))
	for table, p := range plans {
		n := TableNeeds{SubjectColumns: slices.Clone(p.subject), ReadsRows: p.own} // a pass shows who is there
		for _, s := range p.rules {
			s.needs(&n)
			n.ReadsRows = n.ReadsRows || readsRows(s)
		}
		n.Columns = distinct(append(append(n.Columns, n.OldColumns...), n.SubjectColumns...))
		n.OldColumns = distinct(n.OldColumns)
		all[table] = n
	}
	return all, nil
}

// readsRows tells the rules that say something of a row as it is from those that only see it change.
func readsRows(s spec) bool {
	switch s.(type) {
	case *deletedSpec, keyChangeSpec, *revivedSpec:
		return false
	}
	return true
}

// Recommends returns by table the columns that are better in the replica identity, although nothing goes wrong without
// them. Where the old value of a state is unknown, each UPDATE of the row has to send the present state: the sinks ignore
// it, but every ordinary change of a customer then costs an event.
func Recommends(cfg *config.Source) (map[string][]string, error) {
	plans, err := compile(cfg, keyless{})
	if err != nil {
		return nil, err
	}
	all := make(map[string][]string)
	for table, p := range plans {
		var n TableNeeds
		for _, s := range p.rules {
			if state, ok := s.(interface{ compares() []string }); ok {
				all[table] = append(all[table], state.compares()...)
			}
			s.needs(&n)
		}
		all[table] = slices.DeleteFunc(distinct(all[table]), func(c string) bool { return slices.Contains(n.OldColumns, c) })
		if len(all[table]) == 0 {
			delete(all, table)
		}
	}
	return all, nil
}

func distinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// reads adds the columns of an expression.
func (n *TableNeeds) reads(e *expression) {
	if e == nil {
		return
	}
	n.Columns = append(n.Columns, e.columns...)
	n.OldColumns = append(n.OldColumns, e.old...)
}
