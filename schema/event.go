// Package schema holds what travels between capture, sinks and ledger: events, receipts, their identifiers and order, and
// their Avro encoding. It imports nothing else of Lethe.
package schema

import (
	"fmt"
	"io"
	"time"
)

// Kind tells whether an event came from the log or from a pass over the source's present state.
type Kind uint8

// The kinds.
const (
	KindStream Kind = iota
	KindSnapshot
)

// Header is common to all events. Times have millisecond precision and are UTC.
type Header struct {
	EventID      EventID
	Order        Order
	SubjectRef   SubjectRef // zero for Heartbeat, Gap and PassMarker
	CaseID       CaseID     // zero where no case is concerned
	Source       string     // the config's name
	Kind         Kind
	RunID        string    // of a pass; empty otherwise
	CommittedAt  time.Time // from the log
	DetectedAt   time.Time
	Rule         string
	ConfigDigest [32]byte // of the normalised mapping
}

// Body is what an event says: one of the pointer types below.
type Body interface{ Type() Type }

// Event is one event. CRMKey is the canonical CRM key in clear: Encode seals it and Decode opens it; it exists only in
// memory, and only where the seal key is. Neither fmt nor JSON prints it: use it through a pii.Value as soon as it is opened.
type Event struct {
	Header
	Body   Body
	CRMKey []byte `json:"-"`
}

// Format implements fmt.Formatter for every verb: an event shows its type, id and order, never the CRM key or the references that
// Avro holds sealed.
func (e Event) Format(f fmt.State, _ rune) {
	t := Type(0)
	if e.Body != nil {
		t = e.Body.Type()
	}
	_, _ = io.WriteString(f, t.String()+" "+e.EventID.String()+" at "+e.Order.String())
}

// Type is the Avro record name of an event.
type Type uint8

// The event types.
const (
	TypeSubjectErasure Type = iota + 1
	TypeCaseDecision
	TypeConsentChange
	TypeObjection
	TypeProcessingRestriction
	TypeContactPoint
	TypeSubjectMerged
	TypeGap
	TypeHeartbeat
	TypePassMarker
	TypeSourceReport
)

// TypeLast is the highest event type; types are numbered from TypeSubjectErasure to it without a hole.
const TypeLast = TypeSourceReport

// Phase2 says how the second phase of an erasure starts.
type Phase2 uint8

// Automatic after the cool-off, or only on a CaseDecision.
const (
	Phase2Automatic Phase2 = iota
	Phase2OnDecision
)

// SubjectErasure says that the subject was erased at the source (GDPR Art. 17).
type SubjectErasure struct {
	Ground        string    // W3C DPV term, for example A17NoLegalBasis; empty: not stated
	ReceivedAt    time.Time // of the request, Art. 12(3); zero: unknown
	LegalDueAt    time.Time // one month after ReceivedAt; zero: unknown
	Authorisation []byte    `json:"-"` // reference of the authorising document, in clear here, sealed in Avro; may be nil
	Phase2        Phase2
	Marker        bool // true: the procedure's own end marker was seen; false: the state of the subject's row
}

// Decision of a CaseDecision.
type Decision uint8

// The decisions. Release is a proceed for a case that waits at the breaker.
const (
	DecisionProceed Decision = iota
	DecisionHold
	DecisionCancel
	DecisionRelease
)

// CaseDecision drives a case's state machine. It is not compared by order: cancel and hold beat proceed until phase 2 has run.
type CaseDecision struct {
	Decision  Decision
	Replica   string // empty: all
	Reason    string // a code, never free text
	Checks    []string
	DecidedBy string // a pseudonym or role, never a person's name
	DecidedAt time.Time
}

// ConsentState is a W3C DPV consent state.
type ConsentState uint8

// The states; Given and RenewedGiven alone are valid for processing.
const (
	ConsentUnknown ConsentState = iota
	ConsentRequested
	ConsentRequestDeferred
	ConsentGiven
	ConsentRenewedGiven
	ConsentRefused
	ConsentWithdrawn
	ConsentRevoked
	ConsentExpired
	ConsentInvalidated
)

// ConsentChange says that the consent record of purpose × channel × contact point has a new state (ISO/IEC TS 27560, Art. 7).
type ConsentChange struct {
	Purpose    string // from the mapping's closed map
	Channel    string // email, sms, phone_human, phone_automated, postal, push, social_match
	Contact    ContactRef
	State      ConsentState
	LegalBasis string    // consent, legitimate_interests, …; empty: none, and then nothing is permitted
	ValidUntil time.Time // zero: no end
	AsOf       time.Time // claimed time of the record; zero: not mapped
	Evidence   []byte    `json:"-"` // reference, in clear here, sealed in Avro; may be nil
	Method     string    // how it was indicated, a code of the mapping's closed map; empty: not mapped
	Notice     string    // the notice that was shown, a code; empty: not mapped
	Actor      string    // who indicated it, a code, never a name; empty: not mapped
}

// Objection is an objection under Art. 21, raised or lifted.
type Objection struct {
	Raised bool
	Scope  string // direct_marketing, profiling, all, or one purpose of the mapping
	// Contact is the contact point in whose row it was said; zero: it was said of the person. It holds for the person in both
	// cases, and for the channels of the point wherever the point stands.
	Contact ContactRef
}

// ProcessingRestriction is a restriction under Art. 18, imposed or lifted.
type ProcessingRestriction struct {
	Imposed bool
	Until   time.Time // zero: until lifted
}

// ContactKind is the kind of a contact point.
type ContactKind uint8

// The kinds of contact points. Identity is no point at which somebody can be reached: it is the name and birth date in the subject's own row,
// an upsert by that row.
const (
	ContactEmail ContactKind = iota
	ContactPhone
	ContactPostal
	ContactIdentity
)

// The types of match keys. They are part of what is keyed and never change.
const (
	MatchEmailStrict = "email_strict"
	MatchEmailLoose  = "email_loose"
	MatchPhone       = "phone_e164"
	MatchPostal      = "postal"
	MatchName        = "name"
	MatchNameDOB     = "name_dob" // name and birth date
)

// MatchKey is a keyed, normalised contact point.
type MatchKey struct {
	Type        string // one of the constants above
	KeyID       uint32
	NormVersion uint32
	Value       [32]byte
}

// ContactPoint is an upsert by Contact. A sink, which knows the previous keys, decides added, replaced or unchanged.
type ContactPoint struct {
	Contact ContactRef
	Kind    ContactKind
	Past    bool
	Removed bool
	Keys    []MatchKey
}

// SubjectMerged says that Absorbed were joined into the event's subject; the stricter facts win.
type SubjectMerged struct{ Absorbed []SubjectRef }

// Gap says that a part of the log is lost to us (opened), or that a pass has made good for it (closed). To every partition.
type Gap struct {
	Opened bool
	GapID  string
	From   Order  // the last order known before the gap
	To     Order  // zero: open-ended
	Cause  string // a code: slot_lost, slot_recreated, slot_ahead, other_system, forked_history, truncate, drop, unsafe_column
}

// Heartbeat travels through the source's log to every partition.
type Heartbeat struct{ EmittedAt time.Time }

// PassMarker brackets a pass; the header's RunID names it. To every partition.
type PassMarker struct {
	Begin    bool
	Tables   []string // that the pass reads
	Full     bool     // every mapped table: a subject that it does not show is not in the source
	Replicas []string // it is for; empty: all
}

// The aspects of a SourceReport.
const (
	AspectCompleteness = "completeness" // nothing is left at the source of what was to be erased
	AspectGate         = "gate"         // the checks that must hold before phase 2
	AspectRequest      = "request"      // the person's request is on file
	AspectRevived      = "revived"      // the row left the erased state again; Satisfied says that it is over
	AspectPresent      = "present"      // a pass has read the subject's own row, of which nothing else is to be said
)

// SourceReport says what a read-back of the source saw of one subject's case. The header carries the case.
type SourceReport struct {
	Aspect     string // one of the Aspect constants
	Satisfied  bool
	Missing    []string  // what keeps it from being satisfied: table.column or the name of a check, never a value
	ReceivedAt time.Time // of the request, Art. 12(3); zero: unknown
	LegalDueAt time.Time // zero: unknown
	CheckedAt  time.Time // when the source was read
}

// Type implements Body.
func (*SubjectErasure) Type() Type { return TypeSubjectErasure }

// Type implements Body.
func (*CaseDecision) Type() Type { return TypeCaseDecision }

// Type implements Body.
func (*ConsentChange) Type() Type { return TypeConsentChange }

// Type implements Body.
func (*Objection) Type() Type { return TypeObjection }

// Type implements Body.
func (*ProcessingRestriction) Type() Type { return TypeProcessingRestriction }

// Type implements Body.
func (*ContactPoint) Type() Type { return TypeContactPoint }

// Type implements Body.
func (*SubjectMerged) Type() Type { return TypeSubjectMerged }

// Type implements Body.
func (*Gap) Type() Type { return TypeGap }

// Type implements Body.
func (*Heartbeat) Type() Type { return TypeHeartbeat }

// Type implements Body.
func (*PassMarker) Type() Type { return TypePassMarker }

// Type implements Body.
func (*SourceReport) Type() Type { return TypeSourceReport }
