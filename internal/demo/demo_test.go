package demo

import (
	"context"
	"errors"
	"testing"
	"time"

	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestDayFollowsAndIsProven runs the whole demo in small.
func TestDayFollowsAndIsProven(t *testing.T) {
	testenv.RequirePostgres(t, oldestPostgres)
	s, err := Run(t.Context(), Options{For: 8 * time.Second, Customers: 1000, Rate: 150, CoolOff: time.Second, Out: t.Output()})
	if err != nil {
		t.Fatalf("%v: %+v", err, s)
	}
	if s.Erasures == 0 || s.Day.Late == 0 || s.Verified != 2*s.Erasures || s.Receipts["verified"] < s.Verified {
		t.Errorf("the day was too short to show anything: %+v", s)
	}
}

// TestOracleSeesWhatDoesNotFollow: the oracle is the judge of everything, so it must be able to say no.
func TestOracleSeesWhatDoesNotFollow(t *testing.T) {
	want := wanted{newsletter: true, offers: map[string]bool{"E": true}}
	erased := wanted{erased: true}
	if m := want.marketing(); !m["newsletter"] || !m["personal"] || m["blocked"] {
		t.Errorf("a customer with consent: %v", m)
	}
	if m := erased.marketing(); m["newsletter"] || m["personal"] || !m["blocked"] {
		t.Errorf("an erased customer: %v", m)
	}
	good := Summary{Followed: true, Erasures: 3, Verified: 6}
	if !good.ok() {
		t.Error("a good summary is not ok")
	}
	for name, bad := range map[string]Summary{
		"not followed": {Erasures: 3, Verified: 6},
		"unproven":     {Followed: true, Erasures: 3, Verified: 5},
		"leak":         {Followed: true, Erasures: 3, Verified: 6, CanaryHits: 1},
		"nothing done": {Followed: true},
	} {
		if bad.ok() {
			t.Errorf("%s counts as ok", name)
		}
	}
}

// TestStoppedDemoSaysSo: whoever presses Ctrl-C is not told what was under way.
func TestStoppedDemoSaysSo(t *testing.T) {
	testenv.RequirePostgres(t, oldestPostgres)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Run(ctx, Options{Customers: 100}); !errors.Is(err, ErrStopped) || err.Error() != "stopped" {
		t.Errorf("a stopped demo says %v", err)
	}
}

func TestTooFewCustomersAreRefused(t *testing.T) {
	if _, err := Run(t.Context(), Options{Customers: 5}); err == nil {
		t.Error("a demo with five customers began")
	}
}
