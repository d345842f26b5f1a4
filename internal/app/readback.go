package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/checkpoint"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/schema"
)

// readbackOptions say what the source is asked about cases.
func readbackOptions(cfg *config.Config, conn *kafkaconn.Conn, ring *keys.Ring, form capture.SQLForm) (capture.ReadbackOptions, error) {
	s := &cfg.Source
	o := capture.ReadbackOptions{
		Readbacks: checkpoint.NewReadbacks(checkpoint.Options{Conn: conn, Source: cfg.Name}), Encoder: schema.NewEncoder(ring.Seal()), Seal: ring.Seal(),
		SQL: form, Tables: erasedTables(s), Window: s.Erased.Window, Gated: s.Asked(), Enforced: s.Enforced(), CoolOff: gateCoolOff(cfg),
	}
	if s.Gate != nil {
		for _, name := range slices.Sorted(maps.Keys(s.Gate.Require)) {
			o.Checks = append(o.Checks, capture.GateCheck{Name: name, SQL: s.Gate.Require[name]})
		}
	}
	if s.Request != nil {
		requests, err := rules.NewRequests(s.Request)
		if err != nil {
			return o, err
		}
		o.Request = &capture.RequestTable{Name: s.Request.Table, Subject: s.Request.Subject, Columns: requests.Columns(), Read: requests.Read}
	}
	return o, nil
}

// erasedTables are what should be gone from the source. What not every installation has is not asked for.
func erasedTables(s *config.Source) []capture.ErasedTable {
	var out []capture.ErasedTable
	for _, name := range slices.Sorted(maps.Keys(s.Tables)) {
		t := s.Tables[name]
		if t.Optional || !t.EraseRow && len(t.Erase) == 0 && len(t.State) == 0 {
			continue
		}
		out = append(out, capture.ErasedTable{
			Name: name, Subject: t.Subject, Columns: t.Erase, Values: t.ErasedValues, Row: t.EraseRow, State: t.State,
		})
	}
	return out
}

// gateCoolOff is how long after the opening of a case the gate is asked again: the longest cool-off of the replicas that wait
// for it, else of all.
func gateCoolOff(cfg *config.Config) (longest time.Duration) {
	gated := slices.ContainsFunc(slices.Collect(maps.Values(cfg.Replicas)), func(r *config.Replica) bool { return r.Gated })
	for _, r := range cfg.Replicas {
		if r.Gated || !gated {
			longest = max(longest, r.Erase.CoolOff)
		}
	}
	return longest
}

// CodeGate is of a condition of source.gate that the server does not plan; CodeRequest of a request that cannot be looked for.
const (
	CodeGate    = "gate_sql"
	CodeRequest = "request_unreadable"
)

// checkReadback has the server plan what the gate asks, and looks whether the table of the requests can be read.
func checkReadback(ctx context.Context, cfg *config.Config) (out []Finding, err error) {
	s := &cfg.Source
	if s.Request == nil && (s.Gate == nil || s.Gate.Mode == config.GateOff) {
		return nil, nil
	}
	server, err := sourceOf(cfg)
	if err != nil {
		return nil, err
	}
	opened, err := server.open(zerolog.Nop(), nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err = errors.Join(err, opened.Close(bound))
	}()
	reads, ok := opened.(capture.Snapshotter)
	if !ok {
		return nil, errors.New("checking the gate: this source cannot be asked")
	}
	ask := func(code, object string, f func(context.Context, capture.Querier) error) error {
		var refused error
		bound, cancel := context.WithTimeout(ctx, checkGateWithin)
		defer cancel()
		err := reads.At(bound, capture.Position{}, func(ctx context.Context, q capture.Querier) error {
			refused = f(ctx, q)
			return refused
		})
		if refused != nil {
			out = append(out, Finding{
				Code: code, Severity: SeverityError, Object: object,
				Message: fmt.Sprintf("line %d: %v: write it for the source's server, and grant Lethe's login SELECT on what it reads", cfg.Line(object), refused),
			})
			return nil
		}
		return err
	}
	if s.Gate != nil && s.Gate.Mode != config.GateOff {
		for _, name := range slices.Sorted(maps.Keys(s.Gate.Require)) {
			err := ask(CodeGate, "source.gate.require."+name, func(ctx context.Context, q capture.Querier) error {
				return capture.ExplainGate(ctx, q, server.form(), s.Gate.Require[name], len(s.Subject.Key))
			})
			if err != nil {
				return out, err
			}
		}
	}
	if s.Request == nil {
		return out, nil
	}
	requests, err := rules.NewRequests(s.Request)
	if err != nil {
		return out, nil // the config's own findings say it
	}
	columns := slices.Concat(s.Request.Subject, requests.Columns())
	return out, ask(CodeRequest, "source.request.table", func(ctx context.Context, q capture.Querier) error {
		return capture.CanRead(ctx, q, server.form(), s.Request.Table, columns)
	})
}

// checkGateWithin bounds the planning of one condition.
const checkGateWithin = 10 * time.Second
