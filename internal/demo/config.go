package demo

import "os"

// ConfigText is the demo's config with its LETHE_DEMO_ values filled in.
func ConfigText(values map[string]string) string {
	return os.Expand(configText, func(name string) string {
		if v, ok := values[name]; ok {
			return v
		}
		return "$" + name // $key, $now and the like are the config's own
	})
}
