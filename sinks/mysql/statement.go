package mysql

import (
	"context"
	"database/sql"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/sinks/ledger"
)

// statement gathers SQL and its parameters, in the order of the text. Identifiers come from the catalog, quoted; everything
// else is a parameter. The text depends on the mapping only, not on how many subjects there are: a connection prepares it
// once.
type statement struct {
	strings.Builder
	args []any
}

// add appends SQL, and the parameters that stand in it.
func (s *statement) add(text string, args ...any) {
	s.WriteString(text)
	s.args = append(s.args, args...)
}

// part is a piece of SQL with its parameters.
type part struct {
	sql  string
	args []any
}

// addParts appends pieces with a separator between them.
func (s *statement) addParts(parts []part, separator string) {
	for i, p := range parts {
		if i > 0 {
			s.WriteString(separator)
		}
		s.add(p.sql, p.args...)
	}
}

// who are the subjects that a statement speaks of, as a table v(i, k1, …): i is the place in list, k1… the parts of the CRM
// key as the columns take them, or person.key where list are stand-ins for rows (ledger.StandIns); a subject whose key no row
// can hold has NULL there. extra adds columns. A key that is no value of its column is a Poison error.
func (m *Mapping) who(list []*ledger.Subject, extra ...whoColumn) (part, error) {
	return whoBy(m.by, list, extra...)
}

// whoBy is who with the columns that the keys are of.
func whoBy(key []*column, list []*ledger.Subject, extra ...whoColumn) (part, error) {
	var columns strings.Builder
	columns.WriteString("JSON_TABLE(?, '$[*]' COLUMNS (i INT PATH '$[0]'")
	for k, c := range key {
		n := strconv.Itoa(k + 1)
		columns.WriteString(", k" + n + " " + c.keyType() + " PATH '$[" + n + "]'")
	}
	for k, c := range extra {
		columns.WriteString(", " + c.name + " " + c.typ + " PATH '$[" + strconv.Itoa(k+1+len(key)) + "]'")
	}
	columns.WriteString(")) AS v")
	out := make([]byte, 0, len(list)*(16+24*len(key)+4*len(extra)))
	for i, x := range list {
		out = strconv.AppendInt(append(out, separator(i)+"["...), int64(i), 10)
		for k, c := range key {
			value, err := c.keyValue(x.Key[k])
			if err != nil {
				return part{}, err
			}
			out = appendKey(append(out, ','), value)
		}
		for _, c := range extra {
			out = c.append(append(out, ','), i)
		}
		out = append(out, ']')
	}
	return part{columns.String(), []any{string(closeList(out))}}, nil
}

// appendKey adds what keyValue returned.
func appendKey(out []byte, value any) []byte {
	switch v := value.(type) {
	case int64:
		return strconv.AppendInt(out, v, 10)
	case uint64:
		return strconv.AppendUint(out, v, 10)
	case string:
		return appendText(out, v)
	}
	return append(out, "null"...)
}

// personsTable is a list of persons as a table w(i, k): i is a place, k person.key as the column takes it.
func (m *Mapping) personsTable(places []int32, keys []string) (part, error) {
	out := make([]byte, 0, len(keys)*32)
	for n := range keys {
		value, err := m.key.keyValue(keys[n])
		if err != nil {
			return part{}, err
		}
		out = strconv.AppendInt(append(out, separator(n)+"["...), int64(places[n]), 10)
		out = append(appendKey(append(out, ','), value), ']')
	}
	return part{
		"JSON_TABLE(?, '$[*]' COLUMNS (i INT PATH '$[0]', k " + m.key.keyType() + " PATH '$[1]')) AS w", []any{string(closeList(out))},
	}, nil
}

// whoColumn is one more column of who. append adds the JSON of the value for a place in the list.
type whoColumn struct {
	name, typ string
	append    func(out []byte, i int) []byte
}

// never is the time that nothing is due at: PostgreSQL's infinity.
const never = "9999-12-31 00:00:00"

// refsTable is a JSON list of references, in hex, as a table v(ref); partsTable one of partitions as w(part).
const (
	refsTable  = `JSON_TABLE(?, '$[*]' COLUMNS (ref CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS v`
	partsTable = `JSON_TABLE(?, '$[*]' COLUMNS (part INT PATH '$')) AS w`
)

// jsonList is a JSON list of numbers.
func jsonList(numbers []int32) string {
	out := make([]byte, 0, 8*len(numbers)+2)
	for i, n := range numbers {
		out = strconv.AppendInt(append(out, separator(i)...), int64(n), 10)
	}
	return string(closeList(out))
}

// refsJSON is a JSON list of byte strings in hex.
func refsJSON(refs [][]byte) string {
	out := make([]byte, 0, 68*len(refs)+2)
	for i, ref := range refs {
		out = appendHex(append(out, separator(i)...), ref)
	}
	return string(closeList(out))
}

// separator is what stands before element i of a JSON list.
func separator(i int) string {
	if i == 0 {
		return "["
	}
	return ","
}

// closeList ends a JSON list, also one without elements.
func closeList(out []byte) []byte {
	if len(out) == 0 {
		out = append(out, '[')
	}
	return append(out, ']')
}

const hexDigits = "0123456789abcdef"

// appendHex adds bytes as JSON text in hex; nil is null.
func appendHex(out, value []byte) []byte {
	if value == nil {
		return append(out, "null"...)
	}
	out = append(out, '"')
	for _, b := range value {
		out = append(out, hexDigits[b>>4], hexDigits[b&15])
	}
	return append(out, '"')
}

// appendText adds JSON text.
func appendText(out []byte, s string) []byte {
	out = append(out, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < 0x20 || c == 0x7f:
			out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

// timeForm is how times go in and out as text: in UTC, to the microsecond.
const timeForm = "2006-01-02 15:04:05.000000"

// appendTime adds a time as JSON text; the zero time is null.
func appendTime(out []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(out, "null"...)
	}
	return append(t.UTC().AppendFormat(append(out, '"'), timeForm), '"')
}

func appendBool(out []byte, v bool) []byte {
	if v {
		return append(out, '1')
	}
	return append(out, '0')
}

// timeArg is a parameter that is a time, or NULL for the zero time.
func timeArg(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC()
}

// textArg is a parameter that is text, or NULL for none.
func textArg(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// jsonArg is a parameter that is a JSON document, or NULL for none.
func jsonArg(doc []byte) any {
	if doc == nil {
		return nil
	}
	return string(doc)
}

// eachRow runs a query and fn on each of its rows.
func eachRow(ctx context.Context, q querier, query string, args []any, fn func(rows *sql.Rows) error) (err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err tells what matters
	for rows.Next() {
		if err := fn(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func sorted(numbers []int32) []int32 {
	out := slices.Clone(numbers)
	slices.Sort(out)
	return out
}

// column1 runs a query of one column.
func column1[T any](ctx context.Context, q querier, query string, args ...any) (out []T, err error) {
	err = eachRow(ctx, q, query, args, func(rows *sql.Rows) error {
		var v T
		if err := rows.Scan(&v); err != nil {
			return err
		}
		out = append(out, v)
		return nil
	})
	return out, err
}
