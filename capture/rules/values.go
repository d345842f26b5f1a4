package rules

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// kind is how the rules read a column.
type kind uint8

const (
	kindText   kind = iota
	kindPadded      // char(n): blanks at the end are padding and mean nothing (PostgreSQL manual, 8.3)
	kindBool
	kindInt
	kindUnsigned // MySQL's BIGINT UNSIGNED
	kindFlag     // MySQL's small numbers, which stand for true and false as well: see readFlags
	kindFloat
	kindDate
	kindTime
)

// kindOf classifies the database's name of a type. What is not known is text: comparing it with text is always right.
func kindOf(typeName string) kind {
	name := strings.ToLower(typeName)
	if open := strings.IndexByte(name, '('); open >= 0 { // char(1), timestamp(3) with time zone
		name = name[:open] + name[strings.IndexByte(name, ')')+1:]
	}
	switch name {
	case "bit unsigned":
		return kindFlag // MySQL's, a number; PostgreSQL's bit is a row of digits
	case "bigint unsigned":
		return kindUnsigned
	}
	switch strings.TrimSuffix(name, " unsigned") { // MySQL
	case "bool", "boolean":
		return kindBool
	case "int2", "int4", "int8", "smallint", "integer", "bigint", "int", "oid", "mediumint", "year":
		return kindInt
	case "tinyint":
		return kindFlag
	case "numeric", "decimal", "float4", "float8", "real", "double precision", "float", "double":
		return kindFloat
	case "date":
		return kindDate
	case "timestamp", "timestamptz", "timestamp without time zone", "timestamp with time zone", "datetime":
		return kindTime
	case "bpchar", "char", "character":
		return kindPadded
	}
	return kindText
}

func (k kind) temporal() bool { return k == kindDate || k == kindTime }

// trimmed returns the text of a value without padding.
func (k kind) trimmed(text []byte) []byte {
	if k == kindPadded {
		return bytes.TrimRight(text, " ")
	}
	return text
}

var (
	errNotBool  = errors.New("is neither true nor false")
	errNotInt   = errors.New("is no 64-bit whole number")
	errNotFloat = errors.New("is no number")
	errNotTime  = errors.New("is no date of the calendar in the form 2006-01-02 15:04:05")
	errBC       = errors.New("is a date before Christ")
	errInfinite = errors.New("is an infinite date, which means nothing here")
	errYear     = errors.New("is a date out of range")
	farFuture   = time.Date(maxYear+1, 1, 1, 0, 0, 0, 0, time.UTC)
	distantPast = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
)

// decode gives an expression the value of a column: bool, int, float64, string or time.Time.
func (k kind) decode(text []byte) (any, error) {
	switch k {
	case kindBool:
		switch string(text) {
		case "t", "true":
			return true, nil
		case "f", "false":
			return false, nil
		}
		return nil, errNotBool
	case kindInt, kindFlag:
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return nil, errNotInt
		}
		return n, nil
	case kindUnsigned:
		n, err := strconv.ParseUint(string(text), 10, 64)
		if err != nil {
			return nil, errNotInt
		}
		return int(min(n, math.MaxInt)), nil // too large for an int compares like the largest
	case kindFloat:
		f, err := strconv.ParseFloat(string(text), 64)
		if err != nil && !math.IsInf(f, 0) { // too large for a float64 compares like infinity
			return nil, errNotFloat
		}
		return f, nil
	case kindDate, kindTime:
		t, end, err := parseTime(text)
		switch {
		case err != nil:
			return nil, err
		case end > 0:
			return farFuture, nil
		case end < 0:
			return distantPast, nil
		}
		return t, nil
	case kindText, kindPadded:
	}
	return string(k.trimmed(text)), nil
}

// zeroDate reports whether a text is MySQL's date of nothing, which stands where other databases have NULL.
func zeroDate(text []byte) bool { return bytes.HasPrefix(text, []byte("0000-00-00")) }

// maxYear is PostgreSQL's last year; a time in it still fits the milliseconds of an event.
const maxYear = 294276

// parseTime reads what PostgreSQL writes for date, timestamp and timestamptz with DateStyle ISO (manual, 8.5.2), what
// capture/mysql gives for DATE, DATETIME and TIMESTAMP, and the T and Z of RFC 3339. Without an offset, which MySQL's
// DATETIME never has, the time is taken as UTC. end is +1 for infinity and -1 for -infinity. The zero
// time.Time means "none" in an event, so the one instant that equals it moves by a millisecond.
func parseTime(text []byte) (t time.Time, end int, err error) {
	switch string(text) {
	case "infinity":
		return time.Time{}, +1, nil
	case "-infinity":
		return time.Time{}, -1, nil
	}
	if bytes.HasSuffix(text, []byte(" BC")) {
		return time.Time{}, 0, errBC
	}
	p := timeParser{rest: text}
	year := p.number(4, 6)
	p.expect('-')
	month := p.number(2, 2)
	p.expect('-')
	day := p.number(2, 2)
	var hour, minute, second, nano, offset int
	if !p.bad && len(p.rest) > 0 {
		if !p.skip(' ') {
			p.expect('T')
		}
		hour = p.number(2, 2)
		p.expect(':')
		minute = p.number(2, 2)
		p.expect(':')
		second = p.number(2, 2)
		nano = p.fraction()
		offset = p.offset()
	}
	if p.bad || len(p.rest) > 0 || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, 0, errNotTime
	}
	if year < 1 || year > maxYear {
		return time.Time{}, 0, errYear
	}
	t = time.Date(year, time.Month(month), day, hour, minute, second, nano, time.UTC)
	if t.Day() != day {
		return time.Time{}, 0, errNotTime // 30 February
	}
	t = t.Add(time.Duration(-offset) * time.Second)
	if t.IsZero() {
		t = t.Add(time.Millisecond)
	}
	return t, 0, nil
}

// timeParser consumes digits and signs; after the first mismatch everything it returns is meaningless and bad is set.
type timeParser struct {
	rest []byte
	bad  bool
}

// number reads between low and high digits.
func (p *timeParser) number(low, high int) int {
	n, i := 0, 0
	for i < len(p.rest) && i < high && p.rest[i]-'0' <= 9 {
		n = 10*n + int(p.rest[i]-'0')
		i++
	}
	if i < low {
		p.bad = true
	}
	p.rest = p.rest[i:]
	return n
}

func (p *timeParser) skip(c byte) bool {
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *timeParser) expect(c byte) {
	if !p.skip(c) {
		p.bad = true
	}
}

// fraction reads an optional fraction of a second as nanoseconds.
func (p *timeParser) fraction() int {
	if !p.skip('.') {
		return 0
	}
	before := len(p.rest)
	n := p.number(1, 9)
	for range 9 - (before - len(p.rest)) {
		n *= 10
	}
	return n
}

// offset reads an optional Z, ±HH, ±HH:MM or ±HH:MM:SS in seconds east of Greenwich. PostgreSQL writes seconds for the
// local mean times before time zones.
func (p *timeParser) offset() int {
	sign := 1
	switch {
	case len(p.rest) == 0 || p.skip('Z'):
		return 0
	case p.skip('-'):
		sign = -1
	default:
		p.expect('+')
	}
	hours, minutes, seconds := p.number(2, 2), 0, 0
	if p.skip(':') {
		minutes = p.number(2, 2)
		if p.skip(':') {
			seconds = p.number(2, 2)
		}
	}
	if hours > 15 || minutes > 59 || seconds > 59 { // the manual's limit is 15:59:59
		p.bad = true
	}
	return sign * (3600*hours + 60*minutes + seconds)
}
