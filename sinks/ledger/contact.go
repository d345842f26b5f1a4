package ledger

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"lethe/schema"
)

// Contact is a contact point of a subject, or its name and birth date (ContactIdentity): a row of the table contact, with those of
// contact_key that belong to it.
type Contact struct {
	Ref     schema.ContactRef
	Kind    schema.ContactKind
	Past    bool // from a table of what once was
	Removed bool // its row is gone at the source
	// Revived says that the point came up after the subject's erasure. Its keys find nobody.
	Revived bool
	Order   schema.Order // of the newest event about it
	EventID schema.EventID
	Keys    []StoredKey

	// Since is the place from which on the present value is known to hold.
	Since schema.Order
	// VoidOrder is the place of the newest change that ended what was consented to for this point: its value was replaced, or it
	// was removed; zero: none. VoidAt is the time before which nothing that was granted for it can have been meant for what it
	// is now, and VoidEvent the cause.
	VoidOrder schema.Order
	VoidAt    time.Time
	VoidEvent schema.EventID

	Stored bool // has a row in the table contact
	Dirty  bool // its row must be written
}

// StoredKey is a match key as this replica's tables hold it.
type StoredKey struct {
	Type        string
	KeyID       uint32
	NormVersion uint32
	Value       [32]byte // see Core.MatchValue
	// Past says that the contact point has another value by now. A copy may still hold this one, so it goes on finding people.
	Past bool
	// Revived says that it came up after the subject's erasure: it is kept, and finds nobody.
	Revived bool

	Stored bool // has a row in the table contact_key
	Dirty  bool // its row must be written
}

// Gone reports whether the source has the contact point no more: what was granted for it is void, and what was forbidden
// follows the person.
func (c *Contact) Gone() bool { return c.Removed || c.Past }

// VoidColumns are the place and cause of what voids, as stored: nil for none.
func (c *Contact) VoidColumns() (order, event []byte) {
	if c.VoidOrder == (schema.Order{}) {
		return nil, nil
	}
	return c.VoidOrder[:], c.VoidEvent[:]
}

// Live reports whether somebody can be reached at the contact point, as far as the source tells.
func (c *Contact) Live() bool { return !c.Gone() && !c.Revived }

// The types of match keys that say which contact point it is: equal keys are the same address or number, however written.
const (
	keyEmail  = "email_strict"
	keyPhone  = "phone_e164"
	keyPostal = "postal"
)

// Strict reports whether the key says which contact point it is.
func (k *StoredKey) Strict() bool {
	return k.Type == keyEmail || k.Type == keyPhone || k.Type == keyPostal
}

// The standings of a key, as stored.
const (
	standingLive    = "live"
	standingPast    = "past"
	standingRevived = "revived"
)

// Standing is what a key is good for, as the table contact_key holds it.
func (k *StoredKey) Standing() string {
	switch {
	case k.Revived:
		return standingRevived
	case k.Past:
		return standingPast
	}
	return standingLive
}

// SetStanding reads what Standing says.
func (k *StoredKey) SetStanding(s string) {
	k.Past, k.Revived = s == standingPast, s == standingRevived
}

// version is what two keys must have in common to be compared.
type keyVersion struct {
	typ       string
	key, norm uint32
}

func (k *StoredKey) version() keyVersion { return keyVersion{k.Type, k.KeyID, k.NormVersion} }

// identity reports whether the key is one of a name.
func (k *StoredKey) identity() bool { return !k.Strict() && k.Type != "email_loose" }

// sameness is what can be said about two values of one contact point by their keys.
type sameness uint8

const (
	same      sameness = iota // in a key of one version they agree: at most the format has changed
	different                 // in every version that both have, they do not; or only one of them has keys
	unknown                   // no version in common
)

// compareKeys compares the value that a contact point had with the one that it has. A list of addresses in one field is the
// same value only as a whole: who consented for one did not consent for what was added.
func compareKeys(before, after []StoredKey) sameness {
	old, now := valuesByVersion(before), valuesByVersion(after)
	if (len(old) == 0) != (len(now) == 0) {
		return different
	}
	out := unknown
	for v, values := range old {
		others, ok := now[v]
		if !ok {
			continue
		}
		if maps.Equal(values, others) {
			return same
		}
		out = different
	}
	return out
}

// valuesByVersion are the present strict values of a contact point.
func valuesByVersion(keys []StoredKey) map[keyVersion]map[[32]byte]bool {
	out := map[keyVersion]map[[32]byte]bool{}
	for i := range keys {
		k := &keys[i]
		if !k.Strict() || k.Past || k.Revived {
			continue
		}
		if out[k.version()] == nil {
			out[k.version()] = map[[32]byte]bool{}
		}
		out[k.version()][k.Value] = true
	}
	return out
}

// Contact returns the contact point with this reference; nil where none is known. A name is no contact point.
func (s *Subject) Contact(ref schema.ContactRef) *Contact { return s.contact(ref, false) }

func (s *Subject) contact(ref schema.ContactRef, identity bool) *Contact {
	for i := range s.Contacts {
		if c := &s.Contacts[i]; c.Ref == ref && (c.Kind == schema.ContactIdentity) == identity {
			return c
		}
	}
	return nil
}

// AddKey takes in a stored key of a contact point of the subject, when its rows are read. Of an erased subject only the keys
// are left: then they make the contact point.
func (s *Subject) AddKey(ref schema.ContactRef, k StoredKey) {
	k.Stored = true
	c := s.contact(ref, k.identity())
	if c == nil {
		s.Contacts = append(s.Contacts, Contact{Ref: ref, Kind: kindOf(k.Type)})
		c = &s.Contacts[len(s.Contacts)-1]
	}
	c.Keys = append(c.Keys, k)
}

func kindOf(keyType string) schema.ContactKind {
	switch keyType {
	case keyPhone:
		return schema.ContactPhone
	case keyPostal:
		return schema.ContactPostal
	case keyEmail, "email_loose":
		return schema.ContactEmail
	}
	return schema.ContactIdentity
}

// storedKeys are match keys as this replica holds them.
func (c *Core) storedKeys(keys []schema.MatchKey) []StoredKey {
	out := make([]StoredKey, 0, len(keys))
	for _, k := range keys {
		stored := StoredKey{Type: k.Type, KeyID: k.KeyID, NormVersion: k.NormVersion, Value: c.MatchValue(k)}
		if !slices.ContainsFunc(out, func(o StoredKey) bool { return o.Value == stored.Value }) {
			out = append(out, stored)
		}
	}
	return out
}

// setKeys gives the contact point its present keys. Those that it had stay: as past ones where the value is another, as they
// are where only their version has gone.
func (c *Contact) setKeys(keys []StoredKey, replaced bool) {
	for i := range c.Keys {
		old := &c.Keys[i]
		kept := slices.ContainsFunc(keys, func(k StoredKey) bool { return k.Value == old.Value })
		renewed := slices.ContainsFunc(keys, func(k StoredKey) bool { return k.version() == old.version() })
		switch {
		case kept && (old.Past != c.Past || old.Revived):
			old.Past, old.Revived, old.Dirty = c.Past, false, true
		case !kept && !old.Past && !old.Revived && (replaced || renewed):
			old.Past, old.Dirty = true, true
		}
	}
	for _, k := range keys {
		if !slices.ContainsFunc(c.Keys, func(o StoredKey) bool { return o.Value == k.Value }) {
			k.Past, k.Dirty = c.Past, true
			c.Keys = append(c.Keys, k)
		}
	}
}

// keepKeys adds keys that are not the present ones: of a value that it had, or of one that came up after the erasure.
func (c *Contact) keepKeys(keys []StoredKey, past, revived bool) {
	for _, k := range keys {
		if !slices.ContainsFunc(c.Keys, func(o StoredKey) bool { return o.Value == k.Value }) {
			k.Past, k.Revived, k.Dirty = past && !revived, revived, true
			c.Keys = append(c.Keys, k)
		}
	}
}

// values are the strict values of the contact point, of all versions: those that it has now, or all that it ever had.
func (c *Contact) values(all bool) [][32]byte {
	var out [][32]byte
	for i := range c.Keys {
		if k := &c.Keys[i]; k.Strict() && !k.Revived && (all || !k.Past) {
			out = append(out, k.Value)
		}
	}
	return out
}

// MatchValue is a match key under the replica's own key: two recipients cannot join their databases on it. Equal values are
// equal addresses, numbers or names of the same type, made with the same key and the same rule.
func (c *Core) MatchValue(k schema.MatchKey) [32]byte {
	text := make([]byte, 0, 96)
	text = append(text, "match|"...)
	text = append(append(text, k.Type...), '|')
	text = binary.BigEndian.AppendUint32(text, k.KeyID)
	text = binary.BigEndian.AppendUint32(text, k.NormVersion)
	text = append(text, k.Value[:]...)
	var out [32]byte
	c.Pseudonym.Compute(&out, text)
	return out
}
