package mysql

import (
	"maps"
	"slices"
	"strings"

	"lethe/capture"
)

// effect is what a statement did to a mapped table without rows in the log.
type effect struct {
	table string // as in the needs
	cause string // of the gap
}

// changesRows are the statements that change rows. In row format the log has their rows instead of them.
var changesRows = map[string]bool{
	"INSERT": true, "REPLACE": true, "UPDATE": true, "DELETE": true, "LOAD": true, "WITH": true, "IMPORT": true,
}

// callsRoutines are the statements that are in the log only because a routine that they call changed rows.
var callsRoutines = map[string]bool{
	"SELECT": true, "DO": true, "CALL": true, "VALUES": true, "EXECUTE": true, "HANDLER": true, "": true,
}

// effects recognises the statements after which a mapped table is not what its rows in the log say: TRUNCATE, DROP, RENAME
// away, an ALTER that takes partitions or files away, and whatever changes rows by a statement. It errs towards telling:
// a statement that changes rows is taken to change every mapped table that it names, and one that calls a routine and names
// none to change them all. All other DDL has none. unclear is set for a statement that changes rows of tables that are not
// mapped, as far as it says: a trigger, or a view in its place, may have changed others.
func effects(q query, needs map[string]TableNeeds, fold bool) (found []effect, unclear bool) {
	e := &effectFinder{q: q, needs: needs, fold: fold, lex: newLexer(q.text, q.noBackslash)}
	e.statement()
	return e.found, e.unclear
}

// effectFinder reads one statement.
type effectFinder struct {
	q     query
	needs map[string]TableNeeds
	fold  bool
	lex   *lexer

	found   []effect
	unclear bool
}

func (e *effectFinder) add(table, cause string) {
	if table != "" && !slices.Contains(e.found, effect{table, cause}) {
		e.found = append(e.found, effect{table, cause})
	}
}

func (e *effectFinder) statement() {
	if e.lex.peek().kind == tokenEnd {
		return // a comment alone: servers put one in the place of an event that a reader would not know
	}
	first := e.lex.keyword()
	switch {
	case first == "TRUNCATE":
		e.lex.accept("TABLE")
		e.add(e.table(), capture.GapTruncate)
	case first == "DROP":
		e.drop()
	case first == "RENAME":
		if e.lex.accept("TABLE", "TABLES") {
			e.rename()
		}
	case first == "ALTER":
		e.alter()
	case first == "CREATE":
		e.create()
	case first == "SET" && e.lex.accept("STATEMENT"): // MariaDB: SET STATEMENT variables FOR statement
		for t := e.lex.next(); t.kind != tokenEnd; t = e.lex.next() {
			if t.kind == tokenWord && upper(t.text) == "FOR" {
				e.statement()
				return
			}
		}
	case first == "ANALYZE" && !e.lex.accept("TABLE", "TABLES", "LOCAL", "NO_WRITE_TO_BINLOG"): // MariaDB: ANALYZE statement
		for t := e.lex.next(); t.kind != tokenEnd; t = e.lex.next() {
			if t.kind == tokenWord && changesRows[upper(t.text)] {
				e.changed()
				return
			}
		}
	case changesRows[first]:
		e.changed()
	case callsRoutines[first]:
		e.mentioned(capture.GapStatement)
		if len(e.found) == 0 {
			for _, key := range slices.Sorted(maps.Keys(e.needs)) {
				e.add(key, capture.GapStatement)
			}
		}
	}
}

// changed looks at the rest of a statement that changes rows.
func (e *effectFinder) changed() {
	e.mentioned(capture.GapStatement)
	e.unclear = len(e.found) == 0
}

// table takes a name, with or without its database, and returns the mapped table that it is; empty where it is none.
func (e *effectFinder) table() string {
	schema, name, ok := e.name()
	if !ok {
		return ""
	}
	return e.mapped(schema, name)
}

// name takes a name of a table.
func (e *effectFinder) name() (schema, name string, ok bool) {
	t := e.lex.next()
	if t.kind == tokenOther && t.text == "." { // .table is a table of the default database
		t = e.lex.next()
	}
	if t.kind != tokenWord && t.kind != tokenName {
		return "", "", false
	}
	schema, name = e.q.schema, t.text
	if dot := e.lex.peek(); dot.kind == tokenOther && dot.text == "." {
		e.lex.next()
		t = e.lex.next()
		schema, name = name, t.text
	}
	return schema, name, t.kind == tokenWord || t.kind == tokenName
}

// mapped returns the key of needs that a table has.
func (e *effectFinder) mapped(schema, name string) string {
	full := schema + "." + name
	if _, ok := e.needs[full]; ok {
		return full
	}
	if !e.fold {
		return ""
	}
	for key := range e.needs {
		if strings.EqualFold(key, full) {
			return key
		}
	}
	return ""
}

func (e *effectFinder) ifExists() {
	if e.lex.accept("IF") {
		e.lex.accept("NOT")
		e.lex.accept("EXISTS")
	}
}

func (e *effectFinder) drop() {
	switch {
	case e.lex.accept("TABLE", "TABLES"):
		e.ifExists()
		for {
			e.add(e.table(), capture.GapDropped)
			if t := e.lex.next(); t.kind != tokenOther || t.text != "," {
				return
			}
		}
	case e.lex.accept("DATABASE", "SCHEMA"):
		e.ifExists()
		name := e.lex.next().text
		for _, key := range slices.Sorted(maps.Keys(e.needs)) {
			schema, _, _ := strings.Cut(key, ".")
			if schema == name || e.fold && strings.EqualFold(schema, name) {
				e.add(key, capture.GapDropped)
			}
		}
	}
}

// rename follows the pairs in order: the tools that change a schema beside the application rename the old table away and
// the new one, which has the same rows, to its name. That leaves no gap.
func (e *effectFinder) rename() {
	e.ifExists()
	gone := map[string]bool{}
	for {
		from := e.table()
		for e.lex.accept("WAIT", "NOWAIT") {
			if t := e.lex.peek(); t.kind == tokenWord && t.text[0] >= '0' && t.text[0] <= '9' {
				e.lex.next()
			}
		}
		if !e.lex.accept("TO") {
			break
		}
		to := e.table()
		if from != "" {
			gone[from] = true
		}
		if to != "" {
			gone[to] = false
		}
		if t := e.lex.next(); t.kind != tokenOther || t.text != "," {
			break
		}
	}
	for _, table := range slices.Sorted(maps.Keys(gone)) {
		if gone[table] {
			e.add(table, capture.GapDropped)
		}
	}
}

func (e *effectFinder) alter() {
	e.lex.accept("ONLINE", "OFFLINE")
	e.lex.accept("IGNORE")
	if !e.lex.accept("TABLE") {
		return
	}
	e.ifExists()
	table := e.table()
	for t := e.lex.next(); t.kind != tokenEnd; t = e.lex.next() {
		if t.kind != tokenWord {
			continue
		}
		switch upper(t.text) {
		case "RENAME":
			if e.lex.accept("COLUMN", "INDEX", "KEY", "CONSTRAINT") {
				continue
			}
			e.lex.accept("TO", "AS")
			if t := e.lex.peek(); t.kind == tokenOther && t.text == "=" {
				e.lex.next()
			}
			if to := e.table(); to != table {
				e.add(table, capture.GapDropped)
			}
		case "TRUNCATE", "DROP", "EXCHANGE", "CONVERT":
			if !e.lex.accept("PARTITION", "TABLE") {
				continue
			}
			e.add(table, capture.GapTruncate)
			e.mentioned(capture.GapTruncate)
		case "DISCARD", "IMPORT":
			if e.lex.accept("TABLESPACE", "PARTITION") {
				e.add(table, capture.GapTruncate)
			}
		}
	}
}

func (e *effectFinder) create() {
	replaced := e.lex.accept("OR")
	if replaced {
		e.lex.accept("REPLACE")
	}
	if !e.lex.accept("TABLE") { // a temporary table has no rows in the log
		return
	}
	e.ifExists()
	table := e.table()
	if replaced {
		e.add(table, capture.GapDropped)
	}
	for t := e.lex.next(); t.kind != tokenEnd; t = e.lex.next() {
		if t.kind == tokenWord && upper(t.text) == "SELECT" {
			e.add(table, capture.GapStatement)
			return
		}
	}
}

// mentioned adds every mapped table whose name stands anywhere in the rest of the statement.
func (e *effectFinder) mentioned(cause string) {
	for t := e.lex.peek(); t.kind != tokenEnd; t = e.lex.peek() {
		if t.kind != tokenWord && t.kind != tokenName {
			e.lex.next()
			continue
		}
		e.add(e.table(), cause)
	}
}
