package rules

import "github.com/expr-lang/expr/ast"

// readFlags rewrites a condition over columns that are flags: MySQL has no type for true and false and keeps them as 1 and
// 0 in TINYINT(1) and BIT(1), which the log does not tell from other numbers. Where the language wants a truth value such a
// column means "not 0", as it does in SQL; compared with a number it is that number.
func readFlags(node ast.Node, flag func(column string) bool) ast.Node {
	return (&flagReader{flag: flag}).read(node, true)
}

type flagReader struct{ flag func(column string) bool }

func (f *flagReader) is(node ast.Node) bool {
	name := columnName(node)
	return name != "" && f.flag(name)
}

// read returns the node as it is to be understood; truth is set where it has to be true or false.
func (f *flagReader) read(node ast.Node, truth bool) ast.Node {
	if truth && f.is(node) {
		return notZero(node, true)
	}
	switch n := node.(type) {
	case *ast.UnaryNode:
		n.Node = f.read(n.Node, n.Operator == "!" || n.Operator == "not")
	case *ast.BinaryNode:
		if compared := f.comparison(n); compared != nil {
			return compared
		}
		junction := n.Operator == "&&" || n.Operator == "and" || n.Operator == "||" || n.Operator == "or"
		n.Left, n.Right = f.read(n.Left, junction), f.read(n.Right, junction)
	case *ast.ConditionalNode:
		n.Cond, n.Exp1, n.Exp2 = f.read(n.Cond, true), f.read(n.Exp1, truth), f.read(n.Exp2, truth)
	}
	return node
}

// comparison is that of a flag with true or false; nil for any other.
func (f *flagReader) comparison(n *ast.BinaryNode) ast.Node {
	if n.Operator != "==" && n.Operator != "!=" {
		return nil
	}
	for _, sides := range [][2]ast.Node{{n.Left, n.Right}, {n.Right, n.Left}} {
		if constant, ok := sides[1].(*ast.BoolNode); ok && f.is(sides[0]) {
			return notZero(sides[0], constant.Value == (n.Operator == "=="))
		}
	}
	return nil
}

// notZero compares a flag with 0.
func notZero(node ast.Node, want bool) ast.Node {
	operator := "!="
	if !want {
		operator = "=="
	}
	return binary(node, operator, node, &ast.IntegerNode{Value: 0})
}
