package mysql

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one Source. The labels name nothing. Where a metric of a PostgreSQL source means the same it has the
// same name.
type metrics struct {
	received  prometheus.Counter
	skipped   prometheus.Counter
	retained  prometheus.Gauge
	lag       prometheus.Gauge
	safe      prometheus.Gauge
	streaming prometheus.Gauge
	epoch     prometheus.Gauge
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
		skipped:   counter("lethe_source_skipped_changes_total", "Row events of tables that are not mapped, skipped undecoded."),
		retained:  gauge("lethe_source_binlog_bytes", "Binary log that the source keeps."),
		lag:       gauge("lethe_source_lag_bytes", "Log written by the source and not yet acknowledged; -1 where it is not known."),
		safe:      gauge("lethe_source_binlog_safe_seconds", "Time until the source may purge log that is not acknowledged; -1 where it never does."),
		streaming: gauge("lethe_source_lock_held", "1 while somebody holds the named lock of this source."),
		epoch:     gauge("lethe_source_epoch", "Epoch of the transaction that was handed over last."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.received, m.skipped, m.retained, m.lag, m.safe, m.streaming, m.epoch} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the source's metrics: %w", err)
		}
	}
	return m, nil
}
