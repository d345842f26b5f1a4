package postgres

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one Source. The labels name nothing.
type metrics struct {
	received  prometheus.Counter
	skipped   prometheus.Counter
	retained  prometheus.Gauge
	lag       prometheus.Gauge
	safe      prometheus.Gauge
	streaming prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		received:  counter("lethe_source_received_bytes_total", "Bytes read from the source's replication stream."),
		skipped:   counter("lethe_source_skipped_changes_total", "Row changes of tables that are not mapped, skipped undecoded."),
		retained:  gauge("lethe_source_retained_wal_bytes", "Log that the source holds back for the slot."),
		lag:       gauge("lethe_source_lag_bytes", "Log written by the source and not yet acknowledged."),
		safe:      gauge("lethe_source_safe_wal_bytes", "Log that can still be written before the slot is lost; -1 where there is no limit."),
		streaming: gauge("lethe_source_slot_active", "1 while somebody reads from the slot."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.received, m.skipped, m.retained, m.lag, m.safe, m.streaming} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the source's metrics: %w", err)
		}
	}
	return m, nil
}

// flushCounts adds what the stream has counted since the last time: atomics once a second, not once a change.
func (st *stream) flushCounts() {
	m := st.src.metrics
	m.received.Add(float64(st.wire.bytes - st.seenBytes))
	st.seenBytes = st.wire.bytes
	m.skipped.Add(float64(st.dec.skipped))
	st.dec.skipped = 0
}
