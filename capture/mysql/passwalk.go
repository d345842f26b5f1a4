package mysql

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lethe/capture"
)

// walk is the way through a table in the order of a key, and how its rows are read. It never changes.
type walk struct {
	table *capture.Table
	// made is the table's definition that the walk was made of.
	made    string
	index   string // that is walked along
	key     []keyPart
	columns []string // that are read, in their order in the table
	places  []int    // of columns among the table's
	text    string   // capture.PassTable.Walk
}

// keyPart is one column of the key.
type keyPart struct {
	name       string
	kind       keyKind
	descending bool
	dataType   string
	charset    string // keyText
	collation  string // keyText
	detail     string // keyDecimal: precision and scale; keyLabel: the type as it was declared
	labels     int    // keyLabel: of an ENUM
}

// keyKind is how the values of a key's column are compared: by which expression a row's is read, and a value bound.
type keyKind uint8

const (
	keyNumber  keyKind = iota // whole numbers and BIT
	keyFloat                  // FLOAT and DOUBLE
	keyDecimal                // compared with a text it would be compared as a DOUBLE
	keyYear
	keyTime  // all temporal types but YEAR: as their texts
	keyText  // as bytes in the column's own charset: what two charsets share may be spelled in two ways in one of them
	keyBytes // as bytes
	keyLabel // ENUM and SET, whose order is that of their numbers, not of their texts
	keyOther // MariaDB's UUID and the like: as the server prints them
)

// maxKeyLabels is up to how many labels an ENUM is compared by a list, for which the servers use an index, as they do not for
// a comparison with its number.
const maxKeyLabels = 256

func newKeyPart(c *catalogColumn, descending bool) keyPart {
	p := keyPart{name: c.name, dataType: c.dataType, descending: descending}
	switch c.dataType {
	case "tinyint", "smallint", "mediumint", "int", "bigint", "bit":
		p.kind = keyNumber
	case "float", "double":
		p.kind = keyFloat
	case "decimal":
		p.kind = keyDecimal
		_, rest, _ := strings.Cut(c.full, "(")
		p.detail, _, _ = strings.Cut(rest, ")")
	case "year":
		p.kind = keyYear
	case "date", "time", "datetime", "timestamp":
		p.kind = keyTime
	case "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob":
		p.kind = keyBytes
	case "enum", "set":
		p.kind, p.detail = keyLabel, c.full
		if c.dataType == "enum" {
			p.labels = countLabels(c.full)
		}
	default:
		p.kind, p.charset, p.collation = keyText, c.charset, c.collation
		if c.charset == "" {
			p.kind = keyOther
		}
	}
	return p
}

// countLabels counts the labels in enum('a','it”s').
func countLabels(full string) (n int) {
	inside := false
	for i := 0; i < len(full); i++ {
		switch {
		case full[i] != '\'':
		case inside && i+1 < len(full) && full[i+1] == '\'':
			i++
		default:
			if inside = !inside; inside {
				n++
			}
		}
	}
	return n
}

// read is the expression that gives a row's value.
func (p *keyPart) read() string {
	name := quoteName(p.name)
	switch p.kind {
	case keyText:
		return "CAST(" + name + " AS BINARY)"
	case keyLabel:
		return name + " + 0"
	case keyOther:
		return "CAST(" + name + " AS CHAR)"
	case keyNumber, keyFloat, keyDecimal, keyYear, keyTime, keyBytes:
	}
	return name
}

// bound is the expression that a value is compared with, and the argument in it.
func (p *keyPart) bound(value []byte) (expression string, arg any, err error) {
	text := string(value)
	switch p.kind {
	case keyNumber, keyLabel, keyYear:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return "?", n, nil
		}
		n, err := strconv.ParseUint(text, 10, 64)
		return "?", n, err
	case keyFloat:
		bits := 64
		if p.dataType == "float" {
			bits = 32
		}
		f, err := strconv.ParseFloat(text, bits)
		return "?", f, err
	case keyDecimal:
		return "CAST(? AS DECIMAL(" + p.detail + "))", text, nil
	case keyText:
		return "CONVERT(UNHEX(?) USING " + p.charset + ") COLLATE " + p.collation, fmt.Sprintf("%x", value), nil
	case keyBytes:
		return "UNHEX(?)", fmt.Sprintf("%x", value), nil
	case keyOther:
		return "CAST(? AS " + p.dataType + ")", text, nil
	case keyTime:
	}
	return "?", strings.TrimSuffix(text, "+00"), nil
}

// equal and behind compare the column with a value: is it the same, does it come later.
func (p *keyPart) equal(value []byte) (string, []any, error) { return p.compare("=", value) }

func (p *keyPart) behind(value []byte) (string, []any, error) {
	if p.kind == keyLabel && p.labels > 0 && p.labels <= maxKeyLabels {
		return p.labelsBehind(value)
	}
	if p.descending {
		return p.compare("<", value)
	}
	return p.compare(">", value)
}

func (p *keyPart) compare(operator string, value []byte) (string, []any, error) {
	expression, arg, err := p.bound(value)
	if err != nil {
		return "", nil, errKey
	}
	name := quoteName(p.name)
	if p.kind == keyYear && string(value) == "0000" {
		name += " + 0" // the servers take 0 for the year 2000 where they compare it with a YEAR
	}
	return name + " " + operator + " " + expression, []any{arg}, nil
}

// labelsBehind lists the labels behind one, by their numbers. 0 is that of a value that was refused.
func (p *keyPart) labelsBehind(value []byte) (string, []any, error) {
	n, err := strconv.Atoi(string(value))
	if err != nil {
		return "", nil, errKey
	}
	from, to := n+1, p.labels
	if p.descending {
		from, to = 0, n-1
	}
	if from > to {
		return "FALSE", nil, nil
	}
	var list []byte
	for i := from; i <= to; i++ {
		list = append(strconv.AppendInt(list, int64(i), 10), ',')
	}
	return quoteName(p.name) + " IN (" + string(list[:len(list)-1]) + ")", nil, nil
}

// errKey tells of a key that is none of the table's, without the key.
var errKey = fmt.Errorf("the key of the last chunk is none of this table: %w", capture.ErrTableChanged)

// query is the SELECT of a chunk: the key's columns, then those that are read. (a, b) > (x, y) is written as b's turn within
// the same a, or a later a: for that the servers use an index, and not for the comparison of rows.
func (w *walk) query(after [][]byte, limit int) (text string, args []any, err error) {
	var list, order, where []string
	for i := range w.key {
		p := &w.key[i]
		list = append(list, p.read())
		by := quoteName(p.name)
		if p.descending {
			by += " DESC"
		}
		order = append(order, by)
	}
	for _, c := range w.columns {
		list = append(list, quoteName(c))
	}
	if after != nil && len(after) != len(w.key) {
		return "", nil, errKey
	}
	for i := len(after) - 1; i >= 0; i-- {
		var term []string
		for j := range i + 1 {
			compare := w.key[j].equal
			if j == i {
				compare = w.key[j].behind
			}
			one, bound, err := compare(after[j])
			if err != nil {
				return "", nil, err
			}
			term, args = append(term, one), append(args, bound...)
		}
		where = append(where, strings.Join(term, " AND "))
	}
	text = strings.Join(list, ", ") + " FROM " + quoteTable(w.table.Name) + " FORCE INDEX (" + quoteName(w.index) + ")"
	if where != nil {
		text += " WHERE " + strings.Join(where, " OR ")
	}
	return text + " ORDER BY " + strings.Join(order, ", ") + " LIMIT " + strconv.Itoa(limit), args, nil
}

// describe makes the Walk of capture.PassTable.
func (w *walk) describe() string {
	var b strings.Builder
	for i := range w.key {
		p := &w.key[i]
		fmt.Fprintf(&b, "%q %s", p.name, p.dataType)
		switch p.kind {
		case keyText:
			b.WriteString(" " + p.collation)
		case keyDecimal, keyLabel:
			b.WriteString(" " + p.detail)
		case keyNumber, keyFloat, keyYear, keyTime, keyBytes, keyOther:
		}
		if p.descending {
			b.WriteString(" desc")
		}
		b.WriteString(";")
	}
	return b.String()
}

// reads lists the columns that are read, quoted, those of the key included.
func (w *walk) reads() string {
	names := append(w.keyNames(), w.columns...)
	slices.Sort(names)
	names = slices.Compact(names)
	for i, name := range names {
		names[i] = quoteName(name)
	}
	return strings.Join(names, ", ")
}

// keyNames are the columns of the key, in its order.
func (w *walk) keyNames() []string {
	names := make([]string, len(w.key))
	for i := range w.key {
		names[i] = w.key[i].name
	}
	return names
}

// catalogIndex is a unique index of a table as SHOW INDEX has it.
type catalogIndex struct {
	name       string
	columns    []string
	descending []bool
	unfit      string // why it cannot be walked along
	// loose is set where the server takes it for no primary key even where there is none: it has parts that may be NULL, or are no whole columns.
	loose bool
}

// chooseIndex picks the index that a table is walked along: the primary key, which servers list first, else the first unique
// one without NULL, in whose order the rows are stored then. Without one it says why.
func chooseIndex(list []catalogIndex) (index *catalogIndex, why string) {
	for i := range list {
		x := &list[i]
		if x.unfit == "" {
			return x, ""
		}
		if x.name == primaryIndex {
			why = "its primary key " + x.unfit
		}
	}
	if why == "" {
		why = "it has neither a primary key nor a unique key whose columns are all NOT NULL"
	}
	return nil, why
}

// loggedKey returns the columns that the log calls the table's primary key.
func loggedKey(list []catalogIndex) []string {
	for i := range list {
		if x := &list[i]; x.name == primaryIndex || !x.loose {
			return x.columns
		}
	}
	return nil
}

// primaryIndex is the name of every primary key.
const primaryIndex = "PRIMARY"

// newWalk makes the walk of a table along an index. key is the one that the log names, needed are the columns that the mapping
// reads.
func newWalk(t *catalogTable, x *catalogIndex, key, needed []string, made string) (*walk, error) {
	w := &walk{table: &capture.Table{Name: t.full(), OldRow: capture.OldRowFull}, made: made, index: x.name}
	for i := range t.columns {
		c := &t.columns[i]
		w.table.Columns = append(w.table.Columns, capture.Column{
			Name: c.name, Type: c.logType(), Key: slices.Contains(key, c.name),
		})
		// The rules name a row, and a contact point, by the key that the log names.
		if slices.Contains(needed, c.name) || slices.Contains(key, c.name) {
			w.columns, w.places = append(w.columns, c.name), append(w.places, i)
		}
	}
	for _, name := range needed {
		if t.column(name) == nil {
			return nil, &capture.TableRefusedError{
				Table: t.full(), Cause: capture.RefusedShape,
				Hint: "it has no column " + name + ", or Lethe's login does not see it; `lethe check` tells which, and what to do",
			}
		}
	}
	for i, name := range x.columns {
		c := t.column(name)
		if c == nil {
			return nil, &capture.TableRefusedError{
				Table: t.full(), Cause: capture.RefusedGrant, Hint: "Lethe's login may not read column " + name + " of its key; `lethe check` prints the statement",
			}
		}
		w.key = append(w.key, newKeyPart(c, x.descending[i]))
	}
	w.text = w.describe()
	return w, nil
}

// logType is the name that the stream gives a column of this type (column.typeName).
func (c *catalogColumn) logType() string {
	switch c.dataType {
	case "tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double":
		if strings.Contains(c.full, "unsigned") {
			return c.dataType + " unsigned"
		}
	case "bit":
		return "bit unsigned"
	case "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geomcollection", "geometrycollection":
		return "geometry"
	}
	if strings.Contains(c.full, "compressed") {
		return "compressed"
	}
	return c.dataType
}
