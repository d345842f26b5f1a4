//go:build unix

package keys

import (
	"fmt"
	"os"
	"syscall"
)

// lock keeps two commands from changing keysets at once, which would lose the key that one of them added. It is the folder itself
// that is locked: nothing is left behind when the process dies.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("locking key folder: %w", err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("locking key folder: %w", err)
	}
	return func() { _ = d.Close() }, nil
}
