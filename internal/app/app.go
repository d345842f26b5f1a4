// Package app makes a Lethe process of its parts: it starts the roles of a config file, keeps them apart, and holds what
// the commands of cmd/lethe do.
package app

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/config"
	"lethe/internal/admin"
	"lethe/sinks"
)

// Options of an App.
type Options struct {
	// Roles to start: capture, sink=NAME. Empty: all of the config file.
	Roles   []string
	Version string
	Logger  zerolog.Logger
	// RecheckFirst is how soon a subject without a row is looked up again; 0: one minute. The demo shortens it.
	RecheckFirst time.Duration
}

// App is one process. It is made by New and runs once.
type App struct {
	options  Options
	cfg      *config.Config
	log      zerolog.Logger
	registry *prometheus.Registry
	admin    *admin.Server
	roles    []role
	// cleanup runs when Run ends, last in first out.
	cleanup []func()
}

// role is one thing that a process does, apart from the others: its trouble is its own.
type role interface {
	name() string
	// run works until ctx ends. An error is a defect of the wiring: what servers do wrong, a role waits out and shows.
	run(ctx context.Context) error
	status() admin.RoleStatus
}

// RoleCapture is the name of the capture role; a sink's is sink= and its replica's name.
const (
	RoleCapture    = "capture"
	rolePrefixSink = "sink="
)

// New wires the roles and opens the admin listener and the keys. Servers are connected to by Run.
func New(ctx context.Context, cfg *config.Config, o Options) (_ *App, err error) {
	if faults := cfg.NotInThisVersion(); len(faults) > 0 {
		return nil, cfg.Faults(faults)
	}
	a := &App{options: o, cfg: cfg, log: o.Logger, registry: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	names, err := resolveRoles(cfg, o.Roles)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		r, err := a.newRole(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("preparing role %s: %w", name, err)
		}
		a.roles = append(a.roles, r)
	}
	a.admin, err = admin.New(ctx, admin.Options{Listen: cfg.HTTP.Listen, Gatherer: a.registry, Roles: a.RoleStatus, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	a.registry.MustRegister(readyCollector{a})
	return a, nil
}

func (a *App) newRole(ctx context.Context, name string) (role, error) {
	if name == RoleCapture {
		return a.newCaptureRole(ctx)
	}
	return a.newSinkRole(ctx, strings.TrimPrefix(name, rolePrefixSink))
}

// Addr is the address of the admin listener.
func (a *App) Addr() string { return a.admin.Addr() }

// Registry is where the metrics are.
func (a *App) Registry() *prometheus.Registry { return a.registry }

// RoleStatus asks every role, in the order of their names.
func (a *App) RoleStatus() []admin.RoleStatus {
	out := make([]admin.RoleStatus, len(a.roles))
	for i, r := range a.roles {
		out[i] = r.status()
	}
	return out
}

// Snapshot is what the roles of this process say of themselves in full.
type Snapshot struct {
	Capture *capture.Status
	Sinks   []sinks.Status
}

// Snapshot asks the roles.
func (a *App) Snapshot() Snapshot {
	var s Snapshot
	for _, r := range a.roles {
		switch r := r.(type) {
		case *captureRole:
			status := r.pipeline.Status()
			s.Capture = &status
		case *sinkRole:
			s.Sinks = append(s.Sinks, r.worker.Status())
		}
	}
	return s
}

// Run works until ctx ends, then stops every role in order. It returns an error only where a role ended by itself.
func (a *App) Run(ctx context.Context) error {
	defer a.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The listener outlives the roles: whoever asks while they stop gets an answer.
	listen, stopListening := context.WithCancel(context.WithoutCancel(ctx))
	listening := make(chan error, 1)
	go func() { listening <- a.admin.Run(listen) }()

	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, r := range a.roles {
		wg.Go(func() {
			err := contained(ctx, r)
			if defect := (*PanicError)(nil); errors.As(err, &defect) {
				// What the role held in memory is in doubt: the others end in order, and the process is started anew.
				a.log.Error().Str("role", r.name()).Str("stack", string(defect.Stack)).Msg("panic contained")
				cancel()
			}
			if err != nil {
				a.log.Error().Str("role", r.name()).Err(err).Msg("role ended")
				mu.Lock()
				errs = append(errs, fmt.Errorf("running role %s: %w", r.name(), err))
				mu.Unlock()
			}
		})
	}
	a.log.Info().Str("http", a.Addr()).Strs("roles", roleList(a.roles)).Str("version", a.options.Version).Msg("lethe runs")
	wg.Wait()
	stopListening()
	errs = append(errs, <-listening)
	a.log.Info().Msg("lethe has stopped")
	return errors.Join(errs...)
}

// PanicError is a role's panic without what it said: that may quote a row.
type PanicError struct {
	Type  string // of the value
	Stack []byte
}

func (e *PanicError) Error() string {
	return "panic of type " + e.Type + "; this is a defect, please report the stack"
}

// contained runs a role and makes an error of its panic.
func contained(ctx context.Context, r role) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Type: fmt.Sprintf("%T", v), Stack: debug.Stack()}
		}
	}()
	return r.run(ctx)
}

func roleList(roles []role) []string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = r.name()
	}
	return names
}

// onClose registers a clean-up step.
func (a *App) onClose(f func()) { a.cleanup = append(a.cleanup, f) }

func (a *App) close() {
	for _, f := range slices.Backward(a.cleanup) {
		f()
	}
	a.cleanup = nil
}

// readyCollector exports lethe_role_ready.
type readyCollector struct{ app *App }

var roleReady = prometheus.NewDesc("lethe_role_ready", "1 while the role does its work, on its own evidence.", []string{"role"}, nil)

// Describe implements prometheus.Collector.
func (c readyCollector) Describe(ch chan<- *prometheus.Desc) { ch <- roleReady }

// Collect implements prometheus.Collector.
func (c readyCollector) Collect(ch chan<- prometheus.Metric) {
	for _, r := range c.app.RoleStatus() {
		value := 0.0
		if r.Ready {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(roleReady, prometheus.GaugeValue, value, r.Role)
	}
}
