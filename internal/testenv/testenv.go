// Package testenv starts real servers for tests and benchmarks: PostgreSQL,
// MariaDB, MySQL and Apache Kafka, on free ports of the loopback interface, in
// temporary folders.
//
// Tests that only use a server share one per kind:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		pg := testenv.SharedPostgres(t, 15)
//		dsn := pg.DSN(pg.NewDatabase(t), "")
//		...
//	}
//
// Tests that kill, pause or reconfigure a server start one of their own with
// NewPostgres, NewMySQL or NewKafka.
//
// Every server dies with the process that started it, on Linux even when that
// process is killed by SIGKILL. What the servers need is installed by
// `go run ./internal/tools/testdeps`; a missing binary skips a test on a
// person's machine and fails it when CI=true.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ErrMissing is wrapped by every error that says that a server's binaries are
// not on this machine.
var ErrMissing = errors.New("not installed; run `go run ./internal/tools/testdeps`")

// errShared is returned by what would take a server away from other tests.
var errShared = errors.New("this server is shared with other tests: start a private one")

// startTimeout bounds the start of a server. It is generous because two cores
// may be compiling with the race detector meanwhile.
const startTimeout = 90 * time.Second

// pollInterval is the tick of everything that waits by asking again.
const pollInterval = 10 * time.Millisecond

// Eventually calls f every few milliseconds until it returns nil, and fails
// the test with f's last error when that took longer than within. f runs in
// the calling goroutine, so it may use tb.
func Eventually(tb testing.TB, within time.Duration, f func() error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := poll(ctx, f); err != nil {
		tb.Fatalf("not within %v: %v", within, err)
	}
}

// poll calls f until it returns nil or ctx ends, whose error then is f's last.
func poll(ctx context.Context, f func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// UniqueName returns prefix with a suffix that no other test has, in this
// process or another: for databases, roles, topics and slots on shared
// servers. Only lower-case letters, digits and underscores are added.
func UniqueName(prefix string) string {
	return fmt.Sprintf("%s_%d_%d_%04x", prefix, os.Getpid(), nameSeq.Add(1), rand.N(1<<16))
}

var nameSeq atomic.Int64

// Ports are taken below the range from which Linux takes the local ports of
// outgoing connections (32768 and up): a server that is down for a moment
// could otherwise lose its port to any client of another one.
const (
	firstPort = 15000
	lastPort  = 32000
)

var ports struct {
	sync.Mutex
	given map[int]bool
}

// FreePort returns a TCP port of the loopback interface that nobody listens
// on. It is not given out twice by one process, and stays usable for a server
// that is stopped and started again.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[int]bool{}
	}
	for range 200 {
		port := firstPort + rand.N(lastPort-firstPort)
		if ports.given[port] {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return 0, fmt.Errorf("closing probe of port %d: %w", port, err)
		}
		ports.given[port] = true
		return port, nil
	}
	return 0, errors.New("finding a free port: 200 tries failed")
}

// RequirePostgres skips the test where the binaries of a version are missing, or
// fails it when CI=true: for tests that start the server themselves.
func RequirePostgres(tb testing.TB, version int) {
	tb.Helper()
	if _, err := PostgresBin(version); err != nil {
		skipOrFail(tb, err)
	}
}

// RequireMySQL does the same for a flavor of MySQL.
func RequireMySQL(tb testing.TB, flavor string) {
	tb.Helper()
	if _, err := MySQLTree(flavor); err != nil {
		skipOrFail(tb, err)
	}
}

// skipOrFail ends the test because a server could not be had: a missing
// installation skips it on a person's machine and fails it in CI, where a
// skipped test would look like a passed one.
func skipOrFail(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("CI") != "true" {
		tb.Skip(err)
	}
	tb.Fatal(err)
}

// logTail returns the end of a server's log, for errors and failed tests.
func logTail(path string) string {
	const keep = 4 << 10
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if len(b) > keep {
		b = b[len(b)-keep:]
		if _, rest, ok := strings.Cut(string(b), "\n"); ok {
			return rest
		}
	}
	return string(b)
}
