package schema

import (
	"encoding/binary"
	"fmt"
)

// Encoder writes events as Avro in single-object encoding, with the CRM key sealed over all that comes before it. It is
// compiled by hand from the schemas of avsc and gives the same bytes as a general encoder, thirty times faster and without
// allocating. One goroutine at a time.
type Encoder struct {
	seal   AEAD
	w      writer
	plain  [sealedSize]byte
	sealed []byte
	aad    []byte
}

// NewEncoder makes an encoder that seals with seal.
func NewEncoder(seal AEAD) *Encoder { return &Encoder{seal: seal} }

// Append appends the event to dst. On an error dst comes back as it was given, and the error says which field, never its value.
// It refuses an event without body, a subject's event without SubjectRef (and one to every partition with it), a key longer
// than MaxKey, and what would be longer than MaxMessage (ErrTooLarge).
func (e *Encoder) Append(dst []byte, ev *Event) ([]byte, error) {
	t := Type(0)
	if ev.Body != nil {
		t = ev.Body.Type()
	}
	if t < TypeSubjectErasure || t > TypeLast {
		return dst, fmt.Errorf("encoding event of rule %q: no body of this package's types", ev.Rule)
	}
	start := len(dst)
	e.w = writer{b: append(dst, headers[t][:]...)}
	err := e.event(t, ev, start)
	b := e.w.b
	e.w.b = nil
	if err != nil {
		return dst, fmt.Errorf("encoding %s of rule %q: %w", t, ev.Rule, err)
	}
	return b, nil
}

func (e *Encoder) event(t Type, ev *Event, start int) error {
	// CaseDecision may speak of a case alone.
	if ev.SubjectRef.IsZero() != toEveryPartition(t) && t != TypeCaseDecision {
		return fmt.Errorf("subject_ref given: %t, which this type does not allow", !ev.SubjectRef.IsZero())
	}
	e.header(&ev.Header)
	e.body(ev)
	if e.w.err != nil {
		return e.w.err
	}
	if err := e.sealKey(ev.CRMKey, start); err != nil {
		return err
	}
	if len(e.w.b)-start > MaxMessage {
		return ErrTooLarge
	}
	return nil
}

// toEveryPartition tells the events that speak of no subject.
func toEveryPartition(t Type) bool { return t == TypeGap || t == TypeHeartbeat || t == TypePassMarker }

func (e *Encoder) header(h *Header) {
	w := &e.w
	w.b = append(w.b, h.EventID[:]...)
	w.b = append(w.b, h.Order[:]...)
	if w.option(!h.SubjectRef.IsZero()) {
		w.b = append(w.b, h.SubjectRef[:]...)
	}
	w.optID((*[16]byte)(&h.CaseID))
	w.str("source", h.Source)
	w.enum("kind", kindNames, uint8(h.Kind))
	w.optStr("run_id", h.RunID)
	w.time(h.CommittedAt)
	w.time(h.DetectedAt)
	w.str("rule", h.Rule)
	w.b = append(w.b, h.ConfigDigest[:]...)
}

func (e *Encoder) body(ev *Event) {
	w := &e.w
	switch b := ev.Body.(type) {
	case *SubjectErasure:
		w.optStr("ground", b.Ground)
		w.optTime(b.ReceivedAt)
		w.optTime(b.LegalDueAt)
		e.sealField(&ev.EventID, "authorisation", b.Authorisation)
		w.enum("phase2", phase2Names, uint8(b.Phase2))
		w.boolean(b.Marker)
	case *CaseDecision:
		w.enum("decision", decisionNames, uint8(b.Decision))
		w.optStr("replica", b.Replica)
		w.optStr("reason", b.Reason)
		w.strs("checks", b.Checks)
		w.str("decided_by", b.DecidedBy)
		w.time(b.DecidedAt)
	case *ConsentChange:
		w.str("purpose", b.Purpose)
		w.named("channel", channelNames, b.Channel)
		w.optID((*[16]byte)(&b.Contact))
		w.enum("state", consentNames, uint8(b.State))
		w.optStr("legal_basis", b.LegalBasis)
		w.optTime(b.ValidUntil)
		w.optTime(b.AsOf)
		e.sealField(&ev.EventID, "evidence", b.Evidence)
		w.optStr("indication_method", b.Method)
		w.optStr("notice_id", b.Notice)
		w.optStr("entity", b.Actor)
	case *Objection:
		w.boolean(b.Raised)
		w.str("scope", b.Scope)
		w.optID((*[16]byte)(&b.Contact))
	case *ProcessingRestriction:
		w.boolean(b.Imposed)
		w.optTime(b.Until)
	case *ContactPoint:
		e.contactPoint(b)
	case *SubjectMerged:
		w.count(len(b.Absorbed))
		for i := range b.Absorbed {
			w.b = append(w.b, b.Absorbed[i][:]...)
		}
		w.end()
	case *Gap:
		w.boolean(b.Opened)
		w.str("gap_id", b.GapID)
		w.b = append(w.b, b.From[:]...)
		if w.option(b.To != Order{}) {
			w.b = append(w.b, b.To[:]...)
		}
		w.str("cause", b.Cause)
	case *Heartbeat:
		w.time(b.EmittedAt)
	case *PassMarker:
		w.boolean(b.Begin)
		w.strs("tables", b.Tables)
		w.boolean(b.Full)
		w.strs("replicas", b.Replicas)
	case *SourceReport:
		w.named("aspect", aspectNames, b.Aspect)
		w.boolean(b.Satisfied)
		w.strs("missing", b.Missing)
		w.optTime(b.ReceivedAt)
		w.optTime(b.LegalDueAt)
		w.time(b.CheckedAt)
	default:
		w.fail("body", "not one of this package's types")
	}
}

func (e *Encoder) contactPoint(b *ContactPoint) {
	w := &e.w
	w.b = append(w.b, b.Contact[:]...)
	w.enum("contact_kind", contactNames, uint8(b.Kind))
	w.boolean(b.Past)
	w.boolean(b.Removed)
	w.count(len(b.Keys))
	for i := range b.Keys {
		k := &b.Keys[i]
		w.str("keys.type", k.Type)
		w.long(int64(k.KeyID))
		w.long(int64(k.NormVersion))
		w.b = append(w.b, k.Value[:]...)
	}
	w.end()
}

// sealField seals a reference by itself, because it may be read by people who do not read the key. Its associated data binds it
// to its event and field; sealed_key then covers the ciphertext with all the rest.
func (e *Encoder) sealField(id *EventID, field string, v []byte) {
	if !e.w.option(v != nil) {
		return
	}
	e.aad = append(append(e.aad[:0], id[:]...), field...)
	sealed, err := e.seal.AppendSeal(e.sealed[:0], v, e.aad)
	if err != nil {
		e.w.fail(field, "sealing failed")
		return
	}
	e.sealed = sealed
	e.w.bytes(sealed)
}

// sealKey writes the last field. Its associated data is the message so far, single-object header included.
func (e *Encoder) sealKey(key []byte, start int) error {
	if len(key) > MaxKey {
		return fmt.Errorf("CRM key of %d bytes: at most %d bytes can be sealed (the columns of the key with one length byte each)",
			len(key), MaxKey)
	}
	clear(e.plain[:])
	n := binary.PutUvarint(e.plain[:], uint64(len(key)))
	copy(e.plain[n:], key)
	sealed, err := e.seal.AppendSeal(e.sealed[:0], e.plain[:], e.w.b[start:])
	clear(e.plain[:])
	if err != nil {
		return fmt.Errorf("sealing the CRM key: %w", err)
	}
	e.sealed = sealed
	e.w.bytes(sealed)
	return nil
}
