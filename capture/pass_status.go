package capture

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// passMetrics are there although no pass is made: an alert on a pass that never came needs the zero.
func (p *Pipeline) passMetrics(
	counter func(name, help string, v *atomic.Uint64) prometheus.Collector,
	gauge func(name, help string, f func(*Status) float64) prometheus.Collector,
) []prometheus.Collector {
	of := func(f func(*Pass) float64) func(*Status) float64 {
		return func(s *Status) float64 {
			if s.Pass == nil {
				return 0
			}
			return f(s.Pass)
		}
	}
	return []prometheus.Collector{
		counter("lethe_pass_rows_total", "Rows that passes have read from the source.", &p.totals.passRows),
		counter("lethe_pass_errors_total", "Times that a pass had to be tried again.", &p.totals.passErrors),
		gauge("lethe_pass_running", "1 while a pass is made.", of(func(p *Pass) float64 { return truth(p.Live()) })),
		gauge("lethe_pass_waiting", "1 while the pass waits for the source or the stream.", of(func(p *Pass) float64 { return truth(p.Waiting != "") })),
		gauge("lethe_pass_rows", "Rows that the newest pass has read.", of(func(p *Pass) float64 {
			read, _ := p.Rows()
			return float64(read)
		})),
		gauge("lethe_pass_rows_estimate", "Rows that the newest pass may have to read; -1: unknown.", of(func(p *Pass) float64 {
			_, estimate := p.Rows()
			return float64(estimate)
		})),
		gauge("lethe_pass_tables_refused", "Tables that the newest pass could not read.", of(func(p *Pass) float64 { return float64(len(p.Refused())) })),
		gauge("lethe_pass_restarts", "Times that the newest pass began anew.", of(func(p *Pass) float64 { return float64(p.Restarts) })),
		gauge("lethe_pass_last_full_timestamp_seconds", "When the newest pass over every table ended; 0: never.", of(func(p *Pass) float64 {
			if p.LastFull.EndedAt.IsZero() {
				return 0
			}
			return float64(p.LastFull.EndedAt.Unix())
		})),
	}
}
