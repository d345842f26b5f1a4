package postgres

import "lethe/sinks/ledger"

// Cases implements sinktest.Lister.
func (i *instance) Cases() []ledger.Case {
	i.Helper()
	list, err := NewDesk(i.cfg, i.pool).Cases(i.ctx, false, 10)
	if err != nil {
		i.Fatal(err)
	}
	return list
}
