package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// unprivilegedID is the uid and gid that PostgreSQL gets when the tests run as
// root, which it refuses: nobody on every Linux distribution.
const unprivilegedID = 65534

// serverID returns the uid and gid that servers run under.
func serverID() (uid, gid int) {
	if os.Geteuid() == 0 {
		return unprivilegedID, unprivilegedID
	}
	return os.Geteuid(), os.Getegid()
}

// as returns the attributes of a process that runs under another user, if it
// is another one.
func as(uid, gid int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{}
	if uid != os.Geteuid() {
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return attr
}

// process is a started server: its main process and whatever that forked.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the main process has been reaped
	err  error         // how it ended; to be read after done
}

// startProcess starts cmd in a process group of its own, so that a terminal's
// interrupt reaches only the test, and asks the kernel to kill it when the
// test process dies.
//
// Linux ties that request to the thread that forked, not to the process: were
// the thread given back to the scheduler, its retirement would kill the
// server in the middle of a test. So a goroutine keeps the thread until the
// server has ended.
func startProcess(cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithThread(cmd.SysProcAttr)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// ended reports whether the main process has been reaped.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop asks the server to stop with sig and kills it when it has not within
// the time given.
func (p *process) stop(sig syscall.Signal, within time.Duration) error {
	if p.ended() {
		return nil
	}
	if err := syscall.Kill(p.pid(), sig); err != nil {
		return fmt.Errorf("stopping server: %w", err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		return p.kill()
	}
}

// kill ends the whole server as a power cut would: nobody gets the chance to
// write anything more. It returns when no process of it is left.
func (p *process) kill() error {
	family, err := p.pause()
	if err != nil {
		return err
	}
	for _, pid := range family {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("killing server: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return poll(ctx, func() error {
		for _, pid := range family {
			if alive(pid) {
				return fmt.Errorf("killing server: process %d is still there", pid)
			}
		}
		if !p.ended() {
			return fmt.Errorf("killing server: process %d is not reaped", p.pid())
		}
		return nil
	})
}

// pause stops the main process and then its descendants, until a look around
// finds no further one, and returns them all. The main process goes first so
// that it cannot fork behind our back; PostgreSQL's children are sessions of
// their own, so the process group does not reach them.
func (p *process) pause() ([]int, error) {
	if p.ended() {
		return nil, nil
	}
	stopped := map[int]bool{}
	family := []int{p.pid()}
	for {
		fresh := false
		for _, pid := range family {
			if stopped[pid] {
				continue
			}
			fresh = true
			stopped[pid] = true
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && err != syscall.ESRCH {
				return nil, fmt.Errorf("pausing server: %w", err)
			}
			if err := waitHalted(pid); err != nil {
				return nil, err
			}
		}
		if !fresh {
			return family, nil
		}
		children, err := descendants(p.pid())
		if err != nil {
			return nil, fmt.Errorf("pausing server: %w", err)
		}
		family = append([]int{p.pid()}, children...)
	}
}

// waitHalted waits until a process that was sent SIGSTOP has stopped.
func waitHalted(pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return poll(ctx, func() error {
		if !halted(pid) {
			return fmt.Errorf("pausing server: process %d goes on", pid)
		}
		return nil
	})
}

// resume lets a paused server go on.
func (p *process) resume() error {
	if p.ended() {
		return nil
	}
	children, err := descendants(p.pid())
	if err != nil {
		return fmt.Errorf("resuming server: %w", err)
	}
	for _, pid := range append(children, p.pid()) {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("resuming server: %w", err)
		}
	}
	return nil
}

// collect walks a table of children by parent from pid down.
func collect(children map[int][]int, pid int) []int {
	var all []int
	for _, child := range children[pid] {
		all = append(all, child)
		all = append(all, collect(children, child)...)
	}
	return all
}
