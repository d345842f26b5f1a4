package normalize

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Each fuzz target wants the same: nothing panics, and normalising what was normalised changes nothing.

func FuzzEmail(f *testing.F) {
	for _, s := range []string{
		"jean.dupont@exemple.fr", `"Dupont, Jean" <Jean+x@GMAIL.com>, o'brien@exemple.ie`, "info@café.fr", "用户@例子.广告", "a@b@c.fr", "''+x@y.fr", "İ@x.fr",
		"x@xn--caf-dma.fr", "x@XN--CAF-DMA.fr", ".a@x.fr", "ß@ß.de", "K@x.fr", "a@a--b.fr",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, a := range Email(s) {
			if got := Email(a.Strict); len(got) != 1 || got[0] != a {
				t.Fatalf("%q gives %+v, and its strict form %+v", s, a, got)
			}
			if got := Email(a.Loose); len(got) != 1 || got[0] != (Address{a.Loose, a.Loose}) {
				t.Fatalf("%q gives %+v, and its loose form %+v", s, a, got)
			}
		}
		// The short way gives what the long one does.
		if plainEmail(s) {
			if got, want := Email(s), addresses(s); !reflect.DeepEqual(got, want) {
				t.Fatalf("%q: %v, the long way %v", s, got, want)
			}
		}
	})
}

func FuzzPhone(f *testing.F) {
	for _, s := range []string{
		"06 12 34 56 78", "+33 (0)6 12 34 56 78 / 0692 12 34 56", "tel 0033612345678 poste 12", "030/2345678", "0471 12 34 56 ou 04", "+39 06 698 12345",
		"(00 33) 6 12", "+800 1234 5678", "６１２３４５６７８",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// The short way is silent or gives what the library does.
		for _, regions := range [][]string{french, {"DE"}, {"GB"}, {"US"}, {"IT"}, {"LU", "FR"}, {"ES"}, {"BR"}, {"MX"}, nil} {
			if n := plainNumber(s, regions); n != "" && !slices.Equal(numbers(s, regions), []string{n}) {
				t.Fatalf("%q in %v: %s, the library %v", s, regions, n, numbers(s, regions))
			}
		}
		for _, n := range Phone(s, french) {
			for _, regions := range [][]string{french, nil, {"US"}} {
				if got := Phone(n, regions); !slices.Equal(got, []string{n}) {
					t.Fatalf("%q gives %s, and that gives %v in %v", s, n, got, regions)
				}
			}
			if len(n) > 18 || strings.Trim(n, "+0123456789") != "" {
				t.Fatalf("%q gives %q", s, n)
			}
		}
	})
}

func FuzzRegion(f *testing.F) {
	f.Add("fr")
	f.Add("+33")
	f.Fuzz(func(t *testing.T, s string) {
		if r := Region(s); r != "" && (len(r) != 2 || Region(r) != r) {
			t.Fatalf("%q gives %q, and that %q", s, r, Region(r))
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"M. Jean-Pierre d'Alembert", "Dr Łukasz Ŀ", "le van", "김 철수", "ǅ ß ẞ İ ŉ", "o''x d'd'x", "m.m.x", "ʼn"} {
		f.Add(s, "de La Fontaine")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		once := Name(a, b)
		if twice := Name(once); twice != once {
			t.Fatalf("%q, %q give %q, and that %q", a, b, once, twice)
		}
		if Name(b, a) != once {
			t.Fatalf("%q, %q: the order counts", a, b)
		}
		address := Postal(a, b, "12 rue Paix")
		if twice := Postal(address); address == "" || twice != address {
			t.Fatalf("%q, %q give the address %q, and that %q", a, b, address, twice)
		}
		if !utf8.ValidString(once) || !utf8.ValidString(address) {
			t.Fatalf("%q, %q: not UTF-8", a, b)
		}
	})
}

func FuzzBirthDate(f *testing.F) {
	f.Add("29/02/1980 00:00")
	f.Add("1980-02-29T00:00:00Z")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := BirthDate(s); ok {
			if again, ok := BirthDate(d); !ok || again != d {
				t.Fatalf("%q gives %q, and that %q", s, d, again)
			}
		}
	})
}
