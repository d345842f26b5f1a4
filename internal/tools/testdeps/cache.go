package main

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"lethe/internal/testenv"
)

// say tells in one line what is being done: some of it takes minutes.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testdeps: "+format+"\n", args...)
}

// lock waits until no other testdeps works on this cache, and returns what
// lets the next one in. The kernel does so too when this process dies.
func lock() (unlock func(), err error) {
	dir, err := testenv.PrepareCache()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock of the cache: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the cache: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// publish makes a folder of the cache: fill writes into a temporary one, which
// then gets its name, so that nobody ever sees half of it.
func publish(target string, fill func(dir string) error) error {
	work, err := os.MkdirTemp(filepath.Dir(target), "tmp-install-")
	if err != nil {
		return fmt.Errorf("making folder in the cache: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return fmt.Errorf("making folder in the cache: %w", err)
	}
	if err := fill(work); err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil { // what an older version of this tool left
		return fmt.Errorf("replacing folder in the cache: %w", err)
	}
	if err := os.Rename(work, target); err != nil {
		return fmt.Errorf("naming folder in the cache: %w", err)
	}
	return nil
}

// run1 runs a command quietly, and shows the end of what it said when it fails.
func run1(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	const keep = 2000
	if len(out) > keep {
		out = out[len(out)-keep:]
	}
	return fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{name}, args...), " "), err, out)
}

// verify compares a file's SHA-256 with the one that was pinned.
func verify(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("checking download: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("checking download: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return fmt.Errorf("checking download: %s has SHA-256 %s, not %s", filepath.Base(path), got, want)
	}
	return nil
}

// unzip1 copies the one file of a zip archive whose name has the suffix.
func unzip1(archive, suffix, target string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return fmt.Errorf("opening archive: %w", err)
	}
	defer z.Close()
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, suffix) {
			continue
		}
		in, err := f.Open()
		if err != nil {
			return fmt.Errorf("reading archive: %w", err)
		}
		out, err := os.Create(target)
		if err != nil {
			return errors.Join(fmt.Errorf("unpacking archive: %w", err), in.Close())
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, in.Close(), out.Close())
	}
	return fmt.Errorf("reading archive: no *%s in %s", suffix, filepath.Base(archive))
}
