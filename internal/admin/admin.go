// Package admin is the HTTP listener of a Lethe process: /healthz, /readyz and /metrics. It shows codes and counts only:
// nothing that it serves is personal.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// RoleStatus is what one role says of itself, on its own evidence: a role is ready while it does its work, not while its
// process lives.
type RoleStatus struct {
	Role  string `json:"role"` // capture, sink=NAME
	Ready bool   `json:"ready"`
	State string `json:"state"`           // streaming, gap, paused, …
	Cause string `json:"cause,omitempty"` // a code, with what the operator does next
}

// Options of a Server.
type Options struct {
	Listen   string // host:port; port 0 takes a free one
	Gatherer prometheus.Gatherer
	Roles    func() []RoleStatus
	Logger   zerolog.Logger
}

// Server serves until its Run ends. It is made by New.
type Server struct {
	options  Options
	listener net.Listener
	http     http.Server
}

// Limits of the listener: nothing that it serves takes long or needs a body.
const (
	readTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
	stopTimeout  = 3 * time.Second
	maxHeader    = 16 << 10
)

// New opens the listener.
func New(ctx context.Context, o Options) (*Server, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening on http.listen %q (is another lethe running?): %w", o.Listen, err)
	}
	s := &Server{options: o, listener: l}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{}))
	s.http = http.Server{
		Handler: mux, ReadTimeout: readTimeout, ReadHeaderTimeout: readTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: maxHeader,
	}
	return s, nil
}

// Addr is the address that the listener has.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		stopped <- s.http.Shutdown(bound)
	})
	err := s.http.Serve(s.listener)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serving http: %w", err)
	}
	if err := <-stopped; err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("closing the http listener: %w", err)
	}
	return nil
}

// health says that the process lives; it is no evidence of anything else.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	s.write(w, http.StatusOK, map[string]string{"status": "alive"})
}

// ready answers 200 when every role asked for (?role=…, default all) is ready, else 503; the body names each.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	want := r.URL.Query()["role"]
	all := s.options.Roles()
	shown := all
	if len(want) > 0 {
		shown = nil
		for _, name := range want {
			found := false
			for _, role := range all {
				if role.Role == name {
					shown, found = append(shown, role), true
				}
			}
			if !found {
				shown = append(shown, RoleStatus{Role: name, State: "unknown", Cause: "no such role in this process"})
			}
		}
	}
	code := http.StatusOK
	for _, role := range shown {
		if !role.Ready {
			code = http.StatusServiceUnavailable
		}
	}
	s.write(w, code, map[string]any{"roles": shown})
}

func (s *Server) write(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.options.Logger.Debug().Str("class", "client").Msg("writing an http answer")
	}
}
