package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lethe/internal/app"
)

func statusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Tell where everything stands, asking the servers and no process",
		Long: `Reads the slot or the binary log of the source, the checkpoint and the ends of the events topic in Kafka, and Lethe's own tables in each
replica. It needs no key. In psql the view lethe.status of a replica says the same of that replica; on MySQL and MariaDB
it is lethe_status.

Exit codes: 0, 3 a gap is open, 4 a server cannot be reached.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			s := app.ReadStatus(cmd.Context(), cfg)
			if g.json {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s)
			}
			return errors.Join(err, s.Err())
		},
	}
}

func printStatus(w io.Writer, s *app.StatusReport) error {
	var b strings.Builder
	src := &s.Source
	b.WriteString("source\n")
	if src.Error != "" {
		b.WriteString("  " + src.Error + "\n")
	}
	printLog(&b, src)
	b.WriteString("kafka\n")
	if s.Kafka.Error != "" {
		b.WriteString("  " + s.Kafka.Error + "\n")
	}
	if c := s.Kafka.Checkpoint; c != nil {
		position := cmp.Or(c.Position, "at the log's end, wherever it is when capture starts again,")
		fmt.Fprintf(&b, "  checkpoint %s of %s, incarnation %d\n", position, moment(c.CommittedAt), c.Incarnation)
	} else if s.Kafka.Error == "" {
		b.WriteString("  no checkpoint yet\n")
	}
	if s.Kafka.Error == "" {
		fmt.Fprintf(&b, "  %d events retained in %d partitions\n", s.Kafka.Events, len(s.Kafka.Partitions))
	}
	if p := s.Kafka.Pass; p != nil {
		b.WriteString(passText(p, "  "))
	}
	for _, gap := range s.Kafka.Gaps {
		fmt.Fprintf(&b, "  gap %s (%s) since %s%s\n", gap.ID, gap.Cause, moment(gap.OpenedAt), standing(gap.Blocks))
	}
	for i := range s.Replicas {
		printReplica(&b, &s.Replicas[i])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printLog tells how the slot stands, or the binary log.
func printLog(b *strings.Builder, src *app.SourceStatus) {
	if src.SlotState == "" && (src.Database != "mysql" || src.Error != "") {
		return
	}
	name, kept, limit := "slot", "held back", "max_retained_wal"
	if src.Database == "mysql" {
		name, kept, limit = "binary log", "kept by the server", "max_binlog_lag"
	}
	state := cmp.Or(src.SlotState, "with no known place of Lethe's in it") // no checkpoint, or no Kafka to ask for it
	fmt.Fprintf(b, "  %s %s, %s", name, state, reading(src.Reading))
	end := "; "
	for _, n := range []struct {
		bytes int64
		what  string
	}{{src.LagBytes, "not acknowledged"}, {src.RetainedBytes, kept}, {src.SafeBytes, "more until it is lost"}} {
		if n.bytes >= 0 {
			b.WriteString(end + size(n.bytes) + " " + n.what)
			end = ", "
		}
	}
	if src.SafeSeconds >= 0 {
		b.WriteString(end + round(src.SafeSeconds) + " until it may be purged")
	}
	if src.OverLimit {
		b.WriteString("; more than " + limit)
	}
	b.WriteByte('\n')
}

func printReplica(b *strings.Builder, r *app.ReplicaStatus) {
	fmt.Fprintf(b, "replica %s (%s)\n", r.Name, r.Mode)
	if r.Status == nil {
		b.WriteString("  " + r.Error + "\n")
		return
	}
	lag := "lag unknown"
	if r.LagEvents >= 0 {
		lag = strconv.FormatInt(r.LagEvents, 10) + " events behind"
	}
	fmt.Fprintf(b, "  %s", lag)
	if r.BehindSeconds > 0 {
		fmt.Fprintf(b, ", newest commit %s ago", round(r.BehindSeconds))
	}
	if r.Paused {
		fmt.Fprintf(b, "; PAUSED by %s", r.PausedBy)
	}
	if !r.MappingActive {
		b.WriteString("; another mapping is active: run `lethe setup`")
	}
	b.WriteByte('\n')
	fmt.Fprintf(b, "  erasures: %s\n", counts(r.Erasures))
	if len(r.Waiting) > 0 {
		fmt.Fprintf(b, "  not proven: %s; the oldest for %s\n", counts(r.Waiting), round(r.OldestUnprovenSecond))
	}
	if len(r.Errors) > 0 {
		fmt.Fprintf(b, "  error codes: %s\n", counts(r.Errors))
		b.WriteString(nextSteps(slices.Sorted(maps.Keys(r.Errors)), "    "))
	}
	printPasses(b, r)
	fmt.Fprintf(b, "  parked %d, subjects blocked %d, without a row %d, receipts to send %d, open gaps %d\n",
		r.Parked, r.Blocked, r.Unmatched, r.Unsent, len(r.OpenGaps))
}

// printPasses tells whether the replica knows everybody in the source, and who is gone from it.
func printPasses(b *strings.Builder, r *app.ReplicaStatus) {
	for _, p := range r.Passes {
		what := "pass"
		if p.Whole {
			what = "pass over everything"
		}
		fmt.Fprintf(b, "  %s %s since %s: ended in %d of %d partitions\n", what, p.RunID, moment(p.BeganAt), p.Ended, max(p.Begun, len(r.Partitions)))
	}
	switch {
	case r.Unproven:
		fmt.Fprintf(b, "  INCOMPLETE: %s\n", app.NextStep("incomplete"))
	case r.Incomplete:
		b.WriteString("  incomplete: no pass over the whole source has ended here yet; who was there before Lethe may not be known (`lethe snapshot`)\n")
	}
	if r.Reviews > 0 {
		fmt.Fprintf(b, "  reviews %d (%d overdue): rows of which a person has to say whether they are somebody (`lethe review list`)\n", r.Reviews, r.Overdue)
	}
	if r.Absent > 0 {
		fmt.Fprintf(b, "  absent %d: gone from the source, and nobody was told of an erasure; nothing was erased (`lethe findings`)\n", r.Absent)
	}
}

// nextSteps says what to do about error codes, a line each.
func nextSteps(codes []string, indent string) string {
	var b strings.Builder
	for _, code := range codes {
		if step := app.NextStep(code); step != "" {
			fmt.Fprintf(&b, "%s%s: %s\n", indent, code, step)
		}
	}
	return b.String()
}

func reading(active bool) string {
	if active {
		return "read by capture"
	}
	return "nobody reads it"
}

func standing(blocks bool) string {
	if blocks {
		return ": capture stands still until `lethe gap resume`"
	}
	return ""
}

func counts(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}

func size(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func round(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
