package mysql

import (
	"errors"
	"fmt"
)

// ErrNotPrimary is wrapped by the error of a connection to a server that is read_only. It is transient: after a failover the
// name in the DSN may take a while to lead to the new primary.
var ErrNotPrimary = errors.New("the server is read-only, a replica; the DSN has to lead to the primary")

// errMoved is wrapped when the DSN leads to another server than the one that is read. It is transient: reading goes on there.
var errMoved = errors.New("the DSN leads to another server by now")

// errLockLost is wrapped when the connection that holds the named lock ended.
var errLockLost = errors.New("the connection that holds the named lock was lost")

// errServerID is wrapped when another replica of the server has our server id: the server then ends both in turn.
var errServerID = errors.New("another replica of the source has the same server_id: give Lethe one of its own in source.mysql.server_id")

// DecodeError says that an event of the log could not be understood, or came where it cannot be. Capture stops there:
// nothing is skipped.
type DecodeError struct {
	At  string // GTID or file position of the transaction
	Err error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decoding the log at %s: %v; nothing was skipped, please report this with the server's version", place(e.At), e.Err)
}

// Permanent marks the error for capture.IsPermanent.
func (e *DecodeError) Permanent() bool { return true }

// Unwrap returns what was wrong.
func (e *DecodeError) Unwrap() error { return e.Err }

// SetupError says that something is missing on the server that a person, or `lethe setup`, has to set.
type SetupError struct {
	What string
	Hint string
}

func (e *SetupError) Error() string { return e.What + "; " + e.Hint }

// Permanent marks the error for capture.IsPermanent.
func (e *SetupError) Permanent() bool { return true }
