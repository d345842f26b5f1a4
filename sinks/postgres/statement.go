package postgres

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"lethe/sinks/ledger"
)

// statement gathers SQL and its parameters. Identifiers come from the catalog, quoted; everything else is a parameter.
type statement struct {
	strings.Builder
	args []any
}

// arg adds a parameter and returns its placeholder.
func (s *statement) arg(v any) string {
	s.args = append(s.args, v)
	return "$" + strconv.Itoa(len(s.args))
}

var placeholder = regexp.MustCompile(`\$[0-9]+`)

// value returns the SQL of an assignment with its parameters added. row is the alias of the row that is written, key the
// expression of the person's key.
func (s *statement) value(a *assignment, row, key string) string {
	offset := len(s.args)
	s.args = append(s.args, a.args...)
	sql := placeholder.ReplaceAllStringFunc(a.sql, func(p string) string {
		n, err := strconv.Atoi(p[1:])
		if err != nil { // the expression matches digits only
			return p
		}
		return "$" + strconv.Itoa(offset+n)
	})
	return strings.NewReplacer("{row}", row, "{key}", key).Replace(sql)
}

// who adds the subjects that a statement speaks of: `unnest(…) AS v(i, k1, …)`, i being the place in list and k1… the
// parts of the CRM key as text, or person.key where list are stand-ins for rows (ledger.StandIns). extra adds columns, each
// with the array's SQL type.
func (s *statement) who(m *Mapping, list []*ledger.Subject, extra ...whoColumn) string {
	return s.whoBy(len(m.by), list, extra...)
}

// whoBy is who with keys of so many parts.
func (s *statement) whoBy(keyParts int, list []*ledger.Subject, extra ...whoColumn) string {
	places := make(pgtype.FlatArray[int32], len(list))
	for i := range list {
		places[i] = int32(i)
	}
	arrays := []string{s.arg(places) + "::int[]"}
	names := []string{"i"}
	for k := range keyParts {
		parts := make(textArray, len(list))
		for i, x := range list {
			parts[i] = x.Key[k]
		}
		arrays = append(arrays, s.arg(parts)+"::text[]")
		names = append(names, "k"+strconv.Itoa(k+1))
	}
	for _, c := range extra {
		arrays = append(arrays, s.arg(c.values)+"::"+c.typ)
		names = append(names, c.name)
	}
	return "unnest(" + strings.Join(arrays, ", ") + ") AS v(" + strings.Join(names, ", ") + ")"
}

type whoColumn struct {
	name, typ string
	values    any
}

// matches returns the condition that the person row (alias) is that of v. The cast stands on v's side, so that an index
// on the column is used, and it goes to the type without a length, so that no key is cut to fit another's.
func (m *Mapping) matches(alias string) string { return matchesBy(m.by, alias) }

// matchesBy is matches by some columns.
func matchesBy(columns []*column, alias string) string {
	parts := make([]string, len(columns))
	for k, c := range columns {
		parts[k] = alias + "." + c.sql() + " = v.k" + strconv.Itoa(k+1) + "::" + c.typ
	}
	return strings.Join(parts, " AND ")
}

// reach returns what joins the rows of a table (alias t) with v: more for FROM, the condition, and the expression of
// the person's key.
func (m *Mapping) reach(j join) (from, where, key string) {
	if j.by == nil {
		return "", m.matches("t"), "t." + m.key.sql()
	}
	key = "p." + m.key.sql()
	return ", " + m.person.sql() + " AS p", m.matches("p") + " AND t." + j.by.sql() + " = " + key, key
}
