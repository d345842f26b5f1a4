package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var hit = regexp.MustCompile(`crashpoint\.Hit\("([a-z0-9_.]+)"\)`)

// crashPoints lists the points between two durable steps that the source names, so that a new one is tested without
// anybody thinking of it.
func crashPoints(t *testing.T, prefix string) []string {
	t.Helper()
	found := map[string]bool{}
	for _, root := range []string{"../../capture", "../../sinks", "../../internal/app"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range hit.FindAllSubmatch(text, -1) {
				found[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var out []string
	for name := range found {
		switch {
		case name == pointFirstCheckpoint || name == pointGapEvent:
		case strings.HasPrefix(name, "capture.") || strings.HasPrefix(name, "sink.") || strings.HasPrefix(name, "pass."), strings.HasPrefix(name, "readback."):
			if strings.HasPrefix(name, prefix) {
				out = append(out, name)
			}
		default:
			t.Fatalf("crash point %s belongs to no role that is tested here", name)
		}
	}
	slices.Sort(out)
	if len(out) < 3 {
		t.Fatalf("found only %q", out)
	}
	return out
}

// Points that are passed only in a situation of their own.
const (
	pointFirstCheckpoint = "capture.after_first_checkpoint"
	pointGapEvent        = "capture.after_gap_event" // see TestSlotLoss
)

// crash runs roles until they kill themselves at the n-th pass of a point.
func (w *world) crash(point string, n int, roles ...string) error {
	began := time.Now()
	p, err := w.launch([]string{fmt.Sprintf("LETHE_CRASH=%s:%d", point, n)}, roles...)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
	case <-time.After(within):
		p.kill()
		return fmt.Errorf("%s was not passed %d times within %v", point, n, within)
	}
	if !p.killed() {
		return fmt.Errorf("%s: the process ended otherwise: %w\n%s", point, p.err, tail(p.log))
	}
	w.t.Logf("%s:%d after %v", point, n, time.Since(began).Round(time.Millisecond))
	return nil
}

// The process dies between every two durable steps, on its first and its second way past, while the CRM is written to; the
// next one takes over. Capture, and the sinks of the two replicas, die independently of each other.
func TestCrashBetweenEveryTwoSteps(t *testing.T) {
	t.Parallel()
	anywhere(t, crashBetweenEveryTwoSteps)
}

func crashBetweenEveryTwoSteps(t *testing.T, o options) {
	t.Helper()
	o.customers = 1000
	w := newWorld(t, o)
	if w.crm.mysql == nil { // else newWorld has done so
		if err := w.crash(pointFirstCheckpoint, 1, roleCapture); err != nil {
			t.Fatal(err)
		}
	}
	p := w.player()
	p.begin(30 * time.Millisecond)
	var errs [3]error
	series := func(err *error, prefix, role string, passes ...int) func() {
		points := crashPoints(t, prefix)
		return func() {
			for _, point := range points {
				for _, n := range passes {
					*err = errors.Join(*err, w.crash(point, n, role))
				}
			}
			_, last := w.launch(nil, role)
			*err = errors.Join(*err, last)
		}
	}
	together(
		series(&errs[0], "capture.", roleCapture, 1, 2),
		series(&errs[1], "sink.", roleMarketing, 1),
		series(&errs[2], "sink.", roleReporting, 2),
	)
	p.rest()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	p.finish()
	w.followed(within)
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("%d erasures over %d processes", len(w.erased), w.started)
}
