package schema

import "fmt"

// The text forms: what JSON, the tables in the replicas and the command line use. Avro's symbols are the same except for
// ConsentState, which has W3C DPV's names there.
var (
	typeNames = names{
		"", "SubjectErasure", "CaseDecision", "ConsentChange", "Objection", "ProcessingRestriction", "ContactPoint",
		"SubjectMerged", "Gap", "Heartbeat", "PassMarker",
		"SourceReport",
	}
	kindNames     = names{"stream", "snapshot"}
	phase2Names   = names{"automatic", "on_decision"}
	decisionNames = names{"proceed", "hold", "cancel", "release"}
	consentNames  = names{
		"unknown", "requested", "request_deferred", "given", "renewed_given", "refused", "withdrawn", "revoked",
		"expired", "invalidated",
	}
	contactNames = names{"email", "phone", "postal", "identity"}
	receiptNames = names{
		"planned", "no_match", "ambiguous", "suppressed", "awaiting_release", "held", "failed", "applied", "verified",
		"resurrected", "cancelled",
	}
	evidenceNames = names{"E0", "E1", "E2", "E3", "E4"}
	channelNames  = names{"email", "sms", "phone_human", "phone_automated", "postal", "push", "social_match"}
	aspectNames   = names{AspectCompleteness, AspectGate, AspectRequest, AspectRevived, AspectPresent}
)

// Channels are the values of ConsentChange.Channel, and of no other.
func Channels() []string { return append([]string(nil), channelNames...) }

type names []string

func (n names) text(i uint8, what string) string {
	if int(i) < len(n) && n[i] != "" {
		return n[i]
	}
	return fmt.Sprintf("%s(%d)", what, i)
}

// index does not repeat an unknown text in its error: it may come from a column that was mapped by mistake.
func (n names) index(s, what string) (uint8, error) {
	for i := range n {
		if n[i] == s && s != "" {
			return uint8(i), nil
		}
	}
	known := n
	if known[0] == "" {
		known = known[1:]
	}
	return 0, fmt.Errorf("parsing %s: not one of %v", what, []string(known))
}

func parse[E ~uint8](n names, s, what string) (E, error) {
	i, err := n.index(s, what)
	return E(i), err
}

func (t Type) String() string { return typeNames.text(uint8(t), "type") }

// ParseType reads the form that String writes.
func ParseType(s string) (Type, error) { return parse[Type](typeNames, s, "event type") }

// MarshalText implements encoding.TextMarshaler.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (k Kind) String() string { return kindNames.text(uint8(k), "kind") }

// ParseKind reads the form that String writes.
func ParseKind(s string) (Kind, error) { return parse[Kind](kindNames, s, "kind") }

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func (p Phase2) String() string { return phase2Names.text(uint8(p), "phase2") }

// ParsePhase2 reads the form that String writes.
func ParsePhase2(s string) (Phase2, error) { return parse[Phase2](phase2Names, s, "phase 2 mode") }

// MarshalText implements encoding.TextMarshaler.
func (p Phase2) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (d Decision) String() string { return decisionNames.text(uint8(d), "decision") }

// ParseDecision reads the form that String writes.
func ParseDecision(s string) (Decision, error) { return parse[Decision](decisionNames, s, "decision") }

// MarshalText implements encoding.TextMarshaler.
func (d Decision) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (c ConsentState) String() string { return consentNames.text(uint8(c), "consent state") }

// ParseConsentState reads the form that String writes.
func ParseConsentState(s string) (ConsentState, error) {
	return parse[ConsentState](consentNames, s, "consent state")
}

// MarshalText implements encoding.TextMarshaler.
func (c ConsentState) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Permits reports whether the state is valid for processing (W3C DPV): given and renewed alone are.
func (c ConsentState) Permits() bool { return c == ConsentGiven || c == ConsentRenewedGiven }

func (c ContactKind) String() string { return contactNames.text(uint8(c), "contact kind") }

// ParseContactKind reads the form that String writes.
func ParseContactKind(s string) (ContactKind, error) {
	return parse[ContactKind](contactNames, s, "contact kind")
}

// MarshalText implements encoding.TextMarshaler.
func (c ContactKind) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func (s ReceiptState) String() string { return receiptNames.text(uint8(s), "receipt state") }

// ParseReceiptState reads the form that String writes.
func ParseReceiptState(s string) (ReceiptState, error) {
	return parse[ReceiptState](receiptNames, s, "receipt state")
}

// MarshalText implements encoding.TextMarshaler.
func (s ReceiptState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Rank orders the states of one (event, replica): the effective receipt is the one of the highest rank, then of the
// highest attempt. It is the order of the constants but for three: a resurrection ranks as high as the verification that it
// undoes, so that the attempt decides between them (verified 1 < resurrected 2 < verified 3), and an ambiguous match as high as
// none, because a person may decide that the row is somebody else's. Cancelled ranks highest, because a case can be cancelled
// only before phase 2 and nothing follows it.
func (s ReceiptState) Rank() int {
	switch s {
	case ReceiptResurrected:
		return int(ReceiptVerified)
	case ReceiptAmbiguous:
		return int(ReceiptNoMatch)
	case ReceiptPlanned, ReceiptNoMatch, ReceiptSuppressed, ReceiptAwaitingRelease, ReceiptHeld,
		ReceiptFailed, ReceiptApplied, ReceiptVerified, ReceiptCancelled:
	}
	return int(s)
}

func (e EvidenceLevel) String() string { return evidenceNames.text(uint8(e), "evidence level") }

// ParseEvidenceLevel reads the form that String writes.
func ParseEvidenceLevel(s string) (EvidenceLevel, error) {
	return parse[EvidenceLevel](evidenceNames, s, "evidence level")
}

// MarshalText implements encoding.TextMarshaler.
func (e EvidenceLevel) MarshalText() ([]byte, error) { return []byte(e.String()), nil }
