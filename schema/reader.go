package schema

import (
	"encoding/binary"
	"time"
	"unicode/utf8"
)

// reader reads Avro's binary encoding. Every read is checked against what is left, nothing is allocated before it is known that
// the bytes for it are there, and after the first fault (bad) every read gives zero. It reads what our encoder writes and no other form of it
// (longer numbers, arrays in several blocks, an optional value that is there and empty): one statement has one form in bytes.
type reader struct {
	b   []byte
	off int
	bad bool
	// texts gives one copy of strings that come again and again; nil: none are kept.
	texts *interner
}

func (r *reader) fault() { r.bad = true }

func (r *reader) left() int { return len(r.b) - r.off }

func (r *reader) long() int64 {
	if r.bad {
		return 0
	}
	v, n := binary.Varint(r.b[r.off:])
	if n <= 0 || (n > 1 && r.b[r.off+n-1] == 0) {
		r.fault()
		return 0
	}
	r.off += n
	return v
}

// take gives the next n bytes of the message itself.
func (r *reader) take(n int64) []byte {
	if r.bad || n < 0 || n > int64(r.left()) {
		r.fault()
		return nil
	}
	b := r.b[r.off : r.off+int(n)]
	r.off += int(n)
	return b
}

func (r *reader) fixed(dst []byte) { copy(dst, r.take(int64(len(dst)))) }

// bytes gives a part of the message itself.
func (r *reader) bytes() []byte { return r.take(r.long()) }

func (r *reader) str() string {
	b := r.bytes()
	if !utf8.Valid(b) {
		r.fault()
		return ""
	}
	return r.texts.get(b)
}

func (r *reader) boolean() bool {
	b := r.take(1)
	if r.bad || b[0] > 1 {
		r.fault()
		return false
	}
	return b[0] == 1
}

func (r *reader) enum(n names) uint8 {
	v := r.long()
	if v < 0 || v >= int64(len(n)) {
		r.fault()
		return 0
	}
	return uint8(v) //nolint:gosec // below len(n), which is small
}

func (r *reader) uint32() uint32 {
	v := r.long()
	if v < 0 || v > 1<<32-1 {
		r.fault()
		return 0
	}
	return uint32(v)
}

func (r *reader) time() time.Time {
	ms := r.long()
	if r.bad {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// option reads the branch of a union of null and something, and reports whether that follows.
func (r *reader) option() bool {
	switch r.long() {
	case 0:
	case 1:
		return true
	default:
		r.fault()
	}
	return false
}

func (r *reader) optTime() (t time.Time) {
	if r.option() {
		if t = r.time(); t.IsZero() {
			r.fault()
		}
	}
	return t
}

func (r *reader) optStr() (s string) {
	if r.option() {
		if s = r.str(); s == "" {
			r.fault()
		}
	}
	return s
}

func (r *reader) optFixed(dst []byte) {
	if !r.option() {
		return
	}
	r.fixed(dst)
	for _, b := range dst {
		if b != 0 {
			return
		}
	}
	r.fault()
}

// readArray reads an array of one block. An item takes at least size bytes, which bounds what a count can make us allocate.
func readArray[T any](r *reader, size int, item func(*reader, *T)) []T {
	n := r.long()
	if n == 0 {
		return nil
	}
	if n < 0 || n > int64(r.left()/size) {
		r.fault()
		return nil
	}
	items := make([]T, n)
	for i := range items {
		if item(r, &items[i]); r.bad {
			return nil
		}
	}
	if r.long() != 0 {
		r.fault()
	}
	return items
}

func (r *reader) strs() []string {
	return readArray(r, 1, func(r *reader, s *string) { *s = r.str() })
}
