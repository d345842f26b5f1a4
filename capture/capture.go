// Package capture turns the replication log of a source into events: a Source delivers committed transactions to a
// Handler (the Pipeline), whose rules make events of them; the position moves only when Kafka has acknowledged them all.
package capture

import (
	"context"
	"fmt"
	"time"

	"lethe/schema"
)

// Op is what happened to a row, or to the log.
type Op uint8

// The operations. OpMessage is a logical message in the log (a heartbeat); its content is in Change.Message. OpTruncate is
// a change of a whole table that the log does not carry row by row; what it was is in Change.Lost. OpRead is no change: a
// pass has read the row as it is now, all of it is in Change.New.
const (
	OpInsert Op = iota + 1
	OpUpdate
	OpDelete
	OpTruncate
	OpMessage
	OpRead
)

func (o Op) String() string {
	switch o {
	case OpInsert:
		return "insert"
	case OpUpdate:
		return "update"
	case OpDelete:
		return "delete"
	case OpTruncate:
		return "truncate"
	case OpMessage:
		return "message"
	case OpRead:
		return "read"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Column is a column of a Table as the log describes it.
type Column struct {
	Name string
	Type string // the database's own type name where known, for example text, timestamptz; else oid:N
	Key  bool   // part of the replica identity
}

// Table is one version of a table's shape. A Source makes a new Table when the shape changes and never alters one that
// it has handed out: rules compile against the pointer.
type Table struct {
	Name    string // schema.table, as in the config
	Columns []Column
	// OldRow tells what the old image of UPDATE and DELETE carries.
	OldRow OldRow
}

// OldRow is a table's replica identity as seen in the log.
type OldRow uint8

// The replica identities.
const (
	OldRowNothing OldRow = iota
	OldRowKey            // primary key or the unique index of REPLICA IDENTITY USING INDEX
	OldRowFull
)

// Index returns the place of the named column, or -1.
func (t *Table) Index(column string) int {
	for i := range t.Columns {
		if t.Columns[i].Name == column {
			return i
		}
	}
	return -1
}

// ValueState tells a value from the ways of having none.
type ValueState uint8

// The states. Unchanged is PostgreSQL's unchanged TOAST: the value exists and was not sent. Absent is a column that this
// image does not carry.
const (
	Absent ValueState = iota
	Null
	Unchanged
	Present
)

// Value is one column of a row image. Text is the database's text form (UTF-8) and, like the whole Change, belongs to the
// Source's read buffer: it is valid only until Handler.Change returns.
type Value struct {
	State ValueState
	Text  []byte
}

// Change is one row change of a committed transaction.
type Change struct {
	Op      Op
	Table   *Table  // nil for OpMessage
	Old     []Value // nil, or as long as Table.Columns
	New     []Value // nil, or as long as Table.Columns
	Message []byte  // OpMessage only; its prefix is Lethe's own
	// Lost is the cause of the gap that an OpTruncate leaves, one of those that do not block; empty: GapTruncate.
	Lost string
}

// Position is the place of a commit in the log of a source.
type Position struct {
	Epoch  uint32 // timeline
	Commit uint64 // commit LSN: the number in Order; MySQL: the GTID's counter, MariaDB: its sequence number
	End    uint64 // transaction end LSN: what may be acknowledged, and where reading starts again
	GTID   string // MySQL and MariaDB only: the executed set after this commit, or file:position
	// Before is GTID as it was before this commit (MySQL and MariaDB only): reading starts there, and what comes first has to
	// be this commit again.
	Before string
}

// Epoch is a stretch of a MySQL source's log in which the counter of the GTIDs of one origin grows.
type Epoch struct {
	Number uint32
	Origin string // server uuid, with the GTID's tag where it has one
	From   uint64 // the counter of its first transaction
}

// Transaction is a committed transaction of the source.
type Transaction struct {
	Position    Position
	XID         uint32
	CommittedAt time.Time
}

// Handler receives what a Source reads. All calls come from one goroutine, in the order of commits:
// Begin, Change…, Commit. An error ends the Source's Run with that error. Nothing may be kept of a Change.
type Handler interface {
	Begin(tx *Transaction) error
	Change(c *Change) error
	Commit(tx *Transaction) error
}

// Throttle is implemented by a Handler that bounds memory. Full returns nil while there is room, else a channel that is
// closed when there is room again; until then the Source reads nothing and keeps its connection alive.
type Throttle interface {
	Full() <-chan struct{}
}

// EpochKeeper is implemented by a Handler that can remember epochs. Before the first transaction of a new epoch a Source
// calls KeepEpochs, from the goroutine of its other calls and between two transactions, with all epochs that it knows; when
// it returns nil they are durable, and stand in the Checkpoint of every later Run. A transaction that is sent again, by
// another server after a failover, so keeps its epoch, and with it its ids and its place in the order.
type EpochKeeper interface {
	KeepEpochs(epochs []Epoch) error
}

// Follower is implemented by a Handler that wants to know that the Source reads the log, which may be long before the first
// transaction. Follows is called once in a Run, by the goroutine of the other calls or before them.
type Follower interface {
	Follows()
}

// Source reads the log of one primary database.
type Source interface {
	// Run streams from the checkpoint (nil: from where the slot stands; without a position: from Identity.Start) until ctx
	// ends or something fails. Before the first
	// call of h it compares the server with the checkpoint and returns a *GapError where history does not connect.
	Run(ctx context.Context, from *Checkpoint, h Handler) error
	// Acknowledge tells the source that everything up to p is checkpointed. Any goroutine may call it; it never blocks.
	Acknowledge(p Position)
	// Identity reads who the server is now: what a new Checkpoint is stamped with.
	Identity(ctx context.Context) (Identity, error)
}

// Identity says which history a position belongs to.
type Identity struct {
	SystemID       string // PostgreSQL system identifier
	Epoch          uint32 // timeline now
	Slot           string
	SlotGeneration string // tells a re-created slot from the old one
	// Start is where a Source that has no slot on the server begins to read as long as the checkpoint has no position: where
	// the log stood when the identity was asked for. Empty where there is a slot.
	Start string
}

// Checkpoint is what capture knows durably: the last commit whose events are all acknowledged by Kafka.
type Checkpoint struct {
	Source      string
	Identity    Identity
	Incarnation uint32
	Position    Position
	XID         uint32
	CommittedAt time.Time
	WrittenAt   time.Time
	Gaps        []OpenGap
	Epochs      []Epoch // ascending; MySQL only
}

// OpenGap is a gap that no pass has closed yet.
type OpenGap struct {
	ID       string
	Cause    string
	From     schema.Order
	OpenedAt time.Time
	// Resumed is set when an operator let capture go on although the gap is open.
	Resumed bool
}

// The causes of a gap; also the values of schema.Gap.Cause.
const (
	GapSlotLost       = "slot_lost"
	GapSlotMissing    = "slot_missing"
	GapSlotRecreated  = "slot_recreated"
	GapSlotAhead      = "slot_ahead"
	GapOtherSystem    = "other_system"
	GapForkedHistory  = "forked_history"
	GapTruncate       = "truncate"
	GapDropped        = "table_dropped"
	GapPublication    = "publication_changed" // PostgreSQL: rows written meanwhile may be missing from the log
	GapCheckpointLost = "checkpoint_lost"
	GapPurged         = "binlog_purged"    // MySQL and MariaDB: log that was not read is gone from the server
	GapHole           = "gtid_hole"        // a GTID is missing from the log
	GapModeChanged    = "gtid_mode"        // the log was followed by GTID and now cannot be, or the other way round
	GapSecondDomain   = "second_domain"    // MariaDB: mapped rows in a replication domain that is not followed
	GapIncident       = "incident"         // the server says that it could not write its log
	GapRolledBack     = "rolled_back"      // the log takes rows back that it had
	GapStatement      = "statement_format" // a mapped table was changed by a statement that the log has no rows of
	GapXA             = "xa_transaction"   // a mapped table was changed in a prepared transaction
)

// GapError says that a part of the log is lost to us. Capture announces it and stops reading until an operator decides.
type GapError struct {
	Cause  string
	Hint   string // what the operator does next
	Object string // the table that it is about; empty: the log as a whole
}

func (e *GapError) Error() string {
	return fmt.Sprintf("gap in the source's log (%s): %s", e.Cause, e.Hint)
}
