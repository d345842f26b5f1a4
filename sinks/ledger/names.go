package ledger

// SchemaVersion is the version of the ledger tables that this build reads and writes, the same in every dialect. Setup
// migrates up to it, run refuses a newer one.
const SchemaVersion = 2

// The keys of the table meta.
const (
	MetaSchemaVersion = "schema_version"
	MetaReplica       = "replica"
	MetaSource        = "source"
	MetaDigest        = "mapping_digest" // hex, of the mapping that Setup activated
	MetaWitness       = "witness"        // decimal, raised with every mapped schema's witness row at each phase 2
	MetaFolded        = "folded"         // the mapping under which every fold was asked for; see FoldedUnder
	MetaPaused        = "paused"         // present while an operator holds this replica
	MetaNeedsPass     = "needs_pass"     // present where nothing may be called verified before a whole pass has ended
	MetaResumed       = "resumed"        // who ended the last pause, when, and whose it was
)

// The states of a subject.
const (
	SubjectLive       = "live"
	SubjectSuppressed = "suppressed"
	SubjectErased     = "erased"
)

// The states of a pending erasure.
const (
	PendingSuppressed = "suppressed"
	PendingApplied    = "applied"
	PendingVerified   = "verified"
)

// What a pending erasure waits for.
const (
	WaitNone     = "none"
	WaitCoolOff  = "cool_off"
	WaitDecision = "decision"
	WaitBreaker  = "breaker"
	WaitGap      = "gap"
)

// What an operator wants done with a parked event.
const (
	WantReplay  = "replay"
	WantDiscard = "discard"
)

// What became of one record; the words that receipts use.
const (
	OutcomeApplied     = "applied"
	OutcomeReconciled  = "reconciled" // a pass has read what the log had not told
	OutcomeUnchanged   = "unchanged"
	OutcomeStale       = "stale"
	OutcomeNoMatch     = "no_match"
	OutcomeRefused     = "refused"
	OutcomeObserved    = "observed"
	OutcomeParked      = "parked"
	OutcomeElsewhere   = "elsewhere"   // of a pass for other replicas
	OutcomeRecorded    = "recorded"    // of no subject's rows: decisions, gaps, heartbeats
	OutcomeUnsupported = "unsupported" // of a kind that this version does not produce
)

// The codes of events that a replica refuses by themselves.
const (
	CodeUndecodable = "undecodable"
	CodeKeyParts    = "crm_key_parts"
	CodeBlocked     = "subject_blocked" // parked behind the event that blocks its subject
)

// The codes of prior values that a cancel can no longer restore.
const (
	CodeUndoTable  = "undo_table"
	CodeUndoColumn = "undo_column"
)

// The actions as receipts name them: of the fold and phase 1, then of phase 2.
const (
	ActionFold     = "consent"
	ActionSuppress = "suppress"
	ActionInsert   = "insert"
	ActionSet      = "set"
	ActionDelete   = "delete"
	ActionUnlink   = "unlink"
	ActionHold     = "hold"
)

// The values of config.Replica.Mode.
const (
	ModeObserve  = "observe"
	ModeSuppress = "suppress"
	ModeErase    = "erase"
)

// The kinds of config.Value. KindJSON is a whole document of values for paths.
const (
	KindNull         = "null"
	KindConst        = "const"
	KindToken        = "token"
	KindTruncate     = "truncate"
	KindGeneralise   = "generalise"
	KindKey          = "key"
	KindNow          = "now"
	KindPermitted    = "permitted"
	KindReconsentDue = "reconsent_due"
	KindRestricted   = "restricted"
	KindObjected     = "objected"
	KindJSON         = "json"
)

// What became of a decision.
const (
	DecisionDone    = "done"
	DecisionNoCase  = "no_case"  // this replica has no such case
	DecisionTooLate = "too_late" // phase 2 has run
	DecisionHeld    = "held"     // a hold beats proceed; release lifts it
	DecisionRefused = "refused"  // the replica refuses to take phase 1 back: the case is held
)

// Reasons that receipts state, and error codes of cases.
const (
	ReasonNoRow       = "no_row_yet"       // the subject is looked up again until the replica's recheck ends
	ReasonObserve     = "mode_observe"     // what would have been done
	ReasonRowFound    = "row_found"        // the row came later than the event
	ReasonBreaker     = "breaker"          // more new cases than the replica's breaker allows
	ReasonSnapshot    = "snapshot"         // erasures of a pass wait for one release
	ReasonGone        = "no_row"           // searched, no row: looked up again until the recheck ends
	ReasonResidual    = "residual_values"  // a value was still readable after phase 2
	ReasonDecision    = "decision"         // an operator's
	ReasonGap         = "gap_open"         // nothing is called verified while a part of the log is lost
	ReasonIncomplete  = "incomplete"       // no whole pass has ended in every partition yet
	ReasonUnmapped    = "unmapped_columns" // a column that looks personal has no mapping
	ReasonNotFollowed = "not_followed"     // an objection's or restriction's columns are not what the fold says
	ReasonRestored    = "restored"         // a backup came back: phase 2 runs once more
)

// MatchCRMKey is how receipts call a match by the CRM key.
const MatchCRMKey = "crm_key"

// VerifyMethod is how receipts call the read-back: mapped columns, then the audience query.
const VerifyMethod = "columns+audience"
