package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// server is what Postgres and Kafka have in common: a process that may be
// there or not, and that other tests may depend on.
type server struct {
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

// stop shuts the server down in order, or kills it when it takes too long.
func (s *server) stop() error {
	return s.end(func(p *process) error { return p.stop(s.stopSignal, s.stopWithin) })
}

// kill ends the server and all its children by SIGKILL.
func (s *server) kill() error { return s.end((*process).kill) }

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

// pause stops the process and its children where they are.
func (s *server) pause() error {
	return s.signal(func(p *process) error { _, err := p.pause(); return err })
}

// resume lets a paused server go on.
func (s *server) resume() error { return s.signal((*process).resume) }

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

// pid returns the main process's id, 0 while there is none of ours.
func (s *server) pid() int {
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
