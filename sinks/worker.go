package sinks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// WorkerOptions are what a Worker needs. Zero values take the defaults.
type WorkerOptions struct {
	Name    string  // of the replica, for logs, metrics and Status
	Replica Replica // required
	Feed    Feed    // required
	// Sender publishes receipts; nil: they stay in the replica.
	Sender ReceiptSender
	// Pauser is asked about every PauseCheck; nil: never paused.
	Pauser Pauser

	Log        zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics

	MaxBatch int // records of one sink transaction; default 1000
	// Linger is how long a batch that is not full waits for more after its first record; default 4 ms, negative: not at all.
	Linger time.Duration
	// HeartbeatCommit is how often a batch of heartbeats alone is committed; default 10 s.
	HeartbeatCommit time.Duration
	// ChoreInterval bounds how long the replica's chores are left alone, whatever they ask for; default 10 s.
	ChoreInterval time.Duration
	// PauseCheck is how often the Pauser is asked; default 1 s.
	PauseCheck time.Duration
	// ReceiptInterval is how often the outbox is looked into without a reason; default 5 s.
	ReceiptInterval time.Duration
	// RetryMin and RetryMax bound the waits after transient errors; default 50 ms and 10 s.
	RetryMin, RetryMax time.Duration
	// RetrySlow is the wait after a permanent error; default 30 s.
	RetrySlow time.Duration
	// Silence is how long the replica may leave a batch unanswered before the worker says that it is not ready; chores may
	// take twice as long. Default 20 s.
	Silence time.Duration
	// StopTimeout bounds how long the work at hand may take after a stop or a rebalance; default 8 s. It is below the
	// group's rebalance timeout, so that a worker that is slow to finish is not thrown out.
	StopTimeout time.Duration
}

func (o *WorkerOptions) validate() error {
	switch {
	case o.Replica == nil:
		return errors.New("starting sink worker: no replica given")
	case o.Feed == nil:
		return errors.New("starting sink worker: no feed given")
	case o.Name == "":
		return errors.New("starting sink worker: no name given")
	}
	if o.MaxBatch <= 0 {
		o.MaxBatch = 1000
	}
	if o.Linger == 0 {
		o.Linger = 4 * time.Millisecond
	}
	for d, fallback := range map[*time.Duration]time.Duration{
		&o.HeartbeatCommit: 10 * time.Second,
		&o.ChoreInterval:   10 * time.Second,
		&o.PauseCheck:      time.Second,
		&o.ReceiptInterval: 5 * time.Second,
		&o.RetryMin:        50 * time.Millisecond,
		&o.RetryMax:        10 * time.Second,
		&o.RetrySlow:       30 * time.Second,
		&o.Silence:         20 * time.Second,
		&o.StopTimeout:     8 * time.Second,
	} {
		if *d <= 0 {
			*d = fallback
		}
	}
	return nil
}

// Worker applies the log to one replica: it takes records from its Feed, hands them to the Replica in one transaction per
// batch over all partitions that it owns, runs the replica's chores on partitions that are caught up, and publishes its
// receipts. The position of truth is the one in the replica: it is read at every assignment and after every error.
//
// What it does about an error is Classify's word: Transient is tried again with backoff, after the places were read again,
// because the outcome of a commit whose answer was lost is unknown; Poison is bisected down to the one event, which is
// parked; Permanent stops the sink loudly and is looked at again at a slow pace; Fenced gives up the generation. Lost records
// (retention, a topic made anew) stop their partition and are never jumped over.
//
// Which events of a blocked subject wait is not decided here: parking goes by the event, and the Replica lets prohibitions
// pass.
type Worker struct {
	o       WorkerOptions
	log     zerolog.Logger
	metrics *workerMetrics

	mu          sync.Mutex
	status      Status
	feedTrouble error     // what keeps the feed from reading; nil: nothing
	answerBy    time.Time // when the replica should have answered what it is asked now; zero: it is asked nothing
}

// NewWorker wires a worker; nothing is opened.
func NewWorker(o WorkerOptions) (*Worker, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	m, err := newWorkerMetrics(o.Registerer, o.Name)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		o: o, log: o.Log.With().Str("replica", o.Name).Logger(), metrics: m,
		status: Status{Replica: o.Name, State: StateStarting, Since: time.Now()},
	}
	if o.Registerer != nil {
		reg := prometheus.WrapRegistererWith(prometheus.Labels{"replica": o.Name}, o.Registerer)
		if err := reg.Register(newLagCollector(w)); err != nil {
			return nil, fmt.Errorf("registering metrics of replica %q: %w", o.Name, err)
		}
	}
	return w, nil
}

// Run works until ctx ends. It then finishes the batch at hand within StopTimeout, tells Kafka the offsets and leaves the
// group. No trouble of Kafka or the replica makes it return: it is shown by Status and tried again.
func (w *Worker) Run(ctx context.Context) error {
	err := w.o.Feed.Run(ctx, feedHandler{w})
	w.setState(StateStopped, "", "")
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("reading events for replica %q: %w", w.o.Name, err)
	}
	return nil
}

// feedHandler keeps the methods that only the Feed calls out of Worker's own.
type feedHandler struct{ w *Worker }

func (h feedHandler) Serve(ctx context.Context, g Generation) { h.w.serve(ctx, g) }

func (h feedHandler) Trouble(err error) {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if CodeOf(err) == CodeOf(w.feedTrouble) && (err == nil) == (w.feedTrouble == nil) {
		return
	}
	w.feedTrouble = err
	if err == nil {
		w.log.Info().Msg("reading from Kafka again")
		return
	}
	level := zerolog.WarnLevel
	if Classify(err) == Permanent {
		level = zerolog.ErrorLevel
	}
	w.log.WithLevel(level).Str("class", Classify(err).String()).Str("code", CodeOf(err)).Str("hint", HintOf(err)).Msg("cannot read from Kafka")
}

// errOver ends a generation from the inside: its context ended, or it was given up.
var errOver = errors.New("generation is over")

func (w *Worker) serve(ctx context.Context, g Generation) {
	s := newSession(w, g)
	finish, stop := finishing(ctx, w.o.StopTimeout)
	defer stop()
	s.finish = finish
	err := s.run(ctx)
	w.dropPartitions()
	switch {
	case ctx.Err() != nil || errors.Is(err, errOver) && Classify(err) != Fenced:
		w.log.Info().Msg("partitions given back")
	default:
		// Another worker has moved a place. Rejoining at once would spin if it is one of a group of another name.
		w.metrics.results.WithLabelValues(Fenced.String()).Inc()
		w.setState(StateRetrying, CodeOf(err), "another worker applies to this replica: if it is not one of this group, stop it")
		w.log.Warn().Str("class", Classify(err).String()).Msg("generation given up")
		pause(ctx, w.o.RetryMax/10)
	}
}

// finishing returns the context of work that was taken: it outlives ctx by at most bound.
func finishing(ctx context.Context, bound time.Duration) (context.Context, context.CancelFunc) {
	finish, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var mu sync.Mutex
	var timer *time.Timer
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if finish.Err() == nil {
			timer = time.AfterFunc(bound, cancel)
		}
	})
	return finish, func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		cancel()
		if timer != nil {
			timer.Stop()
		}
	}
}

// pause waits for d or the end of ctx, and reports whether d has passed.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
