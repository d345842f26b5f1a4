package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
)

// Core is what a replica knows whatever its dialect: who it is, its mapping's config and its keys. Its fields do not
// change once it is in use; then its methods may be called from several goroutines.
type Core struct {
	Name   string // of the replica, as in the config
	Source string // the config's name
	Config *config.Replica

	Seal      schema.AEAD   // opens and seals CRM keys
	Pseudonym schema.PRF    // re-keys subject references in this replica's tables; never rotated
	Signer    schema.Signer // proof key of this replica
	Match     KeyMaker      // makes the match keys of what lies in the replica; nil where it has no find

	MappingDigest [32]byte
	Version       string // of Lethe, for receipts

	RecheckFirst time.Duration // pause before a subject without a row is looked up again
	RecheckLater time.Duration // the pause once the subject is an hour old

	Log zerolog.Logger

	ids *schema.Identifiers
}

// NewCore makes a Core usable: it is called once, with every field set.
func NewCore(c Core) *Core {
	c.ids = schema.NewIdentifiers(c.Pseudonym, c.Source)
	return &c
}

// Ref returns the key under which a subject lies in this replica's tables: its reference under the replica's own key,
// so that two recipients cannot join their databases on it.
func (c *Core) Ref(s schema.SubjectRef) Ref {
	var out [32]byte
	c.Pseudonym.Compute(&out, s[:])
	return out
}

// Digest is the mapping digest as meta holds it.
func (c *Core) Digest() string { return hex.EncodeToString(c.MappingDigest[:]) }

// sealedSize is what a CRM key is padded to before it is sealed, so that its length does not show.
const sealedSize = 64

// SealKey seals a canonical CRM key for the table subject. The reference is its associated data: a sealed key moved to
// another subject's row does not open.
func (c *Core) SealKey(ref, key []byte) ([]byte, error) {
	plain := binary.AppendUvarint(make([]byte, 0, sealedSize), uint64(len(key)))
	plain = append(plain, key...)
	for len(plain) < sealedSize {
		plain = append(plain, 0)
	}
	out, err := c.Seal.AppendSeal(nil, plain, ref)
	if err != nil {
		return nil, fmt.Errorf("sealing CRM key: %w", err)
	}
	return out, nil
}

// NewKey seals the key of a subject whose row has none yet; nil where it has one, or the key is not known.
func (c *Core) NewKey(s *Subject) ([]byte, error) {
	if s.Key == nil || len(s.Sealed) > 0 {
		return nil, nil
	}
	canonical := make([][]byte, len(s.Key))
	for i, p := range s.Key {
		canonical[i] = []byte(p)
	}
	return c.SealKey(s.Ref[:], schema.CanonicalKey(nil, canonical...))
}

// OpenKey returns the parts of a sealed CRM key. They are personal: they go into statements as parameters, and nowhere
// else. Its errors are Permanent.
func (c *Core) OpenKey(ref, sealed []byte) ([]string, error) { return OpenKey(c.Seal, ref, sealed) }

// OpenKey is Core.OpenKey for who has the seal key and nothing else.
func OpenKey(seal schema.AEAD, ref, sealed []byte) ([]string, error) {
	plain, err := seal.Open(sealed, ref)
	if err != nil {
		return nil, &sinks.Error{
			Class: sinks.Permanent, Op: "opening CRM key", Code: "seal_key",
			Hint: "the seal key that made this row is not in the keyset: restore it",
		}
	}
	if size, n := binary.Uvarint(plain); n > 0 && size <= uint64(len(plain[n:])) {
		if parts, err := schema.SplitKey(plain[n:][:size]); err == nil {
			return parts, nil
		}
	}
	return nil, &sinks.Error{
		Class: sinks.Permanent, Op: "opening CRM key", Code: "crm_key",
		Hint: "the sealed key of a subject is damaged: restore the ledger tables from a backup",
	}
}

// The beginning of a ciphertext that carries the id of its key (Tink): SealPrefix, then the id in four bytes.
const (
	SealPrefix = 0x01
	SealIDSize = 5
)

// PrimaryPrefix is what ciphertexts of the primary seal key begin with; nil for an AEAD whose ciphertexts carry no id of a
// key, which is never rotated. Two are compared, because a nonce at the front may look like an id once.
func (c *Core) PrimaryPrefix() ([]byte, error) {
	one, err := c.Seal.AppendSeal(nil, nil, nil)
	if err != nil {
		return nil, err
	}
	two, err := c.Seal.AppendSeal(nil, nil, nil)
	if err != nil {
		return nil, err
	}
	if len(one) < SealIDSize || one[0] != SealPrefix || !bytes.Equal(one[:SealIDSize], two[:SealIDSize]) {
		return nil, nil
	}
	return one[:SealIDSize], nil
}

// Reseal seals a CRM key under the primary key that was sealed under an older one. ok is false where no key of the ring
// opens it: whatever needs the row will say so.
func (c *Core) Reseal(ref, sealed []byte) (again []byte, ok bool, err error) {
	plain, err := c.Seal.Open(sealed, ref)
	if err != nil {
		return nil, false, nil //nolint:nilerr // reported as ok
	}
	again, err = c.Seal.AppendSeal(nil, plain, ref)
	clear(plain)
	return again, err == nil, err
}

// FoldedObserving is the value of MetaFolded while the replica is only observed: facts gather, and no column follows them.
const FoldedObserving = "observe"

// FoldedUnder is the value of MetaFolded for a mapping.
func FoldedUnder(cfg *config.Replica, digest [32]byte) string {
	if cfg.Mode == ModeObserve {
		return FoldedObserving
	}
	return hex.EncodeToString(digest[:])
}

// CheckMeta compares what Setup left in the table meta with what this build, this replica's name and this mapping need.
// An older or newer version and tables of somebody else are Permanent; a digest that is not the active one is ErrDigest
// in the chain. where names the tables for the operator: "schema lethe".
func CheckMeta(meta map[string]string, replica, source, digest, where string) error {
	var have int
	_, err := fmt.Sscanf(meta[MetaSchemaVersion], "%d", &have)
	switch {
	case err != nil || have < SchemaVersion:
		return &sinks.Error{
			Class: sinks.Permanent, Op: "comparing ledger version", Code: "ledger_old",
			Hint: "run `lethe setup` of this version with the login of the owner",
		}
	case have > SchemaVersion:
		return &sinks.Error{
			Class: sinks.Permanent, Op: "comparing ledger version", Code: "ledger_newer",
			Hint: "a newer Lethe has migrated these tables: run that version",
		}
	}
	// Two workers that write into the same ledger under different names would each take the other's offsets for their own.
	for _, m := range []struct{ key, want string }{{MetaReplica, replica}, {MetaSource, source}} {
		if meta[m.key] != m.want {
			return &sinks.Error{
				Class: sinks.Permanent, Op: "comparing " + m.key + " of ledger", Code: "ledger_foreign",
				Hint: fmt.Sprintf("%s belongs to %s %q, the config says %q: give this replica a prefix or schema of its own",
					where, m.key, meta[m.key], m.want),
			}
		}
	}
	if meta[MetaDigest] != digest {
		return &sinks.Error{
			Class: sinks.Permanent, Op: "comparing mapping digest", Code: "mapping_digest",
			Hint: fmt.Sprintf("run `lethe setup` to activate the mapping of replica %s", replica), Err: sinks.ErrDigest,
		}
	}
	return nil
}
