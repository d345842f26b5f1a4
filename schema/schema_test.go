package schema

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"flag"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fixedAEAD is AES-256-GCM with a constant nonce, so that golden bytes stay what they are. keyID stands before the ciphertext.
type fixedAEAD struct {
	gcm   cipher.AEAD
	keyID byte
}

func newFixedAEAD(keyID byte) *fixedAEAD {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &fixedAEAD{gcm: gcm, keyID: keyID}
}

func (a *fixedAEAD) AppendSeal(dst, plaintext, aad []byte) ([]byte, error) {
	var nonce [12]byte
	return a.gcm.Seal(append(dst, a.keyID), nonce[:], plaintext, aad), nil
}

func (a *fixedAEAD) Open(ciphertext, aad []byte) ([]byte, error) {
	if len(ciphertext) < 1 {
		return nil, errors.New("too short")
	}
	if ciphertext[0] != a.keyID {
		return nil, ErrUnknownKey
	}
	var nonce [12]byte
	return a.gcm.Open(nil, nonce[:], ciphertext[1:], aad)
}

type hmacPRF []byte

func (k hmacPRF) Compute(dst *[32]byte, data []byte) {
	h := hmac.New(sha256.New, k)
	h.Write(data)
	h.Sum(dst[:0])
}

var (
	testIDs    = NewIdentifiers(hmacPRF("test key"), "crm")
	testSeal   = newFixedAEAD(7)
	commitTime = time.Date(2026, 3, 14, 9, 26, 53, 589e6, time.UTC)
)

// samples has one event of each type, and second ones where optional fields matter.
func samples() map[string]*Event {
	ref := testIDs.SubjectRef(CanonicalKey(nil, []byte("4711")))
	header := func(rule string, n uint32) Header {
		return Header{
			EventID: testIDs.EventID(EventKey{Incarnation: 1, Epoch: 1, Number: 0x16B3748, Table: "public.customer", PK: []byte("\x044711"), Op: 2, Occurrence: n, Rule: rule}),
			Order:   NewOrder(1, 1, 0x16B3748, n), SubjectRef: ref, Source: "crm", CommittedAt: commitTime,
			DetectedAt: commitTime.Add(12 * time.Millisecond), Rule: rule, ConfigDigest: sha256.Sum256([]byte("mapping")),
		}
	}
	subject := func(rule string, n uint32, b Body) *Event {
		return &Event{Header: header(rule, n), Body: b, CRMKey: CanonicalKey(nil, []byte("4711"))}
	}
	everyone := func(rule string, n uint32, b Body) *Event {
		ev := &Event{Header: header(rule, n), Body: b}
		ev.SubjectRef = SubjectRef{}
		return ev
	}
	contact := testIDs.ContactRef("public.customer_email", CanonicalKey(nil, []byte("12")))
	erasure := subject("public.customer/erased", 1, &SubjectErasure{
		Ground: "A17NoLegalBasis", ReceivedAt: commitTime.AddDate(0, 0, -3), LegalDueAt: commitTime.AddDate(0, 1, -3),
		Authorisation: []byte("DOC-2026-0042"), Phase2: Phase2OnDecision, Marker: true,
	})
	erasure.CaseID = testIDs.CaseID(ref)
	snapshot := subject("public.customer/erased", 2, &SubjectErasure{})
	snapshot.Kind, snapshot.RunID = KindSnapshot, "pass-1"
	return map[string]*Event{
		"subject_erasure":          erasure,
		"subject_erasure_snapshot": snapshot,
		"case_decision": subject("cli", 3, &CaseDecision{
			Decision: DecisionHold, Replica: "marketing", Reason: "open_invoice", Checks: []string{"no_unpaid_invoice", "no_active_service"},
			DecidedBy: "operator", DecidedAt: commitTime,
		}),
		"consent_change": subject("public.consent/consent", 4, &ConsentChange{
			Purpose: "newsletter", Channel: "email", Contact: contact, State: ConsentGiven, LegalBasis: "consent",
			ValidUntil: commitTime.AddDate(3, 0, 0), AsOf: commitTime.Add(-time.Hour), Evidence: []byte("FORM-9"),
			Method: "web_form", Notice: "2026-03", Actor: "subject",
		}),
		"consent_change_bare": subject("public.consent/consent", 5, &ConsentChange{Purpose: "offers", Channel: "social_match", State: ConsentInvalidated}),
		"objection":           subject("public.customer/objection", 6, &Objection{Raised: true, Scope: "direct_marketing"}),
		"objection_contact":   subject("public.customer_email/objection", 6, &Objection{Raised: true, Scope: "direct_marketing", Contact: contact}),
		"restriction":         subject("public.customer/restricted", 7, &ProcessingRestriction{Imposed: true, Until: commitTime.AddDate(0, 6, 0)}),
		"contact_point": subject("public.customer_email/contact_point", 8, &ContactPoint{
			Contact: contact, Kind: ContactPhone, Past: true, Keys: []MatchKey{
				{Type: "phone_e164", KeyID: 4_000_000_000, NormVersion: 1, Value: sha256.Sum256([]byte("a"))},
				{Type: "phone_e164", KeyID: 5, NormVersion: 2, Value: sha256.Sum256([]byte("b"))},
			},
		}),
		"subject_merged":   subject("public.customer/merged", 9, &SubjectMerged{Absorbed: []SubjectRef{testIDs.SubjectRef([]byte("\x011")), testIDs.SubjectRef([]byte("\x012"))}}),
		"gap":              everyone("capture", 10, &Gap{Opened: true, GapID: "g-1", From: NewOrder(1, 1, 5, 0), Cause: "slot_lost"}),
		"gap_closed":       everyone("capture", 11, &Gap{GapID: "g-1", From: NewOrder(1, 1, 5, 0), To: NewOrder(1, 1, 9, 0), Cause: "slot_lost"}),
		"heartbeat":        everyone("heartbeat", 12, &Heartbeat{EmittedAt: commitTime}),
		"pass_marker":      everyone("pass", 13, &PassMarker{Begin: true, Tables: []string{"public.customer", "public.consent"}}),
		"pass_marker_full": everyone("pass", 14, &PassMarker{Full: true, Tables: []string{"public.customer"}, Replicas: []string{"marketing", "reporting"}}),
		"identity":         subject("public.customer/identity", 15, &ContactPoint{Contact: contact, Kind: ContactIdentity, Keys: []MatchKey{{Type: "name_dob", KeyID: 5, NormVersion: 1}}}),
		"source_report": subject("source", 16, &SourceReport{
			Aspect: AspectRevived, Missing: []string{"public.customer.last_name"}, ReceivedAt: commitTime.AddDate(0, 0, -3),
			LegalDueAt: commitTime.AddDate(0, 1, -3), CheckedAt: commitTime,
		}),
	}
}

func sampleReceipts() map[string]*Receipt {
	return map[string]*Receipt{
		"receipt_erasure": {
			ReceiptID: testIDs.ReceiptID(EventID{1}, "marketing", ReceiptVerified, 1), EventID: EventID{1}, EventType: TypeSubjectErasure,
			CaseID: CaseID{2}, Source: "crm", Replica: "marketing", Recipient: "Régie Martin SAS", State: ReceiptVerified, Attempt: 1,
			MatchMethod: "crm_key", Rows: []TableRows{{"leads", "set", 1, 1}, {"lead_notes", "delete", 300, 299}}, Evidence: EvidenceReadBack,
			Verification: &Verification{Method: "columns+audience", At: commitTime.Add(time.Minute)},
			Residuals:    []Residual{{"wal", commitTime.AddDate(0, 0, 7)}, {"backup", commitTime.AddDate(0, 0, 35)}},
			CommittedAt:  commitTime, MadeAt: commitTime.Add(time.Minute), MappingDigest: sha256.Sum256([]byte("m")),
			ConfigDigest: sha256.Sum256([]byte("c")), Version: "0.1.0",
		},
		"receipt_consents": {
			ReceiptID: ReceiptID{9}, EventID: EventID{1}, EventType: TypeConsentChange, Source: "crm", Replica: "reporting", Recipient: "Reporting",
			State: ReceiptApplied, Reason: "observe", Attempt: 4_294_967_295, Events: []EventOutcome{{EventID{1}, "applied"}, {EventID{3}, "stale"}},
			Evidence: EvidenceApplied, Gaps: []string{"g-1"}, CommittedAt: commitTime, MadeAt: commitTime, Version: "0.1.0",
		},
	}
}
