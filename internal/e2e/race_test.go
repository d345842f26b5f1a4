//go:build race

package e2e

// raceEnabled has the process under test built with the race detector too.
const raceEnabled = true
