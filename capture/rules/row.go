package rules

import (
	"bytes"
	"fmt"

	"lethe/capture"
	"lethe/schema"
)

// image chooses between the two images of a row.
type image uint8

const (
	after  image = iota // the row as it is: INSERT and UPDATE
	before              // the row as it was: UPDATE and DELETE, as far as the replica identity carries it
)

// row is one change, seen through the shape of its table. One is reused for all changes.
type row struct {
	engine *Engine
	b      *binding
	tx     *capture.Transaction
	c      *capture.Change

	// subjects and pk are made on first need, for only few changes get that far; keys holds their bytes.
	subjects [2]subjectKey
	pk       []byte
	pkKnown  bool
	keys     []byte
	parts    [][]byte
	counted  bool // the row was counted as one of nobody
	arrived  bool // see arrives
}

type subjectKey struct {
	key    []byte // nil: the row belongs to nobody
	known  bool
	failed error
}

func (x *row) reset(e *Engine, b *binding, tx *capture.Transaction, c *capture.Change) error {
	columns := len(b.table.Columns)
	if c.Op != capture.OpDelete && len(c.New) != columns || c.Old != nil && len(c.Old) != columns {
		return fmt.Errorf("applying rules to table %s: the change has not as many values as the table has columns", b.table.Name)
	}
	x.engine, x.b, x.tx, x.c = e, b, tx, c
	x.subjects = [2]subjectKey{}
	x.pk, x.pkKnown, x.counted = nil, false, false
	x.keys = x.keys[:0]
	x.arrived = x.arrives()
	return nil
}

// after returns a column of the new image. A value that was not sent because it did not change is taken from the old
// image; where that lacks it too the state stays Unchanged.
func (x *row) after(col int) capture.Value {
	v := x.c.New[col]
	if v.State == capture.Unchanged && x.c.Old != nil {
		if old := x.c.Old[col]; old.State == capture.Present {
			return old
		}
	}
	return v
}

// before returns a column of the old image, and whether it is known. With an identity that is a key the server sends the
// old image of an UPDATE only if it changed the key; so without one the old key is the new key, and what else such an
// image holds (NULLs) means nothing.
func (x *row) before(col int) (capture.Value, bool) {
	if x.b.table.OldRow == capture.OldRowKey && !x.b.table.Columns[col].Key {
		return capture.Value{}, false
	}
	if x.c.Old == nil {
		if x.c.Op == capture.OpUpdate && x.b.table.OldRow == capture.OldRowKey {
			return x.after(col), true
		}
		return capture.Value{}, false
	}
	v := x.c.Old[col]
	return v, v.State == capture.Present || v.State == capture.Null
}

// value returns a column of an image that a rule cannot do without. A date that is MySQL's zero is NULL.
func (x *row) value(col int, img image) (capture.Value, error) {
	v, err := x.stored(col, img)
	if err == nil && v.State == capture.Present && x.b.kinds[col].temporal() && zeroDate(v.Text) {
		v = capture.Value{State: capture.Null}
	}
	return v, err
}

func (x *row) stored(col int, img image) (capture.Value, error) {
	if img == before {
		v, known := x.before(col)
		if !known {
			return v, &UnavailableError{
				Table: x.b.table.Name, Column: x.b.table.Columns[col].Name, Reason: "the old row does not carry it",
				Hint: "its replica identity must contain the column",
			}
		}
		return v, nil
	}
	v := x.after(col)
	switch v.State {
	case capture.Present, capture.Null:
		return v, nil
	case capture.Unchanged:
		return v, &UnavailableError{
			Table: x.b.table.Name, Column: x.b.table.Columns[col].Name,
			Reason: "PostgreSQL did not send it, because it is stored out of line and did not change",
			Hint:   "alter table " + x.b.table.Name + " replica identity full, or shorten the column",
		}
	case capture.Absent:
	}
	return v, &UnavailableError{
		Table: x.b.table.Name, Column: x.b.table.Columns[col].Name, Reason: "the change does not carry it",
		Hint: "the publication's column list must contain it",
	}
}

// text returns the value without padding.
func (x *row) text(col int, v capture.Value) []byte { return x.b.kinds[col].trimmed(v.Text) }

// same reports whether an UPDATE is known to have left all these columns as they were.
func (x *row) same(columns []int) bool {
	if x.c.Op != capture.OpUpdate {
		return false
	}
	for _, col := range columns {
		if x.c.New[col].State == capture.Unchanged {
			continue
		}
		if old, known := x.before(col); !known || !equal(old, x.c.New[col]) {
			return false
		}
	}
	return true
}

// knownBefore reports whether the old image carries all these columns.
func (x *row) knownBefore(columns []int) bool {
	for _, col := range columns {
		if _, known := x.before(col); !known {
			return false
		}
	}
	return true
}

func equal(a, b capture.Value) bool {
	return a.State == b.State && (a.State != capture.Present || bytes.Equal(a.Text, b.Text))
}

// isNew reports whether there is no old row: it was inserted, or a pass reads it as it is.
func (x *row) isNew() bool { return x.c.Op == capture.OpInsert || x.c.Op == capture.OpRead }

// arrives reports whether the row is new to its subject: an INSERT, a row read by a pass, or an UPDATE that gave it another
// owner. Then the old image says nothing about the subject of the new one.
func (x *row) arrives() bool {
	switch x.c.Op {
	case capture.OpInsert, capture.OpRead:
		return true
	case capture.OpUpdate:
		return x.c.Old != nil && x.knownBefore(x.b.subject) && !x.same(x.b.subject)
	case capture.OpDelete, capture.OpTruncate, capture.OpMessage:
	}
	return false
}

// subject returns the canonical CRM key of an image's owner, nil for a row that belongs to nobody because a column of
// the key is NULL.
func (x *row) subject(img image) ([]byte, error) {
	s := &x.subjects[img]
	if s.known {
		return s.key, s.failed
	}
	s.known = true
	s.key, s.failed = x.key(x.b.subject, img)
	return s.key, s.failed
}

// key makes the canonical key of columns; nil if one of them is NULL.
func (x *row) key(columns []int, img image) ([]byte, error) {
	x.parts = x.parts[:0]
	for _, col := range columns {
		v, err := x.value(col, img)
		if err != nil || v.State == capture.Null {
			return nil, err
		}
		x.parts = append(x.parts, x.text(col, v))
	}
	return x.append(x.parts...), nil
}

// append keeps a canonical key until the next change. Growing leaves the keys already handed out where they are.
func (x *row) append(parts ...[]byte) []byte {
	start := len(x.keys)
	x.keys = schema.CanonicalKey(x.keys, parts...)
	return x.keys[start:len(x.keys):len(x.keys)]
}

// identity returns the canonical primary key that goes into event ids. It only has to be the same whenever the change is
// read again, since the id also counts the changes of a table within the transaction. So it is the columns of the
// replica identity where that is a key, and else (FULL flags every column, personal ones included) those of the subject.
func (x *row) identity() ([]byte, error) {
	if x.pkKnown {
		return x.pk, nil
	}
	img := after
	if x.c.Op == capture.OpDelete {
		img = before
	}
	var err error
	if len(x.b.identity) == 0 {
		x.pk, err = x.subject(img)
	} else {
		x.pk, err = x.key(x.b.identity, img)
	}
	x.pkKnown = err == nil
	return x.pk, err
}

// draft makes the event of one subject of the row; a row of nobody makes none.
func (x *row) draft(out []Draft, rule string, img image, body schema.Body) ([]Draft, error) {
	subject, err := x.subject(img)
	if err != nil {
		return out, err
	}
	if subject == nil {
		x.nobody()
		return out, nil
	}
	pk, err := x.identity()
	if err != nil {
		return out, err
	}
	if pk == nil {
		pk = subject // the row has lost its owner, and the event is about that
	}
	return append(out, Draft{Rule: rule, PK: pk, SubjectKey: subject, Body: body}), nil
}

// nobody counts a row that would mean something if it belonged to somebody; once, whatever the number of rules.
func (x *row) nobody() {
	if !x.counted {
		x.counted = true
		x.notice(NoticeRowOfNobody)
	}
}

func (x *row) notice(k NoticeKind) { x.engine.notices.count(k, x.b.table.Name) }
