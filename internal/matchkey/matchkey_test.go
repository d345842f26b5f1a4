package matchkey

import (
	"crypto/hmac"
	"crypto/sha256"
	"reflect"
	"strings"
	"sync"
	"testing"

	"lethe/internal/keys"
	"lethe/schema"
)

type prf string

func (k prf) Compute(dst *[32]byte, data []byte) {
	h := hmac.New(sha256.New, []byte(k))
	h.Write(data)
	h.Sum(dst[:0])
}

func maker() *Maker {
	return New([]keys.MatchKey{{ID: 7, PRF: prf("new")}, {ID: 3, PRF: prf("old")}}, []string{"FR", "RE"})
}

// want is the definition of a match key, written down a second time.
func want(keyType, version, value string) []schema.MatchKey {
	var out []schema.MatchKey
	for id, key := range map[uint32]prf{7: "new", 3: "old"} {
		k := schema.MatchKey{Type: keyType, KeyID: id, NormVersion: 1}
		key.Compute(&k.Value, []byte("v1|"+keyType+"|"+version+"|"+value))
		out = append(out, k)
	}
	return out
}

func same(a, b []schema.MatchKey) bool {
	count := map[schema.MatchKey]int{}
	for _, k := range a {
		count[k]++
	}
	for _, k := range b {
		count[k]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// Every value is keyed under each live version: a key is found whichever version the other side still writes.
func TestKeysOfAllLiveVersions(t *testing.T) {
	m := maker()
	for name, c := range map[string]struct{ got, want []schema.MatchKey }{
		"email": {
			m.Email("Jean <J.Dupont+x@GMAIL.com>"),
			append(want("email_strict", "1", "j.dupont+x@gmail.com"), want("email_loose", "1", "jdupont@gmail.com")...),
		},
		"phone":                {m.Phone("06 12 34 56 78", ""), want("phone_e164", "1", "+33612345678")},
		"phone in the second":  {m.Phone("0692 12 34 56", "FR"), want("phone_e164", "1", "+262692123456")},
		"phone of the row":     {m.Phone("0471 12 34 56", "BEL"), want("phone_e164", "1", "+32471123456")},
		"region that is none":  {m.Phone("06 12 34 56 78", "Frankreich"), want("phone_e164", "1", "+33612345678")},
		"postal":               {m.Postal([]string{"12 rue de la Paix", "75002", "Paris"}), want("postal", "1", "12 75002 paix paris rue")},
		"name":                 {m.Identity([]string{"Jean-Pierre", "DUPONT"}, ""), want("name", "1", "dupont jean pierre")},
		"name without a date":  {m.Identity([]string{"Jean", "Dupont"}, "0000-00-00"), want("name", "1", "dupont jean")},
		"name and birth date":  {m.Identity([]string{"Jean", "Dupont"}, "29/02/1980"), append(want("name", "1", "dupont jean"), want("name_dob", "1", "dupont jean|1980-02-29")...)},
		"no address":           {m.Email("néant"), nil},
		"no number":            {m.Phone("3949", ""), nil},
		"too little":           {m.Postal([]string{"Paris"}), nil},
		"a family":             {m.Identity([]string{"Dupont", ""}, "1980-02-29"), nil},
		"a number of nowhere":  {New(m.keys, nil).Phone("06 12 34 56 78", ""), nil},
		"region instead of it": {New(m.keys, nil).Phone("06 12 34 56 78", "FR"), want("phone_e164", "1", "+33612345678")},
	} {
		if !same(c.got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, c.got, c.want)
		}
	}
}

// One text as a value of two types has two keys: nobody finds out that a name is somebody's address.
func TestTypesAreApart(t *testing.T) {
	m := New([]keys.MatchKey{{ID: 1, PRF: prf("k")}}, nil)
	seen := map[[32]byte]bool{}
	for _, keyType := range []string{schema.MatchEmailStrict, schema.MatchEmailLoose, schema.MatchPhone, schema.MatchPostal, schema.MatchName, schema.MatchNameDOB} {
		for _, version := range []uint32{1, 2} {
			seen[m.add(nil, keyType, version, "x")[0].Value] = true
		}
	}
	if len(seen) != 12 {
		t.Errorf("%d different keys of 6 types in 2 versions", len(seen))
	}
}

func TestConcurrentUse(t *testing.T) {
	m := maker()
	first := m.Email("jean@exemple.fr")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				m.Identity([]string{strings.Repeat("x", 30), "y"}, "1980-02-29")
				if got := m.Email("jean@exemple.fr"); !reflect.DeepEqual(got, first) {
					t.Error("another key of the same address")
					return
				}
			}
		})
	}
	wg.Wait()
}
