package config

import (
	"maps"
	"slices"
	"strings"
)

// gate checks what the source is asked before phase 2.
func (v *validator) gate() {
	s := &v.c.Source
	if s.Erased.Window <= 0 && v.sound("source.erased.window") {
		v.fault("source.erased.window", "leave it at 15m", "must be longer than nothing")
	}
	if g := s.Gate; g != nil {
		for _, name := range slices.Sorted(maps.Keys(g.Require)) {
			path := at("source", "gate", "require", name)
			if name == "request" || name == "gate_error" {
				v.fault(path, "give the check another name", "is a word that Lethe uses itself")
			}
			if sql := g.Require[name]; sql != "" && !strings.Contains(sql, "$1") {
				v.fault(path, "write $1 in the place of the CRM key, $2 for its second column", "says the same of everybody")
			}
		}
		if len(g.Require) == 0 && s.Request == nil && g.Mode != GateOff {
			v.fault("source.gate.require", "write a check, or say mode: off", "is empty, and there is no source.request: nothing would be asked")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.c.Replicas)) {
		if v.c.Replicas[name].Needs != "" && s.Gate == nil && s.Request == nil {
			v.fault(at("replicas", name, "needs"), "write source.gate or source.request, or remove it", "has no gate to wait for")
		}
	}
}

// sound reports whether the file has the path, and what stands there could be read.
func (v *validator) sound(path string) bool {
	_, given := v.d.lines[path]
	return given && !slices.ContainsFunc(v.d.faults, func(f Fault) bool { return f.Path == path })
}
