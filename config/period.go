package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Period is a span in calendar units: a month is a calendar month, a day a calendar day. Duration holds the clock units
// (s, m, h). The zero Period is no time at all.
type Period struct {
	Years    int
	Months   int
	Days     int
	Duration time.Duration
}

// IsZero reports whether p is no time at all.
func (p Period) IsZero() bool { return p == Period{} }

// After returns the end of the period that begins at t. Where the month reached has no such day, it is the month's last
// day: one month after 31 January ends on the last day of February, as in Regulation 1182/71, Art. 3(2)(c), which counts
// the month of GDPR Art. 12(3).
func (p Period) After(t time.Time) time.Time {
	year, month, day := t.Date()
	first := time.Date(year+p.Years, month+time.Month(p.Months), 1, t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), t.Location())
	if last := first.AddDate(0, 1, -1).Day(); day > last {
		day = last
	}
	return first.AddDate(0, 0, day-1+p.Days).Add(p.Duration)
}

// String writes the form that the file has, for example 1y6mo.
func (p Period) String() string {
	if p.IsZero() {
		return "0"
	}
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit string
	}{{p.Years, "y"}, {p.Months, "mo"}, {p.Days, "d"}} {
		if part.n != 0 {
			fmt.Fprintf(&b, "%d%s", part.n, part.unit)
		}
	}
	if p.Duration != 0 {
		b.WriteString(formatDuration(p.Duration))
	}
	return b.String()
}

// formatDuration writes d in the units of the file: 24h, not 24h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

const durationForm = "write a number with a unit: 30s, 15m, 24h, 7d"

// longest bounds every span: more is a slip of the keyboard, and sums of time.Duration stay far from overflow.
const longest = 100 // years

// parsePeriod reads 30s, 15m, 24h, 7d, 1mo, 10y and sequences of them in falling order of unit (1y6mo); 0 is allowed.
func parsePeriod(s string) (Period, error) {
	var p Period
	if s == "0" {
		return p, nil
	}
	rest, last := s, math.MaxInt
	if rest == "" {
		return p, fmt.Errorf("is empty; %s, 1mo, 10y", durationForm)
	}
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		letters := digits + len(rest[digits:]) - len(strings.TrimLeft(rest[digits:], "abcdefghijklmnopqrstuvwxyz"))
		n, err := strconv.Atoi(rest[:digits])
		unit := rest[digits:letters]
		rank := map[string]int{"ms": 1, "s": 2, "m": 3, "h": 4, "d": 5, "mo": 6, "y": 7}[unit]
		if err != nil || rank == 0 || rank >= last || !p.add(n, unit) {
			return Period{}, fmt.Errorf("is no span of time; %s, 1mo, 10y (at most %d years)", durationForm, longest)
		}
		rest, last = rest[letters:], rank
	}
	return p, nil
}

// add puts n units into p; it reports false past the bound.
func (p *Period) add(n int, unit string) bool {
	clock := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	switch {
	case clock != 0:
		if n > int(longest*365*24*time.Hour/clock) {
			return false
		}
		p.Duration += time.Duration(n) * clock
		return p.Duration <= longest*365*24*time.Hour
	case unit == "d":
		p.Days = n
		return n <= longest*366
	case unit == "mo":
		p.Months = n
		return n <= longest*12
	default:
		p.Years = n
		return n <= longest
	}
}

// parseDuration reads a span without calendar units; a day is 24 hours there.
func parseDuration(s string) (time.Duration, error) {
	p, err := parsePeriod(s)
	if err != nil || p.Years != 0 || p.Months != 0 {
		return 0, fmt.Errorf("is no duration; %s (months and years vary in length and are not allowed here)", durationForm)
	}
	return time.Duration(p.Days)*24*time.Hour + p.Duration, nil
}

// parseSize reads a number of bytes. The units are those of PostgreSQL, in steps of 1024, because the sizes are compared
// with its settings.
func parseSize(s string) (int64, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	shift, known := map[string]uint{"": 0, "B": 0, "kB": 10, "MB": 20, "GB": 30, "TB": 40}[s[digits:]]
	if err != nil || !known || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("is no size; write a number with a unit of 1024 steps: 512MB, 10GB (B, kB, MB, GB, TB)")
	}
	return n << shift, nil
}
