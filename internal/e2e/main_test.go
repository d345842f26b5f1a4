// Package e2e plays the whole of Lethe on real servers: PostgreSQL 15 and 18, Apache Kafka, and the real process, that is
// killed, stopped, starved and lied to. After each fault the replicas must equal an oracle that is computed from the CRM
// alone, and each erasure must have exactly one effective receipt.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"lethe/internal/testenv"
)

// parallel is how many worlds run at once. A test is mostly waiting for timeouts of groups and servers.
const parallel = "6"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", parallel); err != nil {
		panic(err)
	}
	testenv.Main(m)
}

// common is what the tests of this package start once: servers whose settings the scripts of deploy/ may change, and the
// program under test. Tests that take a server away start one of their own.
var common struct {
	sync.Mutex
	postgres map[int]*testenv.Postgres
	child    string // path of the built program
}

// serverOptions are those of every PostgreSQL here: a log that holds every statement, but for the sessions that the scripts
// of deploy/ keep out of it.
func serverOptions(version int) testenv.Options {
	return testenv.Options{
		Version: version,
		Settings: map[string]string{
			"log_min_duration_statement": "0", "log_parameter_max_length_on_error": "-1", "log_error_verbosity": "verbose",
			"wal_sender_timeout": "10s", "max_slot_wal_keep_size": "4GB",
		},
	}
}

// postgres returns the server of a major version that the tests of this package share.
func postgres(t *testing.T, version int) *testenv.Postgres {
	t.Helper()
	common.Lock()
	defer common.Unlock()
	if p := common.postgres[version]; p != nil {
		return p
	}
	p, err := testenv.StartPostgres(context.Background(), serverOptions(version))
	if err != nil {
		// A private server says whether to skip or to fail.
		return testenv.NewPostgres(t, serverOptions(version))
	}
	testenv.AtEnd(p.Close)
	if common.postgres == nil {
		common.postgres = map[int]*testenv.Postgres{}
	}
	common.postgres[version] = p
	return p
}

// childProgram builds the process under test once, with crash points, and with the race detector where the tests have it.
func childProgram(t *testing.T) string {
	t.Helper()
	common.Lock()
	defer common.Unlock()
	if common.child != "" {
		return common.child
	}
	dir, err := os.MkdirTemp("", "lethe-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	testenv.AtEnd(func() error { return os.RemoveAll(dir) })
	path := filepath.Join(dir, "lethe")
	args := []string{"build", "-tags", "lethe_crash", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "./child")...).CombinedOutput()
	if err != nil {
		t.Fatal(fmt.Errorf("building the process under test: %w\n%s", err, out))
	}
	common.child = path
	return path
}
