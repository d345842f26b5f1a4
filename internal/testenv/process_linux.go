package testenv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithThread has the kernel kill the process when the thread that forks it
// ends. Go asks for it after the change of credentials, which would undo it.
func dieWithThread(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// stat returns a process's state letter and parent from /proc (proc(5)).
func stat(pid int) (state byte, parent int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name in parentheses may hold anything, so count from the last one.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, 0, fmt.Errorf("reading state of process %d: short line", pid)
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent, err
}

// alive reports whether a process still runs; a zombie that nobody has reaped
// holds nothing any more.
func alive(pid int) bool {
	state, _, err := stat(pid)
	return err == nil && state != 'Z' && state != 'X'
}

// halted reports whether every thread of a process has stopped, or is gone. A
// signal is only on its way when kill returns: on a busy machine a thread that
// waits for a core goes on for a while.
func halted(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return false
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(filepath.Base(thread))
		if err != nil {
			return false
		}
		if state, _, err := stat(tid); err == nil && !strings.ContainsRune("TtZX", rune(state)) {
			return false
		}
	}
	return true
}

// descendants returns the processes that pid forked, and theirs.
func descendants(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, err := stat(child); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	return collect(children, pid), nil
}
