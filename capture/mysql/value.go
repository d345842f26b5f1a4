package mysql

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"strconv"
	"time"
)

// text returns the text form of a value that is not NULL. It lies in b or in scratch space.
//
// The forms are those of PostgreSQL where the types correspond: whole numbers and decimals plain, DATE 2006-01-02,
// DATETIME 2006-01-02 15:04:05[.ffffff] as it is stored, without a zone, TIMESTAMP the same in UTC with +00, binary
// strings as \x and hexadecimal digits. ENUM and SET are their labels, BIT is a decimal number, JSON is JSON. Dates that
// are none (0000-00-00, 2024-02-30) are printed as the server prints them.
func (d *rowDecoder) text(c *column, b []byte) ([]byte, error) {
	if c.form == formText && c.transcode == nil {
		return b, nil
	}
	start := len(d.scratch)
	var err error
	if d.scratch, err = appendText(d.scratch, c, b); err != nil {
		return nil, err
	}
	return d.scratch[start:len(d.scratch):len(d.scratch)], nil
}

// appendText appends the text form of b, which has the length that the column's extent gives.
func appendText(dst []byte, c *column, b []byte) ([]byte, error) {
	switch c.form {
	case formInt:
		return appendInt(dst, c, b), nil
	case formText:
		return c.transcode(dst, b), nil
	case formBytes:
		return appendBytes(dst, c, b), nil
	case formDecimal:
		return appendDecimal(dst, b, c.precision, c.scale), nil
	case formFloat:
		if c.fixed == 4 {
			return appendFloat(dst, float64(math.Float32frombits(binary.LittleEndian.Uint32(b))), 32), nil
		}
		return appendFloat(dst, math.Float64frombits(binary.LittleEndian.Uint64(b)), 64), nil
	case formBit:
		return strconv.AppendUint(dst, big(b), 10), nil
	case formEnum:
		return appendEnum(dst, c, little(b))
	case formSet:
		return appendSet(dst, c, little(b))
	case formJSON:
		return appendJSON(dst, b)
	case formDatetime2:
		if b[0]&0x80 == 0 {
			return dst, errNegative
		}
		return appendTemporal(dst, c, b), nil
	case formYear, formDate, formTime, formTime2, formDatetime, formTimestamp, formTimestamp2:
		return appendTemporal(dst, c, b), nil
	case formOpaque:
	}
	return dst, errors.New("its type cannot be read")
}

// errNegative is of a sign that the packed form has and no date of the servers.
var errNegative = errors.New("a date is negative")

func appendInt(dst []byte, c *column, b []byte) []byte {
	n := little(b)
	if c.unsigned {
		return strconv.AppendUint(dst, n, 10)
	}
	unused := 64 - 8*len(b)
	return strconv.AppendInt(dst, int64(n<<unused)>>unused, 10) //nolint:gosec // sign extension
}

// appendBytes appends a binary string. BINARY(n) comes without the zero bytes at its end, and is shown with them.
func appendBytes(dst []byte, c *column, b []byte) []byte {
	dst = append(dst, '\\', 'x')
	dst = hex.AppendEncode(dst, b)
	if c.char {
		for range c.length - len(b) {
			dst = append(dst, '0', '0')
		}
	}
	return dst
}

var errLabel = errors.New("ENUM or SET holds a value that has no label")

// appendEnum appends a label; 0 is the empty string that stands for a value that was refused.
func appendEnum(dst []byte, c *column, i uint64) ([]byte, error) {
	if i == 0 {
		return dst, nil
	}
	if i > uint64(len(c.labels)) {
		return dst, errLabel
	}
	return append(dst, c.labels[i-1]...), nil
}

func appendSet(dst []byte, c *column, set uint64) ([]byte, error) {
	if len(c.labels) < 64 && set>>len(c.labels) != 0 {
		return dst, errLabel
	}
	start := len(dst)
	for i := range c.labels {
		if i > 63 || set&(1<<i) == 0 {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, c.labels[i]...)
	}
	return dst, nil
}

// digitBytes is how many bytes hold so many decimal digits.
var digitBytes = [10]int{0, 1, 1, 2, 2, 3, 3, 4, 4, 4}

func decimalSize(precision, scale int) int {
	whole := precision - scale
	return whole/9*4 + digitBytes[whole%9] + scale/9*4 + digitBytes[scale%9]
}

// appendDecimal reads the packed form: groups of nine digits in four bytes, the odd ones outermost in as few as they
// need, the sign in the highest bit, and all bits inverted if negative (MySQL, strings/decimal.cc).
func appendDecimal(dst, b []byte, precision, scale int) []byte {
	if len(b) == 0 {
		return append(dst, '0')
	}
	var flip uint32
	if b[0]&0x80 == 0 {
		flip = math.MaxUint32
		dst = append(dst, '-')
	}
	sign := byte(0x80)
	group := func(bytes int) uint32 {
		v := flip
		if bytes > 0 {
			var word [4]byte
			copy(word[4-bytes:], b[:bytes])
			word[4-bytes] ^= sign
			sign = 0
			b = b[bytes:]
			v = binary.BigEndian.Uint32(word[:]) ^ flip
			v &= math.MaxUint32 >> (32 - 8*bytes)
		}
		return v
	}
	start := len(dst)
	whole := precision - scale
	if odd := whole % 9; odd > 0 {
		if v := group(digitBytes[odd]); v > 0 {
			dst = strconv.AppendUint(dst, uint64(v), 10)
		}
	}
	for range whole / 9 {
		v := group(4)
		if len(dst) > start {
			dst = appendPadded(dst, uint64(v), 9)
		} else if v > 0 {
			dst = strconv.AppendUint(dst, uint64(v), 10)
		}
	}
	if len(dst) == start {
		dst = append(dst, '0')
	}
	if scale == 0 {
		return dst
	}
	dst = append(dst, '.')
	for range scale / 9 {
		dst = appendPadded(dst, uint64(group(4)), 9)
	}
	if odd := scale % 9; odd > 0 {
		dst = appendPadded(dst, uint64(group(digitBytes[odd])), odd)
	}
	return dst
}

// appendFloat writes the shortest digits that give the number back, with an exponent where the servers write one. (For
// FLOAT they show six digits only, which name another number.)
func appendFloat(dst []byte, f float64, bits int) []byte {
	var digits [32]byte
	text := strconv.AppendFloat(digits[:0], f, 'e', -1, bits)
	e := len(text) - 1
	for e > 0 && text[e] != 'e' {
		e--
	}
	exponent, err := strconv.Atoi(string(text[e+1:]))
	if err != nil || exponent >= -15 && exponent <= 14 {
		return strconv.AppendFloat(dst, f, 'f', -1, bits)
	}
	dst = append(append(dst, text[:e]...), 'e')
	return strconv.AppendInt(dst, int64(exponent), 10)
}

// appendPadded appends n in at least so many digits.
func appendPadded(dst []byte, n uint64, digits int) []byte {
	var buf [20]byte
	i := len(buf)
	for n > 0 || digits > 0 {
		i--
		buf[i] = '0' + byte(n%10)
		n /= 10
		digits--
	}
	return append(dst, buf[i:]...)
}

func appendTemporal(dst []byte, c *column, b []byte) []byte {
	switch c.form { //nolint:exhaustive // appendText chose
	case formYear:
		if b[0] == 0 {
			return append(dst, "0000"...)
		}
		return strconv.AppendInt(dst, 1900+int64(b[0]), 10)
	case formDate:
		n := little(b)
		return appendDate(dst, n>>9, n>>5&15, n&31)
	case formTime:
		n := int64(little(b)<<40) >> 40 //nolint:gosec // sign extension
		if n < 0 {
			dst, n = append(dst, '-'), -n
		}
		return appendClock(dst, uint64(n)/10000, uint64(n)/100%100, uint64(n)%100) //nolint:gosec // not negative any more
	case formTime2:
		return appendTime2(dst, b, c.scale)
	case formDatetime:
		n := little(b)
		dst = appendDate(dst, n/10000000000, n/100000000%100, n/1000000%100)
		return appendClock(append(dst, ' '), n/10000%100, n/100%100, n%100)
	case formDatetime2:
		dst = appendPackedDatetime(dst, big(b[:5])&(1<<39-1))
		return appendFraction(dst, big(b[5:]), c.scale)
	case formTimestamp:
		return appendTimestamp(dst, uint64(binary.LittleEndian.Uint32(b)), 0, 0)
	case formTimestamp2:
		return appendTimestamp(dst, uint64(binary.BigEndian.Uint32(b)), big(b[4:]), c.scale)
	}
	return dst
}

func appendDate(dst []byte, year, month, day uint64) []byte {
	dst = append(appendPadded(dst, year, 4), '-')
	dst = append(appendPadded(dst, month, 2), '-')
	return appendPadded(dst, day, 2)
}

func appendClock(dst []byte, hour, minute, second uint64) []byte {
	dst = append(appendPadded(dst, hour, 2), ':')
	dst = append(appendPadded(dst, minute, 2), ':')
	return appendPadded(dst, second, 2)
}

// appendPackedDatetime appends the whole seconds of a DATETIME as the servers pack it since 5.6: thirteen months a year,
// then day, hour, minute and second in 5, 5, 6 and 6 bits.
func appendPackedDatetime(dst []byte, n uint64) []byte {
	months := n >> 22
	dst = appendDate(dst, months/13, months%13, n>>17&31)
	return appendClock(append(dst, ' '), n>>12&31, n>>6&63, n&63)
}

// appendFraction appends the digits of a second. They are stored in pairs, so an odd number has a 0 too many.
func appendFraction(dst []byte, n uint64, digits int) []byte {
	if digits == 0 {
		return dst
	}
	if digits%2 == 1 {
		n /= 10
	}
	return appendPadded(append(dst, '.'), n, digits)
}

// appendTimestamp appends an instant in UTC. Zero is the zero date.
func appendTimestamp(dst []byte, seconds, fraction uint64, digits int) []byte {
	if seconds == 0 {
		return appendFraction(append(dst, "0000-00-00 00:00:00"...), fraction, digits)
	}
	t := time.Unix(int64(seconds), 0).UTC() //nolint:gosec // 32 bits
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = appendDate(dst, uint64(year), uint64(month), uint64(day))                   //nolint:gosec // 1970 to 2106
	dst = appendClock(append(dst, ' '), uint64(hour), uint64(minute), uint64(second)) //nolint:gosec // as above
	return append(appendFraction(dst, fraction, digits), "+00"...)
}

// appendTime2 appends a TIME: a number that is offset to be positive, of sign, 1 + 10 bits of hours, 6 of minutes, 6 of
// seconds and the fraction. A negative one has the whole number negated, fraction included.
func appendTime2(dst []byte, b []byte, digits int) []byte {
	width := 8 * (len(b) - 3)          // bits of the fraction
	n := int64(big(b)) - 1<<(23+width) //nolint:gosec // six bytes
	if n < 0 {
		dst, n = append(dst, '-'), -n
	}
	whole, fraction := uint64(n)>>width, uint64(n)&(1<<width-1) //nolint:gosec // not negative any more
	dst = appendClock(dst, whole>>12&1023, whole>>6&63, whole&63)
	return appendFraction(dst, fraction, digits)
}
