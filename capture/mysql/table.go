package mysql

import (
	"bytes"
	"slices"

	"lethe/capture"
)

// shape is one version of a table as a TABLE_MAP describes it, and the plan of reading its rows.
type shape struct {
	raw    []byte // the map that it was made of; of a table that is not mapped, its beginning up to the name
	prefix bool
	table  *capture.Table // nil: not mapped
	// unfit is set where the shape lacks what the mapping reads. It is raised by the first row, not by the map.
	unfit   error
	columns []column
	wanted  []byte // bitmap of the columns to decode
	jsons   int    // number of JSON columns
	before  []capture.Value
	after   []capture.Value
}

func (s *shape) sameMap(body []byte) bool {
	if s.prefix {
		return bytes.HasPrefix(body, s.raw)
	}
	return bytes.Equal(body, s.raw)
}

// readTableMap reads a table map without its table id.
func (d *rowDecoder) readTableMap(body []byte) (*shape, error) {
	d.name = d.name[:0]
	c := cursor{b: body}
	c.bytes(2) // flags
	schema := c.bytes(c.packed())
	c.bytes(1) // NUL
	table := c.bytes(c.packed())
	c.bytes(1)
	if c.short {
		return nil, errShort
	}
	d.name = append(append(append(d.name, schema...), '.'), table...)
	needs, mapped := d.needs[string(d.name)]
	if !mapped {
		return &shape{raw: bytes.Clone(body[:len(body)-len(c.b)]), prefix: true}, nil
	}
	var m tableMap
	if err := m.read(&c, d.mariadb); err != nil {
		return nil, err
	}
	s := m.shape(string(d.name), needs, d.charsets)
	if d.mariadb && m.versioned() {
		s.unfit = &ColumnTypeError{
			Table: s.table.Name, Column: rowEnd, Reason: "tells that the table keeps the old versions of its rows, which the log has as rows like any other: " +
				"ALTER TABLE … DROP SYSTEM VERSIONING",
		}
	}
	s.raw = bytes.Clone(body)
	if known := d.shapes[s.table.Name]; known != nil && slices.Equal(known.table.Columns, s.table.Columns) {
		s.table = known.table
	}
	d.shapes[s.table.Name] = s
	return s, nil
}

// rowEnd is one of the two columns that MariaDB adds to a table WITH SYSTEM VERSIONING where the statement names none.
const rowEnd = "row_end"

// versioned reports whether the table keeps the old versions of its rows, as far as its columns' names tell.
func (m *tableMap) versioned() bool {
	return slices.Contains(m.names, "row_start") && slices.Contains(m.names, rowEnd)
}

// shape makes the plan of a mapped table. What does not fit is kept as its unfit.
func (m *tableMap) shape(name string, needs TableNeeds, known charsets) *shape {
	s := &shape{
		table: &capture.Table{Name: name, OldRow: capture.OldRowFull}, columns: m.columns,
		wanted: make([]byte, (len(m.columns)+7)/8),
		before: make([]capture.Value, len(m.columns)), after: make([]capture.Value, len(m.columns)),
	}
	for i := range m.columns {
		if m.columns[i].form == formJSON {
			s.jsons++
		}
	}
	if m.names == nil {
		s.unfit = &MetadataError{Table: name}
		return s
	}
	for i := range m.columns {
		c := &m.columns[i]
		reason := c.settle(known)
		key := slices.Contains(m.key, i)
		s.table.Columns = append(s.table.Columns, capture.Column{Name: m.names[i], Type: c.typeName(), Key: key})
		needed := slices.Contains(needs.Columns, m.names[i])
		if !needed && (!key || reason != "") { // the rules name contact points by the key
			continue
		}
		if reason != "" && s.unfit == nil {
			s.unfit = &ColumnTypeError{Table: name, Column: m.names[i], Reason: reason}
		}
		c.wanted = true
		s.wanted[i/8] |= 1 << (i % 8)
	}
	for _, col := range needs.Columns {
		if !slices.Contains(m.names, col) {
			s.unfit = &ColumnError{Table: name, Column: col}
			return s
		}
	}
	return s
}
