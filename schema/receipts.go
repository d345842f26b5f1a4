package schema

import (
	"crypto/ed25519"
	"fmt"
)

// Verifier verifies with public keys alone; internal/keys has one. It returns nil, ErrUnknownKey or ErrForged. A replica's
// receipts are good under that replica's own keys only. Safe for concurrent use.
type Verifier interface {
	Verify(replica string, keyID uint32, data, signature []byte) error
}

// typeSymbols are the event types as an Avro enum, which counts from 0.
var typeSymbols = typeNames[1:]

// AppendReceipt appends the single-object encoded Receipt to dst. The same receipt gives the same bytes. On an error dst comes back as it
// was given.
func AppendReceipt(dst []byte, r *Receipt) ([]byte, error) {
	w := writer{b: append(dst, headers[recordReceipt][:]...)}
	w.b = append(w.b, r.ReceiptID[:]...)
	w.b = append(w.b, r.EventID[:]...)
	w.enum("event_type", typeSymbols, uint8(r.EventType)-1)
	w.optID((*[16]byte)(&r.CaseID))
	w.str("source", r.Source)
	w.str("replica", r.Replica)
	w.str("recipient", r.Recipient)
	w.enum("state", receiptNames, uint8(r.State))
	w.optStr("reason", r.Reason)
	w.long(int64(r.Attempt))
	w.optStr("match_method", r.MatchMethod)
	appendRows(&w, r)
	w.enum("evidence", evidenceNames, uint8(r.Evidence))
	if w.option(r.Verification != nil) {
		w.str("verification.method", r.Verification.Method)
		w.long(r.Verification.Remaining)
		w.time(r.Verification.At)
	}
	w.count(len(r.Residuals))
	for i := range r.Residuals {
		w.str("residuals.kind", r.Residuals[i].Kind)
		w.time(r.Residuals[i].Until)
	}
	w.end()
	w.strs("gaps", r.Gaps)
	w.time(r.CommittedAt)
	w.time(r.MadeAt)
	w.b = append(w.b, r.MappingDigest[:]...)
	w.b = append(w.b, r.ConfigDigest[:]...)
	w.str("version", r.Version)
	if w.err == nil && len(w.b)-len(dst) > MaxMessage {
		w.err = ErrTooLarge
	}
	if w.err != nil {
		return dst, fmt.Errorf("encoding receipt of replica %q: %w", r.Replica, w.err)
	}
	return w.b, nil
}

func appendRows(w *writer, r *Receipt) {
	w.count(len(r.Rows))
	for i := range r.Rows {
		row := &r.Rows[i]
		w.str("rows.table", row.Table)
		w.str("rows.action", row.Action)
		w.long(row.Matched)
		w.long(row.Changed)
	}
	w.end()
	w.count(len(r.Events))
	for i := range r.Events {
		w.b = append(w.b, r.Events[i].EventID[:]...)
		w.str("events.outcome", r.Events[i].Outcome)
	}
	w.end()
}

// DecodeReceipt reads what AppendReceipt writes. Its error is ErrTooLarge, ErrMalformed or ErrUnknownSchema.
func DecodeReceipt(value []byte) (*Receipt, error) {
	r, err := readerOf(value, recordReceipt)
	if err != nil {
		return nil, err
	}
	out := new(Receipt)
	r.fixed(out.ReceiptID[:])
	r.fixed(out.EventID[:])
	out.EventType = Type(r.enum(typeSymbols) + 1)
	r.optFixed(out.CaseID[:])
	out.Source, out.Replica, out.Recipient = r.str(), r.str(), r.str()
	out.State, out.Reason = ReceiptState(r.enum(receiptNames)), r.optStr()
	out.Attempt, out.MatchMethod = r.uint32(), r.optStr()
	out.Rows = readArray(r, 4, func(r *reader, row *TableRows) {
		row.Table, row.Action, row.Matched, row.Changed = r.str(), r.str(), r.long(), r.long()
	})
	out.Events = readArray(r, len(EventID{})+1, func(r *reader, e *EventOutcome) {
		r.fixed(e.EventID[:])
		e.Outcome = r.str()
	})
	out.Evidence = EvidenceLevel(r.enum(evidenceNames))
	if r.option() {
		out.Verification = &Verification{Method: r.str(), Remaining: r.long(), At: r.time()}
	}
	out.Residuals = readArray(r, 2, func(r *reader, x *Residual) { x.Kind, x.Until = r.str(), r.time() })
	out.Gaps = r.strs()
	out.CommittedAt, out.MadeAt = r.time(), r.time()
	r.fixed(out.MappingDigest[:])
	r.fixed(out.ConfigDigest[:])
	out.Version = r.str()
	if r.bad || r.left() != 0 {
		return nil, ErrMalformed
	}
	return out, nil
}

// readerOf checks size and fingerprint and gives a reader behind the single-object header.
func readerOf(value []byte, want int) (*reader, error) {
	record, err := recordOf(value)
	if err != nil {
		return nil, err
	}
	if record != want {
		return nil, ErrUnknownSchema
	}
	return &reader{b: value, off: headerSize}, nil
}

// SignReceipt gives the single-object encoded SignedReceipt. Ed25519 signatures are deterministic: the same receipt under the same key
// gives the same bytes.
func SignReceipt(s Signer, r *Receipt) ([]byte, error) {
	body, err := AppendReceipt(nil, r)
	if err != nil {
		return nil, err
	}
	keyID, signature, err := s.Sign(body)
	if err != nil {
		return nil, fmt.Errorf("signing receipt of replica %q: %w", r.Replica, err)
	}
	w := writer{b: make([]byte, 0, headerSize+16+len(body)+len(signature))}
	w.b = append(w.b, headers[recordSignedReceipt][:]...)
	w.long(int64(keyID))
	w.bytes(body)
	w.bytes(signature)
	if len(w.b) > MaxMessage {
		return nil, fmt.Errorf("signing receipt of replica %q: %w", r.Replica, ErrTooLarge)
	}
	return w.b, nil
}

// DecodeSignedReceipt reads what SignReceipt writes; nothing is verified yet. Its error is ErrTooLarge, ErrMalformed or
// ErrUnknownSchema. The result shares memory with value.
func DecodeSignedReceipt(value []byte) (*SignedReceipt, error) {
	r, err := readerOf(value, recordSignedReceipt)
	if err != nil {
		return nil, err
	}
	s := &SignedReceipt{KeyID: r.uint32(), Body: r.bytes(), Signature: r.bytes()}
	if r.bad || r.left() != 0 {
		return nil, ErrMalformed
	}
	return s, nil
}

// VerifyReceipt verifies the signature under the keys of the replica that the receipt names, and gives the receipt. Its error is one of
// those of DecodeReceipt, ErrForged or ErrUnknownKey.
func VerifyReceipt(v Verifier, s *SignedReceipt) (*Receipt, error) {
	r, err := DecodeReceipt(s.Body)
	if err != nil {
		return nil, err
	}
	if len(s.Signature) != ed25519.SignatureSize {
		return nil, ErrForged
	}
	if err := v.Verify(r.Replica, s.KeyID, s.Body, s.Signature); err != nil {
		return nil, err
	}
	return r, nil
}
