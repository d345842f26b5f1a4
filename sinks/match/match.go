// Package match decides which rows of a replica are a subject, where the CRM key does not say so. It is pure: it sees which
// keys agree and who else holds them, never a value, and it touches no database.
//
// It is asymmetric. A prohibition goes to every row that may be the subject's; a permission and an erasure need a row that
// certainly is. What is neither certain nor out of the question is left to a person, and is unusable until then.
package match

import (
	"math/bits"
	"strings"
)

// Keys is a set of types of match keys.
type Keys uint8

// The types. They are those of schema.MatchKey.
const (
	EmailStrict Keys = 1 << iota
	EmailLoose
	Phone
	Postal
	Name
	NameBirthDate
)

// keyNames are the names of the types, in the order of their bits.
var keyNames = [...]string{"email_strict", "email_loose", "phone_e164", "postal", "name", "name_dob"}

// Telling are the types that lead to candidates by themselves. A name and a postal address are shared by too many: they do so
// only together, see NamePostal.
const Telling = EmailStrict | EmailLoose | Phone | NameBirthDate

// NamePostal is the pair of types that leads to candidates only where both agree.
const NamePostal = Name | Postal

// KeyOf returns the set of one type; empty for a type that this version does not know.
func KeyOf(typ string) Keys {
	for i, n := range keyNames {
		if n == typ {
			return 1 << i
		}
	}
	return 0
}

// Has reports whether every type of a set is among k.
func (k Keys) Has(all Keys) bool { return k&all == all }

// Names lists the types by name.
func (k Keys) Names() []string {
	var out []string
	for i, n := range keyNames {
		if k&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}

// String joins the names, as receipts and reviews call the evidence: "email_strict+name".
func (k Keys) String() string { return strings.Join(k.Names(), "+") }

// Number is the number under which the table row_key holds a type; KeyOfNumber takes it back.
func (k Keys) Number() int16 { return int16(bits.TrailingZeros8(uint8(k))) } //nolint:gosec // at most eight

// KeyOfNumber returns the set of one type; empty for a number that this version does not know.
func KeyOfNumber(n int16) Keys {
	if n < 0 || int(n) >= len(keyNames) {
		return 0
	}
	return 1 << n
}

// Count is the number of types. It ranks the reviews, and decides nothing.
func (k Keys) Count() int { return bits.OnesCount8(uint8(k)) }

// Value is a match key as the replica's tables hold it.
type Value = [32]byte

// Pair is what a person has decided about a subject and a row.
type Pair uint8

// Not decided; the row is the subject's; it is somebody else's.
const (
	Undecided Pair = iota
	Same
	Different
)

// Evidence is what speaks for one row of the person's table being the subject. It is made of the row's present values.
type Evidence struct {
	Person string // the row's person.key in text form; Decide does not read it
	CRMKey bool   // the row carries the subject's CRM key
	// OtherCRMKey says that it carries another one.
	OtherCRMKey bool
	Keys        Keys    // the types of which a key agrees
	Emails      []Value // the strict keys of e-mail addresses that agree
	// Past says that every contact point that agrees is a past one of the subject.
	Past bool
	// Named says that the subject's name is known, Names are the name keys of the row.
	Named bool
	Names []Value
	// Others are the other subjects that are not erased: for each the types of which it holds the very key that agrees.
	Others []Keys
	Pair   Pair
}

// Intent is what is to be done to the rows.
type Intent uint8

// Erase is phase 2, Permit a permission; both need a certain match. Prohibit is whatever forbids: objection, withdrawal,
// refusal, restriction, and phase 1 of an erasure.
const (
	Erase Intent = iota
	Permit
	Prohibit
)

// Reach is how far something applies to a row.
type Reach uint8

// Not at all; to the channels of the number that agrees; to the row as a whole.
const (
	Nothing Reach = iota
	PhoneChannels
	Whole
)

// Decision is what becomes of one row.
type Decision struct {
	Apply  Reach
	Review bool // a person has to look at it
	By     Keys // the types that decided; empty: the CRM key, or a person
}

// MaxNamePostal is to how many rows a name and a postal address may lead for a prohibition to apply to them.
const MaxNamePostal = 3

// Decide says for each row what may be done to it, in the order of the evidence. The evidence must hold every row that any of
// the subject's keys leads to: several rows with one e-mail address are judged together.
func Decide(evidence []Evidence, intent Intent) []Decision {
	out := make([]Decision, len(evidence))
	for i := range evidence {
		e := &evidence[i]
		if e.Pair == Different {
			continue
		}
		if intent == Prohibit {
			out[i] = prohibit(evidence, e)
			continue
		}
		if by, ok := certain(evidence, e); ok {
			out[i] = Decision{Apply: Whole, By: by}
			continue
		}
		p := prohibit(evidence, e)
		out[i] = Decision{Review: p.Apply != Nothing || p.Review, By: p.By}
	}
	return out
}

// certain reports whether the row is the subject's beyond doubt, and by which types.
func certain(all []Evidence, e *Evidence) (Keys, bool) {
	switch {
	case e.CRMKey, e.Pair == Same:
		return 0, true
	case e.OtherCRMKey:
		return 0, false
	case e.Past && e.contradicted():
		return 0, false // the address may have another owner by now
	}
	for _, address := range e.Emails {
		switch rows, agree := group(all, address); {
		case rows == 1 && e.alone(EmailStrict):
			return EmailStrict, true
		case agree && e.Named && e.alone(EmailStrict|Name), agree && !e.Named && e.alone(EmailStrict):
			return EmailStrict | Name, true
		}
	}
	if e.Keys.Has(Phone|Name) && e.alone(Phone|Name) {
		return Phone | Name, true
	}
	return 0, false
}

// contradicted reports whether the row names somebody, and not the subject.
func (e *Evidence) contradicted() bool { return e.Named && len(e.Names) > 0 && !e.Keys.Has(Name) }

// alone reports whether no other subject holds all of these keys.
func (e *Evidence) alone(keys Keys) bool {
	for _, o := range e.Others {
		if o.Has(keys) {
			return false
		}
	}
	return true
}

// group counts the rows with an e-mail address, and reports whether the names on all of them agree: with the subject's where
// it is known, else with each other.
func group(all []Evidence, address Value) (rows int, agree bool) {
	agree = true
	var first *Evidence
	for i := range all {
		e := &all[i]
		if e.Pair == Different || !contains(e.Emails, address) {
			continue
		}
		rows++
		if first == nil {
			first = e
		}
		switch {
		case e.Pair == Same, e.CRMKey: // known without its name
		case e.Named:
			agree = agree && e.Keys.Has(Name)
		default:
			agree = agree && shares(first.Names, e.Names)
		}
	}
	return rows, agree
}

// prohibit says how far a prohibition applies to a row.
func prohibit(all []Evidence, e *Evidence) Decision {
	switch k := e.Keys; {
	case e.CRMKey, e.Pair == Same:
		return Decision{Apply: Whole}
	case k.Has(EmailStrict):
		return Decision{Apply: Whole, By: k & (EmailStrict | Name)}
	case e.OtherCRMKey:
		return Decision{} // the CRM itself says that it is another record
	case k.Has(Phone | Name):
		return Decision{Apply: Whole, By: Phone | Name}
	case k.Has(NameBirthDate):
		return Decision{Apply: Whole, By: NameBirthDate}
	case k.Has(EmailLoose):
		return Decision{Apply: Whole, By: EmailLoose}
	case k.Has(NamePostal) && few(all):
		return Decision{Apply: Whole, By: NamePostal}
	case k.Has(Phone):
		return Decision{Apply: PhoneChannels, Review: k.Has(NamePostal), By: Phone}
	case k.Has(NamePostal):
		return Decision{Review: true, By: NamePostal}
	}
	return Decision{}
}

// few reports whether name and postal address lead to few enough rows.
func few(all []Evidence) bool {
	n := 0
	for i := range all {
		if all[i].Pair != Different && all[i].Keys.Has(NamePostal) {
			n++
		}
	}
	return n <= MaxNamePostal
}

func contains(list []Value, v Value) bool {
	for i := range list {
		if list[i] == v {
			return true
		}
	}
	return false
}

func shares(a, b []Value) bool {
	for i := range a {
		if contains(b, a[i]) {
			return true
		}
	}
	return false
}

// PhoneChannel reports whether a channel of a consent is one of the number that agrees.
func PhoneChannel(channel string) bool {
	return channel == "sms" || channel == "phone_human" || channel == "phone_automated"
}
