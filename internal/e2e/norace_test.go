//go:build !race

package e2e

// raceEnabled has the process under test built without the race detector too.
const raceEnabled = false
