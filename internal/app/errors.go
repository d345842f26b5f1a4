package app

import (
	"errors"
	"io"
	"net"
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

// IsUnreachable reports whether err says that a server could not be reached or did not let us in for now.
func IsUnreachable(err error) bool {
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	code := pii.Code(err)
	return len(code) == sqlstateLength && (code[:2] == "08" || code[:3] == "57P")
}

// sqlstateLength is the length of every SQLSTATE.
const sqlstateLength = 5
