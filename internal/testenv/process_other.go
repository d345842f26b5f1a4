//go:build unix && !linux

package testenv

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// dieWithThread does nothing: only Linux can tie a process's life to ours, so
// elsewhere a test killed by SIGKILL leaves its servers behind.
func dieWithThread(*syscall.SysProcAttr) {}

// alive reports whether a process is there.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// halted cannot be known here.
func halted(int) bool { return true }

// descendants returns the processes that pid forked, and theirs.
func descendants(pid int) ([]int, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		child, errChild := strconv.Atoi(fields[0])
		parent, errParent := strconv.Atoi(fields[1])
		if errChild == nil && errParent == nil {
			children[parent] = append(children[parent], child)
		}
	}
	return collect(children, pid), nil
}
