package postgres

import (
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// unit is the work of one transaction on this replica.
type unit struct {
	*ledger.Unit
	r *Replica
	m *Mapping
}

// newUnit resolves the subjects of the records. It touches no database: what cannot be used at all is Poison here.
func (r *Replica) newUnit(m *Mapping, records []sinks.Record) (*unit, error) {
	u, err := r.core.NewUnit(len(m.crm), records)
	if err != nil {
		return nil, err
	}
	return &unit{Unit: u, r: r, m: m}, nil
}

func (u *unit) effects() *effects {
	return &effects{r: u.r, m: u.m, cfg: u.r.cfg, now: u.Now}
}
