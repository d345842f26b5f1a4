package config

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParsePeriod(t *testing.T) {
	for text, want := range map[string]Period{
		"0": {}, "30s": {Duration: 30 * time.Second}, "15m": {Duration: 15 * time.Minute}, "24h": {Duration: 24 * time.Hour},
		"7d": {Days: 7}, "1mo": {Months: 1}, "10y": {Years: 10}, "1y6mo": {Years: 1, Months: 6},
		"1h30m": {Duration: 90 * time.Minute}, "250ms": {Duration: 250 * time.Millisecond}, "100y": {Years: 100},
	} {
		got, err := parsePeriod(text)
		if err != nil || got != want {
			t.Errorf("parsePeriod(%q) is %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "1", "s", "-1h", "1.5h", "1 h", "1M", "1w", "30m1h", "1h1h", "101y", "1201mo", "36601d", "876001h", "9999999999999999999s", "1h ", "0s0",
	} {
		if got, err := parsePeriod(text); err == nil {
			t.Errorf("parsePeriod(%q) is %+v, want an error", text, got)
		}
	}
	if d, err := parseDuration("7d12h"); err != nil || d != 180*time.Hour {
		t.Errorf("7d12h is %v, %v", d, err)
	}
	for _, text := range []string{"1mo", "1y", "1y1s"} {
		if _, err := parseDuration(text); err == nil {
			t.Errorf("parseDuration(%q) accepted a calendar unit", text)
		}
	}
}

// TestPeriodString reads back what String writes.
func TestPeriodString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Period{
			Years: rapid.IntRange(0, 100).Draw(t, "years"), Months: rapid.IntRange(0, 1200).Draw(t, "months"),
			Days:     rapid.IntRange(0, 36600).Draw(t, "days"),
			Duration: rapid.SampledFrom([]time.Duration{0, time.Second, 10 * time.Second, 10 * time.Minute, 20 * time.Hour, 3661 * time.Second, 90 * time.Minute}).Draw(t, "duration"),
		}
		if got, err := parsePeriod(want.String()); err != nil || got != want {
			t.Fatalf("%q reads back as %+v, %v; want %+v", want.String(), got, err, want)
		}
	})
	if got := (Period{Duration: 24 * time.Hour}).String(); got != "24h" {
		t.Errorf("a day of the clock is %q", got)
	}
}

func TestPeriodAfter(t *testing.T) {
	day := func(s string) time.Time {
		d, err := time.Parse(time.DateTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, test := range []struct {
		from   string
		period Period
		want   string
	}{
		{"2026-01-31 10:00:00", Period{Months: 1}, "2026-02-28 10:00:00"},
		{"2028-01-31 10:00:00", Period{Months: 1}, "2028-02-29 10:00:00"},
		{"2028-02-29 00:00:00", Period{Years: 1}, "2029-02-28 00:00:00"},
		{"2026-11-30 00:00:00", Period{Months: 3}, "2027-02-28 00:00:00"},
		{"2026-03-15 08:00:00", Period{Years: 10, Months: 1, Days: 20, Duration: time.Hour}, "2036-05-05 09:00:00"},
		{"2026-03-15 08:00:00", Period{}, "2026-03-15 08:00:00"},
	} {
		if got := test.period.After(day(test.from)); !got.Equal(day(test.want)) {
			t.Errorf("%s after %s is %s, want %s", test.period, test.from, got.Format(time.DateTime), test.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "512B": 512, "1kB": 1024, "512MB": 512 << 20, "10GB": 10 << 30, "1TB": 1 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GB", "10 GB", "10gb", "-1GB", "1.5GB", "99999999TB", "1PB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) is %d, want an error", text, got)
		}
	}
}
