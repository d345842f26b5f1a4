//go:build lethe_crash

package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	armed, left = parse(os.Getenv("LETHE_CRASH"))
	passes      atomic.Int64
)

func parse(s string) (name string, n int64) {
	name, count, found := strings.Cut(s, ":")
	if !found {
		return name, 1
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		panic("LETHE_CRASH wants name:n")
	}
	return name, n
}

// Hit ends the process by SIGKILL when it is the n-th pass of the point that LETHE_CRASH=name:n names.
func Hit(name string) {
	if name != armed || passes.Add(1) != left {
		return
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {} // SIGKILL takes effect before anything else may happen
}
