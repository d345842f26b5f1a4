package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

func init() {
	// The request below is tied to the thread that makes it; the main thread
	// lives as long as the process.
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
