package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/checkpoint"
	capturekafka "lethe/capture/kafka"
	"lethe/capture/rules"
	"lethe/internal/admin"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/schema"
)

// captureRole tails the source and publishes.
type captureRole struct {
	source   source
	limit    string // name of the setting that bounds the log held back
	pipeline *capture.Pipeline
	log      zerolog.Logger

	mu    sync.Mutex
	alarm error // what the watch of the log found last
}

// watchEvery is how often the log is looked at: slot and publication, binlog and settings. It costs the server a few milliseconds.
const watchEvery = 10 * time.Second

func (a *App) newCaptureRole(context.Context) (role, error) {
	log := a.log.With().Str("role", RoleCapture).Logger()
	ring, err := keys.Open(a.cfg.Keys.Dir, keys.RoleCapture)
	if err != nil {
		return nil, err
	}
	server, err := sourceOf(a.cfg)
	if err != nil {
		return nil, err
	}
	source, err := server.open(log, a.registry)
	if err != nil {
		return nil, err
	}
	engine, err := rules.New(&a.cfg.Source, rules.Options{
		Registerer: a.registry, Match: matchkey.New(ring.Match(), a.cfg.Locale.Regions()),
	})
	if err != nil {
		return nil, err
	}
	conn, err := kafkaconn.New(a.cfg.Kafka, kafkaconn.Options{ClientID: "lethe-capture"})
	if err != nil {
		return nil, err
	}
	a.onClose(conn.Close)
	publisher, err := capturekafka.NewPublisher(capturekafka.Options{Conn: conn})
	if err != nil {
		return nil, err
	}
	tables, optional, err := passTables(a.cfg)
	if err != nil {
		return nil, err
	}
	readback, err := readbackOptions(a.cfg, conn, ring, server.form())
	if err != nil {
		return nil, err
	}
	pipeline, err := capture.NewPipeline(capture.Options{
		Name: a.cfg.Name, ConfigDigest: a.cfg.SourceDigest(), Source: source, Rules: engine,
		IDs: schema.NewIdentifiers(ring.Subject(), a.cfg.Name), Encoder: schema.NewEncoder(ring.Seal()), Publisher: publisher,
		Log:         &capturekafka.EventLog{Conn: conn, Decoder: schema.NewDecoder(ring.Seal())},
		Checkpoints: checkpoint.New(checkpoint.Options{Conn: conn, Source: a.cfg.Name}),
		Heart:       source.EmitHeartbeat, Heartbeat: a.cfg.Source.Heartbeat,
		Pass: capture.PassOptions{
			Passes: checkpoint.NewPasses(checkpoint.Options{Conn: conn, Source: a.cfg.Name}),
			Rules:  engine.Beside(), Encoder: schema.NewEncoder(ring.Seal()), Seal: ring.Seal(), Tables: tables, Optional: optional,
			Replicas: ReplicaNames(a.cfg), Every: a.cfg.Source.Pass.Every, Chunk: a.cfg.Source.Pass.Chunk,
			RowsPerSecond: a.cfg.Source.Pass.RowsPerSecond,
		},
		Readback: readback, Logger: a.log, Registerer: a.registry,
	})
	if err != nil {
		return nil, err
	}
	return &captureRole{source: source, limit: server.limit(), pipeline: pipeline, log: log}, nil
}

func (r *captureRole) name() string { return RoleCapture }

func (r *captureRole) run(ctx context.Context) error {
	var wg sync.WaitGroup
	watching, stop := context.WithCancel(ctx)
	wg.Go(func() { r.watch(watching) })
	err := r.pipeline.Run(ctx)
	stop()
	wg.Wait()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return errors.Join(err, r.source.Close(bound))
}

// watch looks after the log: a slot or a binlog that is lost, or a publication that was edited, loses erasures without an
// error in the stream.
func (r *captureRole) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		status, err := r.source.Watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if gap := (*capture.GapError)(nil); errors.As(err, &gap) {
			r.pipeline.Report(gap)
		}
		if err == nil && status.OverLimit {
			err = fmt.Errorf("more of the source's log waits than %s allows (%d bytes kept, %d not acknowledged): find out what holds capture back",
				r.limit, status.RetainedBytes, status.LagBytes)
		}
		r.mu.Lock()
		changed := (err == nil) != (r.alarm == nil)
		r.alarm = err
		r.mu.Unlock()
		switch {
		case changed && err != nil:
			r.log.Error().Err(err).Msg("the source's log needs attention")
		case changed:
			r.log.Info().Msg("the source's log is well again")
		}
	}
}

func (r *captureRole) status() admin.RoleStatus {
	s := r.pipeline.Status()
	out := admin.RoleStatus{Role: RoleCapture, Ready: s.Ready(), State: string(s.State), Cause: s.Cause}
	if s.Hint != "" {
		out.Cause += ": " + s.Hint
	}
	if s.Failing != "" {
		out.Cause = "kafka: " + s.Failing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alarm != nil && out.Ready {
		out.Ready, out.State, out.Cause = false, "alarm", r.alarm.Error()
	}
	return out
}
