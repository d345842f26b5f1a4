package main

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/demo"
)

// The exit codes. A service manager restarts after exitFailed and exitUnreachable, and never after exitConfig.
const (
	exitOK          = 0
	exitFailed      = 1
	exitConfig      = 2 // the command line or the config file
	exitPosition    = 3 // a gap: a part of the log is lost to us
	exitUnreachable = 4 // a server
	exitFindings    = 5 // check found something that run would refuse
	exitPanic       = 70
	exitInterrupted = 130
)

// errFindings ends a command that has already printed what is wrong.
var errFindings = errors.New("there are findings")

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// report prints err and returns the exit code that stands for it.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	if !errors.Is(err, errFindings) {
		_, _ = fmt.Fprintln(w, "lethe:", err) // stderr is the last resort: there is nowhere to report its failure
	}
	var (
		usage   usageError
		misused *app.UsageError
		faults  *config.Faults
		refused *app.FindingsError
		defect  *app.PanicError
	)
	switch {
	case errors.As(err, &defect):
		return exitPanic
	case errors.Is(err, demo.ErrStopped):
		return exitInterrupted
	case errors.Is(err, errFindings), errors.As(err, &refused):
		return exitFindings
	case errors.As(err, &usage), errors.As(err, &misused), errors.As(err, &faults):
		return exitConfig
	case app.IsGap(err):
		return exitPosition
	case app.IsUnreachable(err):
		return exitUnreachable
	default:
		return exitFailed
	}
}

// reportPanic prints where it happened, not what the panic said: its value may hold a customer's data.
func reportPanic(w io.Writer, r any) int {
	_, _ = fmt.Fprintf(w, "lethe: panic of type %T; this is a defect, please report the stack\n%s", r, debug.Stack())
	return exitPanic
}
