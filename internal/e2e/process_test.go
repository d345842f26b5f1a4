package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/internal/admin"
	"lethe/internal/testenv"
)

// process is a running Lethe.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	addr  string
	log   string        // file of its standard error
	ended chan struct{} // closed when it has been reaped
	err   error         // how it ended; to be read after ended
}

// start starts Lethe with the roles given, all if there is none. It returns when the admin listener is open.
func (w *world) start(roles ...string) *process { return w.startWith(nil, roles...) }

// startWith adds variables to the environment of the process: LETHE_CRASH=name:n for one.
func (w *world) startWith(env []string, roles ...string) *process {
	w.t.Helper()
	p, err := w.launch(env, roles...)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// launch is startWith for goroutines that are not the test's own.
func (w *world) launch(env []string, roles ...string) (*process, error) {
	w.mu.Lock()
	w.started++
	log := filepath.Join(w.dir, fmt.Sprintf("lethe-%03d.log", w.started))
	w.mu.Unlock()
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p := &process{t: w.t, log: log, ended: make(chan struct{})}
	p.cmd = exec.Command(w.program, "-config", w.file, "-roles", strings.Join(roles, ","))
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = file
	stdin, err := p.cmd.StdinPipe() // stays open as long as the test lives
	if err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	said := bufio.NewReader(stdout)
	line, readErr := said.ReadString('\n')
	p.addr = strings.TrimSpace(line)
	rest, err := os.Create(log + ".stdout") // where a library may print what it should not
	if err != nil {
		return nil, err
	}
	go func() {
		_, _ = io.Copy(rest, said) // ends with the process
		_ = rest.Close()
		p.err = p.cmd.Wait()
		_ = stdin.Close() // nothing is written to it
		close(p.ended)
	}()
	w.mu.Lock()
	w.processes = append(w.processes, p)
	w.mu.Unlock()
	if readErr != nil {
		<-p.ended
		return nil, fmt.Errorf("starting lethe: %w\n%s", p.err, tail(log))
	}
	return p, nil
}

// tail returns the end of a log.
func tail(path string) string {
	const keep = 6 << 10
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b[max(0, len(b)-keep):])
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process by SIGKILL, if it lives.
func (p *process) kill() {
	if p.alive() {
		_ = p.cmd.Process.Kill() // it may have ended in between
	}
	<-p.ended
}

// signal sends SIGSTOP, SIGCONT or SIGTERM.
func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// terminate asks the process to stop and wants it gone, with exit code 0, within the bound.
func (p *process) terminate(within time.Duration) {
	p.t.Helper()
	began := time.Now()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(within):
		p.t.Fatalf("still running %v after SIGTERM", time.Since(began))
	}
	if p.err != nil {
		p.t.Fatalf("after SIGTERM: %v", p.err)
	}
}

// killed reports whether the process ended by SIGKILL.
func (p *process) killed() bool {
	var exit *exec.ExitError
	if !errors.As(p.err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// get asks the admin listener.
func (p *process) get(path string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// readyz returns what /readyz says of the process as a whole and of each role.
func (p *process) readyz() (ready bool, roles map[string]admin.RoleStatus, err error) {
	code, body, err := p.get("/readyz")
	if err != nil {
		return false, nil, err
	}
	var answer struct{ Roles []admin.RoleStatus }
	if err := json.Unmarshal(body, &answer); err != nil {
		return false, nil, err
	}
	roles = map[string]admin.RoleStatus{}
	for _, r := range answer.Roles {
		roles[r.Role] = r
	}
	return code == http.StatusOK, roles, nil
}

// waitReady waits until the process says that every role does its work.
func (p *process) waitReady(within time.Duration) {
	p.t.Helper()
	testenv.Eventually(p.t, within, func() error {
		ready, roles, err := p.readyz()
		if err == nil && !ready {
			err = fmt.Errorf("not ready: %+v", roles)
		}
		return err
	})
}

// waitRole waits until one role is as wanted; ready is part of it.
func (p *process) waitRole(within time.Duration, role string, ready bool, states ...string) admin.RoleStatus {
	p.t.Helper()
	var have admin.RoleStatus
	testenv.Eventually(p.t, within, func() error {
		_, roles, err := p.readyz()
		if err != nil {
			return err
		}
		have = roles[role]
		for _, s := range states {
			if have.State == s && have.Ready == ready {
				return nil
			}
		}
		if len(states) == 0 && have.Ready == ready {
			return nil
		}
		return fmt.Errorf("%s is %+v, want ready=%t and one of %q", role, have, ready, states)
	})
	return have
}

// waitCause waits until a role is not ready for one of the causes.
func (p *process) waitCause(role string, causes ...string) admin.RoleStatus {
	p.t.Helper()
	var have admin.RoleStatus
	testenv.Eventually(p.t, soon, func() error {
		_, roles, err := p.readyz()
		if err != nil {
			return err
		}
		have = roles[role]
		for _, cause := range causes {
			if !have.Ready && strings.HasPrefix(have.Cause, cause) {
				return nil
			}
		}
		return fmt.Errorf("%s is %+v, want one of the causes %q", role, have, causes)
	})
	return have
}
