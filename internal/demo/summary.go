package demo

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/common/expfmt"

	"lethe/internal/canary"
	"lethe/schema"
)

// Summary is what `lethe demo --json` prints.
type Summary struct {
	Customers        int               `json:"customers"`
	Transactions     int               `json:"transactions"`
	Events           map[string]uint64 `json:"events"` // by type
	Erasures         int               `json:"erasures"`
	Receipts         map[string]int    `json:"receipts"` // by state, over both replicas: of erasures, objections and restrictions
	Verified         int               `json:"verified"` // erasures verified, over both replicas
	CommitToUnusable Quantiles         `json:"commit_to_unusable_ms"`
	CanaryHits       int               `json:"canary_hits"`
	Day              Counts            `json:"day"`
	Followed         bool              `json:"followed"`
	Differences      []string          `json:"differences,omitempty"` // the first of them; ids and properties only
	Leaks            []string          `json:"leaks,omitempty"`       // places of canary hits
}

// Quantiles of a latency, in milliseconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// ok reports whether everything followed, is proven and leaked nothing.
func (s *Summary) ok() bool {
	return s.Followed && s.CanaryHits == 0 && s.Erasures > 0 && s.Verified == len(databases[1:])*s.Erasures
}

// shownDifferences bounds the lists of a Summary.
const shownDifferences = 20

func (s *stage) replicas() []*pgx.Conn { return []*pgx.Conn{s.market, s.report} }

func (s *stage) sumUp(ctx context.Context, open []string) (*Summary, error) {
	out := &Summary{
		Customers: s.o.Customers, Transactions: s.counts.Transactions, Erasures: s.counts.Erasures, Day: s.counts,
		Events: map[string]uint64{}, Receipts: map[string]int{}, Followed: len(open) == 0, Differences: firstOf(open),
	}
	if snap := s.app.Snapshot(); snap.Capture != nil {
		for t, n := range snap.Capture.Events {
			out.Events[t.String()] = n
		}
	}
	for _, conn := range s.replicas() {
		rows, err := conn.Query(ctx, "select state, count(*) from lethe.receipt group by state")
		if err != nil {
			return nil, fmt.Errorf("counting receipts: %w", err)
		}
		var state string
		var n int
		if _, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error { out.Receipts[state] += n; return nil }); err != nil {
			return nil, fmt.Errorf("counting receipts: %w", err)
		}
	}
	var err error
	if out.Verified, err = s.proven(ctx); err != nil {
		return nil, err
	}
	waited := slices.Concat(s.marketProbe.latencies(), s.reportProbe.latencies())
	slices.Sort(waited)
	out.CommitToUnusable = Quantiles{P50: milliseconds(quantile(waited, 0.5)), P99: milliseconds(quantile(waited, 0.99))}
	hits, err := s.canaries(ctx)
	if err != nil {
		return nil, err
	}
	out.CanaryHits = len(hits)
	for _, h := range hits {
		out.Leaks = append(out.Leaks, fmt.Sprintf("%s at %d", h.Place, h.Offset))
	}
	out.Leaks = firstOf(out.Leaks)
	return out, nil
}

func firstOf(list []string) []string { return list[:min(len(list), shownDifferences)] }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// canaries looks for the marked values in everything that Lethe left behind: the broker's files, which hold all topics,
// its log, its keys, its metrics, and its own tables in both replicas. The servers' data are theirs, and their logs hold
// no statement of Lethe's sessions; those logs are looked through too.
func (s *stage) canaries(ctx context.Context) ([]canary.Hit, error) {
	scanner, err := canary.New(Markers...)
	if err != nil {
		return nil, err
	}
	hits, err := scanner.Tree(s.dir, func(path string) bool { return filepath.Base(path) == "data" && strings.Contains(path, "pg-") })
	if err != nil {
		return nil, err
	}
	metrics, err := s.metrics()
	if err != nil {
		return nil, err
	}
	found, err := scanner.Reader("metrics", bytes.NewReader(metrics))
	if err != nil {
		return nil, err
	}
	hits = append(hits, found...)
	for i, conn := range s.replicas() {
		found, err := scanLedger(ctx, scanner, conn, databases[i+1])
		if err != nil {
			return nil, err
		}
		hits = append(hits, found...)
	}
	return hits, nil
}

func (s *stage) metrics() ([]byte, error) {
	families, err := s.app.Registry().Gather()
	if err != nil {
		return nil, fmt.Errorf("gathering metrics: %w", err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			return nil, fmt.Errorf("writing metrics: %w", err)
		}
	}
	return out.Bytes(), nil
}

// scanLedger reads every row of Lethe's tables as text; COPY writes bytes in hexadecimal, which the scanner knows.
func scanLedger(ctx context.Context, scanner *canary.Scanner, conn *pgx.Conn, replica string) ([]canary.Hit, error) {
	rows, err := conn.Query(ctx, "select table_name::text from information_schema.tables where table_schema = 'lethe' and table_type = 'BASE TABLE'")
	if err != nil {
		return nil, fmt.Errorf("listing Lethe's tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing Lethe's tables: %w", err)
	}
	var hits []canary.Hit
	for _, table := range tables {
		var out bytes.Buffer
		if _, err := conn.PgConn().CopyTo(ctx, &out, "copy "+pgx.Identifier{"lethe", table}.Sanitize()+" to stdout"); err != nil {
			return nil, fmt.Errorf("reading lethe.%s: %w", table, err)
		}
		found, err := scanner.Reader(replica+": lethe."+table, &out)
		if err != nil {
			return nil, err
		}
		hits = append(hits, found...)
	}
	return hits, nil
}

// portrait is what the three databases hold of one person, by place and column.
type portrait map[string]map[string]any

var portraits = []struct {
	place  string
	server int
	query  string
}{
	{"CRM, customer", crm, "select last_name, first_name, birth_date::text, status, blocked from customer where customer_id = $1"},
	{"CRM, e-mail", crm, "select email from customer_email where customer_id = $1"},
	{"marketing, contact", marketing, "select lastname, firstname, email, mobile, city, newsletter_optin, blocked from contact where crm_id = $1"},
	{"reporting, dim_customer", reporting, "select full_name, birth_year, postcode, usable from dim_customer where customer_nk = $1"},
}

func (s *stage) portrait(ctx context.Context, id int64) (portrait, error) {
	out := portrait{}
	for _, p := range portraits {
		rows, err := [...]*pgx.Conn{s.crm, s.market, s.report}[p.server].Query(ctx, p.query, id)
		if err != nil {
			return nil, fmt.Errorf("reading one customer: %w", err)
		}
		maps, err := pgx.CollectRows(rows, pgx.RowToMap)
		if err != nil {
			return nil, fmt.Errorf("reading one customer: %w", err)
		}
		if len(maps) > 0 {
			out[p.place] = maps[0]
		}
	}
	return out, nil
}

// receiptsOf returns the decoded receipts of one person's case in both replicas, in the order of their making.
func (s *stage) receiptsOf(ctx context.Context, id int64) ([]*schema.Receipt, error) {
	caseID, err := s.app.CaseOf(fmt.Sprint(id))
	if err != nil {
		return nil, err
	}
	var out []*schema.Receipt
	for _, conn := range s.replicas() {
		rows, err := conn.Query(ctx, "select body from lethe.receipt where case_id = $1 order by made_at", caseID[:])
		if err != nil {
			return nil, fmt.Errorf("reading receipts: %w", err)
		}
		bodies, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
		if err != nil {
			return nil, fmt.Errorf("reading receipts: %w", err)
		}
		for _, body := range bodies {
			receipt, err := s.app.VerifyReceipt(body)
			if err != nil {
				return nil, err
			}
			out = append(out, receipt)
		}
	}
	return out, nil
}

// story tells what became of one person.
func story(id int64, before, after portrait, receipts []*schema.Receipt) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nThe story of customer %d (an invented person)\n", id)
	for _, p := range portraits {
		fmt.Fprintf(&b, "  %-24s before: %s\n  %-24s now:    %s\n", p.place, describe(before[p.place]), "", describe(after[p.place]))
	}
	fmt.Fprintf(&b, "  Receipts, each signed by its replica's key:\n")
	for _, r := range receipts {
		fmt.Fprintf(&b, "    %-10s %-10s %s  case %s", r.Replica, r.State, r.MadeAt.Format("15:04:05.000"), r.CaseID)
		for _, rows := range r.Rows {
			fmt.Fprintf(&b, "  %s %s %d", rows.Table, rows.Action, rows.Changed)
		}
		if r.Verification != nil {
			fmt.Fprintf(&b, "  read back (%s): %d values left", r.Verification.Method, r.Verification.Remaining)
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	return b.String()
}

func describe(row map[string]any) string {
	if row == nil {
		return "no row"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(row)) {
		value := fmt.Sprint(row[name])
		if row[name] == nil {
			value = "-"
		}
		parts = append(parts, name+"="+value)
	}
	return strings.Join(parts, " ")
}

// Text is the summary for a person.
func (s *Summary) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d customers, %d transactions in the day, %d events\n", s.Customers, s.Transactions, sum(s.Events))
	fmt.Fprintf(&b, "%d erasures in 2 replicas: %d of %d verified\n", s.Erasures, s.Verified, len(databases[1:])*s.Erasures)
	fmt.Fprintf(&b, "receipts of erasures, objections and restrictions together: %s\n", listed(s.Receipts))
	fmt.Fprintf(&b, "commit to unusable copy: p50 %.0f ms, p99 %.0f ms\n", s.CommitToUnusable.P50, s.CommitToUnusable.P99)
	fmt.Fprintf(&b, "personal values found in topics, logs, metrics, Lethe's tables and files: %d\n", s.CanaryHits)
	for _, line := range slices.Concat(s.Differences, s.Leaks) {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if s.ok() {
		b.WriteString("Everything followed and is proven.\n")
	}
	return b.String()
}

func listed(counts map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[k], k))
	}
	return strings.Join(parts, ", ")
}
