package ledger

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the counters of one replica. No label is ever personal.
type Metrics struct {
	Events   *prometheus.CounterVec
	Rows     *prometheus.CounterVec
	Rechecks *prometheus.CounterVec
}

// NewMetrics makes the counters and registers them where there is a registerer.
func NewMetrics(reg prometheus.Registerer, replica string) (*Metrics, error) {
	labels := prometheus.Labels{"replica": replica}
	m := &Metrics{
		Events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_replica_events_total", Help: "Events committed to the replica, by outcome.", ConstLabels: labels,
		}, []string{"outcome"}),
		Rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_replica_rows_total", Help: "Rows of mapped tables changed in the replica, by action.", ConstLabels: labels,
		}, []string{"action"}),
		Rechecks: prometheus.NewCounterVec(prometheus.CounterOpts{
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

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.Events, m.Rows, m.Rechecks}
}

func (m *Metrics) Close(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, c := range m.all() {
		reg.Unregister(c)
	}
}

// Count counts what became of the records of a unit that has been committed.
func (m *Metrics) Count(u *Unit) {
	for outcome, n := range u.Counts() {
		m.Events.WithLabelValues(outcome).Add(float64(n))
	}
	for _, s := range u.Set.List {
		for _, row := range s.Effect.Rows {
			m.Rows.WithLabelValues(row.Action).Add(float64(row.Changed))
		}
	}
}
