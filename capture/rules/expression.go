package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/checker"
	"github.com/expr-lang/expr/compiler"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/optimizer"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/types"
	"github.com/expr-lang/expr/vm"
)

// An expression is a condition of the config over the columns of one row, in the language of expr-lang:
//
//	status == "E"                      columns by name, typed by the database
//	old.status != "E"                  the row as it was
//	closed_on < date("2020-01-01")     dates and times, without a zone in UTC
//
// Of the language only what is a pure function of the row is allowed. NULL means what it means in SQL: a comparison with
// NULL is neither true nor false, and an expression that is not true does not hold (see sqlNull). `x == nil` asks for it.
type expression struct {
	path    string
	source  string
	columns []string // read from the row as it is
	old     []string // read from the row as it was
}

// oldRow is the name under which an expression reads the row as it was.
const oldRow = "old"

// pureFunctions are the functions of expr-lang that an expression may call. Those that read the clock or the time zone
// files, and those that only make sense with lists, are missing; so are conversions, which fail on the wrong row.
var pureFunctions = []string{
	"abs", "ceil", "date", "duration", "floor", "hasPrefix", "hasSuffix", "indexOf", "lastIndexOf", "len", "lower", "max",
	"min", "replace", "round", "trim", "trimPrefix", "trimSuffix", "upper",
}

// parseExpression checks what can be checked without knowing the table.
func parseExpression(path, source string) (*expression, error) {
	e := &expression{path: path, source: source}
	if strings.TrimSpace(source) == "" {
		return nil, e.fault("", "is empty", `write a condition over the row, for example status == "E"`)
	}
	tree, err := parser.ParseWithConfig(source, conf.CreateNew())
	if err != nil {
		return nil, e.languageFault("", err)
	}
	if err := e.inspect(tree.Node); err != nil {
		return nil, err
	}
	if len(e.columns)+len(e.old) == 0 {
		return nil, e.fault("", "reads no column", "a condition that is the same for every row is a mistake")
	}
	unknown := func(string) types.Type { return types.Any }
	if _, err := e.compile("", unknown, func(string) bool { return false }); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *expression) fault(table, reason, hint string) *CompileError {
	return &CompileError{Path: e.path, Table: table, Reason: reason, Hint: hint}
}

// languageFault shortens an error of expr-lang, which draws a picture of several lines, to one.
func (e *expression) languageFault(table string, err error) *CompileError {
	var at *file.Error
	if errors.As(err, &at) {
		return e.fault(table, fmt.Sprintf("%s at character %d of %q", at.Message, at.Column+1, e.source),
			"the language is described at https://expr-lang.org/docs/language-definition")
	}
	return e.fault(table, fmt.Sprintf("%v in %q", err, e.source), "the result must be true or false")
}

// inspect collects the columns and refuses what is not a pure function of the row.
func (e *expression) inspect(node ast.Node) error {
	switch n := node.(type) {
	case *ast.NilNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.StringNode:
		return nil
	case *ast.IdentifierNode:
		if n.Value == oldRow || strings.HasPrefix(n.Value, "$") {
			return e.fault("", fmt.Sprintf("%s cannot be used alone", n.Value), "read a column of the old row as old.column")
		}
		e.columns = insertName(e.columns, n.Value)
		return nil
	case *ast.MemberNode:
		return e.inspectMember(n)
	case *ast.UnaryNode:
		return e.inspect(n.Node)
	case *ast.BinaryNode:
		if _, constant := literal(n.Right); n.Operator == "??" && (columnName(n.Left) == "" || !constant) {
			return e.fault("", "?? is used on more than a column and a constant", `write column ?? "constant"`)
		}
		return e.inspectAll(n.Left, n.Right)
	case *ast.ConditionalNode:
		return e.inspectAll(n.Cond, n.Exp1, n.Exp2)
	case *ast.ArrayNode:
		return e.inspectAll(n.Nodes...)
	case *ast.BuiltinNode:
		return e.inspectCall(n.Name, n.Arguments)
	case *ast.CallNode:
		name := "a method"
		if callee, ok := n.Callee.(*ast.IdentifierNode); ok {
			name = callee.Value
		}
		return e.inspectCall(name, n.Arguments)
	}
	return e.fault("", "uses a part of the language that rules do not have", "use columns, constants, operators and "+strings.Join(pureFunctions, ", "))
}

func (e *expression) inspectAll(nodes ...ast.Node) error {
	for _, n := range nodes {
		if err := e.inspect(n); err != nil {
			return err
		}
	}
	return nil
}

func (e *expression) inspectMember(n *ast.MemberNode) error {
	name, ok := oldColumn(n)
	if !ok {
		return e.fault("", "reads a member of something that is not the old row", "only old.column has a point")
	}
	e.old = insertName(e.old, name)
	return nil
}

func (e *expression) inspectCall(name string, args []ast.Node) error {
	if !slices.Contains(pureFunctions, name) {
		hint := "allowed are " + strings.Join(pureFunctions, ", ")
		if name == "now" {
			hint = "a rule never sees the clock, so that a change means the same whenever it is read again"
		}
		return e.fault("", "calls "+name+"()", hint)
	}
	if name == "date" {
		text, ok := "", false
		if len(args) == 1 {
			var s *ast.StringNode
			if s, ok = args[0].(*ast.StringNode); ok {
				text = s.Value
			}
		}
		if ok {
			ok = isDate(text)
		}
		if !ok {
			return e.fault("", "calls date() with more or less than a date", `write date("2006-01-02"), date("2006-01-02 15:04:05") or date("2006-01-02T15:04:05+01:00")`)
		}
	}
	return e.inspectAll(args...)
}

// isDate tells whether the date() of expr-lang reads the text as the date that it looks like.
func isDate(text string) bool {
	for _, layout := range []string{time.DateOnly, time.DateTime, time.RFC3339} {
		if _, err := time.Parse(layout, text); err == nil {
			return true
		}
	}
	return false
}

func insertName(names []string, name string) []string {
	if i, known := slices.BinarySearch(names, name); !known {
		return slices.Insert(names, i, name)
	}
	return names
}

// oldColumn returns the column of old.column.
func oldColumn(node ast.Node) (string, bool) {
	m, ok := node.(*ast.MemberNode)
	if !ok || m.Method || m.Optional {
		return "", false
	}
	base, ok := m.Node.(*ast.IdentifierNode)
	if !ok || base.Value != oldRow {
		return "", false
	}
	name, ok := m.Property.(*ast.StringNode)
	if !ok {
		return "", false
	}
	return name.Value, true
}

// columnName returns what identifies a column that a node reads, "" if it reads none by itself.
func columnName(node ast.Node) string {
	if name, ok := oldColumn(node); ok {
		return oldRow + "." + name
	}
	if id, ok := node.(*ast.IdentifierNode); ok {
		return id.Value
	}
	return ""
}

// literal reports whether a node is a constant, and whether that is nil.
func literal(node ast.Node) (isNil, constant bool) {
	switch node.(type) {
	case *ast.NilNode:
		return true, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.StringNode:
		return false, true
	}
	return false, false
}

// compile makes a program for columns of these types; table is for the error. It is checked as written first, so that
// messages speak of what the operator wrote, and then with the meaning of NULL spelled out. flag tells of a column, which
// may be one of the old row, whether it is a number that stands for true or false (see readFlags).
func (e *expression) compile(table string, typeOf func(column string) types.Type, flag func(column string) bool) (*vm.Program, error) {
	env, old := types.Map{}, types.Map{}
	for _, c := range e.columns {
		env[c] = typeOf(c)
	}
	for _, c := range e.old {
		old[c] = typeOf(c)
	}
	env[oldRow] = old
	config := conf.New(env)
	config.ExpectAny = true
	config.Expect = boolKind
	tree, err := parser.ParseWithConfig(e.source, config)
	if err != nil {
		return nil, e.languageFault(table, err)
	}
	tree.Node = readFlags(tree.Node, flag)
	if _, err := checker.Check(tree, config); err != nil {
		return nil, e.languageFault(table, err)
	}
	tree.Node = sqlNull(tree.Node, true)
	if _, err := checker.Check(tree, config); err != nil {
		return nil, e.languageFault(table, err)
	}
	if err := optimizer.Optimize(&tree.Node, config); err != nil {
		return nil, e.languageFault(table, err)
	}
	program, err := compiler.Compile(tree, config)
	if err != nil {
		return nil, e.languageFault(table, err)
	}
	return program, nil
}
