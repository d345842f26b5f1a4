package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is what Postgres, MySQL and Kafka have in common: a process that may
// be there or not, and that other tests may depend on.
type server struct {
	Dir       string // empty for one that another process started
	temporary bool   // Dir goes with Close

	name       string // for errors
	stopSignal syscall.Signal
	stopWithin time.Duration

	mu     sync.Mutex
	proc   *process // nil while it does not run
	shared bool     // other tests use it too
}

// start runs cmd with its output in logFile and returns when ping succeeds.
func (s *server) start(ctx context.Context, cmd *exec.Cmd, logFile string, ping func(context.Context) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared {
		return errShared
	}
	if s.proc != nil {
		return fmt.Errorf("starting %s: it runs already", s.name)
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening log of %s: %w", s.name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if s.proc, err = startProcess(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", s.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var ended bool
	err = poll(ctx, func() error {
		if ended = s.proc.ended(); ended {
			return nil
		}
		return ping(ctx)
	})
	if ended {
		err = fmt.Errorf("it ended at once (%w)", s.proc.err)
		s.proc = nil
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w; its log ends with:\n%s", s.name, err, logTail(logFile))
	}
	return nil
}

// Stop shuts the server down in order, and kills it where that takes longer
// than 15 or 20 s.
func (s *server) Stop() error {
	return s.end(func(p *process) error { return p.stop(s.stopSignal, s.stopWithin) })
}

// Kill ends the server and all its children by SIGKILL, as a crash would.
func (s *server) Kill() error { return s.end((*process).kill) }

// end takes the process away; where there is none, nothing is to be done.
func (s *server) end(means func(*process) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared {
		return errShared
	}
	if s.proc == nil {
		return nil
	}
	if err := means(s.proc); err != nil {
		return err
	}
	s.proc = nil
	return nil
}

// Pause stops the server and all its children where they are (SIGSTOP):
// connections stay open and nothing answers. Stop does not work meanwhile.
func (s *server) Pause() error {
	return s.signal(func(p *process) error { _, err := p.pause(); return err })
}

// Resume lets a paused server go on.
func (s *server) Resume() error { return s.signal((*process).resume) }

func (s *server) signal(means func(*process) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared {
		return errShared
	}
	if s.proc == nil {
		return errors.New("signalling " + s.name + ": it does not run")
	}
	return means(s.proc)
}

// PID returns the main process's id, 0 while the server does not run or when
// another process started it.
func (s *server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.pid()
}

// share makes the server one that tests cannot take away, or undoes it.
func (s *server) share(shared bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared = shared
}

// down reports whether the server was stopped or killed.
func (s *server) down() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.shared && s.proc == nil
}

// Close kills the server and removes its temporary folder.
func (s *server) Close() error {
	if err := s.Kill(); err != nil || !s.temporary {
		return err
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return fmt.Errorf("removing server folder: %w", err)
	}
	return nil
}

// closeAfter closes the server at the end of a test, and shows the end of its
// log when the test failed.
func (s *server) closeAfter(tb testing.TB, log string) {
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("The log of %s ends with:\n%s", s.name, logTail(log))
		}
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
}
