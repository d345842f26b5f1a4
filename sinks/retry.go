package sinks

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

// retry counts the waits of one operation: jittered and growing after transient errors, slow after permanent ones. The
// jitter keeps the workers of one replica from trying in step.
type retry struct {
	b    *backoff.ExponentialBackOff
	slow time.Duration
}

func newRetry(o *WorkerOptions) *retry {
	return &retry{
		b: &backoff.ExponentialBackOff{
			InitialInterval: o.RetryMin, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: o.RetryMax,
		},
		slow: o.RetrySlow,
	}
}

func (r *retry) next(c Class) time.Duration {
	if c == Permanent {
		return r.slow
	}
	return r.b.NextBackOff()
}

func (r *retry) reset() { r.b.Reset() }
