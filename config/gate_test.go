package config

import "testing"

func TestGateDecidesWhereTheContractIsNeeded(t *testing.T) {
	check := map[string]string{"paid": "paid($1)"}
	for _, c := range []struct {
		name            string
		source          Source
		asked, enforced bool
	}{
		{"nothing", Source{}, false, false},
		{"request alone", Source{Request: &Request{}}, true, true},
		{"off", Source{Request: &Request{}, Gate: &Gate{Mode: GateOff, Require: check}}, false, false},
		{"observe", Source{Gate: &Gate{Mode: GateObserve, Require: check}}, true, false},
		{"enforce", Source{Gate: &Gate{Mode: GateEnforce, Require: check}}, true, true},
		{"enforce nothing", Source{Gate: &Gate{Mode: GateEnforce}}, false, false},
	} {
		if asked, enforced := c.source.Asked(), c.source.Enforced(); asked != c.asked || enforced != c.enforced {
			t.Errorf("%s: asked %t, enforced %t", c.name, asked, enforced)
		}
		replicas := map[string]*Replica{"a": {Needs: "contract"}, "b": {}}
		(&Config{Source: c.source, Replicas: replicas}).complete()
		if replicas["a"].Gated != c.enforced || replicas["b"].Gated {
			t.Errorf("%s: gated %t and %t", c.name, replicas["a"].Gated, replicas["b"].Gated)
		}
	}
}
