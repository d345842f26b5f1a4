package app_test

import (
	"fmt"
	"testing"
	"time"

	"lethe/internal/app"
	"lethe/schema"
)

// People who were erased before Lethe came are found by the first pass, which begins by itself. They wait together, and one
// act of an operator releases them in every replica. Nothing is proven before the pass has ended.
func TestReleaseOfWhatAPassHasFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	w.people(3)
	w.erase(1)
	w.erase(2) // the slot is made later: the log does not tell of them
	cfg := w.load()
	w.setup(cfg)
	before := app.ReadStatus(t.Context(), cfg)
	for i := range before.Replicas {
		if r := &before.Replicas[i]; r.Status == nil || !r.Incomplete || !r.Unproven {
			t.Errorf("a new replica: %+v", r.Status)
		}
	}
	stop := w.run(cfg)
	defer stop()
	run := ""
	for _, list := range w.cases(t.Context(), 2) {
		for _, c := range list {
			if run == "" {
				run = c.Run
			}
			if c.Run == "" || c.Run != run || c.State != "suppressed" {
				t.Errorf("a case that a pass has found: %+v, want it of pass %s", c, run)
			}
		}
	}
	w.eventually("the first pass ends in every partition", func() (bool, string) {
		s := app.ReadStatus(t.Context(), cfg)
		said := ""
		for i := range s.Replicas {
			if r := &s.Replicas[i]; r.Status == nil || r.Incomplete || len(r.Passes) > 0 || r.Absent > 0 {
				said += fmt.Sprintf("%s %+v ", r.Name, r.Status)
			}
		}
		return said == "", said
	})
	for _, replica := range []string{"marketing", "reporting"} {
		w.pg.Exec(t, replica, "UPDATE lethe.pending SET due_at = now()")
	}
	w.eventually("they wait for their release", func() (bool, string) {
		n := 0
		for _, list := range w.cases(t.Context(), 2) {
			for _, c := range list {
				if c.Wait == "breaker" && c.Receipt == "awaiting_release" {
					n++
				}
			}
		}
		return n == 4, fmt.Sprint(n)
	})
	if _, err := app.Decide(t.Context(), cfg, app.DecideOptions{Run: "another", Decision: schema.DecisionRelease, By: "dpo"}); err == nil {
		t.Error("a pass that nobody knows is released")
	}
	if _, err := app.Decide(t.Context(), cfg, app.DecideOptions{Run: run, Decision: schema.DecisionCancel, By: "dpo"}); err == nil {
		t.Error("a whole pass is cancelled")
	}
	d, err := app.Decide(t.Context(), cfg, app.DecideOptions{Run: run, Decision: schema.DecisionRelease, By: "dpo", Wait: time.Minute})
	if err != nil || len(d) != 2 || d[0].Waiting != 2 || d[0].Outcomes["marketing"] != "done" || d[1].Outcomes["reporting"] != "done" {
		t.Fatalf("release of a pass: %+v, %v", d, err)
	}
	w.eventually("all of them are proven", func() (bool, string) {
		n := 0
		for _, list := range w.cases(t.Context(), 2) {
			for _, c := range list {
				if c.Receipt == "verified" {
					n++
				}
			}
		}
		return n == 4, fmt.Sprint(n)
	})
	if got := w.text("marketing", "SELECT count(*) || ' by ' || min(decided_by) FROM lethe.decision"); got != "1 by dpo" {
		t.Errorf("recorded in marketing: %s, want one decision by dpo", got)
	}
}
