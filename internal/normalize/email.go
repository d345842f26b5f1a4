package normalize

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"
)

// EmailVersion is the version of the rules for e-mail addresses.
const EmailVersion = 1

// Address is one e-mail address in its two forms. Strict is the mailbox as everybody writes it: an erasure may go by it. Loose leaves out what
// some hosts ignore (a tag, Gmail's dots), so it may be another person's: prohibitions alone may go by it.
type Address struct{ Strict, Loose string }

// maxAddresses bounds what one value gives: a column with more addresses is no contact point.
const maxAddresses = 16

// Email gives the addresses in s, in their order, each once: taken out of `Name <a@b>`, lists split. What is no address on the Internet gives
// nothing.
func Email(s string) []Address {
	if len(s) > maxText {
		return nil
	}
	if plainEmail(s) {
		s = strings.ToLower(s)
		return []Address{{Strict: s, Loose: loose(s)}}
	}
	return addresses(s)
}

func addresses(s string) []Address {
	var out []Address
	s = joinAt(dropQuoted(norm.NFC.String(dropInvisible(s))))
	for _, token := range strings.FieldsFunc(s, betweenAddresses) {
		strict, ok := address(token)
		if !ok || slices.ContainsFunc(out, func(a Address) bool { return a.Strict == strict }) {
			continue
		}
		if out = append(out, Address{Strict: strict, Loose: loose(strict)}); len(out) == maxAddresses {
			break
		}
	}
	return out
}

// plainEmail reports whether s is one address of the characters that need no second look: nearly all are, and a scan of a replica reads a million.
func plainEmail(s string) bool {
	local, domain, found := strings.Cut(s, "@")
	if !found || local == "" || len(local) > maxLocal || len(domain) > maxDomain || s[0] == '\'' {
		return false
	}
	named := false
	for i := range len(local) {
		c := local[i]
		if alphanumeric(c) {
			named = true
		} else if strings.IndexByte("._-+'", c) < 0 {
			return false
		}
	}
	label := 0 // its length so far
	dots := 0
	for i := range len(domain) {
		switch c := domain[i]; {
		case c == '.':
			if label == 0 || domain[i-1] == '-' {
				return false
			}
			label = 0
			dots++
			continue
		case c == '-':
			// A label with hyphens in the third and fourth place may be punycode, which has to be read.
			if label == 0 || label == 3 {
				return false
			}
		case !alphanumeric(c):
			return false
		}
		if label++; label > maxLabel {
			return false
		}
	}
	return named && dots > 0 && label > 1 && letter(domain[len(domain)-1])
}

// The sizes of RFC 5321, 4.5.3.1, and RFC 1035, 2.3.4.
const (
	maxLocal  = 64
	maxDomain = 253
	maxLabel  = 63
)

func letter(c byte) bool       { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func alphanumeric(c byte) bool { return letter(c) || c >= '0' && c <= '9' }

// dropInvisible takes out what people paste without seeing it: zero-width spaces, marks of direction, byte order marks.
func dropInvisible(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, s)
}

// dropQuoted takes out display names in quotation marks, in which a comma or an @ means nothing. Local parts in quotation marks go, too: hardly
// a host gives them out.
func dropQuoted(s string) string {
	for {
		open := strings.IndexByte(s, '"')
		if open < 0 {
			return s
		}
		size := strings.IndexByte(s[open+1:], '"')
		if size < 0 {
			return s[:open] + " " + s[open+1:]
		}
		end := open + size + 2
		if strings.HasPrefix(s[end:], "@") {
			end++ // "john doe"@host: no part of it may look like an address
		}
		s = s[:open] + " " + s[end:]
	}
}

// joinAt takes out the spaces around an @, which people put there to read it more easily.
func joinAt(s string) string {
	if !strings.Contains(s, "@") {
		return s
	}
	parts := strings.Split(s, "@")
	for i := range parts {
		if i > 0 {
			parts[i] = strings.TrimLeftFunc(parts[i], unicode.IsSpace)
		}
		if i < len(parts)-1 {
			parts[i] = strings.TrimRightFunc(parts[i], unicode.IsSpace)
		}
	}
	return strings.Join(parts, "@")
}

func betweenAddresses(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`,;<>()[]{}|\`, r)
}

// domains maps as UTS 46 does without the transitional forms: "straße.de" and "strasse.de" are two domains. Hyphens in odd places and joiners
// are checked by nobody who delivers mail.
var domains = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(), idna.VerifyDNSLength(true), idna.StrictDomainName(true),
	idna.CheckHyphens(false))

func address(token string) (strict string, ok bool) {
	token = strings.TrimRight(token, "'.`´’:!?")
	at := strings.LastIndexByte(token, '@')
	if at < 0 {
		return "", false
	}
	local := token[:at]
	local = local[strings.LastIndexByte(local, ':')+1:] // mailto:
	local = norm.NFC.String(strings.ToLower(strings.TrimLeft(local, "'`´‘")))
	if local == "" || len(local) > maxLocal || !utf8.ValidString(local) || !strings.ContainsFunc(local, lettersAndDigits) ||
		strings.ContainsFunc(local, notInLocal) {
		return "", false
	}
	domain, err := domains.ToASCII(token[at+1:])
	if err != nil || len(domain) > maxDomain || !onInternet(domain) {
		return "", false
	}
	return local + "@" + domain, true
}

func lettersAndDigits(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// notInLocal allows the atext of RFC 5322 and what RFC 6531 adds: letters of all scripts.
func notInLocal(r rune) bool {
	if r < utf8.RuneSelf {
		return !alphanumeric(byte(r)) && //nolint:gosec // below utf8.RuneSelf
			!strings.ContainsRune("!#$%&'*+-/=?^_`{|}~.", r)
	}
	return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r)
}

// onInternet wants a dot, a letter in what stands behind the last one, and no hyphen at an end of a label.
func onInternet(domain string) bool {
	if strings.HasPrefix(domain, "-") || strings.HasSuffix(domain, "-") || strings.Contains(domain, ".-") || strings.Contains(domain, "-.") {
		return false
	}
	dot := strings.LastIndexByte(domain, '.')
	return dot > 0 && strings.ContainsFunc(domain[dot+1:], unicode.IsLetter)
}

func loose(strict string) string {
	local, domain, _ := strings.Cut(strict, "@")
	if tag := strings.IndexByte(local, '+'); tag > 0 {
		local = local[:tag]
	}
	if domain == "googlemail.com" {
		domain = "gmail.com"
	}
	if domain == "gmail.com" {
		if bare := strings.ReplaceAll(local, ".", ""); bare != "" {
			local = bare
		}
	}
	return local + "@" + domain
}
