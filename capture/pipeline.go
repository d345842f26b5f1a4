package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/schema"
)

// Options are what a Pipeline is made of.
type Options struct {
	Name         string   // of the source, as in the config: part of every id
	ConfigDigest [32]byte // of the normalised mapping

	Source      Source
	Rules       Ruler
	IDs         *schema.Identifiers
	Encoder     Encoder // used by one goroutine
	Publisher   Publisher
	Log         EventLog
	Checkpoints Checkpoints

	// Heart writes a message into the source's log; it comes back as a Heartbeat. nil: none.
	Heart func(ctx context.Context) error
	// Heartbeat is the interval of Heart; default 5 s.
	Heartbeat time.Duration
	// CheckpointEvery is the shortest time between two checkpoints; default 1 s.
	CheckpointEvery time.Duration
	// StopWithin bounds a graceful stop; default 10 s.
	StopWithin time.Duration
	// ResumePoll is how often a Pipeline that stands at a gap looks whether an operator resumed it; default 5 s.
	ResumePoll time.Duration
	// Pass is what passes need; the zero value: none are made.
	Pass PassOptions
	// Readback is what asking the source about cases needs; the zero value: nothing is asked.
	Readback ReadbackOptions

	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

func (o *Options) validate() error {
	for _, part := range []struct {
		name    string
		missing bool
	}{
		{"Name", o.Name == ""},
		{"Source", o.Source == nil},
		{"Rules", o.Rules == nil},
		{"IDs", o.IDs == nil},
		{"Encoder", o.Encoder == nil},
		{"Publisher", o.Publisher == nil},
		{"Log", o.Log == nil},
		{"Checkpoints", o.Checkpoints == nil},
	} {
		if part.missing {
			return fmt.Errorf("making the capture pipeline: %s is missing", part.name)
		}
	}
	setDefault(&o.Heartbeat, 5*time.Second)
	setDefault(&o.CheckpointEvery, time.Second)
	setDefault(&o.StopWithin, 10*time.Second)
	setDefault(&o.ResumePoll, 5*time.Second)
	return errors.Join(o.Pass.validate(), o.Readback.validate())
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Pipeline carries one source's changes through the rules into acknowledged Kafka records. It owns the position: what it
// acknowledges to the Source is in the checkpoint topic, and everything before that is in the events topic (P1).
type Pipeline struct {
	o   Options
	log zerolog.Logger

	totals totals
	// reports are gaps that were found beside the stream.
	reports chan *GapError

	mu     sync.Mutex
	status Status // without the totals
}

// New wires a Pipeline; it opens nothing.
func NewPipeline(o Options) (*Pipeline, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	p := &Pipeline{o: o, reports: make(chan *GapError, 1), log: o.Logger.With().Str("role", "capture").Str("source", o.Name).Logger()}
	p.status.State = StateStarting
	if o.Registerer != nil {
		if err := p.register(o.Registerer); err != nil {
			return nil, fmt.Errorf("registering the metrics of capture: %w", err)
		}
	}
	return p, nil
}

// Backoff between two starts of the source, and while another process holds the slot.
const (
	firstRetry  = 200 * time.Millisecond
	longestWait = 10 * time.Second
	standbyWait = 2 * time.Second
)

// Run captures until ctx ends, and then stops gracefully. Failures are tried again with backoff; at a gap or a permanent
// failure it stays up, not ready, and says why in Status, so that the other roles of the process go on. It returns an
// error only when a graceful stop was not possible within StopWithin.
func (p *Pipeline) Run(ctx context.Context) error {
	retry := &backoff.ExponentialBackOff{
		InitialInterval: firstRetry, RandomizationFactor: 0.2, Multiplier: 2, MaxInterval: longestWait,
	}
	retry.Reset()
	for {
		p.setState(StateStarting, "", "")
		before := p.totals.units.Load()
		err := p.runSession(ctx)
		if ctx.Err() != nil {
			p.setState(StateStopped, "", "")
			if errors.Is(err, context.Canceled) {
				return nil // it had not begun to stream
			}
			return err
		}
		if p.totals.units.Load() > before {
			retry.Reset()
		}
		wait := p.judge(ctx, err, retry)
		if wait < 0 {
			<-ctx.Done()
			return nil
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// judge says how long to wait before the next session; negative: until the end.
func (p *Pipeline) judge(ctx context.Context, err error, retry *backoff.ExponentialBackOff) time.Duration {
	var gap *GapError
	var stop *StopError
	switch {
	case errors.As(err, &gap):
		p.standAtGap(ctx, gap)
		return 0
	case errors.Is(err, ErrSlotInUse):
		p.setState(StateWaiting, "slot_in_use", "another process reads the slot; this one takes over when it ends")
		return standbyWait
	case errors.As(err, &stop):
		p.setState(StateStopped, stop.Cause, stop.Error())
		p.log.Error().Str("cause", stop.Cause).Str("position", stop.Position.String()).Err(err).Msg("capture stopped")
		return -1
	case IsPermanent(err):
		p.setState(StateStopped, "permanent", err.Error())
		p.log.Error().Err(err).Msg("capture stopped")
		return -1
	}
	wait := retry.NextBackOff()
	p.setState(StateStarting, "retrying", errText(err))
	p.totals.restarts.Add(1)
	p.log.Warn().Err(err).Dur("wait", wait).Msg("capture starts again")
	return wait
}

func errText(err error) string {
	if err == nil {
		return "the source ended without an error"
	}
	return err.Error()
}

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
