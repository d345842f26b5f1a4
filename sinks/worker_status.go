package sinks

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WorkerState is where a worker stands as a whole.
type WorkerState string

// The states of a worker. Only StateRunning and StateStandby are ready.
const (
	StateStarting WorkerState = "starting" // has not been given partitions yet, or gave them back
	StateRunning  WorkerState = "running"
	StateStandby  WorkerState = "standby"  // a member of the group without a partition
	StateRetrying WorkerState = "retrying" // a transient error is being tried again
	StateHalted   WorkerState = "halted"   // a permanent error: a person has to act on Hint
	StatePaused   WorkerState = "paused"   // by an operator
	StateStopped  WorkerState = "stopped"  // Run has ended
)

// PartitionState is where one partition stands.
type PartitionState string

// The states of a partition. Only running ones are ready.
const (
	PartitionRunning  PartitionState = "running"
	PartitionRestored PartitionState = "restored" // the replica was restored: what it had applied is applied again
	PartitionGap      PartitionState = "gap"      // records are lost: stays until a person has made good for them
	PartitionStopped  PartitionState = "stopped"  // a record without a subject cannot be applied, or the key of one is not known
)

// Status is what a worker says of itself. It holds nothing personal.
type Status struct {
	Replica    string            `json:"replica"`
	Ready      bool              `json:"ready"`
	State      WorkerState       `json:"state"`
	Cause      string            `json:"cause,omitempty"`
	Hint       string            `json:"hint,omitempty"`
	Since      time.Time         `json:"since"`
	Partitions []PartitionStatus `json:"partitions"`
	LagEvents  int64             `json:"lag_events"`
	LagSeconds float64           `json:"lag_seconds"` // of the worst partition
	LastCommit time.Time         `json:"last_commit"` // zero: none since the start
}

// PartitionStatus is one partition of a Status.
type PartitionStatus struct {
	Partition  int32          `json:"partition"`
	State      PartitionState `json:"state"`
	Cause      string         `json:"cause,omitempty"`
	Hint       string         `json:"hint,omitempty"`
	NextOffset int64          `json:"next_offset"`
	End        int64          `json:"end"`
	CaughtUp   bool           `json:"caught_up"` // with the end offset read at the assignment
	LagEvents  int64          `json:"lag_events"`
	LagSeconds float64        `json:"lag_seconds"`
	// LastEvent is the commit time at the source of the newest event seen; zero: none since the assignment. With heartbeats
	// flowing it is never older than their interval: end-to-end evidence.
	LastEvent time.Time `json:"last_event"`

	oldest time.Time // commit time of the oldest event that waits; zero: unknown or none
}

// Status returns where the worker stands now. Safe for concurrent use.
func (w *Worker) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := w.status
	if err := w.feedTrouble; err != nil && st.State != StateHalted && st.State != StateStopped {
		st.State, st.Cause, st.Hint = StateRetrying, CodeOf(err), HintOf(err)
		if Classify(err) == Permanent {
			st.State = StateHalted
		}
	}
	if !w.answerBy.IsZero() && time.Now().After(w.answerBy) && st.State == StateRunning {
		st.State, st.Cause, st.Hint = StateRetrying, "replica_silent", "the replica takes what it is sent and does not answer: is its server "+
			"stopped, its disk full, or the network in between cut?"
	}
	st.Ready = st.State == StateRunning || st.State == StateStandby
	st.Partitions = append([]PartitionStatus(nil), st.Partitions...)
	for i := range st.Partitions {
		p := &st.Partitions[i]
		if p.LagEvents > 0 {
			waits := p.oldest
			if waits.IsZero() {
				waits = p.LastEvent
			}
			if !waits.IsZero() {
				p.LagSeconds = max(0, time.Since(waits).Seconds())
			}
		}
		st.LagEvents += p.LagEvents
		st.LagSeconds = max(st.LagSeconds, p.LagSeconds)
		if p.State != PartitionRunning {
			st.Ready = false
			if st.Cause == "" {
				st.Cause, st.Hint = p.Cause, p.Hint
			}
		}
	}
	return st
}

// asks notes that the replica is asked something and should answer within d; what it returns takes the note back. A server
// that hangs, or a network that swallows packets, makes no error for minutes: without the note the worker would look well.
func (w *Worker) asks(d time.Duration) (answered func()) {
	set := func(t time.Time) {
		w.mu.Lock()
		w.answerBy = t
		w.mu.Unlock()
	}
	set(time.Now().Add(d))
	return func() { set(time.Time{}) }
}

func (w *Worker) setState(state WorkerState, cause, hint string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status.State != state {
		w.status.Since = time.Now()
	}
	w.status.State, w.status.Cause, w.status.Hint = state, cause, hint
}

func (w *Worker) dropPartitions() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Partitions = nil
	w.status.State, w.status.Cause, w.status.Hint, w.status.Since = StateStarting, "", "", time.Now()
}

// publishStatus copies where the session's partitions stand to where Status and the metrics read it. Pending heartbeats
// are no lag: they are committed every HeartbeatCommit only, and change nothing.
func (s *session) publishStatus() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	st := &s.w.status
	if len(st.Partitions) != len(s.parts) {
		st.Partitions = make([]PartitionStatus, len(s.parts))
	}
	i := 0
	for _, n := range s.order {
		p := s.parts[n]
		if p == nil {
			continue
		}
		applied := p.place.NextOffset
		if !s.work {
			applied = p.seen
		}
		end := max(s.g.End(n), p.seen)
		st.Partitions[i] = PartitionStatus{
			Partition: n, State: p.state, Cause: p.cause, Hint: p.hint, NextOffset: p.place.NextOffset, End: end,
			CaughtUp: p.seen >= p.bounds.End, LagEvents: max(0, end-max(applied, p.bounds.Start)), LastEvent: p.last,
		}
		if s.work {
			st.Partitions[i].oldest = p.oldest
		}
		if p.place.UpdatedAt.After(st.LastCommit) {
			st.LastCommit = p.place.UpdatedAt
		}
		i++
	}
}

// workerMetrics are the metrics of one worker; all carry the replica's name.
type workerMetrics struct {
	outcomes      *prometheus.CounterVec
	results       *prometheus.CounterVec
	batch         prometheus.Histogram
	apply         prometheus.Histogram
	unusable      prometheus.Histogram
	receipts      prometheus.Counter
	receiptErrors prometheus.Counter
}

func newWorkerMetrics(reg prometheus.Registerer, replica string) (*workerMetrics, error) {
	m := &workerMetrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_sink_events_total", Help: "Events applied, by outcome.",
		}, []string{"outcome"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_sink_transactions_total", Help: "Sink transactions, by result: ok or the class of the error.",
		}, []string{"result"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lethe_sink_batch_events", Help: "Events of one sink transaction.", Buckets: []float64{1, 3, 10, 30, 100, 300, 1000},
		}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lethe_sink_transaction_seconds", Help: "Duration of one sink transaction.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		unusable: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lethe_commit_to_unusable_seconds",
			Help: "From the commit at the source to the commit in the replica, of erasures, objections, restrictions and withdrawals.",
			Buckets: []float64{
				0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 3600,
			},
		}),
		receipts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lethe_sink_receipts_sent_total", Help: "Receipts acknowledged by Kafka.",
		}),
		receiptErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lethe_sink_receipts_failed_total", Help: "Attempts to send receipts that failed; they wait in the replica.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"replica": replica}, reg)
	var errs []error
	for _, c := range []prometheus.Collector{m.outcomes, m.results, m.batch, m.apply, m.unusable, m.receipts, m.receiptErrors} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("registering metrics of replica %q: %w", replica, err)
	}
	return m, nil
}

func (m *workerMetrics) applied(out *Outcome, events int, took time.Duration) {
	m.results.WithLabelValues("ok").Inc()
	m.batch.Observe(float64(events))
	m.apply.Observe(took.Seconds())
	for _, o := range []struct {
		name string
		n    int
	}{
		{"applied", out.Applied},
		{"reconciled", out.Reconciled},
		{"unchanged", out.Unchanged},
		{"stale", out.Stale},
		{"no_match", out.NoMatch},
		{"refused", out.Refused},
		{"parked", out.Parked},
	} {
		if o.n > 0 {
			m.outcomes.WithLabelValues(o.name).Add(float64(o.n))
		}
	}
	for _, d := range out.Unusable {
		m.unusable.Observe(d.Seconds())
	}
}

// lagCollector shows Status at each scrape, so that a worker that does nothing still shows a growing lag.
type lagCollector struct {
	w                     *Worker
	events, seconds, up   *prometheus.Desc
	stopped, lastCommitAt *prometheus.Desc
}

func newLagCollector(w *Worker) *lagCollector {
	return &lagCollector{
		w:       w,
		events:  prometheus.NewDesc("lethe_sink_lag_events", "Events in Kafka that are not applied yet.", []string{"partition"}, nil),
		seconds: prometheus.NewDesc("lethe_sink_lag_seconds", "Age at the source of the oldest event that waits.", []string{"partition"}, nil),
		up:      prometheus.NewDesc("lethe_sink_ready", "1 while this sink does its work.", nil, nil),
		stopped: prometheus.NewDesc("lethe_sink_stopped_partitions", "Partitions in a gap or stopped.", []string{"state"}, nil),
		lastCommitAt: prometheus.NewDesc("lethe_sink_last_commit_timestamp_seconds",
			"When a place was last moved in the replica, by its clock.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *lagCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.events, c.seconds, c.up, c.stopped, c.lastCommitAt} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *lagCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.w.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ready := 0.0
	if st.Ready {
		ready = 1
	}
	gauge(c.up, ready)
	stopped := map[PartitionState]int{PartitionGap: 0, PartitionStopped: 0, PartitionRestored: 0}
	for _, p := range st.Partitions {
		name := strconv.Itoa(int(p.Partition))
		gauge(c.events, float64(p.LagEvents), name)
		gauge(c.seconds, p.LagSeconds, name)
		if p.State != PartitionRunning {
			stopped[p.State]++
		}
	}
	for state, n := range stopped {
		gauge(c.stopped, float64(n), string(state))
	}
	if !st.LastCommit.IsZero() {
		gauge(c.lastCommitAt, float64(st.LastCommit.UnixMilli())/1e3)
	}
}
