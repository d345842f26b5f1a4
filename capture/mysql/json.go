package mysql

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"strconv"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

// The types of MySQL's binary JSON (sql-common/json_binary.h).
const (
	jsonSmallObject = iota
	jsonLargeObject
	jsonSmallArray
	jsonLargeArray
	jsonLiteral
	jsonInt16
	jsonUint16
	jsonInt32
	jsonUint32
	jsonInt64
	jsonUint64
	jsonDouble
	jsonString
	jsonOpaque = 0x0f
)

// maxJSONDepth is the servers' own limit.
const maxJSONDepth = 100

var errJSON = errors.New("JSON document is malformed")

// jsonReader turns binary JSON into the text that the server prints.
type jsonReader struct {
	dst []byte
	// budget bounds the elements that may be read. Offsets can make a document hold the same part many times over, so its
	// text could be of any size.
	budget int
}

// appendJSON appends the text of a binary document. An empty one, which IGNORE leaves in a NOT NULL column, is null.
func appendJSON(dst, doc []byte) ([]byte, error) {
	if len(doc) == 0 {
		return append(dst, "null"...), nil
	}
	r := jsonReader{dst: dst, budget: len(doc)}
	if err := r.value(doc[0], doc[1:], 0); err != nil {
		return dst, err
	}
	return r.dst, nil
}

// value appends the value of a type that begins at b.
func (r *jsonReader) value(t byte, b []byte, depth int) error {
	if r.budget--; r.budget < 0 || depth > maxJSONDepth {
		return errJSON
	}
	if n, ok := jsonSizes[t]; ok && len(b) < n {
		return errJSON
	}
	switch t {
	case jsonSmallObject, jsonLargeObject, jsonSmallArray, jsonLargeArray:
		return r.container(t, b, depth)
	case jsonLiteral:
		return r.literal(b[0])
	case jsonInt16:
		r.dst = strconv.AppendInt(r.dst, int64(int16(binary.LittleEndian.Uint16(b))), 10) //nolint:gosec // two's complement
	case jsonUint16:
		r.dst = strconv.AppendUint(r.dst, uint64(binary.LittleEndian.Uint16(b)), 10)
	case jsonInt32:
		r.dst = strconv.AppendInt(r.dst, int64(int32(binary.LittleEndian.Uint32(b))), 10) //nolint:gosec // two's complement
	case jsonUint32:
		r.dst = strconv.AppendUint(r.dst, uint64(binary.LittleEndian.Uint32(b)), 10)
	case jsonInt64:
		r.dst = strconv.AppendInt(r.dst, int64(binary.LittleEndian.Uint64(b)), 10) //nolint:gosec // two's complement
	case jsonUint64:
		r.dst = strconv.AppendUint(r.dst, binary.LittleEndian.Uint64(b), 10)
	case jsonDouble:
		return r.double(math.Float64frombits(binary.LittleEndian.Uint64(b)))
	case jsonString:
		s, err := sized(b)
		if err != nil {
			return err
		}
		r.quoted(s)
	case jsonOpaque:
		if len(b) < 1 {
			return errJSON
		}
		s, err := sized(b[1:])
		if err != nil {
			return err
		}
		return r.opaque(b[0], s)
	default:
		return errJSON
	}
	return nil
}

// jsonSizes are the least bytes of the scalars of fixed size.
var jsonSizes = map[byte]int{
	jsonLiteral: 1, jsonInt16: 2, jsonUint16: 2, jsonInt32: 4, jsonUint32: 4, jsonInt64: 8, jsonUint64: 8, jsonDouble: 8,
}

func (r *jsonReader) literal(v byte) error {
	switch v {
	case 0:
		r.dst = append(r.dst, "null"...)
	case 1:
		r.dst = append(r.dst, "true"...)
	case 2:
		r.dst = append(r.dst, "false"...)
	default:
		return errJSON
	}
	return nil
}

// double appends a number that stays a double when it is read again.
func (r *jsonReader) double(f float64) error {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return errJSON
	}
	start := len(r.dst)
	r.dst = appendFloat(r.dst, f, 64)
	for _, c := range r.dst[start:] {
		if c == '.' || c == 'e' {
			return nil
		}
	}
	r.dst = append(r.dst, '.', '0')
	return nil
}

// container appends an object or an array. All its offsets count from its own begin: the number of elements, the size in
// bytes, for an object the place and length of each key, then the type and place of each value; small ones lie in place
// of their place.
func (r *jsonReader) container(t byte, b []byte, depth int) error {
	width := 2
	if t == jsonLargeObject || t == jsonLargeArray {
		width = 4
	}
	object := t == jsonSmallObject || t == jsonLargeObject
	if len(b) < 2*width {
		return errJSON
	}
	count, size := little(b[:width]), little(b[width:2*width])
	head := uint64(2 * width)
	keys := head
	if object {
		head += count * uint64(width+2)
	}
	values := head
	head += count * uint64(width+1)
	if size > uint64(len(b)) || head > size {
		return errJSON
	}
	b = b[:size]
	open, shut := byte('['), byte(']')
	if object {
		open, shut = '{', '}'
	}
	r.dst = append(r.dst, open)
	for i := range count {
		if i > 0 {
			r.dst = append(r.dst, ", "...)
		}
		if object {
			entry := b[keys+i*uint64(width+2):]
			at, n := little(entry[:width]), uint64(binary.LittleEndian.Uint16(entry[width:]))
			if at > size || n > size-at {
				return errJSON
			}
			r.quoted(b[at : at+n])
			r.dst = append(r.dst, ": "...)
		}
		entry := b[values+i*uint64(width+1):][:width+1]
		if err := r.element(entry, b, width, depth+1); err != nil {
			return err
		}
	}
	r.dst = append(r.dst, shut)
	return nil
}

// element appends the value of an entry, which holds it or its place.
func (r *jsonReader) element(entry, b []byte, width, depth int) error {
	t := entry[0]
	switch t {
	case jsonLiteral, jsonInt16, jsonUint16:
		return r.value(t, entry[1:], depth)
	case jsonInt32, jsonUint32:
		if width == 4 {
			return r.value(t, entry[1:], depth)
		}
	}
	at := little(entry[1:])
	if at > uint64(len(b)) {
		return errJSON
	}
	return r.value(t, b[at:], depth)
}

// sized returns the bytes after their length: seven bits in each byte, the lowest first, the eighth set on all but the last.
func sized(b []byte) ([]byte, error) {
	var n uint64
	for i := range min(len(b), 5) {
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 != 0 {
			continue
		}
		b = b[i+1:]
		if n > uint64(len(b)) {
			return nil, errJSON
		}
		return b[:n], nil
	}
	return nil, errJSON
}

const hexDigits = "0123456789abcdef"

func (r *jsonReader) quoted(s []byte) {
	r.dst = append(r.dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			r.dst = append(r.dst, '\\', c)
		case c >= 0x20:
			r.dst = append(r.dst, c)
		default:
			if short := shortEscapes[c]; short != 0 {
				r.dst = append(r.dst, '\\', short)
			} else {
				r.dst = append(r.dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
	}
	r.dst = append(r.dst, '"')
}

var shortEscapes = [0x20]byte{'\b': 'b', '\t': 't', '\n': 'n', '\f': 'f', '\r': 'r'}

// opaque appends a value of a type that JSON does not have.
func (r *jsonReader) opaque(t byte, b []byte) error {
	switch t {
	case gomysql.MYSQL_TYPE_NEWDECIMAL:
		if len(b) < 2 {
			return errJSON
		}
		precision, scale := int(b[0]), int(b[1])
		if precision > 65 || scale > 30 || scale > precision || len(b)-2 < decimalSize(precision, scale) {
			return errJSON
		}
		r.dst = appendDecimal(r.dst, b[2:], precision, scale)
		return nil
	case gomysql.MYSQL_TYPE_DATE, gomysql.MYSQL_TYPE_TIME, gomysql.MYSQL_TYPE_DATETIME, gomysql.MYSQL_TYPE_TIMESTAMP:
		if len(b) < 8 {
			return errJSON
		}
		n := int64(binary.LittleEndian.Uint64(b)) //nolint:gosec // two's complement
		r.dst = append(r.dst, '"')
		r.temporal(t, n)
		r.dst = append(r.dst, '"')
		return nil
	}
	r.dst = append(r.dst, `"base64:type`...)
	r.dst = strconv.AppendUint(r.dst, uint64(t), 10)
	r.dst = append(r.dst, ':')
	r.dst = base64.StdEncoding.AppendEncode(r.dst, b)
	r.dst = append(r.dst, '"')
	return nil
}

// temporal appends a packed date or time: 24 bits of microseconds below the packed form of appendPackedDatetime, or below
// the hours, minutes and seconds of a TIME.
func (r *jsonReader) temporal(t byte, n int64) {
	negative := n < 0
	if negative {
		n = -n
	}
	whole, fraction := uint64(n)>>24, uint64(n)&(1<<24-1) //nolint:gosec // the smallest number stays what it is
	switch t {
	case gomysql.MYSQL_TYPE_TIME:
		if negative {
			r.dst = append(r.dst, '-')
		}
		r.dst = appendClock(r.dst, whole>>12&1023, whole>>6&63, whole&63)
	case gomysql.MYSQL_TYPE_DATE:
		months := whole >> 22
		r.dst = appendDate(r.dst, months/13, months%13, whole>>17&31)
		return
	default:
		r.dst = appendPackedDatetime(r.dst, whole)
	}
	r.dst = appendPadded(append(r.dst, '.'), fraction, 6)
}
