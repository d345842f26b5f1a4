// Package crashpoint marks the places between two durable steps. Crash tests build with the tag lethe_crash and name one
// of them in LETHE_CRASH; in every other build the calls vanish.
package crashpoint
