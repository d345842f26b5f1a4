package config

import (
	"fmt"
	"sort"
	"strings"
)

// Fault is one thing that is wrong in a config file.
type Fault struct {
	Path    string // for example replicas.marketing.erase.tables.leads.set.email; empty: the file as a whole
	Line    int    // from 1
	Message string // continues the path: "is required"
	Hint    string // what to do; may be empty
}

func (f Fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "line %d: ", f.Line)
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	b.WriteString(f.Message)
	if f.Hint != "" {
		b.WriteString("; " + f.Hint)
	}
	return b.String()
}

// Faults is the error of Load and Parse: everything that is wrong, in the order of the file.
type Faults struct { //nolint:errname // It is a list of faults, and named for what is in it.
	File string
	List []Fault
}

func (e *Faults) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "reading config %s: %d fault", e.File, len(e.List))
	if len(e.List) != 1 {
		b.WriteByte('s')
	}
	for _, f := range e.List {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// sortFaults gives the faults one order, whatever order they were found in, and drops what is said twice.
func sortFaults(list []Fault) []Fault {
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		if a.Path != b.Path {
			return a.Path < b.Path
		}
		return a.Message < b.Message
	})
	kept := list[:0]
	for i, f := range list {
		if i == 0 || f != list[i-1] {
			kept = append(kept, f)
		}
	}
	return kept
}

// Line returns the line of a YAML path in the file, or of its nearest enclosing section; 1 where there is none.
func (c *Config) Line(path string) int { return nearestLine(c.lines, path) }

// Faults makes the error of further findings about this file, for checks that other packages make (expressions, the
// databases themselves). It returns nil for an empty list.
func (c *Config) Faults(list []Fault) error {
	if len(list) == 0 {
		return nil
	}
	for i := range list {
		if list[i].Line == 0 {
			list[i].Line = c.Line(list[i].Path)
		}
	}
	return &Faults{File: c.file, List: sortFaults(list)}
}

func nearestLine(lines map[string]int, path string) int {
	for path != "" {
		if line, ok := lines[path]; ok {
			return line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 1
}
