package rules

import (
	"reflect"

	"github.com/expr-lang/expr/ast"
)

const boolKind = reflect.Bool

// sqlNull rewrites a condition so that expr-lang, which has no third truth value, gives what SQL would give: whether the
// condition is true (want) or false (not want), both of which are no where a NULL leaves it open.
//
// Negations are pushed down to the comparisons, which is exact for Kleene's and, or and not; each comparison then also
// asks that its columns are not NULL. So `!(active)` does not hold for a row whose active is NULL, and an erasure never
// follows from a value that nobody has entered. Comparisons with nil itself stay as they are.
func sqlNull(node ast.Node, want bool) ast.Node {
	switch n := node.(type) {
	case *ast.UnaryNode:
		if n.Operator == "!" || n.Operator == "not" {
			return sqlNull(n.Node, !want)
		}
	case *ast.BinaryNode:
		switch n.Operator {
		case "&&", "and":
			return binary(n, junction(want), sqlNull(n.Left, want), sqlNull(n.Right, want))
		case "||", "or":
			return binary(n, junction(!want), sqlNull(n.Left, want), sqlNull(n.Right, want))
		}
	case *ast.ConditionalNode:
		c := &ast.ConditionalNode{
			Ternary: n.Ternary, Cond: sqlNull(n.Cond, true), Exp1: sqlNull(n.Exp1, want), Exp2: sqlNull(n.Exp2, want),
		}
		c.SetLocation(n.Location())
		return c
	}
	result := node
	if !want {
		result = &ast.UnaryNode{Operator: "!", Node: node}
		result.SetLocation(node.Location())
	}
	seen := map[string]bool{}
	for _, column := range nullable(node, nil) {
		if name := columnName(column); !seen[name] {
			seen[name] = true
			present := binary(column, "!=", column, &ast.NilNode{})
			result = binary(node, "&&", present, result)
		}
	}
	return result
}

func junction(and bool) string {
	if and {
		return "&&"
	}
	return "||"
}

func binary(at ast.Node, operator string, left, right ast.Node) ast.Node {
	n := &ast.BinaryNode{Operator: operator, Left: left, Right: right}
	n.SetLocation(at.Location())
	return n
}

// nullable appends the columns whose NULL leaves a comparison open.
func nullable(node ast.Node, columns []ast.Node) []ast.Node {
	if columnName(node) != "" {
		return append(columns, node)
	}
	switch n := node.(type) {
	case *ast.UnaryNode:
		return nullable(n.Node, columns)
	case *ast.BinaryNode:
		if asksForNull(n) || n.Operator == "??" {
			return columns
		}
		return nullable(n.Right, nullable(n.Left, columns))
	case *ast.ConditionalNode:
		return nullable(n.Exp2, nullable(n.Exp1, nullable(n.Cond, columns)))
	case *ast.ArrayNode:
		for _, item := range n.Nodes {
			columns = nullable(item, columns)
		}
	case *ast.BuiltinNode:
		for _, arg := range n.Arguments {
			columns = nullable(arg, columns)
		}
	}
	return columns
}

// asksForNull reports whether a comparison is one with nil itself.
func asksForNull(n *ast.BinaryNode) bool {
	if n.Operator != "==" && n.Operator != "!=" {
		return false
	}
	leftNil, _ := literal(n.Left)
	rightNil, _ := literal(n.Right)
	return leftNil && columnName(n.Right) != "" || rightNil && columnName(n.Left) != ""
}
