package normalize

import (
	"strings"
	"time"
)

// BirthDateVersion is the version of the rules for birth dates.
const BirthDateVersion = 1

// NameDOBVersion is the version of a name and a birth date together: it rises with either.
const NameDOBVersion = NameVersion + BirthDateVersion - 1

// birthDateForms are tried in this order. A date with slashes is read day first, as most of the world writes it, unless only the other way is a
// date: in doubt the wrong reading finds nobody.
var birthDateForms = []string{"2006-01-02", "20060102", "2006/01/02", "2.1.2006", "2/1/2006", "2-1-2006", "1/2/2006", "2 1 2006"}

// BirthDate gives a date as YYYY-MM-DD. It is false for what is no date of the calendar, and for those that stand for none: the zero date, the
// first day of 1900, years in which nobody alive was born.
func BirthDate(s string) (string, bool) {
	s = strings.TrimSpace(s)
	// The time of a timestamp, which a birth date has where its column is of that type.
	if len(s) > len("2006-01-02") && (s[10] == ' ' || s[10] == 'T') && s[4] == '-' {
		s = s[:10]
	} else if clock := strings.LastIndexByte(s, ' '); clock > 0 && strings.Contains(s[clock:], ":") {
		s = strings.TrimSpace(s[:clock])
	}
	for _, form := range birthDateForms {
		d, err := time.Parse(form, s)
		if err != nil {
			continue
		}
		if d.Year() < 1880 || d.Year() > 2200 || d.Equal(time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)) {
			return "", false
		}
		return d.Format("2006-01-02"), true
	}
	return "", false
}
