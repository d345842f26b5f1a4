package capture

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lethe/schema"
)

// State is what a Pipeline is doing.
type State string

// The states. Only StateStreaming is ready.
const (
	StateStarting  State = "starting"
	StateStreaming State = "streaming"
	StateWaiting   State = "waiting" // another process holds the slot
	StateGap       State = "gap"     // an operator decides
	StateStopped   State = "stopped" // a permanent failure, or the end
)

var states = []State{StateStarting, StateStreaming, StateWaiting, StateGap, StateStopped}

// Status is a snapshot for the admin listener and the metrics. Nothing in it is personal.
type Status struct {
	State State
	Cause string // a code; empty while all is well
	Hint  string // what the operator does next
	Since time.Time

	Incarnation uint32
	// LastCommit is the newest commit whose events are all acknowledged by Kafka.
	LastCommit   Position
	LastCommitAt time.Time // at the source
	// Checkpoint is what was written last, and then acknowledged to the source.
	Checkpoint   Position
	CheckpointAt time.Time
	LastAck      time.Time // of Kafka
	// Lag is the age of LastCommitAt: with heartbeats it stays below their interval while capture follows.
	Lag  time.Duration
	Gaps []OpenGap

	// Pass is the pass that is being made, or the newest that was; nil: none that this process knows of. It belongs to nobody:
	// it is not altered.
	Pass *Pass
	// PassFailing is what the pass is trying to get over; empty while it goes on.
	PassFailing string

	// Failing is the code of the error that the publisher is trying to get over; empty while Kafka acknowledges.
	Failing string

	Events           map[schema.Type]uint64 // acknowledged
	Transactions     uint64                 // seen
	Changes          uint64                 // seen
	Units            uint64                 // acknowledged
	Bytes            uint64                 // acknowledged, before compression
	PublishFailures  uint64
	CheckpointErrors uint64
	HeartbeatErrors  uint64
	Restarts         uint64
}

// Ready reports whether capture follows the source.
func (s *Status) Ready() bool { return s.State == StateStreaming && s.Failing == "" }

// totals are counted by several goroutines.
type totals struct {
	events           [schema.TypeLast + 1]atomic.Uint64
	transactions     atomic.Uint64
	changes          atomic.Uint64
	units            atomic.Uint64
	bytes            atomic.Uint64
	publishFailures  atomic.Uint64
	checkpointErrors atomic.Uint64
	heartbeatErrors  atomic.Uint64
	restarts         atomic.Uint64
	passRows         atomic.Uint64
	readbacks        atomic.Int64
	readbackErrors   atomic.Uint64
	unauthorised     atomic.Uint64
	incomplete       atomic.Uint64
	passErrors       atomic.Uint64
}

// Status returns a snapshot. Any goroutine may call it.
func (p *Pipeline) Status() Status {
	p.mu.Lock()
	s := p.status
	s.Gaps = append([]OpenGap(nil), p.status.Gaps...)
	p.mu.Unlock()
	if !s.LastCommitAt.IsZero() {
		s.Lag = max(time.Since(s.LastCommitAt), 0)
	}
	s.Events = make(map[schema.Type]uint64)
	for t := range p.totals.events {
		if n := p.totals.events[t].Load(); n > 0 {
			s.Events[schema.Type(t)] = n
		}
	}
	s.Transactions = p.totals.transactions.Load()
	s.Changes = p.totals.changes.Load()
	s.Units = p.totals.units.Load()
	s.Bytes = p.totals.bytes.Load()
	s.PublishFailures = p.totals.publishFailures.Load()
	s.CheckpointErrors = p.totals.checkpointErrors.Load()
	s.HeartbeatErrors = p.totals.heartbeatErrors.Load()
	s.Restarts = p.totals.restarts.Load()
	return s
}

func (p *Pipeline) setState(state State, cause, hint string) {
	p.mu.Lock()
	changed := p.status.State != state || p.status.Cause != cause
	if changed {
		p.status.Since = time.Now()
	}
	p.status.State, p.status.Cause, p.status.Hint = state, cause, hint
	p.mu.Unlock()
	if changed {
		p.log.Info().Str("state", string(state)).Str("cause", cause).Msg("capture state")
	}
}

func (p *Pipeline) update(f func(*Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
}

// register exposes the snapshot; the hot path counts in plain atomics only.
func (p *Pipeline) register(r prometheus.Registerer) error {
	labels := prometheus.Labels{"source": p.o.Name}
	counter := func(name, help string, v *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(v.Load()) })
	}
	gauge := func(name, help string, f func(*Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { s := p.Status(); return f(&s) })
	}
	list := []prometheus.Collector{
		counter("lethe_capture_transactions_total", "Transactions read from the source.", &p.totals.transactions),
		counter("lethe_capture_changes_total", "Row changes read from the source.", &p.totals.changes),
		counter("lethe_capture_units_total", "Units acknowledged by Kafka.", &p.totals.units),
		counter("lethe_capture_bytes_total", "Bytes acknowledged by Kafka, before compression.", &p.totals.bytes),
		counter("lethe_capture_publish_failures_total", "Units that had to be sent again.", &p.totals.publishFailures),
		counter("lethe_capture_checkpoint_errors_total", "Checkpoints that could not be written.", &p.totals.checkpointErrors),
		counter("lethe_capture_heartbeat_errors_total", "Heartbeats that could not be written.", &p.totals.heartbeatErrors),
		counter("lethe_capture_restarts_total", "Starts of the source after a failure.", &p.totals.restarts),
		gauge("lethe_capture_lag_seconds", "Age of the newest commit acknowledged by Kafka.",
			func(s *Status) float64 { return s.Lag.Seconds() }),
		gauge("lethe_capture_ready", "1 while capture follows the source.",
			func(s *Status) float64 { return truth(s.Ready()) }),
		gauge("lethe_capture_open_gaps", "Gaps that no pass has closed.",
			func(s *Status) float64 { return float64(len(s.Gaps)) }),
	}
	list = append(list, p.passMetrics(counter, gauge)...)
	list = append(list,
		gauge("lethe_source_cases", "Cases about which the source is still to be asked, as far as they are in memory.",
			func(*Status) float64 { return float64(p.totals.readbacks.Load()) }),
		counter("lethe_source_ask_errors_total", "Times that the source could not be asked about a case.", &p.totals.readbackErrors),
		counter("lethe_source_incomplete_total", "Cases of which the source still had something when it was read back first.", &p.totals.incomplete),
		counter("lethe_source_unauthorised_total", "Cases that were opened without a request on file.", &p.totals.unauthorised),
	)
	for _, state := range states {
		list = append(list, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "lethe_capture_state", Help: "1 for the state that capture is in.",
			ConstLabels: prometheus.Labels{"source": p.o.Name, "state": string(state)},
		}, func() float64 { s := p.Status(); return truth(s.State == state) }))
	}
	for t := schema.TypeSubjectErasure; t <= schema.TypeLast; t++ {
		v := &p.totals.events[t]
		list = append(list, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "lethe_capture_events_total", Help: "Events acknowledged by Kafka.",
			ConstLabels: prometheus.Labels{"source": p.o.Name, "type": t.String()},
		}, func() float64 { return float64(v.Load()) }))
	}
	var errs []error
	for _, c := range list {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(errs...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
