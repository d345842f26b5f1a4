package mysql

import (
	"context"
	"strings"
)

// sparse is a set of rows on their way into a table, by INSERT. A column in which all of them are NULL is left away: most
// columns are in most batches, and a parameter costs both sides as much as a good part of the row.
type sparse struct {
	table   string
	columns []string // not more than 64; those that may be left away have NULL as their default
	values  []any
	used    uint64 // the columns in which some row is not NULL
}

// add appends one row, a value for each column. A nil []byte is NULL.
func (s *sparse) add(values ...any) {
	for i, v := range values {
		if b, ok := v.([]byte); ok && b == nil {
			v = nil
		}
		if v != nil {
			s.used |= 1 << i
		}
		s.values = append(s.values, v)
	}
}

// rows is how many rows there are.
func (s *sparse) rows() int { return len(s.values) / len(s.columns) }

// compact returns the columns that are used, and the values without the others.
func (s *sparse) compact() (columns []string, values []any) {
	for i, name := range s.columns {
		if s.used&(1<<i) != 0 {
			columns = append(columns, name)
		}
	}
	if len(columns) == len(s.columns) {
		return columns, s.values
	}
	values = make([]any, 0, s.rows()*len(columns))
	for i, v := range s.values {
		if s.used&(1<<(i%len(s.columns))) != 0 {
			values = append(values, v)
		}
	}
	return columns, values
}

// insertSparse inserts the rows. Where one is there already its columns to be changed take the new values; without any such
// column it is an error. It returns what insert does.
func (t *tx) insertSparse(ctx context.Context, s *sparse, change ...string) (changed int64, err error) {
	if len(s.values) == 0 {
		return 0, nil
	}
	columns, values := s.compact()
	var tail strings.Builder
	for i, name := range change {
		tail.WriteString([]string{" ON DUPLICATE KEY UPDATE ", ", "}[min(i, 1)] + name + " = ")
		if s.uses(name) {
			tail.WriteString("VALUES(" + name + ")")
		} else {
			tail.WriteString("NULL")
		}
	}
	return t.insert(ctx, "INSERT INTO "+s.table+" ("+strings.Join(columns, ", ")+") VALUES ", len(columns), values, tail.String())
}

// uses reports whether some row has a value in the column.
func (s *sparse) uses(name string) bool {
	for i := range s.columns {
		if s.columns[i] == name {
			return s.used&(1<<i) != 0
		}
	}
	return false
}
