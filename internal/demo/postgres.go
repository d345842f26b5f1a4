package demo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"lethe/internal/testenv"
)

// The versions of PostgreSQL that the demo runs on.
const (
	oldestPostgres = 15
	newestPostgres = 18
)

// errNoPostgres says what to do where there is none.
var errNoPostgres = errors.New("no PostgreSQL 15 to 18 found: `make demo` installs one; or install your system's package, with initdb on PATH")

// findPostgres returns the binaries of the distribution, of the cache that `make demo` fills, or those on PATH.
func findPostgres(ctx context.Context) (bin string, version int, err error) {
	for version := oldestPostgres; version <= newestPostgres; version++ {
		if bin, err := testenv.PostgresBin(version); err == nil {
			return bin, version, nil
		}
	}
	initdb, err := exec.LookPath("initdb")
	if err != nil {
		return "", 0, errNoPostgres
	}
	if initdb, err = filepath.EvalSymlinks(initdb); err != nil {
		return "", 0, fmt.Errorf("finding PostgreSQL: %w", err)
	}
	out, err := exec.CommandContext(ctx, initdb, "--version").Output() //nolint:gosec // what PATH says
	if err != nil {
		return "", 0, fmt.Errorf("asking %s for its version: %w", initdb, err)
	}
	// initdb (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
	for _, word := range strings.Fields(string(out)) {
		major, _, _ := strings.Cut(word, ".")
		if version, err := strconv.Atoi(major); err == nil && version >= oldestPostgres && version <= newestPostgres {
			return filepath.Dir(initdb), version, nil
		}
	}
	return "", 0, errNoPostgres
}
