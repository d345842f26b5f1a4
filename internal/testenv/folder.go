package testenv

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// folderPrefix begins the name of every server folder; the pid of its owner
// follows, so that what a killed process left behind can be told apart.
const folderPrefix = "lethe-test-"

// newFolder makes a folder for one server that the servers' uid can enter. The
// test's own TempDir will not do: it is closed to other users.
func newFolder(kind string) (string, error) {
	base := os.TempDir()
	if !reachable(base) {
		base = "/var/tmp"
	}
	sweepOnce.Do(func() { sweep(base) })
	dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-%s-", folderPrefix, os.Getpid(), kind))
	if err != nil {
		return "", fmt.Errorf("making server folder: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("opening server folder: %w", err)
	}
	return dir, nil
}

var sweepOnce sync.Once

// sweep removes the folders of processes that died before they could. Faults
// are left alone: it is a courtesy to the disk.
func sweep(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, folderPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), folderPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir)
		}
	}
}

// copyTree copies a folder with its modes and gives every file to uid and gid.
// dst must not exist.
func copyTree(dst, src string, uid, gid int) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("copying folder: %w", err)
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return fmt.Errorf("copying folder: %w", err)
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("copying folder: %w", err)
		}
		to := filepath.Join(dst, rel)
		switch {
		case d.IsDir():
			err = os.Mkdir(to, info.Mode().Perm())
		case info.Mode().IsRegular():
			err = copyFile(to, path, info.Mode().Perm())
		default:
			err = fmt.Errorf("%s is neither a file nor a folder", path)
		}
		if err == nil && uid != os.Geteuid() {
			err = os.Lchown(to, uid, gid)
		}
		if err != nil {
			return fmt.Errorf("copying folder: %w", err)
		}
		return nil
	})
}

func copyFile(dst, src string, mode fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
