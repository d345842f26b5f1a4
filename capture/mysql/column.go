package mysql

import (
	"fmt"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

// form is how the values of a column lie in a row.
type form uint8

const (
	formOpaque form = iota // spatial, vector, compressed: passed over, never read
	formInt
	formDecimal
	formFloat
	formBit
	formYear
	formDate
	formTime
	formTime2
	formDatetime
	formDatetime2
	formTimestamp
	formTimestamp2
	formEnum
	formSet
	formText
	formBytes
	formJSON
)

// column is the plan of reading one column of a table.
type column struct {
	form      form
	code      byte // the type in the log
	wanted    bool // decoded; others are passed over by their length
	unsigned  bool
	char      bool // CHAR and BINARY, which the log sends without their padding
	prefix    int  // bytes of the length before the value; 0: the length is fixed
	fixed     int
	length    int // most bytes of a CHAR, BINARY, VARCHAR or VARBINARY
	precision int
	scale     int // digits after the point, of a decimal or of a second
	collation uint64
	transcode transcoder // nil: the bytes are UTF-8 already
	labels    [][]byte   // of an ENUM or SET, in UTF-8
}

// character reports whether the map gives the column's collation among those of texts.
func (c *column) character(mariadb bool) bool {
	switch c.code {
	case gomysql.MYSQL_TYPE_STRING:
		return c.form == formText
	case gomysql.MYSQL_TYPE_VARCHAR, gomysql.MYSQL_TYPE_VAR_STRING, gomysql.MYSQL_TYPE_BLOB:
		return true
	case gomysql.MYSQL_TYPE_GEOMETRY, typeBlobCompressed, typeVarcharCompressed:
		return mariadb
	case gomysql.MYSQL_TYPE_VECTOR:
		return true
	}
	return false
}

// numeric reports whether the map tells whether the column is signed.
func (c *column) numeric() bool {
	switch c.form { //nolint:exhaustive // the others are no numbers
	case formInt, formDecimal, formFloat, formYear:
		return true
	}
	return false
}

// charsetBinary is the id of the collation "binary", the same on all servers.
const charsetBinary = 63

// settle finishes a plan when the whole map is read. It returns why the column cannot be read, if it cannot.
func (c *column) settle(known charsets) string {
	switch c.form {
	case formOpaque:
		return "is of type " + c.typeName() + ", which holds nothing that a rule could read: take it out of the mapping"
	case formText:
		if c.collation == charsetBinary {
			c.form = formBytes
			return ""
		}
	case formEnum, formSet:
		if c.labels == nil {
			return "came without its labels: SET GLOBAL binlog_row_metadata = 'FULL'"
		}
		if c.collation == charsetBinary {
			return ""
		}
	default:
		return ""
	}
	charset := known[c.collation]
	if charset == "" {
		return fmt.Sprintf("has collation %d, which the server does not list: change the column's collation", c.collation)
	}
	transcode, ok := transcoders[charset]
	if !ok {
		return "is in charset " + charset + ", which cannot be turned into UTF-8: convert the column to utf8mb4"
	}
	if c.form == formText {
		c.transcode = transcode
		return ""
	}
	for i, label := range c.labels {
		if transcode != nil {
			c.labels[i] = transcode(nil, label)
		}
	}
	return ""
}

var intNames = map[byte]string{
	gomysql.MYSQL_TYPE_TINY: "tinyint", gomysql.MYSQL_TYPE_SHORT: "smallint", gomysql.MYSQL_TYPE_INT24: "mediumint",
	gomysql.MYSQL_TYPE_LONG: "int", gomysql.MYSQL_TYPE_LONGLONG: "bigint",
}

var formNames = map[form]string{
	formDecimal: "decimal", formBit: "bit unsigned", formYear: "year", formDate: "date", formTime: "time", formTime2: "time",
	formDatetime: "datetime", formDatetime2: "datetime", formTimestamp: "timestamp", formTimestamp2: "timestamp",
	formEnum: "enum", formSet: "set", formJSON: "json",
}

// typeName is the name that the servers print, without lengths: the log does not tell them all.
func (c *column) typeName() string {
	name := formNames[c.form]
	switch c.form { //nolint:exhaustive // the others are in formNames
	case formInt:
		name = intNames[c.code]
	case formFloat:
		name = "double"
		if c.fixed == 4 {
			name = "float"
		}
	case formText, formBytes:
		return c.stringName()
	case formOpaque:
		switch c.code {
		case gomysql.MYSQL_TYPE_GEOMETRY:
			return "geometry"
		case gomysql.MYSQL_TYPE_VECTOR:
			return "vector"
		case typeBlobCompressed, typeVarcharCompressed:
			return "compressed"
		}
		return fmt.Sprintf("type:%d", c.code)
	}
	if c.unsigned && c.form != formYear {
		name += " unsigned"
	}
	return name
}

func (c *column) stringName() string {
	text := c.form == formText
	switch {
	case c.code == gomysql.MYSQL_TYPE_BLOB:
		kind := "blob"
		if text {
			kind = "text"
		}
		return [...]string{"tiny", "", "medium", "long"}[c.prefix-1] + kind
	case c.char && text:
		return "char"
	case c.char:
		return "binary"
	case text:
		return "varchar"
	}
	return "varbinary"
}

// extent returns how many bytes before the value give its length, and how many the value has. It does not look whether
// the value is there.
func (c *column) extent(b []byte) (head, n int, ok bool) {
	switch c.prefix {
	case 0:
		return 0, c.fixed, true
	case 1:
		if len(b) < 1 {
			return 0, 0, false
		}
		return 1, int(b[0]), true
	case 2:
		if len(b) < 2 {
			return 0, 0, false
		}
		return 2, int(b[0]) | int(b[1])<<8, true
	}
	if len(b) < c.prefix {
		return 0, 0, false
	}
	return c.prefix, int(little(b[:c.prefix])), true //nolint:gosec // four bytes
}
