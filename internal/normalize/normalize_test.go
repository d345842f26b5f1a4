package normalize

import (
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nyaruka/phonenumbers"
)

func TestEmail(t *testing.T) {
	one := func(strict, loose string) []Address { return []Address{{strict, loose}} }
	plain := one("jean.dupont@exemple.fr", "jean.dupont@exemple.fr")
	for in, want := range map[string][]Address{
		"jean.dupont@exemple.fr":                                   plain,
		"  Jean.Dupont@Exemple.FR ":                                plain,
		"Jean Dupont <jean.dupont@exemple.fr>":                     plain,
		`"Dupont, Jean" <jean.dupont@exemple.fr>`:                  plain,
		`"jean@autre.fr" <jean.dupont@exemple.fr>`:                 plain, // a display name is no address
		"<jean.dupont@exemple.fr>":                                 plain,
		"mailto:jean.dupont@exemple.fr":                            plain,
		"E-mail:jean.dupont@exemple.fr":                            plain,
		"'jean.dupont@exemple.fr'":                                 plain,
		"jean.dupont@exemple.fr.":                                  plain,
		"jean.dupont @ exemple.fr":                                 plain,
		"jean.dupont@exemple.fr (perso)":                           plain,
		"jean.dupont\u200b@exemple.fr":                             plain, // pasted from a web page
		"\ufeffjean.dupont@exemple.fr":                             plain,
		"jean.dupont@ｅｘｅｍｐｌｅ.fr":                                   plain,
		"jean.dupont@exemple.fr, JEAN.DUPONT@exemple.fr":           plain,
		"o'brien@exemple.ie":                                       one("o'brien@exemple.ie", "o'brien@exemple.ie"),
		"jean+promo@exemple.fr":                                    one("jean+promo@exemple.fr", "jean@exemple.fr"),
		"J.E.A.N+x@GoogleMail.com":                                 one("j.e.a.n+x@googlemail.com", "jean@gmail.com"),
		"je.an@gmail.com":                                          one("je.an@gmail.com", "jean@gmail.com"),
		"je.an@exemple.com":                                        one("je.an@exemple.com", "je.an@exemple.com"), // dots count elsewhere
		"+tag@exemple.fr":                                          one("+tag@exemple.fr", "+tag@exemple.fr"),
		"h\u00e9l\u00e8ne@exemple.fr":                              one("h\u00e9l\u00e8ne@exemple.fr", "h\u00e9l\u00e8ne@exemple.fr"),
		"he\u0301le\u0300ne@exemple.fr":                            one("h\u00e9l\u00e8ne@exemple.fr", "h\u00e9l\u00e8ne@exemple.fr"), // as macOS types it
		"info@caf\u00e9.fr":                                        one("info@xn--caf-dma.fr", "info@xn--caf-dma.fr"),
		"info@CAF\u00c9.fr":                                        one("info@xn--caf-dma.fr", "info@xn--caf-dma.fr"),
		"info@xn--caf-dma.fr":                                      one("info@xn--caf-dma.fr", "info@xn--caf-dma.fr"),
		"info@stra\u00dfe.de":                                      one("info@xn--strae-oqa.de", "info@xn--strae-oqa.de"), // not strasse.de
		"用户@例子.广告":                                                 one("用户@xn--fsqu00a.xn--4rr70v", "用户@xn--fsqu00a.xn--4rr70v"),
		"jean@r3---sn.exemple.fr":                                  one("jean@r3---sn.exemple.fr", "jean@r3---sn.exemple.fr"),
		"a@exemple.fr;b@exemple.fr":                                {{"a@exemple.fr", "a@exemple.fr"}, {"b@exemple.fr", "b@exemple.fr"}},
		"a@exemple.fr b@exemple.fr":                                {{"a@exemple.fr", "a@exemple.fr"}, {"b@exemple.fr", "b@exemple.fr"}},
		"Jean <a@exemple.fr>, Anne <b+x@exemple.fr>, a@exemple.fr": {{"a@exemple.fr", "a@exemple.fr"}, {"b+x@exemple.fr", "b@exemple.fr"}},
		"": nil, " ": nil, "@": nil, "néant": nil, "n/a": nil, "jean.dupont": nil, "jean@localhost": nil, "jean@": nil, "@exemple.fr": nil,
		"jean@127.0.0.1": nil, "jean@-exemple.fr": nil, "jean@exemple..fr": nil, "jean@exem_ple.fr": nil, "...@exemple.fr": nil, "a\xffb@exemple.fr": nil,
		`"john doe"@exemple.fr`: nil, "jean dupont at exemple.fr": nil, "a@b@c.fr": nil,
		strings.Repeat("x", 65) + "@exemple.fr": nil, "jean@" + strings.Repeat("x", 64) + ".fr": nil, strings.Repeat("a@exemple.fr ", 1000): nil,
	} {
		if got := Email(in); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	many := Email(strings.Join(strings.Fields(strings.Repeat("x ", 0)+"a@x.fr b@x.fr c@x.fr d@x.fr e@x.fr f@x.fr g@x.fr h@x.fr i@x.fr j@x.fr k@x.fr l@x.fr m@x.fr n@x.fr o@x.fr p@x.fr q@x.fr"), ";"))
	if len(many) != maxAddresses {
		t.Errorf("%d addresses of one value", len(many))
	}
}

var french = []string{"FR", "RE", "GP", "MQ", "GF", "YT", "BE", "CH", "LU"}

func TestPhone(t *testing.T) {
	mobile := []string{"+33612345678"}
	for _, c := range []struct {
		in      string
		regions []string
		want    []string
	}{
		{"06 12 34 56 78", french, mobile},
		{"06.12.34.56.78", french, mobile},
		{"06-12-34-56-78", french, mobile},
		{"0612345678", french, mobile},
		{"612345678", french, mobile},
		{"33612345678", french, mobile},
		{"+33612345678", nil, mobile},
		{"+33 6 12 34 56 78", french, mobile},
		{"+33 (0)6 12 34 56 78", french, mobile},
		{"(+33) 6 12 34 56 78", french, mobile},
		{"0033 6 12 34 56 78", french, mobile},
		{"0033(0)612345678", french, mobile},
		{"00 33 6 12 34 56 78", nil, mobile},
		{"（＋３３）６１２３４５６７８", french, mobile},
		{"０６１２３４５６７８", french, mobile},
		{"Tél. : 06 12 34 56 78", french, mobile},
		{"06 12 34 56 78 poste 12", french, mobile},
		{"06 12 34 56 78 #12", french, mobile},
		{"06 12 34 56 78 (bureau)", french, mobile},
		{"06 12 34 56 78 / 06 12 34 56 78", french, mobile},
		{"01 23 45 67 89 poste 12", french, []string{"+33123456789"}},
		{"04 96 20 00 00 (bureau)", french, []string{"+33496200000"}},
		{"06 12 34 56 78 / 06 98 76 54 32", french, []string{"+33612345678", "+33698765432"}},
		{"0612345678/0698765432", french, []string{"+33612345678", "+33698765432"}},
		{"0612345678, 0698765432", french, []string{"+33612345678", "+33698765432"}},
		{"06 12 34 56 78 ou 06 98 76 54 32", french, []string{"+33612345678", "+33698765432"}},
		{"+33612345678;+33698765432", french, []string{"+33612345678", "+33698765432"}},
		{"0612345678 0698765432", french, []string{"+33612345678", "+33698765432"}},
		{"06 12 34 56 78 / à rappeler", french, mobile},
		// Réunion and its siblings lie in regions of their own; French numbers come first.
		{"0692 12 34 56", french, []string{"+262692123456"}},
		{"0692 12 34 56", []string{"FR"}, nil},
		{"00262 692 12 34 56", french, []string{"+262692123456"}},
		{"0590 12 34 56", french, []string{"+590590123456"}},
		{"030/2345678", []string{"DE"}, []string{"+49302345678"}},
		{"(030) 234 56 78", []string{"DE"}, []string{"+49302345678"}},
		{"+49 (0)171 1234567", french, []string{"+491711234567"}},
		{"+49 171/1234567", french, []string{"+491711234567"}},
		{"0171/1234567", []string{"DE"}, []string{"+491711234567"}},
		{"020 7946 0958", []string{"GB"}, []string{"+442079460958"}},
		{"+44 (0)20 7946 0958", french, []string{"+442079460958"}},
		{"07400 123456", []string{"GB"}, []string{"+447400123456"}},
		// The 0 of an Italian line is dialled from abroad, too.
		{"+39 06 698 12345", french, []string{"+390669812345"}},
		{"+39 (0)6 698 12345", french, []string{"+390669812345"}},
		{"0471 12 34 56", []string{"BE"}, []string{"+32471123456"}},
		{"+1 415-555-2671", french, []string{"+14155552671"}},
		{"(415) 555-2671", []string{"US"}, []string{"+14155552671"}},
		{"", french, nil},
		{"0", french, nil},
		{"0000000000", french, nil},
		{"néant", french, nil},
		{"06xxxxxxxx", french, nil},
		{"06 12 34", french, nil},
		{"3949", french, nil},
		{"15", french, nil},
		{"12345678901234567890", french, nil},
		{"06 12 34 56 78", nil, nil},
		{"1 800 FLOWERS", []string{"US"}, nil},
		{"jean.dupont@exemple.fr", french, nil},
		{strings.Repeat("0612345678;", 1000), french, nil},
	} {
		if got := Phone(c.in, c.regions); !slices.Equal(got, c.want) {
			t.Errorf("%q in %v: %v, want %v", c.in, c.regions, got, c.want)
		}
	}
}

func TestRegion(t *testing.T) {
	for in, want := range map[string]string{
		"FR": "FR", "fr": "FR", " FRA ": "FR", "33": "FR", "+33": "FR", "0033": "FR", "UK": "GB", "262": "RE", "1": "US",
		"": "", "France": "", "999": "", "XX": "", "+3x": "", "ZZ": "", "001": "US", "EU": "",
	} {
		if got := Region(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestName(t *testing.T) {
	for _, same := range [][]string{
		{"jean pierre dupont", "Jean-Pierre Dupont", "DUPONT Jean Pierre", "Dupont, Jean-Pierre", "M. Jean-Pierre DUPONT", "Monsieur Dupont Jean-Pierre", "jean‐pierre dupont"},
		{"Hélène Lefèvre", "He\u0301le\u0300ne LEFE\u0300VRE", "HELENE LEFEVRE", "Mme Helene Lefevre", "lefevre  helene"},
		{"Jean de La Fontaine", "Jean La Fontaine", "FONTAINE Jean", "Jean DE LA FONTAINE"},
		{"Jean d'Alembert", "Jean d’Alembert", "ALEMBERT Jean"},
		{"Sinéad O'Brien", "Sinead OBrien", "O’BRIEN SINÉAD"},
		{"Jürgen Strauß", "Jurgen STRAUSS"},
		{"Anke von der Heide", "Anke Heide"},
		{"Søren Kierkegaard", "soren kierkegaard"},
		{"Œuvrard Lætitia", "oeuvrard laetitia"},
		{"Łukasz Wałęsa", "Lukasz Walesa"},
		{"山田 太郎", "太郎　山田"},
		{"김 철수", "김\u00a0철수"},
		{"Ὀδυσσεύς Λαερτιάδης", "οδυσσευς λαερτιαδης"},
		{"Le Van", "LE VAN"},
	} {
		for _, s := range same[1:] {
			if Name(s) != Name(same[0]) {
				t.Errorf("%q gives %q, %q gives %q", s, Name(s), same[0], Name(same[0]))
			}
		}
	}
	if got := Name("Jean-Pierre", "de La Fontaine"); got != "fontaine jean pierre" || got != Name("de La Fontaine Jean-Pierre") {
		t.Errorf("parts give %q", got)
	}
	for _, differ := range [][2]string{{"Jean Dupont", "Jeanne Dupont"}, {"J. Dupont", "P. Dupont"}, {"Dupont", "Jean Dupont"}, {"Dupont M", "Dupont P"}} {
		if Name(differ[0]) == Name(differ[1]) {
			t.Errorf("%q and %q give %q", differ[0], differ[1], Name(differ[0]))
		}
	}
	for in, want := range map[string]bool{"jean dupont": true, "dupont": false, "": false, "山田太郎": true, "山田": false} {
		if got := FullName(Name(in)); got != want {
			t.Errorf("%q is a full name: %t", in, got)
		}
	}
}

func TestPostal(t *testing.T) {
	for _, same := range [][]string{
		{"12 rue de la Paix 75002 Paris", "12, RUE DE LA PAIX, 75002 PARIS", "75002 Paris — 12 Rue Paix", "12 r. de la Paix 75002 PARIS CEDEX"},
		{"3 bis av. du Général-Leclerc, 97400 Saint-Denis", "3 BIS AVENUE GENERAL LECLERC 97400 ST DENIS"},
		{"Hauptstr. 5, 10115 Berlin", "Hauptstraße 5 10115 BERLIN"},
		{"10 Downing St, London SW1A 2AA", "10 downing st LONDON SW1A 2AA"},
		{"7 place de l'Église, 69001 Lyon", "7 PL EGLISE 69001 LYON"},
	} {
		for _, s := range same[1:] {
			if Postal(s) != Postal(same[0]) || Postal(s) == "" {
				t.Errorf("%q gives %q, %q gives %q", s, Postal(s), same[0], Postal(same[0]))
			}
		}
	}
	if a, b := Postal("12 rue de la Paix", "75002", "Paris"), Postal("Paris", "12 rue de la Paix", "75002"); a != b {
		t.Errorf("the order of the parts counts: %q, %q", a, b)
	}
	for _, none := range []string{"", "Paris", "75002 Paris", "rue de la Paix, Paris", "12", "- -"} {
		if got := Postal(none); got != "" {
			t.Errorf("%q gives %q", none, got)
		}
	}
	if Postal("12 rue de la Paix 75002 Paris") == Postal("14 rue de la Paix 75002 Paris") {
		t.Error("two houses have one address")
	}
}

func TestBirthDate(t *testing.T) {
	for in, want := range map[string]string{
		"1980-02-29": "1980-02-29", "1980-02-29 00:00:00": "1980-02-29", "1980-02-29T00:00:00Z": "1980-02-29", "1980-02-29 00:00:00.000+01": "1980-02-29",
		"19800229": "1980-02-29", "29/02/1980": "1980-02-29", "29.2.1980": "1980-02-29", "29-02-1980": "1980-02-29", "02/29/1980": "1980-02-29",
		"29/02/1980 00:00": "1980-02-29", " 1980/02/29 ": "1980-02-29", "03/02/1980": "1980-02-03",
		"": "", "0000-00-00": "", "1900-01-01": "", "0001-01-01": "", "1981-02-29": "", "29/02/80": "", "1980": "", "né en 1980": "", "9999-12-31": "", "1980-02": "",
	} {
		if got, ok := BirthDate(in); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %t, want %q", in, got, ok, want)
		}
	}
}

// The library's tables are a part of the rule: with others a number becomes valid or stops being so, and what was keyed before is found no more.
func TestPhoneVersionGoesWithTheLibrary(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "github.com/nyaruka/phonenumbers "+phoneLibrary+"\n") {
		t.Errorf("go.mod has another version of phonenumbers than %s: raise PhoneVersion with it", phoneLibrary)
	}
}

// Numbers of every region, and near misses of them, in every region: the short way is silent or gives what the library does, and for those that
// matter it is not silent.
func TestPlainNumbersAreTheLibrarys(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	regions := slices.Sorted(maps.Keys(phonenumbers.GetSupportedRegions()))
	read := map[string]int{}
	for _, region := range regions {
		for _, kind := range []phonenumbers.PhoneNumberType{phonenumbers.MOBILE, phonenumbers.FIXED_LINE} {
			example := phonenumbers.GetExampleNumberForType(region, kind)
			if example == nil {
				continue
			}
			for i := range 12 {
				for _, format := range []phonenumbers.PhoneNumberFormat{phonenumbers.E164, phonenumbers.NATIONAL, phonenumbers.INTERNATIONAL} {
					text := []byte(phonenumbers.Format(example, format))
					for range i / 2 { // digits at random
						if at := random.IntN(len(text)); text[at] >= '0' && text[at] <= '9' {
							text[at] = byte('0' + random.IntN(10))
						}
					}
					for _, tried := range [][]string{{region}, {"FR"}, {"US", region}, nil} {
						n := plainNumber(string(text), tried)
						if n != "" && !slices.Equal(numbers(string(text), tried), []string{n}) {
							t.Errorf("%q in %v: %s, the library %v", text, tried, n, numbers(string(text), tried))
						}
						if n != "" && i == 0 && tried != nil && tried[0] == region {
							read[region]++
						}
					}
				}
			}
		}
	}
	for _, region := range []string{"FR", "DE", "GB", "BE", "CH", "ES", "RE"} {
		if read[region] < 4 {
			t.Errorf("%d of 6 examples of %s are read the short way", read[region], region)
		}
	}
}
