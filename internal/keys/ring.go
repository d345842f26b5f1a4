// Package keys keeps Lethe's keys in Tink keysets, one file each (clear-text JSON, readable by their owner alone), and gives
// every role what it needs and no more:
//
//	subject         HMAC-SHA-256   pseudonyms and ids; never rotated             capture
//	match           HMAC-SHA-256   contact points; versions side by side         capture, sinks
//	seal            AES-256-GCM    CRM keys in events and replicas; rotated      capture, sinks
//	proof-REPLICA   Ed25519        receipts; rotated                             its sink; the ledger: public keys
//	replica-REPLICA HMAC-SHA-256   pseudonyms in the replica; never rotated      its sink
package keys

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"lethe/schema"
)

// Ring holds the keys of the roles it was opened for. Safe for concurrent use; it is not read again when files change.
type Ring struct {
	subject schema.PRF
	match   []MatchKey
	seal    schema.AEAD
	proofs  map[string]schema.Signer
	pseudos map[string]schema.PRF
	public  verifier
}

// MatchKey is one version of the match key.
type MatchKey struct {
	ID  uint32
	PRF schema.PRF
}

// Open reads the keysets that the roles need from dir. It fails on a missing keyset, naming all that are missing, and on a file or
// folder that others can read or write, naming the chmod.
func Open(dir string, roles ...Role) (*Ring, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	need, err := needed(dir, roles)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, name := range need {
		ok, err := exists(dir, name)
		if err != nil {
			return nil, fmt.Errorf("opening keyset: %w", err)
		}
		if !ok {
			missing = append(missing, name+fileSuffix)
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("opening keys of %s: %s not in %s: run `lethe keys init` where the keys are made, or `lethe keys export --role` and copy them here",
			roleList(roles), strings.Join(missing, ", "), dir)
	}
	r := &Ring{proofs: map[string]schema.Signer{}, pseudos: map[string]schema.PRF{}, public: verifier{}}
	for _, name := range need {
		if err := r.add(dir, name); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func roleList(roles []Role) string {
	texts := make([]string, len(roles))
	for i, role := range roles {
		texts[i] = string(role)
	}
	return strings.Join(texts, ", ")
}

// needed lists the keysets of the roles, sorted, each once.
func needed(dir string, roles []Role) ([]string, error) {
	if len(roles) == 0 {
		return nil, errors.New("opening keys: no role given")
	}
	set := map[string]bool{}
	for _, role := range roles {
		if _, err := ParseRole(string(role)); err != nil {
			return nil, err
		}
		list, err := role.keysets(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range list {
			set[name] = true
		}
	}
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	sort.Strings(out)
	return out, nil
}

// keysets lists what one role needs. The ledger and the operator take what there is for the replicas.
func (r Role) keysets(dir string) ([]string, error) {
	if replica, ok := r.replica(); ok {
		return []string{nameMatch, nameSeal, proofPrefix + replica, pseudoPrefix + replica}, nil
	}
	if r == RoleCapture {
		return []string{nameSubject, nameMatch, nameSeal}, nil
	}
	all, err := names(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	if r == RoleOperator {
		out = []string{nameSubject, nameMatch, nameSeal}
	}
	for _, name := range all {
		k, replica, _ := parseName(name)
		if k == kindSigning || k == kindPublic || (r == RoleOperator && replica != "") {
			out = append(out, name)
		}
	}
	if out == nil {
		return nil, fmt.Errorf("opening keys of %s: no proof keyset in %s: run `lethe keys export --role ledger` where the keys are made", r, dir)
	}
	return out, nil
}

func (r *Ring) add(dir, name string) error {
	h, err := load(dir, name)
	if err != nil {
		return err
	}
	k, replica, err := parseName(name)
	if err != nil {
		return err
	}
	switch k {
	case kindPRF:
		var keys []MatchKey
		if keys, err = prfs(h); err == nil {
			r.addPRFs(name, replica, keys)
		}
	case kindAEAD:
		var s *sealer
		if s, err = newSealer(h); err == nil {
			r.seal = s
		}
	case kindSigning:
		var s *signer
		if s, err = newSigner(h); err == nil {
			r.proofs[replica] = s
			r.public[replica], err = publicKeys(h)
		}
	case kindPublic:
		if r.public[replica] == nil { // else the private keyset is here as well, and at least as new
			r.public[replica], err = publicKeys(h)
		}
	case kindNone:
	}
	if err != nil {
		return fmt.Errorf("keyset %s %w: put back the file that belongs there", path(dir, name), err)
	}
	return nil
}

func (r *Ring) addPRFs(name, replica string, keys []MatchKey) {
	switch name {
	case nameSubject:
		r.subject = keys[0].PRF
	case nameMatch:
		r.match = keys
	default:
		r.pseudos[replica] = keys[0].PRF
	}
}

// Subject is the key of the source's pseudonyms; nil where no role holds it.
func (r *Ring) Subject() schema.PRF { return r.subject }

// Match gives every version of the match key, the one to write with first; nil where no role holds it.
func (r *Ring) Match() []MatchKey { return r.match }

// Seal seals and opens CRM keys; nil where no role holds it.
func (r *Ring) Seal() schema.AEAD { return r.seal }

// Proof signs the receipts of one replica.
func (r *Ring) Proof(replica string) (schema.Signer, error) {
	if s, ok := r.proofs[replica]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("proof key of replica %q was not opened: this process does not have the role sink=%s", replica, replica)
}

// Pseudonym re-keys subject references and match keys for the tables of one replica, so that two recipients cannot join
// their databases on them.
func (r *Ring) Pseudonym(replica string) (schema.PRF, error) {
	if p, ok := r.pseudos[replica]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("pseudonym key of replica %q was not opened: this process does not have the role sink=%s", replica, replica)
}

// Verifier verifies receipts of every replica whose proof keys the ring holds, public or private.
func (r *Ring) Verifier() schema.Verifier { return r.public }
