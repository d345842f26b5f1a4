package schema

import (
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"
)

// writer appends Avro's binary encoding. The first error sticks; the caller looks at it once, at the end.
type writer struct {
	b   []byte
	err error
}

// fail keeps the first error. It names the field and never the value.
func (w *writer) fail(field, why string) {
	if w.err == nil {
		w.err = fmt.Errorf("encoding field %s: %s", field, why)
	}
}

func (w *writer) long(v int64) {
	if v >= 0 && v < 64 { // lengths and symbols, nearly always
		w.b = append(w.b, byte(v)<<1)
		return
	}
	w.b = binary.AppendVarint(w.b, v)
}

func (w *writer) boolean(v bool) {
	if v {
		w.b = append(w.b, 1)
	} else {
		w.b = append(w.b, 0)
	}
}

func (w *writer) bytes(v []byte) {
	w.long(int64(len(v)))
	w.b = append(w.b, v...)
}

func (w *writer) str(field, v string) {
	if !utf8.ValidString(v) {
		w.fail(field, "not UTF-8")
	}
	w.long(int64(len(v)))
	w.b = append(w.b, v...)
}

func (w *writer) strs(field string, v []string) {
	w.count(len(v))
	for _, s := range v {
		w.str(field, s)
	}
	w.end()
}

// enum writes the symbol's number, which is the constant's own: the schema lists the symbols in the order of the constants.
func (w *writer) enum(field string, n names, v uint8) {
	if int(v) >= len(n) {
		w.fail(field, "not one of its values")
	}
	w.long(int64(v))
}

// named writes the number of a symbol that is a string in Go.
func (w *writer) named(field string, n names, s string) {
	i, err := n.index(s, field)
	if err != nil {
		w.fail(field, err.Error())
	}
	w.long(int64(i))
}

// time writes milliseconds; what is finer is cut off.
func (w *writer) time(v time.Time) { w.long(v.UnixMilli()) }

// option writes the branch of a union of null and something, and reports whether that follows.
func (w *writer) option(present bool) bool {
	if present {
		w.b = append(w.b, 2)
	} else {
		w.b = append(w.b, 0)
	}
	return present
}

func (w *writer) optTime(v time.Time) {
	if w.option(!v.IsZero()) {
		w.time(v)
	}
}

func (w *writer) optStr(field, v string) {
	if w.option(v != "") {
		w.str(field, v)
	}
}

func (w *writer) optID(v *[16]byte) {
	if w.option(*v != [16]byte{}) {
		w.b = append(w.b, v[:]...)
	}
}

// count and end enclose the items of an array, which goes out as one block.
func (w *writer) count(n int) {
	if n > 0 {
		w.long(int64(n))
	}
}

func (w *writer) end() { w.b = append(w.b, 0) }
