package postgres

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of one replica. No label is ever personal.
type metrics struct {
	events   *prometheus.CounterVec
	rows     *prometheus.CounterVec
	rechecks *prometheus.CounterVec
}

// newMetrics makes the counters and registers them where there is a registerer.
func newMetrics(reg prometheus.Registerer, replica string) (*metrics, error) {
	labels := prometheus.Labels{"replica": replica}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_replica_events_total", Help: "Events committed to the replica, by outcome.", ConstLabels: labels,
		}, []string{"outcome"}),
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_replica_rows_total", Help: "Rows of mapped tables changed in the replica, by action.", ConstLabels: labels,
		}, []string{"action"}),
		rechecks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_replica_rechecks_total", Help: "Subjects without a row that were looked up again, by result.",
			ConstLabels: labels,
		}, []string{"result"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range m.all() {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics of replica %s: %w", replica, err)
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.events, m.rows, m.rechecks}
}

func (m *metrics) close(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, c := range m.all() {
		reg.Unregister(c)
	}
}
