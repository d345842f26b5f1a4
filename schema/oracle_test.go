package schema

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/linkedin/goavro/v2"
	"pgregory.net/rapid"
)

// goavro is the oracle of the codec that we wrote by hand. Its own limits are far too wide: six bytes keep it busy for seconds.
func init() {
	goavro.MaxBlockCount = 1 << 16
	goavro.MaxBlockSize = MaxMessage
}

func codecOf(t testing.TB, record int) *goavro.Codec {
	t.Helper()
	text, err := avsc(recordName(record))
	if err != nil {
		t.Fatal(err)
	}
	c, err := goavro.NewCodec(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var codecs = map[int]*goavro.Codec{}

func oracle(t testing.TB, record int, native map[string]any) []byte {
	t.Helper()
	if codecs[record] == nil {
		codecs[record] = codecOf(t, record)
	}
	b, err := codecs[record].BinaryFromNative(headers[record][:], native)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func opt(name string, v any, present bool) any {
	if !present {
		return nil
	}
	return goavro.Union(name, v)
}

const ns = "lethe.v1."

func optString(s string) any { return opt("string", s, s != "") }

func optTime(v time.Time) any { return opt("long.timestamp-millis", v, !v.IsZero()) }

func anys[T any](in []T, f func(T) any) []any {
	out := []any{}
	for _, x := range in {
		out = append(out, f(x))
	}
	return out
}

func str(s string) any { return s }

// nativeEvent is what goavro is given for an event, without sealed_key.
func nativeEvent(t testing.TB, ev *Event) map[string]any {
	t.Helper()
	m := map[string]any{
		"event_id": ev.EventID[:], "order": ev.Order[:], "subject_ref": opt(ns+"SubjectRef", ev.SubjectRef[:], !ev.SubjectRef.IsZero()),
		"case_id": opt(ns+"CaseID", ev.CaseID[:], !ev.CaseID.IsZero()), "source": ev.Source, "kind": ev.Kind.String(), "run_id": optString(ev.RunID),
		"committed_at": ev.CommittedAt, "detected_at": ev.DetectedAt, "rule": ev.Rule, "config_digest": ev.ConfigDigest[:], "sealed_key": []byte{},
	}
	sealed := func(field string, v []byte) any {
		if v == nil {
			return nil
		}
		b, err := testSeal.AppendSeal(nil, v, append(bytes.Clone(ev.EventID[:]), field...))
		if err != nil {
			t.Fatal(err)
		}
		return goavro.Union("bytes", b)
	}
	switch b := ev.Body.(type) {
	case *SubjectErasure:
		m["ground"], m["received_at"], m["legal_due_at"] = optString(b.Ground), optTime(b.ReceivedAt), optTime(b.LegalDueAt)
		m["authorisation"], m["phase2"], m["marker"] = sealed("authorisation", b.Authorisation), b.Phase2.String(), b.Marker
	case *CaseDecision:
		m["decision"], m["replica"], m["reason"] = b.Decision.String(), optString(b.Replica), optString(b.Reason)
		m["checks"], m["decided_by"], m["decided_at"] = anys(b.Checks, str), b.DecidedBy, b.DecidedAt
	case *ConsentChange:
		m["purpose"], m["channel"], m["contact_ref"] = b.Purpose, b.Channel, opt(ns+"ContactRef", b.Contact[:], !b.Contact.IsZero())
		m["state"], m["legal_basis"] = dpvConsentStates[b.State], optString(b.LegalBasis)
		m["valid_until"], m["as_of"], m["evidence"] = optTime(b.ValidUntil), optTime(b.AsOf), sealed("evidence", b.Evidence)
		m["indication_method"], m["notice_id"], m["entity"] = optString(b.Method), optString(b.Notice), optString(b.Actor)
	case *Objection:
		m["raised"], m["scope"], m["contact_ref"] = b.Raised, b.Scope, opt(ns+"ContactRef", b.Contact[:], !b.Contact.IsZero())
	case *ProcessingRestriction:
		m["imposed"], m["until"] = b.Imposed, optTime(b.Until)
	case *ContactPoint:
		m["contact_ref"], m["contact_kind"], m["past"], m["removed"] = b.Contact[:], b.Kind.String(), b.Past, b.Removed
		m["keys"] = anys(b.Keys, func(k MatchKey) any {
			return map[string]any{"type": k.Type, "key_id": int64(k.KeyID), "norm_version": int64(k.NormVersion), "value": k.Value[:]}
		})
	case *SubjectMerged:
		m["absorbed"] = anys(b.Absorbed, func(r SubjectRef) any { return r[:] })
	case *Gap:
		m["opened"], m["gap_id"], m["from"], m["cause"] = b.Opened, b.GapID, b.From[:], b.Cause
		m["to"] = opt(ns+"Order", b.To[:], b.To != Order{})
	case *Heartbeat:
		m["emitted_at"] = b.EmittedAt
	case *PassMarker:
		m["begin"], m["tables"], m["full"], m["replicas"] = b.Begin, anys(b.Tables, str), b.Full, anys(b.Replicas, str)
	case *SourceReport:
		m["aspect"], m["satisfied"], m["missing"] = b.Aspect, b.Satisfied, anys(b.Missing, str)
		m["received_at"], m["legal_due_at"], m["checked_at"] = optTime(b.ReceivedAt), optTime(b.LegalDueAt), b.CheckedAt
	}
	return m
}

var dpvConsentStates = []string{
	"ConsentUnknown", "ConsentRequested", "ConsentRequestDeferred", "ConsentGiven", "RenewedConsentGiven", "ConsentRefused", "ConsentWithdrawn",
	"ConsentRevoked", "ConsentExpired", "ConsentInvalidated",
}

// oracleEvent lets goavro encode all but sealed_key, and seals by hand.
func oracleEvent(t testing.TB, ev *Event) []byte {
	t.Helper()
	b := oracle(t, int(ev.Body.Type()), nativeEvent(t, ev))
	b = b[:len(b)-1] // the length of the empty sealed_key
	var plain [64]byte
	n := binary.PutUvarint(plain[:], uint64(len(ev.CRMKey)))
	copy(plain[n:], ev.CRMKey)
	sealed, err := testSeal.AppendSeal(nil, plain[:], b)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.AppendVarint(b, int64(len(sealed))), sealed...)
}

func nativeReceipt(r *Receipt) map[string]any {
	m := map[string]any{
		"receipt_id": r.ReceiptID[:], "event_id": r.EventID[:], "event_type": r.EventType.String(), "case_id": opt(ns+"CaseID", r.CaseID[:], !r.CaseID.IsZero()),
		"source": r.Source, "replica": r.Replica, "recipient": r.Recipient, "state": r.State.String(), "reason": optString(r.Reason), "attempt": int64(r.Attempt),
		"match_method": optString(r.MatchMethod), "evidence": r.Evidence.String(), "gaps": anys(r.Gaps, str), "committed_at": r.CommittedAt, "made_at": r.MadeAt,
		"mapping_digest": r.MappingDigest[:], "config_digest": r.ConfigDigest[:], "version": r.Version, "verification": nil,
	}
	m["rows"] = anys(r.Rows, func(x TableRows) any {
		return map[string]any{"table": x.Table, "action": x.Action, "matched": x.Matched, "changed": x.Changed}
	})
	m["events"] = anys(r.Events, func(x EventOutcome) any { return map[string]any{"event_id": x.EventID[:], "outcome": x.Outcome} })
	m["residuals"] = anys(r.Residuals, func(x Residual) any { return map[string]any{"kind": x.Kind, "until": x.Until} })
	if v := r.Verification; v != nil {
		m["verification"] = goavro.Union(ns+"Verification", map[string]any{"method": v.Method, "remaining": v.Remaining, "at": v.At})
	}
	return m
}

func TestSamplesAreWhatGoavroWrites(t *testing.T) {
	for name, ev := range samples() {
		if got, want := encode(t, ev), oracleEvent(t, ev); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
	for name, r := range sampleReceipts() {
		got, err := AppendReceipt(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		if want := oracle(t, recordReceipt, nativeReceipt(r)); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, want)
		}
	}
	s := SignedReceipt{KeyID: 4_000_000_000, Body: []byte("body"), Signature: []byte("signature")}
	want := oracle(t, recordSignedReceipt, map[string]any{"key_id": int64(s.KeyID), "body": s.Body, "signature": s.Signature})
	got, err := DecodeSignedReceipt(want)
	if err != nil || !cmp.Equal(*got, s) {
		t.Errorf("SignedReceipt: %+v, %v", got, err)
	}
}

// The generators.

var (
	genText  = rapid.StringN(0, 20, 40)
	genMilli = rapid.Map(rapid.Int64Range(-1<<45, 1<<45), func(ms int64) time.Time { return time.UnixMilli(ms).UTC() })
	genTime  = rapid.OneOf(rapid.Just(time.Time{}), genMilli)
	genBytes = rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 0, 50))
)

func gen16(t *rapid.T, label string) (id [16]byte) {
	copy(id[:], rapid.SliceOfN(rapid.Byte(), 0, 16).Draw(t, label))
	return id
}

func gen32(t *rapid.T, label string) (id [32]byte) {
	copy(id[:], rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, label))
	return id
}

func genOrder(t *rapid.T, label string) Order {
	return NewOrder(rapid.Uint32().Draw(t, label), rapid.Uint32().Draw(t, label), rapid.Uint64().Draw(t, label), rapid.Uint32().Draw(t, label))
}

func genSlice[T any](t *rapid.T, label string, item func() T) (out []T) {
	for range rapid.IntRange(0, 4).Draw(t, label) {
		out = append(out, item())
	}
	return out
}

func genEvent(t *rapid.T) *Event {
	typ := Type(rapid.IntRange(int(TypeSubjectErasure), int(TypeLast)).Draw(t, "type"))
	ev := &Event{
		Header: Header{
			EventID: gen16(t, "event id"), Order: genOrder(t, "order"), CaseID: gen16(t, "case id"), Source: genText.Draw(t, "source"),
			Kind: Kind(rapid.IntRange(0, 1).Draw(t, "kind")), RunID: genText.Draw(t, "run id"), CommittedAt: genMilli.Draw(t, "committed"),
			DetectedAt: genMilli.Draw(t, "detected"), Rule: genText.Draw(t, "rule"), ConfigDigest: gen32(t, "digest"),
		},
		Body: genBody(t, typ),
	}
	if key := rapid.SliceOfN(rapid.Byte(), 0, MaxKey).Draw(t, "key"); len(key) > 0 {
		ev.CRMKey = key
	}
	if !toEveryPartition(typ) {
		ev.SubjectRef = gen32(t, "subject")
		ev.SubjectRef[0] = 1
	}
	return ev
}

func genBody(t *rapid.T, typ Type) Body {
	text := func(label string) string { return genText.Draw(t, label) }
	flag := func(label string) bool { return rapid.Bool().Draw(t, label) }
	small := func(label string, n names) uint8 { return uint8(rapid.IntRange(0, len(n)-1).Draw(t, label)) }
	switch typ {
	case TypeSubjectErasure:
		return &SubjectErasure{
			Ground: text("ground"), ReceivedAt: genTime.Draw(t, "received"), LegalDueAt: genTime.Draw(t, "due"), Authorisation: genBytes.Draw(t, "auth"),
			Phase2: Phase2(small("phase2", phase2Names)), Marker: flag("marker"),
		}
	case TypeCaseDecision:
		return &CaseDecision{
			Decision: Decision(small("decision", decisionNames)), Replica: text("replica"), Reason: text("reason"),
			Checks: genSlice(t, "checks", func() string { return text("check") }), DecidedBy: text("by"), DecidedAt: genMilli.Draw(t, "at"),
		}
	case TypeConsentChange:
		return &ConsentChange{
			Purpose: text("purpose"), Channel: channelNames[small("channel", channelNames)], Contact: gen16(t, "contact"),
			State: ConsentState(small("state", consentNames)), LegalBasis: text("basis"), ValidUntil: genTime.Draw(t, "until"),
			AsOf: genTime.Draw(t, "as of"), Evidence: genBytes.Draw(t, "evidence"), Method: text("method"), Notice: text("notice"), Actor: text("actor"),
		}
	case TypeObjection:
		return &Objection{Raised: flag("raised"), Scope: text("scope"), Contact: gen16(t, "contact")}
	case TypeProcessingRestriction:
		return &ProcessingRestriction{Imposed: flag("imposed"), Until: genTime.Draw(t, "until")}
	case TypeContactPoint:
		return &ContactPoint{
			Contact: gen16(t, "contact"), Kind: ContactKind(small("kind", contactNames)), Past: flag("past"), Removed: flag("removed"),
			Keys: genSlice(t, "keys", func() MatchKey {
				return MatchKey{Type: text("type"), KeyID: rapid.Uint32().Draw(t, "key id"), NormVersion: rapid.Uint32().Draw(t, "norm"), Value: gen32(t, "value")}
			}),
		}
	case TypeSubjectMerged:
		return &SubjectMerged{Absorbed: genSlice(t, "absorbed", func() SubjectRef { return gen32(t, "ref") })}
	case TypeGap:
		g := &Gap{Opened: flag("opened"), GapID: text("gap"), From: genOrder(t, "from"), Cause: text("cause")}
		if flag("closed") {
			g.To = genOrder(t, "to")
		}
		return g
	case TypeHeartbeat:
		return &Heartbeat{EmittedAt: genMilli.Draw(t, "emitted")}
	case TypePassMarker:
		return &PassMarker{
			Begin: flag("begin"), Tables: genSlice(t, "tables", func() string { return text("table") }), Full: flag("full"),
			Replicas: genSlice(t, "replicas", func() string { return text("replica") }),
		}
	case TypeSourceReport:
		return &SourceReport{
			Aspect: aspectNames[small("aspect", aspectNames)], Satisfied: flag("satisfied"),
			Missing: genSlice(t, "missing", func() string { return text("what") }), ReceivedAt: genTime.Draw(t, "received"),
			LegalDueAt: genTime.Draw(t, "due"), CheckedAt: genMilli.Draw(t, "checked"),
		}
	}
	panic(fmt.Sprintf("no generator for %s", typ))
}

func genReceipt(t *rapid.T) *Receipt {
	text := func(label string) string { return genText.Draw(t, label) }
	small := func(label string, n names) uint8 { return uint8(rapid.IntRange(0, len(n)-1).Draw(t, label)) }
	r := &Receipt{
		ReceiptID: gen16(t, "receipt"), EventID: gen16(t, "event"), EventType: Type(small("type", typeSymbols) + 1), CaseID: gen16(t, "case"),
		Source: text("source"), Replica: text("replica"), Recipient: text("recipient"), State: ReceiptState(small("state", receiptNames)),
		Reason: text("reason"), Attempt: rapid.Uint32().Draw(t, "attempt"), MatchMethod: text("method"),
		Rows: genSlice(t, "rows", func() TableRows {
			return TableRows{text("table"), text("action"), rapid.Int64().Draw(t, "matched"), rapid.Int64().Draw(t, "changed")}
		}),
		Events:    genSlice(t, "events", func() EventOutcome { return EventOutcome{gen16(t, "event"), text("outcome")} }),
		Evidence:  EvidenceLevel(small("evidence", evidenceNames)),
		Residuals: genSlice(t, "residuals", func() Residual { return Residual{text("kind"), genMilli.Draw(t, "until")} }),
		Gaps:      genSlice(t, "gaps", func() string { return text("gap") }), CommittedAt: genMilli.Draw(t, "committed"), MadeAt: genMilli.Draw(t, "made"),
		MappingDigest: gen32(t, "mapping"), ConfigDigest: gen32(t, "config"), Version: text("version"),
	}
	if rapid.Bool().Draw(t, "verified") {
		r.Verification = &Verification{Method: text("how"), Remaining: rapid.Int64().Draw(t, "remaining"), At: genMilli.Draw(t, "at")}
	}
	return r
}

// eventProperty: our bytes are goavro's, and reading them gives back what was written.
func eventProperty(t *testing.T) func(*rapid.T) {
	enc, dec := NewEncoder(testSeal), NewDecoder(testSeal)
	return func(rt *rapid.T) {
		ev := genEvent(rt)
		got, err := enc.Append(nil, ev)
		if err != nil {
			rt.Fatal(err)
		}
		if want := oracleEvent(t, ev); !bytes.Equal(got, want) {
			rt.Fatalf("got %x\nwant %x", got, want)
		}
		back, err := dec.Decode(got)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(ev, back); diff != "" {
			rt.Fatal(diff)
		}
	}
}

func receiptProperty(t *testing.T) func(*rapid.T) {
	return func(rt *rapid.T) {
		r := genReceipt(rt)
		got, err := AppendReceipt(nil, r)
		if err != nil {
			rt.Fatal(err)
		}
		if want := oracle(t, recordReceipt, nativeReceipt(r)); !bytes.Equal(got, want) {
			rt.Fatalf("got %x\nwant %x", got, want)
		}
		back, err := DecodeReceipt(got)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(r, back); diff != "" {
			rt.Fatal(diff)
		}
	}
}

func TestEventsRoundTripAsGoavroWritesThem(t *testing.T)   { rapid.Check(t, eventProperty(t)) }
func TestReceiptsRoundTripAsGoavroWritesThem(t *testing.T) { rapid.Check(t, receiptProperty(t)) }

func nativeReconsentDue(d *ReconsentDue) map[string]any {
	return map[string]any{
		"replica": d.Replica, "subject_ref": d.SubjectRef[:], "purpose": d.Purpose, "channel": d.Channel, "cause": d.Cause,
		"contact_ref": opt(ns+"ContactRef", d.Contact[:], !d.Contact.IsZero()), "event_id": d.EventID[:], "order": d.Order[:], "at": d.At,
	}
}

func TestReconsentNoticesRoundTripAsGoavroWritesThem(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := &ReconsentDue{
			Replica: genText.Draw(rt, "replica"), SubjectRef: gen32(rt, "ref"), Purpose: genText.Draw(rt, "purpose"),
			Channel: rapid.SampledFrom([]string(channelNames)).Draw(rt, "channel"), Cause: genText.Draw(rt, "cause"), Contact: gen16(rt, "contact"),
			EventID: gen16(rt, "event"), Order: genOrder(rt, "order"), At: genMilli.Draw(rt, "at"),
		}
		got, err := AppendReconsentDue(nil, d)
		if err != nil {
			rt.Fatal(err)
		}
		if want := oracle(t, recordReconsentDue, nativeReconsentDue(d)); !bytes.Equal(got, want) {
			rt.Fatalf("got %x\nwant %x", got, want)
		}
		back, err := DecodeReconsentDue(got)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(d, back); diff != "" {
			rt.Fatal(diff)
		}
	})
}
