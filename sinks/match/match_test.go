package match

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// address is the strict key of an e-mail address.
func address(n byte) Value { return Value{n} }

func email(n byte, more Keys) Evidence {
	return Evidence{Keys: EmailStrict | EmailLoose | more, Emails: []Value{address(n)}, Named: true}
}

func with(e Evidence, change func(*Evidence)) Evidence {
	change(&e)
	return e
}

func keys(k Keys) Evidence { return Evidence{Keys: k, Named: true} }

// shared makes another subject hold some of the keys.
func shared(e Evidence, k Keys) Evidence {
	e.Others = append(e.Others, k)
	return e
}

func named(e Evidence, names ...byte) Evidence {
	for _, n := range names {
		e.Names = append(e.Names, Value{100, n})
	}
	return e
}

// unnamed says that the subject's name is not known.
func unnamed(e Evidence) Evidence {
	e.Named = false
	return e
}

func otherCRM(e Evidence) Evidence {
	e.OtherCRMKey = true
	return e
}

func past(e Evidence) Evidence {
	e.Past = true
	return e
}

func decided(e Evidence, p Pair) Evidence {
	e.Pair = p
	return e
}

// TestDecide has every line of the decision table. Each row of the replica is one word: what an erasure or a permission may do
// to it, then how far a prohibition goes.
//
//	apply      it is the subject's
//	review     a person has to say so
//	-          it is not
func TestDecide(t *testing.T) {
	const family = 10
	for _, c := range []struct {
		name             string
		rows             []Evidence
		erase, forbidden string
	}{
		{"CRM key equal", []Evidence{{CRMKey: true}}, "apply", "whole"},
		{"CRM key equal, key shared", []Evidence{shared(with(email(1, 0), func(e *Evidence) { e.CRMKey = true }), EmailStrict)}, "apply", "whole"},

		{"e-mail strict, one row", []Evidence{email(1, 0)}, "apply", "whole"},
		{"e-mail strict, one row, other CRM key", []Evidence{otherCRM(email(1, Name))}, "review", "whole"},
		{"e-mail strict, one row, key shared", []Evidence{shared(email(1, 0), EmailStrict)}, "review", "whole"},
		{"e-mail strict, one row, key shared, name agrees", []Evidence{shared(email(1, Name), EmailStrict)}, "apply", "whole"},
		{"e-mail strict, one row, both shared by one", []Evidence{shared(email(1, Name), EmailStrict|Name)}, "review", "whole"},
		{
			"e-mail strict, one row, shared by two who hold one each",
			[]Evidence{shared(shared(email(1, Name), EmailStrict), Name)},
			"apply", "whole",
		},
		{"shared mailbox without a name", []Evidence{shared(shared(unnamed(email(1, 0)), EmailStrict), EmailStrict)}, "review", "whole"},
		{"two addresses in two rows", []Evidence{email(1, 0), email(2, 0)}, "apply apply", "whole whole"},

		{"e-mail strict, n rows, names agree", []Evidence{email(1, Name), email(1, Name), email(1, Name)}, "apply apply apply", "whole whole whole"},
		{"e-mail strict, n rows, one name differs", []Evidence{email(1, Name), named(email(1, 0), 2)}, "review review", "whole whole"},
		{"e-mail strict, n rows, one has no name", []Evidence{email(1, Name), email(1, 0)}, "review review", "whole whole"},
		{
			"e-mail strict, n rows, the subject's name unknown, theirs agree",
			[]Evidence{unnamed(named(email(1, 0), 1, 2)), unnamed(named(email(1, 0), 2))},
			"apply apply", "whole whole",
		},
		{
			"e-mail strict, n rows, the subject's name unknown, theirs differ",
			[]Evidence{unnamed(named(email(1, 0), 1)), unnamed(named(email(1, 0), 2))},
			"review review", "whole whole",
		},
		{"e-mail strict, n rows, nobody's name known", []Evidence{unnamed(email(1, 0)), unnamed(email(1, 0))}, "review review", "whole whole"},
		{
			"e-mail strict, n rows, one of another CRM key",
			[]Evidence{email(1, Name), otherCRM(named(email(1, 0), 2))},
			"review review", "whole whole",
		},
		{
			"e-mail strict, n rows, one by the CRM key",
			[]Evidence{email(1, Name), with(email(1, 0), func(e *Evidence) { e.CRMKey = true })},
			"apply apply", "whole whole",
		},

		{"past e-mail, one row", []Evidence{past(email(1, 0))}, "apply", "whole"},
		{"past e-mail, one row, same name", []Evidence{past(named(email(1, Name), 1))}, "apply", "whole"},
		{"past e-mail, one row of another name", []Evidence{past(named(email(1, 0), 2))}, "review", "whole"},
		{"past e-mail, the present holder is another subject", []Evidence{shared(past(email(1, 0)), EmailStrict)}, "review", "whole"},

		{"phone and name", []Evidence{keys(Phone | Name)}, "apply", "whole"},
		{"phone and name, the family's phone", []Evidence{shared(keys(Phone|Name), Phone)}, "apply", "whole"},
		{"phone and name, father and son", []Evidence{shared(keys(Phone|Name), Phone|Name)}, "review", "whole"},
		{"phone and name, other CRM key", []Evidence{otherCRM(keys(Phone | Name))}, "-", "-"},
		{"phone only", []Evidence{keys(Phone)}, "review", "phone"},
		{"phone only, two people", []Evidence{shared(keys(Phone), Phone), shared(keys(Phone|Name), Phone)}, "review apply", "phone whole"},

		{"name and birth date", []Evidence{keys(Name | NameBirthDate)}, "review", "whole"},
		{"name and postal address, few rows", []Evidence{keys(NamePostal), keys(NamePostal), keys(NamePostal)}, "review review review", "whole whole whole"},
		{
			"name and postal address, many rows",
			[]Evidence{keys(NamePostal), keys(NamePostal), keys(NamePostal), keys(NamePostal)},
			"review review review review", "review review review review",
		},
		{
			"name, postal address and phone of a household, many rows",
			[]Evidence{keys(NamePostal), keys(NamePostal), keys(NamePostal), keys(NamePostal | Phone)},
			"review review review apply", "review review review whole",
		},
		{"e-mail loose only", []Evidence{keys(EmailLoose)}, "review", "whole"},
		{"e-mail loose and name", []Evidence{keys(EmailLoose | Name)}, "review", "whole"},
		{"name only", []Evidence{keys(Name)}, "-", "-"},
		{"postal address only", []Evidence{keys(Postal)}, "-", "-"},
		{"nothing", []Evidence{{}}, "-", "-"},

		{"decided: the same", []Evidence{decided(keys(Phone), Same)}, "apply", "whole"},
		{"decided: the same, shared", []Evidence{decided(shared(email(family, 0), EmailStrict), Same)}, "apply", "whole"},
		{"decided: another", []Evidence{decided(email(1, Name), Different)}, "-", "-"},
		{"decided: another one of two rows", []Evidence{email(1, 0), decided(email(1, 0), Different)}, "apply -", "whole -"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, intent := range []Intent{Erase, Permit} {
				if got := words(Decide(c.rows, intent)); got != c.erase {
					t.Errorf("intent %d: %s, want %s", intent, got, c.erase)
				}
			}
			if got := words(Decide(c.rows, Prohibit)); got != translate(c.forbidden) {
				t.Errorf("prohibition: %s, want %s", got, c.forbidden)
			}
		})
	}
}

// translate writes the words of the table as words does.
func translate(s string) string { return strings.ReplaceAll(s, "whole", "apply") }

func words(list []Decision) string {
	out := ""
	for i, d := range list {
		if i > 0 {
			out += " "
		}
		switch {
		case d.Apply == Whole:
			out += "apply"
		case d.Apply == PhoneChannels:
			out += "phone"
		case d.Review:
			out += "review"
		default:
			out += "-"
		}
	}
	return out
}

func drawEvidence(t *rapid.T) []Evidence {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Evidence {
		e := Evidence{
			CRMKey: rapid.IntRange(0, 9).Draw(t, "crm") == 0, OtherCRMKey: rapid.IntRange(0, 5).Draw(t, "other") == 0,
			Keys: Keys(rapid.IntRange(0, 63).Draw(t, "keys")), Past: rapid.Bool().Draw(t, "past"),
			Pair: Pair(rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "pair")),
		}
		if e.Keys.Has(EmailStrict) {
			e.Emails = []Value{address(byte(rapid.IntRange(1, 2).Draw(t, "address")))}
		}
		for range rapid.IntRange(0, 2).Draw(t, "others") {
			e.Others = append(e.Others, e.Keys&Keys(rapid.IntRange(0, 63).Draw(t, "held")))
		}
		e.Named = true
		return e
	}), 0, 5).Draw(t, "rows")
}

// TestAsymmetric: whoever may be erased may also be forbidden, a permission needs what an erasure needs, and knowing that one
// more subject holds the keys never makes anything certain that was not.
func TestAsymmetric(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := drawEvidence(t)
		erase, permit, forbid := Decide(rows, Erase), Decide(rows, Permit), Decide(rows, Prohibit)
		for i := range rows {
			if erase[i] != permit[i] {
				t.Fatalf("row %d: erase %+v, permit %+v", i, erase[i], permit[i])
			}
			if erase[i].Apply == Whole && forbid[i].Apply != Whole {
				t.Fatalf("row %d may be erased and not forbidden", i)
			}
			if forbid[i].Apply != Nothing && erase[i].Apply == Nothing && !erase[i].Review {
				t.Fatalf("row %d is forbidden and nobody looks at it", i)
			}
			if rows[i].Pair == Different && (erase[i] != Decision{} || forbid[i] != Decision{}) {
				t.Fatalf("row %d is somebody else's: %+v %+v", i, erase[i], forbid[i])
			}
		}
		for i := range rows {
			rows[i].Others = append(rows[i].Others, rows[i].Keys)
		}
		for i, d := range Decide(rows, Erase) {
			if d.Apply == Whole && !rows[i].CRMKey && rows[i].Pair != Same {
				t.Fatalf("row %d is certain although another subject holds every key", i)
			}
		}
	})
}

func TestKeyNames(t *testing.T) {
	for i, n := range keyNames {
		k := KeyOf(n)
		if k != 1<<i || KeyOfNumber(k.Number()) != k || k.String() != n || k.Count() != 1 {
			t.Errorf("%s: %d %d %s", n, k, k.Number(), k)
		}
	}
	if KeyOf("shoe_size") != 0 || KeyOfNumber(6) != 0 || KeyOfNumber(-1) != 0 {
		t.Error("unknown types are known")
	}
	if got := (EmailStrict | Name).String(); got != "email_strict+name" {
		t.Error(got)
	}
}
