package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

func init() {
	// Both requests below are tied to the thread that makes them; the main
	// thread lives as long as the process.
	runtime.LockOSThread()
}

// dieWithParent asks the kernel for a SIGTERM when `go run`, or whatever
// started us, dies without telling us: that ends the servers too.
func dieWithParent() error {
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0); err != nil {
		return fmt.Errorf("asking to die with the parent: %w", err)
	}
	if os.Getppid() != parent {
		return fmt.Errorf("asking to die with the parent: it is dead already")
	}
	return nil
}

// dieWithUs has the kernel end the command when we are killed. It has to be
// started by the main goroutine, whose thread init has taken.
func dieWithUs(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
