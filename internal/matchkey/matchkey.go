// Package matchkey makes match keys: keyed forms of what is normalised from contact points, names and birth dates, by which a person is found in a
// database that does not know the CRM's key. Capture makes them of the source's rows and sinks of the replica's; equal keys are equal values.
package matchkey

import (
	"slices"
	"strconv"
	"sync"

	"lethe/internal/keys"
	"lethe/internal/normalize"
	"lethe/schema"
)

// Maker makes keys under every live version of the match key: during a rotation both sides hold both, and either finds what the other wrote.
// Safe for concurrent use.
type Maker struct {
	keys    []keys.MatchKey
	regions []string
	scratch sync.Pool
}

// New makes a Maker. regions are tried for phone numbers that name no country, in this order.
func New(keys []keys.MatchKey, regions []string) *Maker {
	return &Maker{keys: keys, regions: regions, scratch: sync.Pool{New: func() any { return new(scratch) }}}
}

// scratch is pooled because arguments of an interface method always escape.
type scratch struct {
	in  []byte
	out [32]byte
}

// Email gives the strict and the loose key of each address in s; none if there is no address.
func (m *Maker) Email(s string) []schema.MatchKey {
	var out []schema.MatchKey
	for _, a := range normalize.Email(s) {
		out = m.add(out, schema.MatchEmailStrict, normalize.EmailVersion, a.Strict)
		out = m.add(out, schema.MatchEmailLoose, normalize.EmailVersion, a.Loose)
	}
	return out
}

// Phone gives the key of each number in s; none if there is no valid number. region is what the row says of where the number belongs (FR, FRA, 33):
// it is tried first; empty: nothing is known.
func (m *Maker) Phone(s, region string) []schema.MatchKey {
	regions := m.regions
	if r := normalize.Region(region); r != "" && (len(regions) == 0 || regions[0] != r) {
		regions = append([]string{r}, regions...)
	}
	var out []schema.MatchKey
	for _, number := range normalize.Phone(s, regions) {
		out = m.add(out, schema.MatchPhone, normalize.PhoneVersion, number)
	}
	return out
}

// Postal gives the key of one address, whose parts are lines or columns in any order; none if they are too little to be one.
func (m *Maker) Postal(parts []string) []schema.MatchKey {
	address := normalize.Postal(parts...)
	if address == "" {
		return nil
	}
	return m.add(nil, schema.MatchPostal, normalize.PostalVersion, address)
}

// Identity gives the key of a name, and that of the name with the birth date where there is one. A name of one word gives none: a whole
// family has it.
func (m *Maker) Identity(name []string, birthDate string) []schema.MatchKey {
	folded := normalize.Name(name...)
	if !normalize.FullName(folded) {
		return nil
	}
	out := m.add(nil, schema.MatchName, normalize.NameVersion, folded)
	if born, ok := normalize.BirthDate(birthDate); ok {
		out = m.add(out, schema.MatchNameDOB, normalize.NameDOBVersion, folded+"|"+born)
	}
	return out
}

// add keys one normalised value. The domain stands before it: no value of one type or version has the key of another's.
func (m *Maker) add(out []schema.MatchKey, keyType string, version uint32, value string) []schema.MatchKey {
	s := m.scratch.Get().(*scratch)
	s.in = append(append(append(s.in[:0], "v1|"...), keyType...), '|')
	s.in = append(strconv.AppendUint(s.in, uint64(version), 10), '|')
	s.in = append(s.in, value...)
	out = slices.Grow(out, len(m.keys))
	for i := range m.keys {
		m.keys[i].PRF.Compute(&s.out, s.in)
		out = append(out, schema.MatchKey{Type: keyType, KeyID: m.keys[i].ID, NormVersion: version, Value: s.out})
	}
	clear(s.in)
	m.scratch.Put(s)
	return out
}
