package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/checkpoint"
	capturekafka "lethe/capture/kafka"
	capturepg "lethe/capture/postgres"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/admin"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/schema"
)

// captureRole tails the source and publishes.
type captureRole struct {
	source   *capturepg.Source
	pipeline *capture.Pipeline
	log      zerolog.Logger

	mu    sync.Mutex
	alarm error // what the watch of the slot found last
}

// watchEvery is how often the slot and the publication are looked at; it costs the server a few milliseconds.
const watchEvery = 10 * time.Second

// SourceOptions says how the source of a config is read; the mapping's needs are compiled on the way.
func SourceOptions(cfg *config.Config) (capturepg.Options, error) {
	needs, err := sourceNeeds(&cfg.Source)
	if err != nil {
		return capturepg.Options{}, err
	}
	pg := cfg.Source.Postgres
	return capturepg.Options{
		DSN: pg.DSN, Password: pg.Password, Slot: pg.Slot, Publication: pg.Publication, MaxRetainedWAL: pg.MaxRetainedWAL, Needs: needs,
	}, nil
}

// sourceNeeds says what the rules need of the log, in the terms of capture/postgres.
func sourceNeeds(cfg *config.Source) (map[string]capturepg.TableNeeds, error) {
	byTable, err := rules.Needs(cfg)
	if err != nil {
		return nil, err
	}
	out := make(map[string]capturepg.TableNeeds, len(byTable))
	for table, n := range byTable {
		needs := capturepg.TableNeeds{
			Columns: n.Columns, OldColumns: n.OldColumns, SubjectColumns: n.SubjectColumns, ReadsDelete: n.ReadsDelete,
		}
		if t := cfg.Tables[table]; t != nil {
			needs.Mapped = append(slices.Clone(t.Erase), slices.Sorted(maps.Keys(t.State))...)
			needs.Optional = t.Optional
		}
		out[table] = needs
	}
	return out, nil
}

func (a *App) newCaptureRole(context.Context) (role, error) {
	log := a.log.With().Str("role", RoleCapture).Logger()
	ring, err := keys.Open(a.cfg.Keys.Dir, keys.RoleCapture)
	if err != nil {
		return nil, err
	}
	options, err := SourceOptions(a.cfg)
	if err != nil {
		return nil, err
	}
	options.Log, options.Registerer = log, a.registry
	source, err := capturepg.New(options)
	if err != nil {
		return nil, err
	}
	engine, err := rules.New(&a.cfg.Source, rules.Options{Registerer: a.registry})
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
	pipeline, err := capture.NewPipeline(capture.Options{
		Name: a.cfg.Name, ConfigDigest: a.cfg.SourceDigest(), Source: source, Rules: engine,
		IDs: schema.NewIdentifiers(ring.Subject(), a.cfg.Name), Encoder: schema.NewEncoder(ring.Seal()), Publisher: publisher,
		Log:         &capturekafka.EventLog{Conn: conn, Decoder: schema.NewDecoder(ring.Seal())},
		Checkpoints: checkpoint.New(checkpoint.Options{Conn: conn, Source: a.cfg.Name}),
		Heart:       source.EmitHeartbeat, Heartbeat: a.cfg.Source.Heartbeat,
		Logger: a.log, Registerer: a.registry,
	})
	if err != nil {
		return nil, err
	}
	return &captureRole{source: source, pipeline: pipeline, log: log}, nil
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

// watch looks after the slot: a slot that is lost, or a publication that was edited, loses erasures without an error in
// the stream.
func (r *captureRole) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		slot, err := r.source.Watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if gap := (*capture.GapError)(nil); errors.As(err, &gap) {
			r.pipeline.Report(gap)
		}
		if err == nil && slot.OverLimit {
			err = fmt.Errorf("the source retains %d bytes of log for slot, more than max_retained_wal: find out what holds capture back", slot.RetainedWAL)
		}
		r.mu.Lock()
		changed := (err == nil) != (r.alarm == nil)
		r.alarm = err
		r.mu.Unlock()
		switch {
		case changed && err != nil:
			r.log.Error().Err(err).Msg("the source's slot or publication needs attention")
		case changed:
			r.log.Info().Msg("the source's slot and publication are well again")
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
