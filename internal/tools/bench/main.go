// Command bench measures Lethe beside something else doing the same work, in one run, and prints the ratios with their
// targets. `make bench` runs all of it; docs/BENCHMARKS.md holds the results.
//
//	go run ./internal/tools/bench [-only drain,mysql,latency,sink,pass] [-rounds 3] [-scale 1] [-rate 1000] [-for 60s] [-customers 200000]
//
// drain: a backlog of row changes from PostgreSQL into acknowledged events on a real Kafka, beside pg_recvlogical writing
// the same publication to a file. mysql: the same from MySQL 9, beside a loop of go-mysql, and with most of the traffic on an
// unmapped table. latency: from a client's COMMIT returning to the commit in the replica. sink: applying
// consent changes, beside a plain client's same statements. pass: reading every row of the CRM into acknowledged events, beside a plain client that
// reads the same chunks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	only   string
	crm    string
	rounds int
	scale  float64
	rate   int

	customers int
	length    time.Duration
	lethe     string
}

// result is one line of the table.
type result struct {
	name, measured, beside, ratio, target string
	met                                   bool
}

func main() {
	var o options
	flag.StringVar(&o.only, "only", "drain,mysql,latency,sink,pass", "what to measure")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of drain and mysql; the median counts")
	flag.Float64Var(&o.scale, "scale", 1, "part of the full backlog, for trying the harness")
	flag.IntVar(&o.rate, "rate", 1000, "transactions a second of latency")
	flag.DurationVar(&o.length, "for", time.Minute, "length of latency")
	flag.IntVar(&o.customers, "customers", 200_000, "customers of pass, with a consent each; the targets are those of 1000000")
	flag.StringVar(&o.crm, "crm", "", "the one CRM of pass: postgres or mysql; empty: both")
	flag.StringVar(&o.lethe, "lethe", "", "the lethe binary; empty: build it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, &o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errMissed = errors.New("a target was missed")

func run(ctx context.Context, o *options) error {
	dir, err := os.MkdirTemp("/var/tmp", "lethe-bench-")
	if err != nil {
		return fmt.Errorf("making the bench's folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // a temporary folder
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("opening the bench's folder: %w", err)
	}
	if o.lethe == "" {
		o.lethe = filepath.Join(dir, "lethe")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", o.lethe, "./cmd/lethe")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("building lethe: %w", err)
		}
	}
	only := strings.Split(o.only, ",")
	var results []result
	for _, part := range []struct {
		name string
		run  func(context.Context, *options, string) ([]result, error)
	}{{"drain", drain}, {"mysql", mysqlDrain}, {"latency", latency}, {"sink", sink}, {"pass", passes}} {
		if !slices.Contains(only, part.name) {
			continue
		}
		list, err := part.run(ctx, o, filepath.Join(dir, part.name))
		if err != nil {
			return fmt.Errorf("measuring %s: %w", part.name, err)
		}
		results = append(results, list...)
	}
	fmt.Printf("\n%s, %d cores, %s, load before: %s\n\n", cpu(), runtime.NumCPU(), runtime.Version(), load())
	fmt.Println("| what | Lethe | beside it | ratio | target | met |\n|---|---|---|---|---|---|")
	missed := false
	for _, r := range results {
		met := "yes"
		if !r.met {
			met, missed = "no", true
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", r.name, r.measured, r.beside, r.ratio, r.target, met)
	}
	if missed {
		return errMissed
	}
	return nil
}

// cpu names the processor.
func cpu() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// load is the machine's load average: a figure that was measured beside other work says so.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
