package main

import (
	"strings"
	"testing"
	"time"

	"lethe/internal/app"
)

func TestPassIsTold(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	p := &app.PassInfo{
		RequestID: "q1", Cause: "gap", State: "reading", Rows: 500, Estimate: 2000, StartedAt: at, Live: true, Restarts: 1, Waiting: "a standby",
		Closes: []string{"g1", "g2"}, Closed: []string{"g1"},
		Tables: []app.PassTableInfo{
			{Name: "public.a", State: "reading", Rows: 500, Estimate: 2000}, {Name: "public.b", State: "refused", Cause: "no_key", Hint: "give it one", Estimate: -1},
		},
	}
	want := `  pass q1 (gap): reading, 500 of about 2000 rows, since 2026-05-04T03:02:01Z, begun anew 1 times
    waits for a standby
    public.a: reading, 500 of about 2000 rows
    public.b: refused, 0 rows
      no_key: give it one
    gaps closed: 1 of 2
`
	if got := passText(p, "  "); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if refusedTables(p) != 1 {
		t.Error("a refused table is not counted")
	}
}

func TestProgressOnATerminal(t *testing.T) {
	var b strings.Builder
	l := progress{w: &b, live: true}
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	p := &app.PassInfo{Rows: 1000, Estimate: 10_000, State: "reading", Live: true}
	for i := range 3 {
		p.Rows = 1000 + 500*uint64(i)
		if err := l.show(p, now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(b.String(), "\r")
	if last := strings.TrimRight(lines[len(lines)-1], " "); !strings.Contains(last, " 20 %") || !strings.HasSuffix(last, "2000 of about 10000 rows  500/s  ETA 16s") {
		t.Errorf("the line is %q", last)
	}
	if err := l.say("short"); err != nil || len([]rune(b.String())) == 0 {
		t.Fatal(err)
	}
	if last := b.String()[strings.LastIndex(b.String(), "\r")+1:]; len(last) < 40 || strings.TrimSpace(last) != "short" {
		t.Errorf("a shorter line leaves something standing: %q", last)
	}

	b.Reset()
	l = progress{w: &b} // a file: a line for each change
	for range 3 {
		if err := l.show(p, now); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.String(); got != "reading\n" {
		t.Errorf("got %q", got)
	}
}
