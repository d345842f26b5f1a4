// Package keys keeps Lethe's keys in Tink keysets, one file each, and gives every role what it needs and no more.
package keys

import (
	"errors"

	"lethe/schema"
)

// Role says whose keys are opened or exported.
type Role string

// The roles. A sink's is RoleSink(its replica). The operator's command line holds everything.
const (
	RoleCapture  Role = "capture"
	RoleLedger   Role = "ledger"
	RoleOperator Role = "operator"
)

// RoleSink is the role of the sink of one replica; its text form is sink=NAME.
func RoleSink(replica string) Role { return Role("sink=" + replica) }

// Ring holds the keys of the roles it was opened for. Safe for concurrent use.
type Ring struct{}

// Open reads the keysets that the roles need from dir.
func Open(dir string, roles ...Role) (*Ring, error) { return nil, errors.New("not yet") }

// MatchKey is one version of the match key.
type MatchKey struct {
	ID  uint32
	PRF schema.PRF
}

// Subject is the key of the source's pseudonyms; nil where no role holds it.
func (r *Ring) Subject() schema.PRF { return nil }

// Match gives every version of the match key, the one to write with first.
func (r *Ring) Match() []MatchKey { return nil }

// Seal seals and opens CRM keys; nil where no role holds it.
func (r *Ring) Seal() schema.AEAD { return nil }

// Proof signs the receipts of one replica.
func (r *Ring) Proof(replica string) (schema.Signer, error) { return nil, errors.New("not yet") }

// Pseudonym re-keys subject references and match keys for the tables of one replica.
func (r *Ring) Pseudonym(replica string) (schema.PRF, error) { return nil, errors.New("not yet") }

// Verifier verifies receipts of every replica whose proof keys the ring holds, public or private.
func (r *Ring) Verifier() schema.Verifier { return nil }
