package rules

import (
	"errors"

	"lethe/capture"
)

// rule is one rule bound to the shape of a table.
type rule interface {
	// ops tells for which operations the rule has to be asked.
	ops() ops
	// apply appends what the change means.
	apply(x *row, out []Draft) ([]Draft, error)
}

// ops is a set of operations on a row.
type ops struct{ insert, update, delete bool }

// binding is the plan of a table for one shape of it.
type binding struct {
	table    *capture.Table
	kinds    []kind // by column
	subject  []int
	own      bool  // the table is the subjects' own
	identity []int // empty: the event ids take the subject's columns
	// contactKey names the columns of contact references; nil: the table has no contact points.
	contactKey []string
	insert     []rule
	update     []rule
	delete     []rule
}

// rulesOf returns the rules that an operation can concern.
func (b *binding) rulesOf(op capture.Op) []rule {
	switch op {
	case capture.OpInsert, capture.OpRead:
		return b.insert
	case capture.OpUpdate:
		return b.update
	case capture.OpDelete:
		return b.delete
	case capture.OpTruncate, capture.OpMessage:
	}
	return nil
}

func newBinding(p *plan, t *capture.Table) (*binding, error) {
	b := &binding{table: t, own: p.own, kinds: make([]kind, len(t.Columns))}
	for i, c := range t.Columns {
		b.kinds[i] = kindOf(c.Type)
		if c.Key && t.OldRow == capture.OldRowKey {
			b.identity = append(b.identity, i)
		}
	}
	if len(p.rules) == 0 {
		return b, nil
	}
	bi := &binder{binding: b}
	b.subject = bi.columns(p.subjectPath, p.subject)
	var rules []rule
	for _, spec := range p.rules {
		rules = append(rules, spec.bind(bi))
	}
	if len(bi.faults) > 0 {
		return nil, errors.Join(bi.faults...)
	}
	for _, r := range rules {
		on := r.ops()
		if on.insert {
			b.insert = append(b.insert, r)
		}
		if on.update {
			b.update = append(b.update, r)
		}
		if on.delete {
			b.delete = append(b.delete, r)
		}
	}
	return b, nil
}

// binder collects every fault of a table, so that an operator sees all at once.
type binder struct {
	*binding
	faults []error
}

func (b *binder) fault(err error) { b.faults = append(b.faults, err) }

// column finds a column that must be in the log; -1 with a fault noted if it is not.
func (b *binder) column(path, name string) int {
	col := b.table.Index(name)
	if col < 0 {
		b.fault(&ColumnError{
			Path: path, Table: b.table.Name, Column: name, Reason: "is not in the log",
			Hint: "the table lacks it, it was renamed, or the publication's column list leaves it out",
		})
	}
	return col
}

func (b *binder) columns(path string, names []string) []int {
	cols := make([]int, len(names))
	for i, name := range names {
		cols[i] = b.column(path, name)
	}
	return cols
}

// old demands that the old image of UPDATE and DELETE carries a column.
func (b *binder) old(path, name string) {
	col := b.table.Index(name)
	if col < 0 || b.table.OldRow == capture.OldRowFull || b.table.OldRow == capture.OldRowKey && b.table.Columns[col].Key {
		return // a missing column was reported already
	}
	b.fault(&ColumnError{
		Path: path, Table: b.table.Name, Column: name, Reason: "is not in the table's replica identity",
		Hint: "make a unique index that contains it and ALTER TABLE … REPLICA IDENTITY USING INDEX, or REPLICA IDENTITY FULL; lethe check prints the statements",
	})
}

// date demands that a column holds dates.
func (b *binder) date(path, name string) int {
	col := b.column(path, name)
	if col < 0 {
		return col
	}
	if k := b.kinds[col]; !k.temporal() && k != kindText {
		b.fault(&ColumnError{
			Path: path, Table: b.table.Name, Column: name, Reason: "has type " + b.table.Columns[col].Type,
			Hint: "a date, timestamp or timestamptz is needed",
		})
	}
	return col
}
