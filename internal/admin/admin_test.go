package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, roles []RoleStatus) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "lethe_test", Help: "A test."}))
	s, err := New(ctx, Options{Listen: "127.0.0.1:0", Gatherer: registry, Roles: func() []RoleStatus { return roles }, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + s.Addr()
}

func get(t *testing.T, url string) (int, map[string]any) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // a test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing is lost in a test
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func TestReadinessIsPerRole(t *testing.T) {
	url := start(t, []RoleStatus{{Role: "capture", Ready: false, State: "gap", Cause: "slot_lost"}, {Role: "sink=marketing", Ready: true, State: "running"}})
	for path, want := range map[string]int{
		"/healthz":                                 200,
		"/readyz":                                  503,
		"/readyz?role=sink%3Dmarketing":            200,
		"/readyz?role=capture":                     503,
		"/readyz?role=sink%3Dnone":                 503,
		"/readyz?role=capture&role=sink=marketing": 503,
	} {
		if got, body := get(t, url+path); got != want {
			t.Errorf("%s: %d, want %d: %v", path, got, want, body)
		}
	}
}

func TestAddressInUseIsNamed(t *testing.T) {
	url := start(t, nil)
	if _, err := New(context.Background(), Options{Listen: url[len("http://"):], Gatherer: prometheus.NewRegistry()}); err == nil {
		t.Error("two listeners on one address")
	}
}
