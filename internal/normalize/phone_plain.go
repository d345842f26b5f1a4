package normalize

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/nyaruka/phonenumbers"
)

// Nearly every number is written in one of two plain ways: +33612345678, or 06 12 34 56 78. The library takes 20 µs for one, most of it to rule out
// what these cannot be; a scan of a replica reads a million. plainNumber reads these two ways by the library's own tables, in a thirtieth of the time. It
// answers only where it is sure: all else, and every number that it does not find valid, is the library's. The fuzz test compares the two.

// plan is what a region's numbers look like.
type plan struct {
	code           string // the calling code
	prefix         string // dialled before a number within the region; empty: none
	strips         *regexp.Regexp
	general        pattern
	mobile, landed pattern
	plain          bool // nothing about its prefixes is special
}

type pattern struct {
	sizes []int32 // empty: any
	form  *regexp.Regexp
}

func (p *pattern) match(digits string) bool {
	return (len(p.sizes) == 0 || slices.Contains(p.sizes, int32(len(digits)))) && p.form != nil && p.form.MatchString(digits) //nolint:gosec // at most maxDigits
}

func newPattern(d *phonenumbers.PhoneNumberDesc) (p pattern) {
	text := d.GetNationalNumberPattern()
	if text == "" {
		return p
	}
	for _, n := range d.GetPossibleLength() {
		if n > 0 {
			p.sizes = append(p.sizes, n)
		}
	}
	p.form = regexp.MustCompile("^(?:" + text + ")$")
	return p
}

// plans holds those of the regions that were asked for: name → *plan.
var plans sync.Map

func planOf(region string) *plan {
	if p, ok := plans.Load(region); ok {
		return p.(*plan)
	}
	p := new(plan)
	if all, err := phonenumbers.MetadataCollection(); err == nil {
		for _, m := range all.GetMetadata() {
			if m.GetId() == region {
				p = newPlan(m)
			}
		}
	}
	plans.Store(region, p)
	return p
}

func newPlan(m *phonenumbers.PhoneMetadata) *plan {
	p := &plan{
		code: strconv.Itoa(int(m.GetCountryCode())), prefix: m.GetNationalPrefix(),
		general: newPattern(m.GetGeneralDesc()), mobile: newPattern(m.GetMobile()), landed: newPattern(m.GetFixedLine()),
	}
	parsing := m.GetNationalPrefixForParsing()
	if parsing != "" {
		p.strips = regexp.MustCompile("^(?:" + parsing + ")")
	}
	simple := parsing == "" || parsing == p.prefix || strings.HasPrefix(parsing, p.prefix+"|") && !strings.Contains(parsing, "(")
	p.plain = simple && m.GetNationalPrefixTransformRule() == "" && m.GetLeadingDigits() == ""
	return p
}

// valid reports whether digits are a number of the region, of somebody who can be called or written to.
func (p *plan) valid(digits string) bool {
	return p.plain && digits != "" && digits[0] != '0' && p.general.match(digits) && (p.mobile.match(digits) || p.landed.match(digits))
}

// plainNumber gives the E.164 of a number that is written plainly; empty where the library has to say.
func plainNumber(s string, regions []string) string {
	var buf [1 + maxE164]byte
	digits := buf[:0]
	international := strings.HasPrefix(s, "+")
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			if len(digits) > maxE164 {
				return ""
			}
			digits = append(digits, c)
		case c == '+' && i == 0:
		case (c == ' ' || c == '.' || c == '-') && len(digits) > 0 && i < len(s)-1:
		default:
			return ""
		}
	}
	if len(digits) < minDigits {
		return ""
	}
	if international {
		return plainInternational(string(digits))
	}
	if len(regions) == 0 {
		return ""
	}
	p := planOf(regions[0])
	number := string(digits)
	if !p.plain || strings.HasPrefix(number, "00") || strings.HasPrefix(number, p.code) || number != "" && number[0] == '0' && p.prefix != "0" {
		return ""
	}
	national, found := strings.CutPrefix(number, p.prefix)
	if !found || p.prefix == "" && p.strips != nil && p.strips.MatchString(number) || !p.valid(national) {
		return ""
	}
	return "+" + p.code + national
}

// maxE164 is the number of digits of E.164, with one more for a prefix.
const maxE164 = 16

func plainInternational(digits string) string {
	for n := 1; n <= 3 && n < len(digits); n++ {
		code, err := strconv.Atoi(digits[:n])
		if err != nil || digits[0] == '0' {
			return ""
		}
		region := phonenumbers.GetRegionCodeForCountryCode(code)
		if region == "ZZ" {
			continue
		}
		p, national := planOf(region), digits[n:]
		if region == "001" || p.strips != nil && p.strips.MatchString(national) || !p.valid(national) {
			return ""
		}
		return "+" + digits
	}
	return ""
}
