package mysql

import (
	"errors"
	"fmt"
	"math/bits"

	"lethe/capture"
)

// readRows reads what follows the table id and the flags of a row event.
func (d *rowDecoder) readRows(s *shape, f rowForm, body []byte, fn func(*capture.Change) error) error {
	c := cursor{b: body}
	if f.extra {
		n := c.uint16() // its own two bytes included
		if n < 2 {
			return d.rowError(s, errShort)
		}
		c.bytes(uint64(n) - 2)
	}
	n := c.packed()
	if c.short {
		return d.rowError(s, errShort)
	}
	if n != uint64(len(s.columns)) {
		return d.rowError(s, fmt.Errorf("row of %d columns in a table of %d", n, len(s.columns)))
	}
	one := c.bytes((n + 7) / 8)
	two := one
	if f.op == capture.OpUpdate {
		two = c.bytes((n + 7) / 8)
	}
	if c.short {
		return d.rowError(s, errShort)
	}
	first, second := newImage(one, int(n)), newImage(two, int(n)) //nolint:gosec // the number of columns
	if err := s.complete(first.present, second.present); err != nil {
		return err
	}
	rest := c.b
	if f.compressed {
		var err error
		if rest, err = d.zip.inflate(rest); err != nil {
			return d.rowError(s, err)
		}
	}
	return d.eachRow(s, f, first, second, rest, fn)
}

func (d *rowDecoder) eachRow(s *shape, f rowForm, first, second image, rest []byte, fn func(*capture.Change) error) error {
	for len(rest) > 0 {
		left := len(rest)
		d.scratch = d.scratch[:0]
		d.change = capture.Change{Op: f.op, Table: s.table}
		into := s.before
		if f.op == capture.OpInsert {
			into = s.after
		}
		var err error
		rest, err = d.readImage(s, first, rest, into, nil)
		if err == nil && f.op == capture.OpUpdate {
			var partial []byte
			if f.partial {
				partial, rest, err = s.partial(rest)
			}
			if err == nil {
				rest, err = d.readImage(s, second, rest, s.after, partial)
			}
		}
		if err == nil && len(rest) == left {
			err = errors.New("row without a byte")
		}
		if err != nil {
			return d.rowError(s, err)
		}
		if f.op != capture.OpInsert {
			d.change.Old = s.before
		}
		if f.op != capture.OpDelete {
			d.change.New = s.after
		}
		if err := fn(&d.change); err != nil {
			return err
		}
	}
	return nil
}

// rowError names the table of what is wrong with the bytes; a *ColumnTypeError says it itself.
func (d *rowDecoder) rowError(s *shape, err error) error {
	var columnType *ColumnTypeError
	if errors.As(err, &columnType) {
		return columnType
	}
	return &RowError{Table: s.table.Name, Err: err}
}

// image is which columns one image of a row event carries.
type image struct {
	present []byte
	count   int
}

// newImage counts the columns; the bits beyond the last one mean nothing, and servers set them.
func newImage(present []byte, columns int) image {
	i := image{present: present}
	for _, b := range present {
		if columns < 8 {
			b &= 1<<columns - 1
		}
		i.count += bits.OnesCount8(b)
		columns -= 8
	}
	return i
}

func isSet(bitmap []byte, i int) bool { return bitmap[i>>3]&(1<<(i&7)) != 0 }

// complete checks that both images carry all columns that the mapping reads. An INSERT of a session with another
// binlog_row_image lacks those that it did not name, and a NULL in their place would be a lie.
func (s *shape) complete(first, second []byte) error {
	var missing []string
	for i, want := range s.wanted {
		lacks := want &^ (first[i] & second[i])
		for ; lacks != 0; lacks &= lacks - 1 {
			missing = append(missing, s.table.Columns[8*i+bits.TrailingZeros8(lacks)].Name)
		}
	}
	if missing != nil {
		return &ImageError{Table: s.table.Name, Columns: missing}
	}
	return nil
}

// partialJSON is the one bit of binlog_row_value_options.
const partialJSON = 1

// partial reads what goes before the new image of a PARTIAL_UPDATE_ROWS event: which JSON columns hold differences.
func (s *shape) partial(b []byte) (columns, rest []byte, err error) {
	c := cursor{b: b}
	if c.packed()&partialJSON != 0 {
		columns = c.bytes(uint64(s.jsons+7) / 8) //nolint:gosec // not negative
	}
	if c.short {
		return nil, nil, errShort
	}
	return columns, c.b, nil
}

// readImage reads one image of a row into row and returns what follows it.
func (d *rowDecoder) readImage(s *shape, img image, b []byte, row []capture.Value, partial []byte) ([]byte, error) {
	nulls := (img.count + 7) / 8
	if nulls > len(b) {
		return nil, errShort
	}
	null := b[:nulls]
	b = b[nulls:]
	at, json := 0, 0
	whole := img.count == len(s.columns)
	for i := range s.columns {
		c := &s.columns[i]
		different := false
		if c.form == formJSON && partial != nil {
			different = isSet(partial, json)
			json++
		}
		if !whole && !isSet(img.present, i) {
			continue
		}
		isNull := isSet(null, at)
		at++
		if isNull {
			if c.wanted {
				row[i] = capture.Value{State: capture.Null}
			}
			continue
		}
		head, n, ok := c.extent(b)
		if !ok || n > len(b)-head {
			return nil, errShort
		}
		value := b[head : head+n : head+n]
		b = b[head+n:]
		if !c.wanted {
			continue
		}
		if different && n == 0 {
			row[i] = s.before[i] // no difference at all
			continue
		}
		if different {
			return nil, &ColumnTypeError{
				Table: s.table.Name, Column: s.table.Columns[i].Name,
				Reason: "came as a difference to its old value: SET GLOBAL binlog_row_value_options = '', also in the session that wrote it",
			}
		}
		text, err := d.text(c, value)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", s.table.Columns[i].Name, err)
		}
		row[i] = capture.Value{State: capture.Present, Text: text}
	}
	return b, nil
}
