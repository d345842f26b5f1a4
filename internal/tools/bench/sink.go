package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const sinkTarget = 0.6

// sink runs the benchmarks of sinks/postgres and sinks/mysql, which apply batches of 1,000 consent changes and have a plain
// client send the same UPDATE and one upsert per event beside it.
func sink(ctx context.Context, _ *options, _ string) ([]result, error) {
	var results []result
	for _, pkg := range []string{"./sinks/postgres", "./sinks/mysql"} {
		rows, err := sinkOf(ctx, pkg)
		if err != nil {
			return nil, err
		}
		results = append(results, rows...)
	}
	return results, nil
}

func sinkOf(ctx context.Context, pkg string) ([]result, error) {
	cmd := exec.CommandContext(ctx, "go", "test", pkg, "-run", "^$", "-bench", "ApplyConsents", "-benchtime", "60x")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("running the benchmark of %s: %w\n%s", pkg, err, out.String())
	}
	var results []result
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "BenchmarkApplyConsents/") {
			continue
		}
		fields := strings.Fields(line)
		value := func(unit string) float64 {
			for i := 1; i < len(fields); i++ {
				if fields[i] == unit {
					v, err := strconv.ParseFloat(fields[i-1], 64)
					if err == nil {
						return v
					}
				}
			}
			return 0
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "BenchmarkApplyConsents/"), "-")
		if server, phase, ok := strings.Cut(name, "/"); ok {
			name = server + ", subjects " + phase
		} else {
			name = "postgres, subjects " + name
		}
		ratio := value("ratio")
		results = append(results, result{
			"apply consent changes, " + name, fmt.Sprintf("%.0f events/s", value("events/s")),
			fmt.Sprintf("plain client: %.0f events/s", value("plain/s")), fmt.Sprintf("%.2f", ratio), fmt.Sprintf("at least %.1f", sinkTarget), ratio >= sinkTarget,
		})
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("the benchmark of %s printed no result", pkg)
	}
	return results, nil
}
