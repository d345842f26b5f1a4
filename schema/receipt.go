package schema

import "time"

// ReceiptState is where one replica stands with one event.
type ReceiptState uint8

// The states, in the order in which a later one is more effective than an earlier one for the same attempt; see Rank.
const (
	ReceiptPlanned ReceiptState = iota
	ReceiptNoMatch
	ReceiptAmbiguous
	ReceiptSuppressed
	ReceiptAwaitingRelease
	ReceiptHeld
	ReceiptFailed
	ReceiptApplied
	ReceiptVerified
	ReceiptResurrected
	ReceiptCancelled
)

// EvidenceLevel says how well the effect is shown.
type EvidenceLevel uint8

// E0 attempted, E1 applied, E2 read back, E3 all text columns swept, E4 physically gone.
const (
	EvidenceAttempted EvidenceLevel = iota
	EvidenceApplied
	EvidenceReadBack
	EvidenceSwept
	EvidencePhysicallyGone
)

// TableRows counts what was done in one table of the replica.
type TableRows struct {
	Table   string
	Action  string // suppress, set, delete, insert, unlink, hold, consent, restriction
	Matched int64
	Changed int64
}

// Verification is what a read-back on another connection saw.
type Verification struct {
	Method    string // for example columns+audience
	Remaining int64  // values still readable
	At        time.Time
}

// Residual says where bytes may still lie, and until when.
type Residual struct {
	Kind  string // wal, binlog, backup, dead_tuples; hold:TABLE of rows that are kept under Art. 17(3)
	Until time.Time
}

// EventOutcome is one event of a receipt: a consent receipt lists all of its sink transaction.
type EventOutcome struct {
	EventID EventID
	Outcome string // applied, unchanged, stale, no_match, refused, observed, parked
}

// Receipt is the statement of what was done in one replica; SignedReceipt carries it. It has no subject reference: the
// case id joins it with the ledger.
type Receipt struct {
	ReceiptID     ReceiptID
	EventID       EventID // of the erasure, objection or restriction; of the first event for a consent receipt
	EventType     Type
	CaseID        CaseID
	Source        string
	Replica       string
	Recipient     string // Art. 19
	State         ReceiptState
	Reason        string // a code
	Attempt       uint32
	MatchMethod   string // crm_key, email_strict, …
	Rows          []TableRows
	Events        []EventOutcome // consents only
	Evidence      EvidenceLevel
	Verification  *Verification
	Residuals     []Residual
	Gaps          []string  // ids of the gaps open when it was made
	CommittedAt   time.Time // at the source
	MadeAt        time.Time // by the replica's clock
	MappingDigest [32]byte
	ConfigDigest  [32]byte // as in the event
	Version       string   // of Lethe
}

// SignedReceipt is the Avro bytes of a Receipt with an Ed25519 signature over them.
type SignedReceipt struct {
	KeyID     uint32
	Body      []byte // single-object encoded Receipt
	Signature []byte
}
