package schema

import (
	"bytes"
	"encoding/base32"
	"encoding/binary"
	"fmt"
)

// SubjectRef is the pseudonym of a subject: HMAC-SHA-256 under the subject key of the source's name and the canonical
// CRM key. Its text form (base32, upper case, no padding, 52 characters) is the Kafka key of every event.
type SubjectRef [32]byte

// EventID identifies what one rule made of one row change. It is keyed and depends on nothing that a restart, a new rule
// or a re-created slot changes: the same change has the same id for ever.
type EventID [16]byte

// CaseID identifies one erasure of one subject over all replicas. It is derived from the SubjectRef.
type CaseID [16]byte

// ContactRef identifies a contact point: keyed over the table and primary key of its row in the CRM.
type ContactRef [16]byte

// ReceiptID is keyed over (event, replica, state, attempt).
type ReceiptID [16]byte

var base32Text = base32.StdEncoding.WithPadding(base32.NoPadding)

// String returns the base32 form.
func (r SubjectRef) String() string { return base32Text.EncodeToString(r[:]) }

// AppendText appends the base32 form to b without allocating when b has room.
func (r SubjectRef) AppendText(b []byte) []byte { return base32Text.AppendEncode(b, r[:]) }

// IsZero reports whether r is unset, as in Heartbeat, Gap and PassMarker, which speak of no subject.
func (r SubjectRef) IsZero() bool { return r == SubjectRef{} }

// ParseSubjectRef reads the form that String writes.
func ParseSubjectRef(s string) (r SubjectRef, err error) {
	return r, parseID(r[:], s, "subject reference")
}

func (e EventID) String() string    { return base32Text.EncodeToString(e[:]) }
func (c CaseID) String() string     { return base32Text.EncodeToString(c[:]) }
func (c ContactRef) String() string { return base32Text.EncodeToString(c[:]) }
func (r ReceiptID) String() string  { return base32Text.EncodeToString(r[:]) }

// IsZero reports whether the event belongs to no case.
func (c CaseID) IsZero() bool { return c == CaseID{} }

// IsZero reports whether the fact is bound to no contact point.
func (c ContactRef) IsZero() bool { return c == ContactRef{} }

// ParseEventID reads the form that String writes.
func ParseEventID(s string) (e EventID, err error) { return e, parseID(e[:], s, "event id") }

// ParseCaseID reads the form that String writes.
func ParseCaseID(s string) (c CaseID, err error) { return c, parseID(c[:], s, "case id") }

func parseID(dst []byte, s, what string) error {
	b, err := base32Text.DecodeString(s)
	if err != nil || len(b) != len(dst) {
		return fmt.Errorf("parsing %s: want %d base32 characters", what, base32Text.EncodedLen(len(dst)))
	}
	copy(dst, b)
	return nil
}

// Order is the place of an event among all events of its source: big-endian, compared as bytes:
// incarnation u32 · epoch u32 · number u64 · ordinal u32.
type Order [20]byte

// NewOrder composes an Order. For PostgreSQL the epoch is the timeline on which the commit was written and the number is
// the commit LSN; ordinal counts the row changes of the transaction that the rules saw.
func NewOrder(incarnation, epoch uint32, number uint64, ordinal uint32) (o Order) {
	binary.BigEndian.PutUint32(o[0:], incarnation)
	binary.BigEndian.PutUint32(o[4:], epoch)
	binary.BigEndian.PutUint64(o[8:], number)
	binary.BigEndian.PutUint32(o[16:], ordinal)
	return o
}

// Compare returns -1, 0 or +1.
func (o Order) Compare(p Order) int { return bytes.Compare(o[:], p[:]) }

// Incarnation is raised when the source's history was forked or replaced.
func (o Order) Incarnation() uint32 { return binary.BigEndian.Uint32(o[0:]) }

// Epoch is the timeline (PostgreSQL).
func (o Order) Epoch() uint32 { return binary.BigEndian.Uint32(o[4:]) }

// Number is the commit LSN (PostgreSQL).
func (o Order) Number() uint64 { return binary.BigEndian.Uint64(o[8:]) }

// Ordinal is the change's place in its transaction.
func (o Order) Ordinal() uint32 { return binary.BigEndian.Uint32(o[16:]) }

func (o Order) String() string {
	return fmt.Sprintf("%d/%d/%X/%d", o.Incarnation(), o.Epoch(), o.Number(), o.Ordinal())
}
