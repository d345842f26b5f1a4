package normalize

import (
	"slices"
	"strings"
	"unicode"

	"github.com/nyaruka/phonenumbers"
	"golang.org/x/text/language"
)

// PhoneVersion is the version of the rules for phone numbers. The library's tables of the world's numbers are a part of them: what was no number
// becomes one. phoneLibrary is what this version was made with, and a test compares it with go.mod.
const (
	PhoneVersion = 1
	phoneLibrary = "v1.8.1"
)

// maxNumbers bounds what one value gives, and the digits what is looked at. The short numbers of services (3949) would be somebody's line in another
// region, so they are none; E.164 has at most 15 digits, and people write prefixes before them.
const (
	maxNumbers = 8
	minDigits  = 6
	maxDigits  = 24
)

// Phone gives the valid numbers in s as E.164, in their order, each once. A number that names no country is tried in each of regions (ISO 3166-1,
// two capital letters), and the first in which it is valid wins. Letters end a number: the library would dial them.
func Phone(s string, regions []string) []string {
	if len(s) > maxText {
		return nil
	}
	if n := plainNumber(s, regions); n != "" {
		return []string{n}
	}
	return numbers(s, regions)
}

func numbers(s string, regions []string) []string {
	var out []string
	add := func(numbers ...string) {
		for _, n := range numbers {
			if n != "" && len(out) < maxNumbers && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	for _, list := range strings.FieldsFunc(splitWords(s), func(r rune) bool { return strings.ContainsRune(",;|\n\r\t\\", r) }) {
		// A slash stands between two numbers in France, and behind the area code in Germany: it parts them where both are numbers.
		parts := strings.Split(list, "/")
		numbers := make([]string, len(parts))
		for i, part := range parts {
			numbers[i] = number(part, regions)
		}
		if len(parts) > 1 && slices.Contains(numbers, "") {
			if whole := number(strings.ReplaceAll(list, "/", " "), regions); whole != "" {
				numbers = []string{whole}
			}
		}
		add(numbers...)
		if fields := strings.Fields(list); len(out) == 0 && len(fields) > 1 {
			add(longFields(fields, regions)...)
		}
	}
	return out
}

// longFields are the numbers of a list with nothing but spaces in it, where each is written without any of its own.
func longFields(fields, regions []string) []string {
	var numbers []string
	for _, f := range fields {
		if len(f) >= 9 {
			numbers = append(numbers, number(f, regions))
		}
	}
	return numbers
}

// orWords stand between two numbers of one text.
var orWords = strings.NewReplacer(" ou ", ";", " et ", ";", " or ", ";", " and ", ";", " oder ", ";", " und ", ";", " OU ", ";", " ET ", ";", " OR ", ";",
	" & ", ";")

func splitWords(s string) string { return orWords.Replace(s) }

// number gives the E.164 of one number, empty if it is none.
func number(s string, regions []string) string {
	s = cut(s)
	if s == "" {
		return ""
	}
	international := strings.HasPrefix(s, "+")
	for _, spelling := range spellings(s) {
		if international || len(regions) == 0 {
			if n := parse(spelling, "ZZ"); n != "" || international {
				if n != "" {
					return n
				}
				continue
			}
		}
		for _, region := range regions {
			if n := parse(spelling, region); n != "" {
				return n
			}
		}
	}
	return ""
}

// cut leaves what may be dialled: from the first digit or + to the first letter behind it.
func cut(s string) string {
	start := strings.IndexFunc(s, func(r rune) bool { return unicode.IsDigit(r) || r == '+' || r == '\uff0b' || r == '(' })
	if start < 0 {
		return ""
	}
	s = s[start:]
	if end := strings.IndexFunc(s, func(r rune) bool { return unicode.IsLetter(r) || r == '#' || r == '*' }); end >= 0 {
		s = s[:end]
	}
	s = strings.TrimSpace(strings.Replace(s, "\uff0b", "+", 1))
	digits := 0
	for _, r := range s {
		if unicode.IsDigit(r) {
			digits++
		}
	}
	if digits < minDigits || digits > maxDigits {
		return ""
	}
	// 00 is the way out of nearly every country, and no number within one begins with it.
	if rest, found := strings.CutPrefix(s, "00"); found {
		s = "+" + rest
	} else if rest, found := strings.CutPrefix(s, "(00"); found {
		s = "+" + strings.Replace(rest, ")", " ", 1)
	} else if rest, found := strings.CutPrefix(s, "(+"); found {
		s = "+" + strings.Replace(rest, ")", " ", 1)
	}
	return s
}

// spellings are s, and s without the (0) that is not dialled from abroad; in Italy it is, therefore s comes first.
func spellings(s string) []string {
	if strings.HasPrefix(s, "+") && strings.Contains(s, "(0)") {
		return []string{s, strings.Replace(s, "(0)", " ", 1)}
	}
	return []string{s}
}

func parse(s, region string) string {
	n, err := phonenumbers.Parse(s, region)
	if err != nil || !phonenumbers.IsValidNumber(n) {
		return ""
	}
	return phonenumbers.Format(n, phonenumbers.E164)
}

// Region reads what a column says of the region of a number: FR, fr, FRA, or a calling code (33, +33, 0033). Empty: nothing that is known.
func Region(s string) string {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > 5 {
		return ""
	}
	if letter(s[0]) {
		region, err := language.ParseRegion(s)
		if err != nil || !region.IsCountry() {
			return ""
		}
		return region.Canonicalize().String()
	}
	code := 0
	for _, r := range strings.TrimLeft(s, "+0") {
		if r < '0' || r > '9' {
			return ""
		}
		code = code*10 + int(r-'0')
	}
	if region := phonenumbers.GetRegionCodeForCountryCode(code); region != "ZZ" && region != "001" {
		return region
	}
	return ""
}
