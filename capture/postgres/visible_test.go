package postgres

import (
	"math"
	"testing"
)

func snap(t *testing.T, text string) *snapshot {
	t.Helper()
	s, err := parseSnapshot(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSnapshotSeesWhatHasEnded(t *testing.T) {
	s := snap(t, "100:110:100,105")
	for xid, want := range map[uint32]bool{99: true, 100: false, 101: true, 105: false, 109: true, 110: false, 4_000_000_000: true} {
		if s.sees(xid) != want {
			t.Errorf("%d is seen: %t", xid, !want)
		}
	}
	// After 2^32 transactions the server's numbers have an epoch, the log's have not.
	s = snap(t, "4294967290:4294967300:4294967299")
	for xid, want := range map[uint32]bool{math.MaxUint32 - 8: true, math.MaxUint32 - 2: true, 2: true, 3: false, 4: false} {
		if s.sees(xid) != want {
			t.Errorf("%d is seen: %t", xid, !want)
		}
	}
	for _, text := range []string{"", "1:2", "1:2:x", "a:2:", "1:b:", "1:2:3:4"} {
		if _, err := parseSnapshot(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func TestVisibilityAsksForWhatWasHandedOver(t *testing.T) {
	var v visibility
	v.begins()
	if all, _ := v.sees(snap(t, "1000:1000:"), v.now()); all || !v.needsFloor() {
		t.Fatal("what an earlier stream has handed over is not known, and was not asked for")
	}
	v.below(500)
	if all, missing := v.sees(snap(t, "499:600:499"), v.now()); all || missing != 0 {
		t.Fatal("a transaction that ran before the stream began still runs")
	}
	v.commits(503)
	v.commits(501)
	before := v.now()
	v.commits(700)
	if all, missing := v.sees(snap(t, "502:600:503"), before); all || missing != 1 {
		t.Fatalf("503 is not seen: %t, %d", all, missing)
	}
	if all, _ := v.sees(snap(t, "600:600:"), before); !all {
		t.Fatal("700 was handed over after the question")
	}
	if all, missing := v.sees(snap(t, "600:600:"), v.now()); all || missing != 1 {
		t.Fatalf("700 is not seen: %t, %d", all, missing)
	}
}

func TestVisibilityIsBounded(t *testing.T) {
	var v visibility
	for xid := range uint32(3 * streamedXIDs) {
		v.commits(math.MaxUint32 - streamedXIDs + xid) // goes round
	}
	if len(v.streamed) > streamedXIDs {
		t.Fatalf("%d are kept", len(v.streamed))
	}
	// Whoever still waits among those that were given up is below the floor.
	if all, _ := v.sees(snap(t, "4294967290:4295200000:4294967290"), v.now()); all {
		t.Fatal("one that was given up still runs")
	}
	if all, _ := v.sees(snap(t, "4295200000:4295200000:"), v.now()); !all {
		t.Fatal("all have ended")
	}
}
