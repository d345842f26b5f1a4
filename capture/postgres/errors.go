package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"

	"lethe/capture"
)

// ErrSlotInUse is wrapped by Run's error while another process reads from the slot: a standby capture waits and tries
// again.
var ErrSlotInUse = capture.ErrSlotInUse

// ErrNotPrimary is wrapped by the error of a connection to a server that is in recovery. It is transient: after a failover
// the name in the DSN may take a while to lead to the new primary.
var ErrNotPrimary = errors.New("the server is a standby; the DSN has to lead to the primary")

// errSilent is wrapped when nothing came over the wire for Options.Liveness.
var errSilent = errors.New("no message from the server; the connection is taken for dead")

// ColumnError says that a table no longer has a column that the mapping reads: it was renamed or dropped, or left the
// publication's column list. The transaction that met it is not acknowledged.
type ColumnError struct {
	Table  string
	Column string
	LSN    uint64 // of the commit, 0 where it is not known
}

func (e *ColumnError) Error() string {
	return fmt.Sprintf("table %s has no column %s as of commit %s: it was renamed, dropped or left out of the publication; "+
		"correct the mapping (or the publication) and start again, nothing is skipped", e.Table, e.Column, lsnText(e.LSN))
}

// Permanent marks the error for capture.IsPermanent.
func (e *ColumnError) Permanent() bool { return true }

// IdentityError says that a table's replica identity lacks columns that the mapping reads of the old row.
type IdentityError struct {
	Table   string
	Columns []string
	LSN     uint64 // of the commit, 0 where it is not known
}

func (e *IdentityError) Error() string {
	return fmt.Sprintf("the replica identity of table %s lacks %s as of commit %s, so a DELETE (or old.x) would not be understood; "+
		"`lethe check --fix-sql` prints the ALTER TABLE", e.Table, strings.Join(e.Columns, ", "), lsnText(e.LSN))
}

// Permanent marks the error for capture.IsPermanent.
func (e *IdentityError) Permanent() bool { return true }

// DecodeError says that a message of the log could not be understood. Capture stops there: nothing is skipped.
type DecodeError struct {
	LSN uint64 // of the message
	Err error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decoding the log at %s: %v; nothing was skipped, please report this with the server's version",
		lsnText(e.LSN), e.Err)
}

// Permanent marks the error for capture.IsPermanent.
func (e *DecodeError) Permanent() bool { return true }

// Unwrap returns what was wrong with the bytes.
func (e *DecodeError) Unwrap() error { return e.Err }

// SetupError says that something is missing that `lethe setup` makes.
type SetupError struct {
	What string
	Hint string
}

func (e *SetupError) Error() string { return e.What + "; " + e.Hint }

// Permanent marks the error for capture.IsPermanent.
func (e *SetupError) Permanent() bool { return true }

// PublicationError says that the publication was changed while capture ran: changes made in between may be missing from
// the log without any error, so it is a gap too, and a pass has to follow. It stays after the gap was announced, until the
// publication is as it was.
type PublicationError struct {
	Publication string
	What        []string
}

func (e *PublicationError) Error() string {
	return fmt.Sprintf("publication %s was changed (%s): changes may be missing from the log; `lethe check` shows what to put back",
		e.Publication, strings.Join(e.What, "; "))
}

// Permanent marks the error for capture.IsPermanent.
func (e *PublicationError) Permanent() bool { return true }

// Unwrap returns the gap. Each edit is one of its own.
func (e *PublicationError) Unwrap() error {
	return &capture.GapError{Cause: capture.GapPublication, Object: strings.Join(e.What, "; "), Hint: e.Error()}
}

func lsnText(lsn uint64) string {
	if lsn == 0 {
		return "(unknown)"
	}
	return pglogrepl.LSN(lsn).String()
}
