package demo

import (
	"maps"
	"os"
)

// ConfigText is the demo's config with the CRM and the marketing replica on Postgres, MySQL or MariaDB, and its LETHE_DEMO_
// values filled in.
func ConfigText(source, marketing string, values map[string]string) string {
	all := map[string]string{
		"LETHE_DEMO_SOURCE":         "postgres: {dsn: \"" + values["LETHE_DEMO_CRM"] + "\", slot: lethe, publication: lethe, max_retained_wal: 1GB}",
		"LETHE_DEMO_SCHEMA":         "public",
		"LETHE_DEMO_MARKETING_KIND": "postgres",
		"LETHE_DEMO_MARKETING_LOG":  "wal",
	}
	if source != Postgres {
		all["LETHE_DEMO_SOURCE"] = "mysql: {dsn: \"" + values["LETHE_DEMO_CRM"] + "\"}"
		all["LETHE_DEMO_SCHEMA"] = databases[crm]
	}
	if marketing != Postgres {
		all["LETHE_DEMO_MARKETING_KIND"], all["LETHE_DEMO_MARKETING_LOG"] = "mysql", "binlog"
	}
	maps.Copy(all, values)
	return os.Expand(configText, func(name string) string {
		if v, ok := all[name]; ok {
			return v
		}
		return "$" + name // $key, $now and the like are the config's own
	})
}
