package mysql

import (
	"encoding/binary"
	"errors"
	"fmt"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
)

// tableMap is the content of a TABLE_MAP event after the table's name, with the optional metadata that the servers add
// under binlog_row_metadata=FULL (MySQL 8.0, sql/log_event.h, Table_map_log_event; MariaDB 10.5 has the same).
type tableMap struct {
	columns []column
	names   []string // nil: the log does not name them
	key     []int    // columns of the primary key
}

// maxColumns is above the servers' own limit of 4096.
const maxColumns = 1 << 13

// The types of MariaDB's compressed columns, which go-mysql does not know.
const (
	typeBlobCompressed    = 140
	typeVarcharCompressed = 141
)

func (m *tableMap) read(c *cursor, mariadb bool) error {
	n := c.packed()
	if n > maxColumns || n > uint64(len(c.b)) {
		return errShort
	}
	types := c.bytes(n)
	meta := cursor{b: c.bytes(c.packed())}
	c.bytes((n + 7) / 8) // which columns may be NULL
	if c.short {
		return errShort
	}
	m.columns = make([]column, n)
	for i, t := range types {
		if err := m.columns[i].readType(t, &meta); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	if err := meta.end(); err != nil {
		return err
	}
	for len(c.b) > 0 {
		field := c.byte()
		value := cursor{b: c.bytes(c.packed())}
		if c.short {
			return errShort
		}
		if err := m.option(field, &value, mariadb); err != nil {
			return fmt.Errorf("metadata field %d: %w", field, err)
		}
	}
	return nil
}

// option reads one field of the optional metadata. Fields of later versions are passed over.
func (m *tableMap) option(field byte, v *cursor, mariadb bool) error {
	character := func(c *column) bool { return c.character(mariadb) }
	labelled := func(c *column) bool { return c.form == formEnum || c.form == formSet }
	switch field {
	case replication.TABLE_MAP_OPT_META_SIGNEDNESS:
		return m.signedness(v)
	case replication.TABLE_MAP_OPT_META_DEFAULT_CHARSET:
		return m.defaultCollation(v, character)
	case replication.TABLE_MAP_OPT_META_COLUMN_CHARSET:
		return m.collations(v, character)
	case replication.TABLE_MAP_OPT_META_ENUM_AND_SET_DEFAULT_CHARSET:
		return m.defaultCollation(v, labelled)
	case replication.TABLE_MAP_OPT_META_ENUM_AND_SET_COLUMN_CHARSET:
		return m.collations(v, labelled)
	case replication.TABLE_MAP_OPT_META_COLUMN_NAME:
		for range m.columns {
			m.names = append(m.names, string(v.bytes(v.packed())))
		}
		return v.end()
	case replication.TABLE_MAP_OPT_META_SET_STR_VALUE:
		return m.labels(v, formSet)
	case replication.TABLE_MAP_OPT_META_ENUM_STR_VALUE:
		return m.labels(v, formEnum)
	case replication.TABLE_MAP_OPT_META_SIMPLE_PRIMARY_KEY:
		return m.primaryKey(v, false)
	case replication.TABLE_MAP_OPT_META_PRIMARY_KEY_WITH_PREFIX:
		return m.primaryKey(v, true)
	}
	return nil
}

// signedness reads one bit for each numeric column, the first one in the highest bit.
func (m *tableMap) signedness(v *cursor) error {
	i := 0
	for c := range m.columns {
		if !m.columns[c].numeric() {
			continue
		}
		if i/8 >= len(v.b) {
			return errShort
		}
		m.columns[c].unsigned = v.b[i/8]&(0x80>>(i%8)) != 0
		i++
	}
	return nil
}

// defaultCollation reads the collation of most columns of a class, and the exceptions by their number within the class.
func (m *tableMap) defaultCollation(v *cursor, of func(*column) bool) error {
	common := v.packed()
	other := map[uint64]uint64{}
	for len(v.b) > 0 {
		i := v.packed()
		other[i] = v.packed()
	}
	i := uint64(0)
	for c := range m.columns {
		if !of(&m.columns[c]) {
			continue
		}
		m.columns[c].collation = common
		if own, ok := other[i]; ok {
			m.columns[c].collation = own
		}
		i++
	}
	return v.end()
}

// collations reads the collation of each column of a class.
func (m *tableMap) collations(v *cursor, of func(*column) bool) error {
	for c := range m.columns {
		if of(&m.columns[c]) {
			m.columns[c].collation = v.packed()
		}
	}
	return v.end()
}

// labels reads the labels of the ENUM or SET columns.
func (m *tableMap) labels(v *cursor, form form) error {
	for c := range m.columns {
		if m.columns[c].form != form {
			continue
		}
		n := v.packed()
		if n > uint64(len(v.b)) { // a label takes a byte at least
			return errShort
		}
		labels := make([][]byte, n)
		for i := range labels {
			labels[i] = append([]byte{}, v.bytes(v.packed())...)
		}
		m.columns[c].labels = labels
	}
	return v.end()
}

// primaryKey reads which columns are the key; with prefixes, each with the length that the key uses of it.
func (m *tableMap) primaryKey(v *cursor, prefixes bool) error {
	for len(v.b) > 0 {
		i := v.packed()
		if prefixes {
			v.packed()
		}
		if i >= uint64(len(m.columns)) {
			return errors.New("key column out of range")
		}
		m.key = append(m.key, int(i)) //nolint:gosec // below maxColumns
	}
	return v.end()
}

// readType sets how a column's values lie in a row, from its type and what the map says of it.
func (c *column) readType(t byte, meta *cursor) error {
	c.code = t
	switch t {
	case gomysql.MYSQL_TYPE_STRING:
		real, length := meta.byte(), meta.byte()
		return c.readString(real, length)
	case gomysql.MYSQL_TYPE_VARCHAR, gomysql.MYSQL_TYPE_VAR_STRING, typeVarcharCompressed:
		c.length = int(meta.uint16())
		c.form, c.prefix = formText, 1
		if c.length > 255 {
			c.prefix = 2
		}
		if t == typeVarcharCompressed {
			c.form = formOpaque
		}
	case gomysql.MYSQL_TYPE_BLOB, typeBlobCompressed, gomysql.MYSQL_TYPE_GEOMETRY, gomysql.MYSQL_TYPE_VECTOR, gomysql.MYSQL_TYPE_JSON:
		c.prefix = int(meta.byte())
		if !meta.short && (c.prefix < 1 || c.prefix > 4) {
			return errors.New("length of the length out of range")
		}
		c.form = formOpaque
		switch t {
		case gomysql.MYSQL_TYPE_BLOB:
			c.form = formText
		case gomysql.MYSQL_TYPE_JSON:
			c.form = formJSON
		}
	case gomysql.MYSQL_TYPE_NEWDECIMAL:
		c.precision, c.scale = int(meta.byte()), int(meta.byte())
		if c.precision > 65 || c.scale > 30 || c.scale > c.precision {
			return errors.New("digits of a decimal out of range")
		}
		c.form, c.fixed = formDecimal, decimalSize(c.precision, c.scale)
	case gomysql.MYSQL_TYPE_BIT:
		bits, whole := int(meta.byte()), int(meta.byte())
		c.form, c.fixed = formBit, whole+(bits+7)/8
		if bits > 7 || c.fixed > 8 {
			return errors.New("number of bits out of range")
		}
	case gomysql.MYSQL_TYPE_TIME2, gomysql.MYSQL_TYPE_DATETIME2, gomysql.MYSQL_TYPE_TIMESTAMP2:
		c.scale = int(meta.byte())
		if c.scale > 6 {
			return errors.New("digits of a second out of range")
		}
		c.form, c.fixed = temporalForms[t].form, temporalForms[t].size+(c.scale+1)/2
	case gomysql.MYSQL_TYPE_FLOAT, gomysql.MYSQL_TYPE_DOUBLE:
		size := map[byte]int{gomysql.MYSQL_TYPE_FLOAT: 4, gomysql.MYSQL_TYPE_DOUBLE: 8}[t]
		if c.form, c.fixed = formFloat, int(meta.byte()); c.fixed != size && !meta.short {
			return errors.New("size of a float out of range")
		}
	default:
		f, ok := fixedForms[t]
		if !ok {
			return fmt.Errorf("unknown type %d", t)
		}
		c.form, c.fixed = f.form, f.size
	}
	if meta.short {
		return errShort
	}
	return nil
}

// readString tells apart what hides behind the type of CHAR: ENUM, SET, and two bits of the length in the type itself.
func (c *column) readString(real, length byte) error {
	switch real {
	case gomysql.MYSQL_TYPE_ENUM, gomysql.MYSQL_TYPE_SET:
		c.form, c.fixed = formEnum, int(length)
		limit := 2
		if real == gomysql.MYSQL_TYPE_SET {
			c.form, limit = formSet, 8
		}
		if c.fixed < 1 || c.fixed > limit {
			return errors.New("size of an ENUM or SET out of range")
		}
		return nil
	}
	if real|0x30 != gomysql.MYSQL_TYPE_STRING {
		return fmt.Errorf("unknown type %d", real)
	}
	c.form, c.prefix, c.char = formText, 1, true
	c.length = int(length) | int(real&0x30^0x30)<<4
	if c.length > 255 {
		c.prefix = 2
	}
	return nil
}

type fixedForm struct {
	form form
	size int
}

// temporalForms are those with a fraction, whose bytes come on top.
var temporalForms = map[byte]fixedForm{
	gomysql.MYSQL_TYPE_TIME2: {formTime2, 3}, gomysql.MYSQL_TYPE_DATETIME2: {formDatetime2, 5}, gomysql.MYSQL_TYPE_TIMESTAMP2: {formTimestamp2, 4},
}

var fixedForms = map[byte]fixedForm{
	gomysql.MYSQL_TYPE_TINY: {formInt, 1}, gomysql.MYSQL_TYPE_SHORT: {formInt, 2}, gomysql.MYSQL_TYPE_INT24: {formInt, 3},
	gomysql.MYSQL_TYPE_LONG: {formInt, 4}, gomysql.MYSQL_TYPE_LONGLONG: {formInt, 8}, gomysql.MYSQL_TYPE_YEAR: {formYear, 1},
	gomysql.MYSQL_TYPE_DATE: {formDate, 3}, gomysql.MYSQL_TYPE_NEWDATE: {formDate, 3}, gomysql.MYSQL_TYPE_TIME: {formTime, 3},
	gomysql.MYSQL_TYPE_DATETIME: {formDatetime, 8}, gomysql.MYSQL_TYPE_TIMESTAMP: {formTimestamp, 4}, gomysql.MYSQL_TYPE_NULL: {formOpaque, 0},
}

// cursor reads fields and remembers when the event ended too early; then all further fields are zero.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.b, c.short = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) byte() byte {
	if v := c.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if v := c.bytes(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

// packed reads a length-encoded integer.
func (c *cursor) packed() uint64 {
	first := c.byte()
	switch first {
	case 0xfc:
		return uint64(c.uint16())
	case 0xfd:
		if v := c.bytes(3); v != nil {
			return little(v)
		}
		return 0
	case 0xfe:
		if v := c.bytes(8); v != nil {
			return little(v)
		}
		return 0
	case 0xfb, 0xff: // NULL, and what no integer begins with
		c.b, c.short = nil, true
		return 0
	}
	return uint64(first)
}

func (c *cursor) end() error {
	if c.short {
		return errShort
	}
	if len(c.b) > 0 {
		return errTrailing
	}
	return nil
}

// little reads up to eight bytes, the lowest first.
func little(b []byte) uint64 {
	var n uint64
	for i := len(b) - 1; i >= 0; i-- {
		n = n<<8 | uint64(b[i])
	}
	return n
}

// big reads up to eight bytes, the highest first.
func big(b []byte) uint64 {
	var n uint64
	for _, v := range b {
		n = n<<8 | uint64(v)
	}
	return n
}
