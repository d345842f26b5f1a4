package config

import _ "embed"

//go:embed example.yaml
var example string

// Example returns the commented starter file that lethe init writes. It loads once its password files exist.
func Example() string { return example }
