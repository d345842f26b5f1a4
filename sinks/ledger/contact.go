package ledger

import (
	"encoding/binary"
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

	Stored bool // has a row in the table contact_key
	Dirty  bool // its row must be written
}

// Live reports whether somebody can be reached at the contact point, as far as the source tells.
func (c *Contact) Live() bool { return !c.Removed && !c.Past && !c.Revived }

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
