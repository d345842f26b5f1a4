package mysql

import (
	"bytes"
	"database/sql/driver"
	"encoding/hex"
	"fmt"
	"strconv"

	"lethe/capture"
)

// readForm is what makes the stream's text form of a value that a SELECT gives.
type readForm uint8

const (
	readPlain   readForm = iota // the driver's value as it is
	readDecimal                 // without the zeros of ZEROFILL
	readBits
	readYear
	readInstant // TIMESTAMP, in UTC because the session is
	readBytes
)

// readForms are by the driver's name of a column's type.
var readForms = map[string]readForm{
	"DECIMAL": readDecimal, "BIT": readBits, "YEAR": readYear, "TIMESTAMP": readInstant, "BINARY": readBytes, "VARBINARY": readBytes,
	"TINYBLOB": readBytes, "BLOB": readBytes, "MEDIUMBLOB": readBytes, "LONGBLOB": readBytes, "GEOMETRY": readBytes, "VECTOR": readBytes,
}

// formsOf returns the forms of the columns of an answer.
func formsOf(rows driver.Rows) []readForm {
	forms := make([]readForm, len(rows.Columns()))
	named, ok := rows.(driver.RowsColumnTypeDatabaseTypeName)
	for i := range forms {
		if ok {
			forms[i] = readForms[named.ColumnTypeDatabaseTypeName(i)]
		}
	}
	return forms
}

// appendRead appends the text form of a value of a prepared statement's answer: the one that rowDecoder.text gives of the same
// value in the log. Texts come in UTF-8, because the server converts them.
func appendRead(dst []byte, form readForm, v driver.Value) (_ []byte, state capture.ValueState, err error) {
	switch v := v.(type) {
	case nil:
		return dst, capture.Null, nil
	case []byte:
		return appendReadBytes(dst, form, v), capture.Present, nil
	case string:
		return appendReadBytes(dst, form, []byte(v)), capture.Present, nil
	case int64:
		if form == readYear {
			return appendPadded(dst, uint64(v), 4), capture.Present, nil //nolint:gosec // 0 or 1901 to 2155
		}
		return strconv.AppendInt(dst, v, 10), capture.Present, nil
	case float32:
		return appendFloat(dst, float64(v), 32), capture.Present, nil
	case float64:
		return appendFloat(dst, v, 64), capture.Present, nil
	}
	return dst, capture.Absent, fmt.Errorf("the driver gives a %T", v)
}

var zeroDate = []byte("0000-00-00")

func appendReadBytes(dst []byte, form readForm, b []byte) []byte {
	switch form {
	case readDecimal:
		return appendPlainDecimal(dst, b)
	case readBits:
		return strconv.AppendUint(dst, big(b), 10)
	case readInstant:
		dst = append(dst, b...)
		if bytes.HasPrefix(b, zeroDate) {
			return dst
		}
		return append(dst, "+00"...)
	case readBytes:
		return hex.AppendEncode(append(dst, '\\', 'x'), b)
	case readPlain, readYear:
	}
	return append(dst, b...)
}

// appendPlainDecimal appends a decimal without leading zeros.
func appendPlainDecimal(dst, b []byte) []byte {
	if len(b) > 0 && b[0] == '-' {
		dst, b = append(dst, '-'), b[1:]
	}
	for len(b) > 1 && b[0] == '0' && b[1] != '.' {
		b = b[1:]
	}
	return append(dst, b...)
}

// cell is a value of a chunk: its state, and where its text ends; it begins where the one before ends.
type cell struct {
	state capture.ValueState
	end   int
}

// chunk holds the rows of one answer, so that the server need not wait for whoever looks at them.
type chunk struct {
	text  []byte
	cells []cell
	rows  int
	last  [][]byte // the key of the last row
}

func (c *chunk) reset() {
	c.text, c.cells, c.rows, c.last = c.text[:0], c.cells[:0], 0, nil
}

// add takes a value, without looking at what it holds.
func (c *chunk) add(form readForm, v driver.Value) error {
	var state capture.ValueState
	var err error
	if c.text, state, err = appendRead(c.text, form, v); err != nil {
		return err
	}
	c.cells = append(c.cells, cell{state, len(c.text)})
	return nil
}

// each hands the rows over as changes of a table. places says which column of the table each value is of.
func (c *chunk) each(table *capture.Table, places []int, fn func(*capture.Change) error) error {
	change := capture.Change{Op: capture.OpRead, Table: table, New: make([]capture.Value, len(table.Columns))}
	at := 0
	cells := c.cells
	for range c.rows {
		for i, place := range places {
			change.New[place] = capture.Value{State: cells[i].state}
			if cells[i].state == capture.Present {
				change.New[place].Text = c.text[at:cells[i].end:cells[i].end]
			}
			at = cells[i].end
		}
		cells = cells[len(places):]
		if err := fn(&change); err != nil {
			return err
		}
	}
	return nil
}
