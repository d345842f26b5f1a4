package sinktest

import (
	"strings"

	"lethe/schema"
	"lethe/sinks/ledger"
)

// Maker makes match keys for tests, by rules that are plain to see: lower case, digits, words. Real ones are in
// internal/normalize. KeyIDs are the live versions of the match key.
type Maker struct{ KeyIDs []uint32 }

var _ ledger.KeyMaker = Maker{}

func (m Maker) keys(typ, norm string) []schema.MatchKey {
	ids := m.KeyIDs
	if ids == nil {
		ids = []uint32{1}
	}
	var out []schema.MatchKey
	for _, id := range ids {
		k := schema.MatchKey{Type: typ, KeyID: id, NormVersion: 1}
		PRF("match").Compute(&k.Value, []byte(typ+"|"+string(rune('0'+id))+"|"+norm))
		out = append(out, k)
	}
	return out
}

// Email implements ledger.KeyMaker. What stands behind a plus is not of the loose form.
func (m Maker) Email(text string) []schema.MatchKey {
	var out []schema.MatchKey
	for _, one := range strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return strings.ContainsRune(",; <>", r) }) {
		local, domain, ok := strings.Cut(one, "@")
		if !ok {
			continue
		}
		tagless, _, _ := strings.Cut(local, "+")
		out = append(append(out, m.keys(ledger.KeyEmailStrict, one)...), m.keys(ledger.KeyEmailLoose, tagless+"@"+domain)...)
	}
	return out
}

// Phone implements ledger.KeyMaker: the last nine digits.
func (m Maker) Phone(text, _ string) []schema.MatchKey {
	digits := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, text)
	if len(digits) < 9 {
		return nil
	}
	return m.keys(ledger.KeyPhone, digits[len(digits)-9:])
}

// Postal implements ledger.KeyMaker.
func (m Maker) Postal(parts []string) []schema.MatchKey {
	return m.keys(ledger.KeyPostal, strings.ToLower(strings.Join(parts, " ")))
}

// Identity implements ledger.KeyMaker.
func (m Maker) Identity(name []string, birthDate string) []schema.MatchKey {
	norm := strings.ToLower(strings.Join(name, " "))
	out := m.keys(ledger.KeyName, norm)
	if birthDate != "" {
		out = append(out, m.keys(ledger.KeyNameDOB, norm+"|"+birthDate)...)
	}
	return out
}
