package app

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"lethe/capture"
	"lethe/internal/pii"
	"lethe/sinks"
)

// IsGap reports whether err says that a part of the log is lost to us.
func IsGap(err error) bool {
	var gap *capture.GapError
	return errors.As(err, &gap) || errors.Is(err, sinks.ErrGap)
}

// UsageError is what the caller of a command said wrongly: nothing was asked of any server.
type UsageError struct{ error }

func (e *UsageError) Unwrap() error { return e.error }

// ErrUnreachable is wrapped where a command could not look at a server.
var ErrUnreachable = errors.New("a server cannot be reached")

// IsUnreachable reports whether err says that a server could not be reached or did not let us in for now.
func IsUnreachable(err error) bool {
	if errors.Is(err, ErrUnreachable) {
		return true
	}
	// A reduced error is a net.Error by its methods, whatever it says: its code decides.
	if code := pii.Code(err); code != "" {
		return unreachableCode(code)
	}
	// An errno is a net.Error too, and may be a file's.
	var (
		op   *net.OpError
		name *net.DNSError
	)
	if errors.As(err, &op) && op.Op == "listen" {
		return false // our own port
	}
	return op != nil || errors.As(err, &name) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func unreachableCode(code string) bool {
	switch code {
	case "eof", "closed", "timeout", "deadline_exceeded", "dns", tooManyConnections:
		return true
	}
	if slices.Contains(mysqlUnreachable, code) {
		return true
	}
	return strings.HasPrefix(code, "errno_") || len(code) == sqlstateLength && (code[:2] == "08" || code[:3] == "57P")
}

// mysqlUnreachable are the answers of a MySQL or MariaDB server that has no room, or is going down.
var mysqlUnreachable = []string{"mysql_1040", "mysql_1053", "mysql_1203", "mysql_1226", "mysql_1927", "mysql_2006", "mysql_2013", "mysql_3168"}

const (
	// sqlstateLength is the length of every SQLSTATE.
	sqlstateLength     = 5
	tooManyConnections = "53300"
)
