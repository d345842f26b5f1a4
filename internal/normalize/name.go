package normalize

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// The versions of the rules for names and postal addresses.
const (
	NameVersion   = 1
	PostalVersion = 1
)

// Name folds a name so that one person's spellings are one: no marks, no case, no particles, no forms of address; hyphens part, apostrophes join, and
// the order of the tokens does not count. Empty: no token is left.
func Name(parts ...string) string {
	all := tokens(parts, true)
	kept := slices.DeleteFunc(slices.Clone(all), func(t string) bool { return particles[t] || honorifics[t] })
	if len(kept) == 0 {
		kept = all // a person may be called Le Van
	}
	return join(kept)
}

// FullName reports whether a folded name says enough to tell members of one family apart: two tokens, or one of a script that writes no space
// between them.
func FullName(folded string) bool {
	if strings.Contains(folded, " ") {
		return true
	}
	wide := 0
	for _, r := range folded {
		if unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul) {
			wide++
		}
	}
	return wide >= 3
}

// particles of names in the languages of Western Europe. They come and go with the form that was filled in.
var particles = set("de du des d da di do dos das del dela della delle dei degli la le les l van von vom der den dem ter ten te zu zum zur af av y e und")

// honorifics are no part of a name. A bare m may be an initial; "M." is taken by tokens.
var honorifics = set("mr mrs ms mme mlle mm dr prof me herr frau monsieur madame mademoiselle mister miss sir")

func set(words string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}

// Postal folds an address: its tokens without marks, case, particles and the usual abbreviations, in no order. Empty: too little to be an address
// (a number, and two words).
func Postal(parts ...string) string {
	all := tokens(parts, false)
	kept := all[:0]
	numbers, words := 0, 0
	for _, t := range all {
		t = street(t)
		if particles[t] || t == "cedex" {
			continue
		}
		if strings.ContainsFunc(t, unicode.IsDigit) {
			numbers++
		} else {
			words++
		}
		kept = append(kept, t)
	}
	if numbers < 1 || words < 2 {
		return ""
	}
	return join(kept)
}

// street writes out what is abbreviated. No result is the key of another entry.
func street(t string) string {
	if long, found := streets[t]; found {
		return long
	}
	if stem, found := strings.CutSuffix(t, "str"); found && len(stem) > 2 {
		return t + "asse"
	}
	return t
}

var streets = map[string]string{
	"av": "avenue", "ave": "avenue", "bd": "boulevard", "bld": "boulevard", "blvd": "boulevard", "boul": "boulevard", "pl": "place", "imp": "impasse",
	"all": "allee", "chem": "chemin", "che": "chemin", "rte": "route", "fg": "faubourg", "fbg": "faubourg", "sq": "square", "res": "residence",
	"bat": "batiment", "apt": "appartement", "appt": "appartement", "app": "appartement", "lot": "lotissement", "zi": "zone", "st": "saint", "ste": "sainte",
	"str": "strasse", "rd": "road", "ln": "lane", "ct": "court", "hse": "house", "flt": "flat", "r": "rue", "q": "quai",
}

// tokens splits and folds. In a name an apostrophe joins (O'Brien), but for the two particles that it cuts short; in an address it parts.
func tokens(parts []string, name bool) []string {
	var out []string
	for _, part := range parts {
		if len(part) > maxText {
			continue
		}
		part = fold(part)
		if name {
			for _, title := range []string{"m. ", "m.", "p. "} {
				part = strings.TrimPrefix(strings.TrimSpace(part), title)
			}
		}
		out = append(out, strings.FieldsFunc(joinApostrophes(part, name), func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r)
		})...)
	}
	return out
}

func joinApostrophes(s string, name bool) string {
	if !name || !strings.ContainsFunc(s, apostrophe) {
		return s
	}
	var b strings.Builder
	var word strings.Builder
	flush := func() {
		b.WriteString(word.String())
		word.Reset()
	}
	for _, r := range s {
		switch {
		case apostrophe(r):
			if w := word.String(); w == "d" || w == "l" {
				word.Reset()
				b.WriteByte(' ')
			}
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			word.WriteRune(r)
		default:
			flush()
			b.WriteRune(r)
		}
	}
	flush()
	return b.String()
}

func apostrophe(r rune) bool { return strings.ContainsRune("'`´‘’ʼ′", r) }

// fold decomposes, drops marks, lowers the case and writes out the letters that have no decomposition.
func fold(s string) string {
	if ascii(s) {
		return strings.ToLower(s)
	}
	var b strings.Builder
	for _, r := range norm.NFKD.String(s) {
		if unicode.IsMark(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError {
			continue
		}
		r = unicode.ToLower(r)
		if plain, found := letters[r]; found {
			b.WriteString(plain)
			continue
		}
		b.WriteRune(r)
	}
	return norm.NFC.String(b.String())
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

var letters = map[rune]string{
	'ß': "ss", 'æ': "ae", 'œ': "oe", 'ø': "o", 'đ': "d", 'ð': "d", 'þ': "th", 'ł': "l", 'ħ': "h", 'ı': "i", 'ŀ': "l", 'ŋ': "n", 'ŧ': "t", 'ĸ': "k",
}

func join(tokens []string) string {
	slices.Sort(tokens)
	return strings.Join(slices.Compact(tokens), " ")
}
