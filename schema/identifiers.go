package schema

import (
	"encoding/binary"
	"errors"
	"sync"
)

// Domain labels keep identifiers of different kinds apart: no input of one kind hashes to an identifier of another.
// They are part of every stored id and never change.
const (
	domainSubject = "lethe/subject/1"
	domainEvent   = "lethe/event/1"
	domainCase    = "lethe/case/1"
	domainContact = "lethe/contact/1"
	domainReceipt = "lethe/receipt/1"
)

// EventKey is what makes a change the same change at every re-read: its place in the source's history, the row, and the
// rule that saw it. Occurrence is the how-manieth change of this (table, op) in the transaction, from 0 or 1 on as long as it
// is the same for ever. PK is a CanonicalKey.
type EventKey struct {
	Incarnation uint32
	Epoch       uint32
	Number      uint64
	Table       string
	PK          []byte
	Op          uint8
	Occurrence  uint32
	Rule        string
}

// Identifiers derives every identifier of one source. All are keyed: an unkeyed hash over otherwise known fields would give
// the CRM key back in a second. Capture keys it with the subject key; a sink, which does not hold that key, keys a second
// one with its replica's own for its ReceiptIDs. Safe for concurrent use; nothing is allocated per identifier.
type Identifiers struct {
	prf    PRF
	source string
	pool   sync.Pool
}

// scratch is what one derivation needs. It is pooled because arguments of an interface method always escape.
type scratch struct {
	buf []byte
	out [32]byte
}

// NewIdentifiers makes identifiers for the source of the given name (the config's name, which is part of every id).
func NewIdentifiers(prf PRF, source string) *Identifiers {
	return &Identifiers{prf: prf, source: source, pool: sync.Pool{New: func() any { return &scratch{buf: make([]byte, 0, 256)} }}}
}

// begin takes a scratch that holds the label and the source's name.
func (i *Identifiers) begin(domain string) *scratch {
	s := i.pool.Get().(*scratch)
	s.buf = appendPart(s.buf[:0], domain)
	s.buf = appendPart(s.buf, i.source)
	return s
}

// finish computes, clears what may hold a CRM key, and copies as many bytes as id has.
func (i *Identifiers) finish(s *scratch, id []byte) {
	i.prf.Compute(&s.out, s.buf)
	copy(id, s.out[:])
	clear(s.buf)
	i.pool.Put(s)
}

// SubjectRef is the pseudonym of the subject with this CRM key (a CanonicalKey).
func (i *Identifiers) SubjectRef(key []byte) (r SubjectRef) {
	s := i.begin(domainSubject)
	s.buf = appendPart(s.buf, key)
	i.finish(s, r[:])
	return r
}

// EventID is the id of what one rule made of one row change.
func (i *Identifiers) EventID(k EventKey) (e EventID) {
	s := i.begin(domainEvent)
	b := binary.BigEndian.AppendUint32(s.buf, k.Incarnation)
	b = binary.BigEndian.AppendUint32(b, k.Epoch)
	b = binary.BigEndian.AppendUint64(b, k.Number)
	b = append(b, k.Op)
	b = binary.BigEndian.AppendUint32(b, k.Occurrence)
	b = appendPart(b, k.Table)
	b = appendPart(b, k.PK)
	s.buf = appendPart(b, k.Rule)
	i.finish(s, e[:])
	return e
}

// CaseID is the case of the subject's erasure: one until an operator re-opens it.
func (i *Identifiers) CaseID(ref SubjectRef) (c CaseID) {
	s := i.begin(domainCase)
	s.buf = append(s.buf, ref[:]...)
	i.finish(s, c[:])
	return c
}

// ContactRef is the contact point in the row of table with this primary key (a CanonicalKey).
func (i *Identifiers) ContactRef(table string, pk []byte) (c ContactRef) {
	s := i.begin(domainContact)
	s.buf = appendPart(s.buf, table)
	s.buf = appendPart(s.buf, pk)
	i.finish(s, c[:])
	return c
}

// ReceiptID is the id of one statement about one event in one replica: the same statement has the same id, however often a
// worker is killed and makes it again.
func (i *Identifiers) ReceiptID(event EventID, replica string, state ReceiptState, attempt uint32) (r ReceiptID) {
	s := i.begin(domainReceipt)
	b := append(s.buf, event[:]...)
	b = append(b, byte(state))
	b = binary.BigEndian.AppendUint32(b, attempt)
	s.buf = appendPart(b, replica)
	i.finish(s, r[:])
	return r
}

// appendPart appends the length of part as an uvarint and then part, so that no content can pass for a separator.
func appendPart[T string | []byte](dst []byte, part T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(part)))
	return append(dst, part...)
}

// CanonicalKey appends the canonical form of a key to dst: each part is an uvarint length and the bytes of the database's text form,
// also where there is only one part. It is what SubjectRef, PK and Event.CRMKey are made of.
func CanonicalKey(dst []byte, parts ...[]byte) []byte {
	for _, p := range parts {
		dst = appendPart(dst, p)
	}
	return dst
}

// ErrKeyForm says that bytes are not a CanonicalKey.
var ErrKeyForm = errors.New("not a canonical key")

// SplitKey gives the parts of a CanonicalKey. Only the bytes that CanonicalKey writes are accepted: two forms of one key would
// be two subjects.
func SplitKey(key []byte) ([]string, error) {
	var parts []string
	for len(key) > 0 {
		n, w := binary.Uvarint(key)
		if w <= 0 || n > uint64(len(key)-w) || (w > 1 && key[w-1] == 0) { //nolint:gosec // w is at most len(key)
			return nil, ErrKeyForm
		}
		end := w + int(n) //nolint:gosec // at most len(key)
		parts = append(parts, string(key[w:end]))
		key = key[end:]
	}
	if parts == nil {
		return nil, ErrKeyForm
	}
	return parts, nil
}
