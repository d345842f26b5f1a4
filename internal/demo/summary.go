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

func (s *stage) replicas() []DB { return []DB{s.on.Marketing, s.on.Reporting} }

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
	for _, db := range s.replicas() {
		var state string
		var n int
		sql := "select state, count(*) from " + db.dialect().ledger("receipt") + " group by state"
		if err := db.query(ctx, sql, nil, []any{&state, &n}, func() error { out.Receipts[state] += n; return nil }); err != nil {
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
	hits, err := scanner.Tree(s.dir, func(path string) bool { return filepath.Base(path) == dataFolder })
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
	for i, db := range s.replicas() {
		found, err := scanLedger(ctx, scanner, db, databases[i+1])
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

// scanLedger reads every row of Lethe's tables.
func scanLedger(ctx context.Context, scanner *canary.Scanner, db DB, replica string) ([]canary.Hit, error) {
	var (
		tables []string
		name   string
	)
	err := db.query(ctx, db.dialect().ledgers, nil, []any{&name}, func() error { tables = append(tables, name); return nil })
	if err != nil {
		return nil, fmt.Errorf("listing Lethe's tables: %w", err)
	}
	if len(tables) == 0 {
		return nil, fmt.Errorf("listing Lethe's tables in %s: there is none", replica)
	}
	var hits []canary.Hit
	for _, table := range tables {
		var out bytes.Buffer
		if err := db.dump(ctx, table, &out); err != nil {
			return nil, fmt.Errorf("reading %s: %w", table, err)
		}
		found, err := scanner.Reader(replica+": "+table, &out)
		if err != nil {
			return nil, err
		}
		hits = append(hits, found...)
	}
	return hits, nil
}

// portrait is what the three databases hold of one person, by place and column.
type portrait map[string]map[string]string

var portraits = []struct {
	place      string
	server     int
	table, key string
	columns    []string
}{
	{"CRM, customer", crm, "customer", "customer_id", []string{"last_name", "first_name", "birth_date", "status", "blocked"}},
	{"CRM, e-mail", crm, "customer_email", "customer_id", []string{"email"}},
	{"marketing, contact", marketing, "contact", "crm_id", []string{"lastname", "firstname", "email", "mobile", "city", "newsletter_optin", "blocked"}},
	{"reporting, dim_customer", reporting, "dim_customer", "customer_nk", []string{"full_name", "birth_year", "postcode", "usable"}},
}

func (s *stage) portrait(ctx context.Context, id int64) (portrait, error) {
	out := portrait{}
	for _, p := range portraits {
		selected, values, dest := make([]string, len(p.columns)), make([]*string, len(p.columns)), make([]any, len(p.columns))
		for i, column := range p.columns {
			selected[i], dest[i] = "cast("+column+" as char(60))", &values[i]
		}
		sql := "select " + strings.Join(selected, ", ") + " from " + p.table + " where " + p.key + " = $1"
		err := [...]DB{s.on.CRM, s.on.Marketing, s.on.Reporting}[p.server].query(ctx, sql, []any{id}, dest, func() error {
			row := map[string]string{}
			for i, column := range p.columns {
				if row[column] = "-"; values[i] != nil {
					row[column] = strings.TrimRight(*values[i], " ") // PostgreSQL fills a char up
				}
			}
			out[p.place] = row
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading one customer: %w", err)
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
	for _, db := range s.replicas() {
		var body []byte
		sql := "select body from " + db.dialect().ledger("receipt") + " where case_id = $1 order by made_at"
		err := db.query(ctx, sql, []any{caseID[:]}, []any{&body}, func() error {
			receipt, err := s.app.VerifyReceipt(body)
			out = append(out, receipt)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading receipts: %w", err)
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

func describe(row map[string]string) string {
	if row == nil {
		return "no row"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(row)) {
		parts = append(parts, name+"="+row[name])
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
