package capture

import (
	"context"
	"errors"
	"fmt"
)

// Snapshotter is a Source that can read the present state of its tables beside the stream. Its methods may be called by any
// goroutine while Run runs, ReadChunk and At by several at once: each call has a connection of its own, for as long as it
// reads, and the caller bounds how many there are.
//
// Everything turns on visibility. A commit is in the log, and so in the stream, before other sessions can see it: a row that
// is read at once may lack what the stream has told already (on PostgreSQL for as long as COMMIT waits for a synchronous
// standby). Published with a later place in the order it would undo, for example, a withdrawal. So a read waits until its
// snapshot sees every transaction that was handed over up to a position.
type Snapshotter interface {
	// Watermark marks the log's end as it is now: whatever was committed before the call lies before the mark. A stream that
	// passes it has caught up to this moment. Where the source is idle something has to make the stream pass all the same.
	Watermark(ctx context.Context) (Mark, error)
	// PassTable tells how a table is read. A *TableRefusedError says that it cannot be, and why; the other tables still can.
	PassTable(ctx context.Context, table string) (PassTable, error)
	// ReadChunk reads rows of one table in the order of its key, from one snapshot that sees every transaction up to
	// ChunkRequest.Seen. The snapshot is closed before fn is first called, so that a slow caller holds nothing back on the
	// server. fn gets each row as a Change with OpRead, New in the text forms of the stream, and a Table that is the same
	// pointer as long as the shape stays; it belongs to the reader and is valid until fn returns. An error of fn ends the call
	// with that error. ErrTableChanged says that the table has another Walk than the last PassTable told. Else last is the key of the last row, nil where there was none, and done says that no row is behind it.
	ReadChunk(ctx context.Context, c ChunkRequest, fn func(*Change) error) (last [][]byte, done bool, err error)
	// At calls fn with a read-only snapshot that sees every transaction up to seen, which the stream has handed over; it waits
	// until there is one, as long as ctx allows. The snapshot ends with fn. For the gate and for reading back: short questions.
	At(ctx context.Context, seen Position, fn func(ctx context.Context, q Querier) error) error
}

// Mark is a place in the log of a source.
type Mark interface {
	// Passed reports whether a stream that has handed over the commit at p (or begins behind it) has everything before the mark.
	Passed(p Position) bool
}

// PassTable says how a table is read.
type PassTable struct {
	// Key are the columns of the primary key, or of a unique key without NULL, in their order.
	Key []string
	// Walk is everything that the order of the rows depends on, types and collations too: a key that was read under one Walk
	// says nothing under another, and the table is read again from its start.
	Walk string
	// Rows is the server's own estimate; -1: it has none. It is for the progress bar alone.
	Rows int64
}

// ChunkRequest asks for the rows behind a key.
type ChunkRequest struct {
	Table string
	// After is the key of the last row that was read, as ReadChunk returned it; nil: from the start.
	After [][]byte
	// Limit is the most rows that are wanted. A reader may give fewer, to bound what it holds in memory; it then says not done.
	Limit int
	// Seen is a commit that the stream has handed over.
	Seen Position
	// Waits, where set, is told once that the read waits for visibility, and for what, when that takes longer than a second.
	Waits func(why string)
}

// Querier asks within one read-only snapshot. Arguments are bound, never put into sql.
type Querier interface {
	// Query gives each row of the answer, values in the text forms of the stream; what each is given is valid until it returns.
	Query(ctx context.Context, each func(row []Value) error, sql string, args ...any) error
}

// ErrTableChanged is wrapped by ReadChunk's error where the table's key is another one than when the pass asked for it.
var ErrTableChanged = errors.New("the table's key was changed while it was read")

// The causes of a TableRefusedError.
const (
	RefusedNoKey   = "no_key"     // nothing to walk along: neither a primary key nor a unique key without NULL
	RefusedMissing = "no_table"   // the source has no such table, and it is not optional
	RefusedShape   = "no_column"  // a column that the mapping reads is missing
	RefusedGrant   = "no_grant"   // Lethe's login may not read it
	RefusedKind    = "not_stored" // a view, a foreign table and the like
	RefusedOrder   = "no_order"   // MySQL: nothing tells when what was streamed can be seen
)

// TableRefusedError says that a pass cannot read a table. It needs a person; the other tables are read without it.
type TableRefusedError struct {
	Table string
	Cause string
	Hint  string // what the operator does next
}

func (e *TableRefusedError) Error() string {
	return fmt.Sprintf("a pass cannot read %s (%s): %s", e.Table, e.Cause, e.Hint)
}

// Permanent marks the error for IsPermanent.
func (e *TableRefusedError) Permanent() bool { return true }
