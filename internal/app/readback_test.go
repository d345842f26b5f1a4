package app

import (
	"testing"
	"time"

	"lethe/config"
	"lethe/sinks/ledger"
)

func TestLegalTimeOfACase(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		state string
		due   time.Time
		want  bool
	}{
		{ledger.PendingSuppressed, now.Add(-time.Second), true},
		{ledger.PendingSuppressed, now.Add(time.Second), false},
		{ledger.PendingSuppressed, time.Time{}, false},
		{ledger.PendingVerified, now.Add(-time.Hour), false},
		{"cancelled", now.Add(-time.Hour), false},
	} {
		info := sourceInfo(&ledger.Case{State: c.state, Source: ledger.SourceView{LegalDueAt: c.due}}, now)
		if info.Overdue != c.want || info.Requested != "unknown" || info.States == nil {
			t.Errorf("%s due %v: %+v", c.state, c.due, info)
		}
	}
}

func TestGateIsAskedBehindTheLongestCoolOffThatWaitsForIt(t *testing.T) {
	of := func(d time.Duration, gated bool) *config.Replica {
		return &config.Replica{Gated: gated, Erase: config.Erase{CoolOff: d}}
	}
	cfg := &config.Config{Replicas: map[string]*config.Replica{"a": of(time.Hour, true), "b": of(2*time.Hour, true), "c": of(24*time.Hour, false)}}
	if got := gateCoolOff(cfg); got != 2*time.Hour {
		t.Errorf("asked again after %v", got)
	}
	delete(cfg.Replicas, "a")
	delete(cfg.Replicas, "b")
	if got := gateCoolOff(cfg); got != 24*time.Hour {
		t.Errorf("without a replica that waits: %v", got)
	}
}

func TestGateIsNobodysName(t *testing.T) {
	if CheckActor("gate") == nil {
		t.Error("an operator may decide under the gate's name")
	}
	if err := CheckActor("gatekeeper"); err != nil {
		t.Error(err)
	}
}
