package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/admin"
	"lethe/internal/pii"
)

// brokenRole panics with a customer's data; steadyRole works until it is told to end.
type brokenRole struct{ steadyRole }

func (brokenRole) run(context.Context) error { panic("canary jean.dupont@exemple.fr") }

type steadyRole struct{ id string }

func (r steadyRole) name() string                { return r.id }
func (steadyRole) run(ctx context.Context) error { <-ctx.Done(); return nil }
func (r steadyRole) status() admin.RoleStatus    { return admin.RoleStatus{Role: r.id, Ready: true} }

func TestPanicOfARoleEndsTheProcessWithoutSayingWhatItHeld(t *testing.T) {
	var out bytes.Buffer
	log := zerolog.New(zerolog.SyncWriter(&out))
	a := &App{log: log, registry: prometheus.NewRegistry(), roles: []role{brokenRole{steadyRole{"sink=a"}}, steadyRole{"sink=b"}}}
	var err error
	a.admin, err = admin.New(t.Context(), admin.Options{Listen: "127.0.0.1:0", Gatherer: a.registry, Roles: a.RoleStatus, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	err = a.Run(t.Context())
	if defect := (*PanicError)(nil); !errors.As(err, &defect) || defect.Type != "string" || len(defect.Stack) == 0 {
		t.Fatalf("%v", err)
	}
	if said := out.String() + err.Error(); strings.Contains(said, "canary") || !strings.Contains(said, "sink=a") {
		t.Errorf("it said %s", said)
	}
}

func TestRoleGivenTwiceRunsOnce(t *testing.T) {
	cfg := &config.Config{Replicas: map[string]*config.Replica{"a": {}}}
	got, err := resolveRoles(cfg, []string{"sink=a", RoleCapture, "sink=a"})
	if err != nil || strings.Join(got, " ") != "sink=a capture" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAPlaceIsUnreachableOnce(t *testing.T) {
	r := examine(t.Context(), []part{{WhereKafka, func(context.Context) ([]Finding, error) {
		return []Finding{{Code: CodeUnreachable}, {Code: CodeUnreachable}}, nil
	}}})
	if len(r.Unreachable) != 1 || len(r.Findings) != 2 {
		t.Errorf("%+v", r)
	}
}

func TestAPlaceThatNeverAnswersIsUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := examine(t.Context(), []part{{WhereSource, func(ctx context.Context) ([]Finding, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("reading the settings: %w", pii.DriverError(ctx.Err()))
		}}})
		if len(r.Unreachable) != 1 || len(r.Errors()) != 0 {
			t.Errorf("%+v", r)
		}
	})
}
