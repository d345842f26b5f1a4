package mysql

import (
	"context"
	"fmt"
	"strings"

	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Plan looks for a person by the parts of the CRM key, in a read-only transaction, and counts the rows that each phase
// would touch if the person were erased now. It lists both phases in every mode: whoever starts with observe reads here
// what the next mode brings.
func (d *Desk) Plan(ctx context.Context, key []string) (*ledger.Plan, error) {
	p := &ledger.Plan{Replica: d.r.opts.Name, Mode: d.r.cfg.Mode, Persons: []string{}}
	err := d.r.readTx(ctx, "planning", func(tx *tx) error {
		m, findings, err := compile(ctx, tx, d.r.cfg)
		if err != nil {
			return err
		}
		if err := ledger.ErrorOf(d.r.opts.Name, findings); err != nil {
			return err
		}
		if len(key) != len(m.crm) {
			return &sinks.Error{
				Class: sinks.Permanent, Op: "planning", Code: ledger.CodeKeyParts,
				Hint: fmt.Sprintf("the CRM key of replica %s has %d parts: give them as so many arguments", d.r.opts.Name, len(m.crm)),
			}
		}
		who := []*ledger.Subject{{Key: key}}
		err = m.eachPerson(ctx, tx, who, "", func(_ *ledger.Subject, person string) { p.Persons = append(p.Persons, person) })
		if err != nil {
			return m.keyTypeError(d.r.opts.Name, err)
		}
		p.Found, p.Steps = len(p.Persons), m.steps(d.r.cfg.Mode)
		if len(m.finds) > 0 { // statements know rows by person.key there
			who = nil
			for _, person := range p.Persons {
				who = append(who, &ledger.Subject{Key: []string{person}})
			}
		}
		return count(ctx, tx, p, m, who)
	})
	if err != nil {
		return nil, classify("planning", err)
	}
	return p, nil
}

// keyTypeError tells what a key of another type than the column's comes to: no statement of the replica's is at fault,
// and no event is parked.
func (m *Mapping) keyTypeError(replica string, err error) error {
	if sinks.CodeOf(err) != CodeKeyType {
		return err
	}
	types := make([]string, len(m.crm))
	for i, c := range m.crm {
		types[i] = c.name + " " + c.typ
	}
	return &sinks.Error{
		Class: sinks.Permanent, Op: "planning", Code: CodeKeyType,
		Hint: fmt.Sprintf("the key does not have the type of person.crm_key of replica %s (%s)", replica, strings.Join(types, ", ")),
	}
}

// steps lists what the phases do, without counts.
func (m *Mapping) steps(mode string) []ledger.PlanStep {
	var out []ledger.PlanStep
	for i := range m.suppress {
		a := &m.suppress[i]
		s := ledger.PlanStep{
			Phase: 1, Active: mode != ledger.ModeObserve, Table: a.table.config, Action: ledger.ActionSuppress, Columns: assigned(a.set), By: m.byOf(a.join),
		}
		if a.insert {
			s.Action = ledger.ActionInsert
		}
		out = append(out, s)
	}
	for i := range m.folds {
		var columns []string
		for _, c := range m.folds[i].columns {
			columns = append(columns, c.column.name)
		}
		out = append(out, ledger.PlanStep{
			Phase: 1, Active: mode != ledger.ModeObserve, Table: m.folds[i].table.config, Action: ledger.ActionFold, Columns: columns, By: m.byOf(m.folds[i].join),
		})
	}
	for i := range m.erase {
		e := &m.erase[i]
		s := ledger.PlanStep{
			Phase: 2, Active: mode == ledger.ModeErase, Table: e.table.config, Action: ledger.ActionSet, Columns: assigned(e.set), By: m.byOf(e.join),
		}
		switch {
		case e.hold:
			s.Action = ledger.ActionHold
		case e.delete:
			s.Action = ledger.ActionDelete
		case e.unlink:
			s.Action, s.Columns = ledger.ActionUnlink, []string{e.by.name}
		}
		out = append(out, s)
	}
	return out
}

func assigned(set []assignment) []string {
	names := make([]string, len(set))
	for i := range set {
		names[i] = set[i].column.name
	}
	return names
}

func (m *Mapping) byOf(j join) string {
	if j.by != nil {
		return j.by.name
	}
	names := make([]string, len(m.crm))
	for i, c := range m.crm {
		names[i] = c.name
	}
	return strings.Join(names, ", ")
}

// count fills in the rows of each step: an insert makes one for each person, everything else has the rows that are there.
func count(ctx context.Context, tx *tx, p *ledger.Plan, m *Mapping, who []*ledger.Subject) error {
	joins := map[string]join{}
	for i := range m.suppress {
		joins[m.suppress[i].table.config+"\x00"+m.byOf(m.suppress[i].join)] = m.suppress[i].join
	}
	for i := range m.folds {
		joins[m.folds[i].table.config+"\x00"+m.byOf(m.folds[i].join)] = m.folds[i].join
	}
	for i := range m.erase {
		joins[m.erase[i].table.config+"\x00"+m.byOf(m.erase[i].join)] = m.erase[i].join
	}
	v, err := m.who(who)
	if err != nil {
		return err
	}
	rows := map[string]int64{}
	for _, name := range ledger.SortedKeys(joins) {
		from, where, _ := m.reach(joins[name])
		var n int64
		query := "SELECT COUNT(*) FROM " + m.tablesOf(v, joins[name], from) + " WHERE " + where
		if err := tx.QueryRowContext(ctx, query, v.args...).Scan(&n); err != nil {
			return err
		}
		rows[name] = n
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		s.Rows = rows[s.Table+"\x00"+s.By]
		if s.Action == ledger.ActionInsert {
			s.Rows = int64(p.Found)
		}
	}
	return nil
}
