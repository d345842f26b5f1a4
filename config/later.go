package config

import (
	"maps"
	"slices"
)

// NotInThisVersion lists the sections that load and validate but do nothing yet. run and check refuse a file that has any,
// because nothing may be accepted and ignored.
func (c *Config) NotInThisVersion() []Fault {
	var found []Fault
	add := func(used bool, path, hint string) {
		if used {
			found = append(found, Fault{Path: path, Line: c.Line(path), Message: "is not in this version of Lethe", Hint: hint})
		}
	}
	const remove = "remove it for now"
	add(c.Kafka.SchemaRegistry != nil, "kafka.schema_registry", "remove it: events are Avro single-object encoded")
	for _, name := range slices.Sorted(maps.Keys(c.Replicas)) {
		r, path := c.Replicas[name], at("replicas", name)
		add(r.Guard != nil, path+".guard", remove)
	}
	add(c.Ledger != nil, "ledger", remove)
	return sortFaults(found)
}
