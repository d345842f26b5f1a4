package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// initdbArgs make a cluster that sorts by bytes, as the replicas' tables do on
// every platform, and that nobody waits for the disk for.
var initdbArgs = []string{
	"--no-sync", "--username=" + superuser, "--auth=trust", "--encoding=UTF8", "--locale=C",
}

// newCluster makes an empty cluster in dir, which must not exist.
//
// initdb takes a second or more of a core, so it is run once for each build of
// PostgreSQL and its result kept in the cache. A copy would share its system
// identifier with every other one, and Lethe tells servers apart by it, so each
// gets a new identifier.
func newCluster(ctx context.Context, bin string, version int, dir string) error {
	template, err := clusterTemplate(ctx, bin, version)
	if err != nil {
		return err
	}
	uid, gid := serverID()
	if err := copyTree(dir, template, uid, gid); err != nil {
		return err
	}
	if err := renewSystemID(dir); err != nil {
		return fmt.Errorf("giving cluster a system identifier: %w", err)
	}
	return nil
}

// clusterTemplate returns the prepared cluster of the build of PostgreSQL in
// bin. Several processes may make it at once: the first rename wins.
func clusterTemplate(ctx context.Context, bin string, version int) (string, error) {
	cache, err := PrepareCache()
	if err != nil {
		return "", err
	}
	build, err := serverCommand(ctx, bin, "postgres", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking PostgreSQL %d for its version: %w", version, err)
	}
	key := sha256.New()
	fmt.Fprintf(key, "%s\n%s\n%q\n", bin, build, initdbArgs)
	template := filepath.Join(cache, fmt.Sprintf("cluster-%d-%s", version, hex.EncodeToString(key.Sum(nil)[:6])))
	if isFile(filepath.Join(template, "PG_VERSION")) {
		return template, nil
	}
	work, err := os.MkdirTemp(cache, "tmp-initdb-")
	if err != nil {
		return "", fmt.Errorf("making cluster: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o777); err != nil {
		return "", fmt.Errorf("making cluster: %w", err)
	}
	fresh := filepath.Join(work, "data")
	out, err := serverCommand(ctx, bin, "initdb", append(initdbArgs, "-D", fresh)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("making cluster: initdb: %w\n%s", err, out)
	}
	if err := os.Rename(fresh, template); err != nil && !errors.Is(err, fs.ErrExist) && !isFile(filepath.Join(template, "PG_VERSION")) {
		return "", fmt.Errorf("making cluster: %w", err)
	}
	return template, nil
}

// Where PostgreSQL keeps its system identifier: first in the control file
// (pg_control.h, ControlFileData), and in the long header of the first page of
// each WAL segment (xlog_internal.h, XLogLongPageHeaderData.xlp_sysid). The
// initial cluster has one segment.
const (
	controlFile     = "global/pg_control"
	firstSegment    = "pg_wal/000000010000000000000001"
	segmentIDOffset = 24
)

// renewSystemID gives a cluster that was shut down in order, and has not left
// its first WAL segment, a new system identifier.
func renewSystemID(dir string) error {
	control, err := os.ReadFile(filepath.Join(dir, controlFile))
	if err != nil {
		return err
	}
	crcAt := controlCRC(control)
	if crcAt < 0 {
		return errors.New("no checksum found in the control file")
	}
	old := bytes.Clone(control[:8])
	if _, err := rand.Read(control[:8]); err != nil {
		return err
	}
	control[7] &= 0x7f // tools print it as a signed number
	binary.NativeEndian.PutUint32(control[crcAt:], crc32.Checksum(control[:crcAt], castagnoli))
	if err := overwrite(filepath.Join(dir, controlFile), 0, nil, control); err != nil {
		return err
	}
	return overwrite(filepath.Join(dir, firstSegment), segmentIDOffset, old, control[:8])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// controlCRC finds where a control file's fields end and their CRC-32C stands,
// which differs between versions, or returns -1.
func controlCRC(control []byte) int {
	for at := 64; at+4 <= len(control); at += 4 {
		if crc32.Checksum(control[:at], castagnoli) == binary.NativeEndian.Uint32(control[at:]) {
			return at
		}
	}
	return -1
}

// overwrite replaces bytes of a file in place, keeping its owner and mode, and
// refuses when they are not what was expected.
func overwrite(path string, at int64, expect, with []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if expect != nil {
		have := make([]byte, len(expect))
		if _, err := f.ReadAt(have, at); err != nil {
			return errors.Join(err, f.Close())
		}
		if !bytes.Equal(have, expect) {
			return errors.Join(errors.New("no system identifier at byte "+strconv.FormatInt(at, 10)+" of "+filepath.Base(path)), f.Close())
		}
	}
	_, err = f.WriteAt(with, at)
	return errors.Join(err, f.Close())
}
