package rules

import (
	"strings"
	"time"

	"github.com/expr-lang/expr/types"
	"github.com/expr-lang/expr/vm"

	"lethe/capture"
)

// A predicate's results are remembered by the raw bytes of what it reads: the columns of conditions are flags and codes,
// so nearly every row is answered by one look-up, without decoding a value. Both bounds keep the memory of a condition
// over something that differs in every row below 300 kB.
const (
	cachedResults = 1024
	cachedBytes   = 128
)

// predicate is an expression bound to the shape of a table.
type predicate struct {
	*expression
	program *vm.Program
	machine vm.VM
	inputs  []input
	columns []int // those read from the row as it is
	env     map[string]any
	old     map[string]any
	results map[string]bool
	key     []byte
}

// input is a column that the expression reads.
type input struct {
	name string
	col  int
	old  bool
}

// predicate binds an expression; what it reads as old.x must be in the replica identity.
func (b *binder) predicate(e *expression) *predicate {
	p := &predicate{
		expression: e, env: make(map[string]any, len(e.columns)+1), old: make(map[string]any, len(e.old)),
		results: make(map[string]bool),
	}
	p.env[oldRow] = p.old
	before := len(b.faults)
	for _, name := range e.columns {
		col := b.column(e.path, name)
		p.inputs = append(p.inputs, input{name: name, col: col})
		p.columns = append(p.columns, col)
	}
	for _, name := range e.old {
		p.inputs = append(p.inputs, input{name: name, col: b.column(e.path, name), old: true})
		b.old(e.path, name)
	}
	if len(b.faults) > before {
		return p
	}
	typeOf := func(column string) types.Type { return b.kinds[b.table.Index(column)].exprType() }
	flag := func(column string) bool {
		return b.kinds[b.table.Index(strings.TrimPrefix(column, oldRow+"."))] == kindFlag
	}
	program, err := e.compile(b.table.Name, typeOf, flag)
	if err != nil {
		b.fault(err)
	}
	p.program = program
	return p
}

func (k kind) exprType() types.Type {
	switch k {
	case kindBool:
		return types.Bool
	case kindInt, kindUnsigned, kindFlag:
		return types.Int
	case kindFloat:
		return types.Float64
	case kindDate, kindTime:
		return types.TypeOf(time.Time{})
	case kindText, kindPadded:
	}
	return types.String
}

// readsOld reports whether the expression itself compares with the old row.
func (p *predicate) readsOld() bool { return len(p.expression.old) > 0 }

// unchanged reports whether an UPDATE cannot have changed what the predicate says.
func (p *predicate) unchanged(x *row) bool { return !p.readsOld() && x.same(p.columns) }

// was evaluates the predicate on the row as it was; known is false where the old image does not tell.
func (p *predicate) was(x *row) (held, known bool, err error) {
	if p.readsOld() || x.c.Op != capture.OpUpdate || !x.knownBefore(p.columns) {
		return false, false, nil
	}
	held, err = p.holds(x, before)
	return held, true, err
}

// holds reports whether the predicate is true of an image of the row.
func (p *predicate) holds(x *row, img image) (bool, error) {
	p.key = p.key[:0]
	for i := range p.inputs {
		v, err := p.read(x, &p.inputs[i], img)
		if err != nil {
			return false, err
		}
		if v.State == capture.Null {
			p.key = append(p.key, 0)
			continue
		}
		// Lengths keep the columns apart; four bytes hold the longest value that the databases have.
		n := len(v.Text)
		p.key = append(p.key, 1, byte(n), byte(n>>8), byte(n>>16), byte(n>>24)) //nolint:gosec // the four bytes of n
		p.key = append(p.key, v.Text...)
		if len(p.key) > cachedBytes {
			return p.run(x, img)
		}
	}
	if result, known := p.results[string(p.key)]; known {
		return result, nil
	}
	result, err := p.run(x, img)
	if err != nil {
		return false, err
	}
	if len(p.results) >= cachedResults {
		clear(p.results)
	}
	p.results[string(p.key)] = result
	return result, nil
}

// read returns what an input holds. The old row of an INSERT, and of a row that a pass reads, is NULL in every column.
func (p *predicate) read(x *row, in *input, img image) (capture.Value, error) {
	if in.old {
		if x.isNew() {
			return capture.Value{State: capture.Null}, nil
		}
		img = before
	}
	return x.value(in.col, img)
}

func (p *predicate) run(x *row, img image) (bool, error) {
	for i := range p.inputs {
		in := &p.inputs[i]
		v, err := p.read(x, in, img)
		if err != nil {
			return false, err
		}
		var value any
		if v.State == capture.Present {
			if value, err = x.b.kinds[in.col].decode(v.Text); err != nil {
				return false, &ValueError{Table: x.b.table.Name, Column: in.name, Reason: err.Error()}
			}
		}
		if in.old {
			p.old[in.name] = value
		} else {
			p.env[in.name] = value
		}
	}
	result, err := p.machine.Run(p.program, p.env)
	held, ok := result.(bool)
	if err != nil || !ok {
		return false, &EvalError{Path: p.path, Table: x.b.table.Name}
	}
	return held, nil
}
