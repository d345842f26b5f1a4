package rules

import "fmt"

// CompileError is a fault of the mapping that a person has to mend in the config file.
type CompileError struct {
	Path   string // in the config, for example source.erased.when
	Table  string // set where only the table's shape shows the fault
	Reason string
	Hint   string
}

func (e *CompileError) Error() string {
	where := e.Path
	if e.Table != "" {
		where += " on table " + e.Table
	}
	return "compiling " + where + ": " + withHint(e.Reason, e.Hint)
}

// ColumnError is a column that a rule needs and that the log does not carry, or not in the image where it is needed.
type ColumnError struct {
	Path   string
	Table  string
	Column string
	Reason string
	Hint   string
}

func (e *ColumnError) Error() string {
	return fmt.Sprintf("binding %s to table %s: column %q %s", e.Path, e.Table, e.Column, withHint(e.Reason, e.Hint))
}

// UnmappedError is a value that a closed map of the config does not list. The value itself is told nowhere: it may be
// anything that somebody typed into the CRM.
type UnmappedError struct {
	Path   string // of the map
	Table  string
	Column string
	Null   bool // the value is NULL
}

func (e *UnmappedError) Error() string {
	value, hint := "a value", "add it to the map; a query with GROUP BY on the source shows it"
	if e.Null {
		value, hint = "NULL", `to let rows without a value pass, add the key "" to the map`
	}
	return fmt.Sprintf("mapping column %q of table %s: %s is not in %s (%s)", e.Column, e.Table, value, e.Path, hint)
}

// ValueError is a value that cannot be read as what the mapping says it is. It does not tell the value.
type ValueError struct {
	Table  string
	Column string
	Reason string
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("reading column %q of table %s: the value %s", e.Column, e.Table, e.Reason)
}

// UnavailableError is a value that exists and that this change does not carry. To take it for NULL could erase or
// permit, so capture stops.
type UnavailableError struct {
	Table  string
	Column string
	Reason string
	Hint   string
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("reading column %q of table %s: %s", e.Column, e.Table, withHint(e.Reason, e.Hint))
}

func withHint(reason, hint string) string {
	if hint == "" {
		return reason
	}
	return reason + " (" + hint + ")"
}

// EvalError is a condition that fails on a row instead of being true or false. It does not tell why: the reason quotes the row.
type EvalError struct {
	Path  string
	Table string
}

func (e *EvalError) Error() string {
	return fmt.Sprintf("evaluating %s on a row of table %s: the expression fails (divided by zero, or a list or text too short)",
		e.Path, e.Table)
}
