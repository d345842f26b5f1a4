package schema

import (
	"encoding/binary"
	"errors"
)

// Decoder reads events. Safe for concurrent use.
type Decoder struct {
	seal  AEAD
	texts interner
}

// NewDecoder makes a decoder that opens with seal.
func NewDecoder(seal AEAD) *Decoder { return &Decoder{seal: seal} }

// Decode reads one event and authenticates every byte of it. Its error is ErrTooLarge, ErrMalformed (trailing bytes too),
// ErrUnknownSchema, ErrForged or ErrUnknownKey. The event shares no memory with value.
func (d *Decoder) Decode(value []byte) (*Event, error) {
	p, err := parseEvent(value, &d.texts)
	if err != nil {
		return nil, err
	}
	plain, err := d.open(p.sealedKey, value[:p.keyOffset])
	if err != nil {
		return nil, err
	}
	if p.ev.CRMKey, err = unpad(plain); err != nil {
		return nil, err
	}
	switch b := p.ev.Body.(type) {
	case *SubjectErasure:
		b.Authorisation, err = d.openField(p, "authorisation")
	case *ConsentChange:
		b.Evidence, err = d.openField(p, "evidence")
	}
	if err != nil {
		return nil, err
	}
	return p.ev, nil
}

func (d *Decoder) openField(p parsed, field string) ([]byte, error) {
	if p.sealedField == nil {
		return nil, nil
	}
	plain, err := d.open(p.sealedField, append(append([]byte(nil), p.ev.EventID[:]...), field...))
	if err == nil && plain == nil {
		plain = []byte{}
	}
	return plain, err
}

func (d *Decoder) open(sealed, aad []byte) ([]byte, error) {
	plain, err := d.seal.Open(sealed, aad)
	switch {
	case err == nil:
		return plain, nil
	case errors.Is(err, ErrUnknownKey):
		return nil, ErrUnknownKey
	}
	return nil, ErrForged
}

// unpad takes the key out of its 64 bytes; the padding must be zeros.
func unpad(plain []byte) ([]byte, error) {
	if len(plain) != sealedSize {
		return nil, ErrMalformed
	}
	n, w := binary.Uvarint(plain)
	if w != 1 || n > MaxKey {
		return nil, ErrMalformed
	}
	end := 1 + int(n)
	for _, b := range plain[end:] {
		if b != 0 {
			return nil, ErrMalformed
		}
	}
	if n == 0 {
		return nil, nil
	}
	return plain[1:end:end], nil
}

// SealedParts gives the ciphertexts of an event, the sealed key first, without opening or authenticating them: `lethe keys retire` reads
// from them which keys a topic still needs. They share memory with value.
func SealedParts(value []byte) ([][]byte, error) {
	p, err := parseEvent(value, nil)
	if err != nil {
		return nil, err
	}
	parts := [][]byte{p.sealedKey}
	if p.sealedField != nil {
		parts = append(parts, p.sealedField)
	}
	return parts, nil
}

// MatchKeys gives the match keys that an event carries, without authenticating them; none for an event that is no ContactPoint. `lethe keys retire`
// reads from them which versions a topic still needs.
func MatchKeys(value []byte) ([]MatchKey, error) {
	p, err := parseEvent(value, nil)
	if err != nil {
		return nil, err
	}
	if b, ok := p.ev.Body.(*ContactPoint); ok {
		return b.Keys, nil
	}
	return nil, nil
}

// parsed is an event as it lies in its bytes: nothing is opened yet, nothing is to be believed yet.
type parsed struct {
	ev          *Event
	sealedKey   []byte
	sealedField []byte // authorisation or evidence; nil: none
	keyOffset   int    // of sealed_key: the length of its associated data
}

// recordOf finds the record of a message by its fingerprint.
func recordOf(value []byte) (int, error) {
	if len(value) > MaxMessage {
		return 0, ErrTooLarge
	}
	if len(value) < headerSize || value[0] != 0xc3 || value[1] != 0x01 {
		return 0, ErrMalformed
	}
	record, ok := fingerprints[[headerSize]byte(value)]
	if !ok {
		return 0, ErrUnknownSchema
	}
	return record, nil
}

func parseEvent(value []byte, texts *interner) (p parsed, err error) {
	record, err := recordOf(value)
	if err != nil {
		return p, err
	}
	if record > int(TypeLast) {
		return p, ErrUnknownSchema
	}
	r := reader{b: value, off: headerSize, texts: texts}
	p.ev = new(Event)
	readHeader(&r, &p.ev.Header)
	readBody(&r, Type(record), &p) //nolint:gosec // at most TypeLast
	p.keyOffset = r.off
	p.sealedKey = r.bytes()
	if r.bad || r.left() != 0 {
		return p, ErrMalformed
	}
	return p, nil
}

func readHeader(r *reader, h *Header) {
	r.fixed(h.EventID[:])
	r.fixed(h.Order[:])
	r.optFixed(h.SubjectRef[:])
	r.optFixed(h.CaseID[:])
	h.Source = r.str()
	h.Kind = Kind(r.enum(kindNames))
	h.RunID = r.optStr()
	h.CommittedAt = r.time()
	h.DetectedAt = r.time()
	h.Rule = r.str()
	r.fixed(h.ConfigDigest[:])
}

func readBody(r *reader, t Type, p *parsed) {
	switch t {
	case TypeSubjectErasure:
		b := &SubjectErasure{Ground: r.optStr(), ReceivedAt: r.optTime(), LegalDueAt: r.optTime()}
		p.sealedField = readSealed(r)
		b.Phase2, b.Marker = Phase2(r.enum(phase2Names)), r.boolean()
		p.ev.Body = b
	case TypeCaseDecision:
		p.ev.Body = &CaseDecision{
			Decision: Decision(r.enum(decisionNames)), Replica: r.optStr(), Reason: r.optStr(), Checks: r.strs(),
			DecidedBy: r.str(), DecidedAt: r.time(),
		}
	case TypeConsentChange:
		b := &ConsentChange{Purpose: r.str(), Channel: channelNames[r.enum(channelNames)]}
		r.optFixed(b.Contact[:])
		b.State, b.LegalBasis = ConsentState(r.enum(consentNames)), r.optStr()
		b.ValidUntil, b.AsOf = r.optTime(), r.optTime()
		p.sealedField = readSealed(r)
		b.Method, b.Notice, b.Actor = r.optStr(), r.optStr(), r.optStr()
		p.ev.Body = b
	case TypeObjection:
		b := &Objection{Raised: r.boolean(), Scope: r.str()}
		r.optFixed(b.Contact[:])
		p.ev.Body = b
	case TypeProcessingRestriction:
		p.ev.Body = &ProcessingRestriction{Imposed: r.boolean(), Until: r.optTime()}
	case TypeContactPoint:
		p.ev.Body = readContactPoint(r)
	case TypeSubjectMerged:
		p.ev.Body = &SubjectMerged{
			Absorbed: readArray(r, len(SubjectRef{}), func(r *reader, s *SubjectRef) { r.fixed(s[:]) }),
		}
	case TypeGap:
		b := &Gap{Opened: r.boolean(), GapID: r.str()}
		r.fixed(b.From[:])
		r.optFixed(b.To[:])
		b.Cause = r.str()
		p.ev.Body = b
	case TypeHeartbeat:
		p.ev.Body = &Heartbeat{EmittedAt: r.time()}
	case TypePassMarker:
		p.ev.Body = &PassMarker{Begin: r.boolean(), Tables: r.strs(), Full: r.boolean(), Replicas: r.strs()}
	case TypeSourceReport:
		p.ev.Body = &SourceReport{
			Aspect: aspectNames[r.enum(aspectNames)], Satisfied: r.boolean(), Missing: r.strs(),
			ReceivedAt: r.optTime(), LegalDueAt: r.optTime(), CheckedAt: r.time(),
		}
	default:
		r.fault()
	}
}

// readSealed gives the ciphertext, not nil when there is one.
func readSealed(r *reader) []byte {
	if !r.option() {
		return nil
	}
	return r.bytes()
}

func readContactPoint(r *reader) *ContactPoint {
	b := new(ContactPoint)
	r.fixed(b.Contact[:])
	b.Kind, b.Past, b.Removed = ContactKind(r.enum(contactNames)), r.boolean(), r.boolean()
	b.Keys = readArray(r, 3+len(MatchKey{}.Value), func(r *reader, k *MatchKey) {
		k.Type, k.KeyID, k.NormVersion = r.str(), r.uint32(), r.uint32()
		r.fixed(k.Value[:])
	})
	return b
}
