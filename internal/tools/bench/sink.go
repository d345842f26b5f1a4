package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const sinkTarget = 0.6

// sink runs the benchmark of sinks/postgres, which applies batches of 1,000 consent changes and has a plain client send the
// same UPDATE and one upsert per event beside it.
func sink(ctx context.Context, _ *options, _ string) ([]result, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "./sinks/postgres", "-run", "^$", "-bench", "ApplyConsents", "-benchtime", "60x")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("running the benchmark of sinks/postgres: %w\n%s", err, out.String())
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
		ratio := value("ratio")
		results = append(results, result{
			"apply consent changes, subjects " + name, fmt.Sprintf("%.0f events/s", value("events/s")),
			fmt.Sprintf("plain client: %.0f events/s", value("plain/s")), fmt.Sprintf("%.2f", ratio), fmt.Sprintf("at least %.1f", sinkTarget), ratio >= sinkTarget,
		})
	}
	if len(results) == 0 {
		return nil, errors.New("the benchmark of sinks/postgres printed no result")
	}
	return results, nil
}
