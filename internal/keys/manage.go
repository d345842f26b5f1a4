package keys

import (
	"errors"
	"fmt"
	"os"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/signature"
)

// Keyset is what List tells of one file: nothing secret.
type Keyset struct {
	Name string `json:"name"`
	Keys []Key  `json:"keys"`
}

// Key is one key of a keyset. The primary one seals, signs and writes; the others only read.
type Key struct {
	ID      uint32 `json:"id"`
	Primary bool   `json:"primary"`
	Status  string `json:"status"` // ENABLED, DISABLED or DESTROYED, as Tink has it
	Type    string `json:"type"`   // Tink's type of key
}

func template(k kind) *tinkpb.KeyTemplate {
	switch k {
	case kindPRF:
		return prf.HMACSHA256PRFKeyTemplate()
	case kindAEAD:
		return aead.AES256GCMKeyTemplate()
	case kindSigning:
		return signature.ED25519KeyTemplate()
	case kindNone, kindPublic:
	}
	return nil
}

// Init makes the folder if need be and every keyset that is missing for the replicas. It never overwrites: what is there already stays,
// is checked to be readable, and is not in the list of names that it returns.
func Init(dir string, replicas []string) (made []string, err error) {
	want := []string{nameSubject, nameMatch, nameSeal}
	for _, r := range replicas {
		if err := checkReplica(r); err != nil {
			return nil, err
		}
		want = append(want, proofPrefix+r, pseudoPrefix+r)
	}
	unlock, err := openDir(dir, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, name := range want {
		ok, err := exists(dir, name)
		if err != nil {
			return made, fmt.Errorf("opening keyset: %w", err)
		}
		if ok {
			if _, err := load(dir, name); err != nil {
				return made, err
			}
			continue
		}
		k, _, err := parseName(name)
		if err != nil {
			return made, err
		}
		h, err := keyset.NewHandle(template(k))
		if err != nil {
			return made, fmt.Errorf("making keyset %s: %w", name, err)
		}
		if err := store(dir, name, h, true); err != nil {
			return made, err
		}
		made = append(made, name)
	}
	return made, nil
}

// openDir locks the folder against other commands, after making it (if asked to) and checking who can write to it.
func openDir(dir string, create bool) (unlock func(), err error) {
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making key folder: %w", err)
		}
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	return lock(dir)
}

// List tells which keysets and keys there are.
func List(dir string) ([]Keyset, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	all, err := names(dir)
	if err != nil {
		return nil, err
	}
	out := make([]Keyset, 0, len(all))
	for _, name := range all {
		h, err := load(dir, name)
		if err != nil {
			return nil, err
		}
		info := h.KeysetInfo()
		ks := Keyset{Name: name}
		for _, k := range info.GetKeyInfo() {
			ks.Keys = append(ks.Keys, Key{
				ID: k.GetKeyId(), Primary: k.GetKeyId() == info.GetPrimaryKeyId(), Status: k.GetStatus().String(), Type: k.GetTypeUrl(),
			})
		}
		out = append(out, ks)
	}
	return out, nil
}

// Rotate adds a key to seal, match or a proof keyset and makes it the primary one; the others stay and go on reading. Where roles have
// folders of their own, the sinks' (and the ledger's) are exported and restarted before capture's, or they meet a key that they do
// not know yet (schema.ErrUnknownKey) and wait. Subject and replica keysets are refused, with the reason.
func Rotate(dir, name string) (newID uint32, err error) {
	k, _, err := parseName(name)
	if err != nil {
		return 0, err
	}
	if why := neverRotated(name); why != "" {
		return 0, fmt.Errorf("keyset %s is never rotated: %s", name, why)
	}
	err = change(dir, name, func(m *keyset.Manager, _ *keyset.Handle) error {
		if newID, err = m.Add(template(k)); err != nil {
			return err
		}
		return m.SetPrimary(newID)
	})
	return newID, err
}

// InUse says where a key is still needed (for example "lethe.events" or "replica marketing: 12 rows"), or "" if it is certain that it is not.
// An error means that it could not be found out.
type InUse func(keyID uint32) (where string, err error)

// Retire takes a key out of a keyset for good: what was sealed under it cannot be opened again, what was signed no longer verified.
// It refuses the primary key, keysets that are never rotated, and a key of which inUse does not say that it is needed nowhere: not in the
// retained part of a topic, not in a replica.
func Retire(dir, name string, keyID uint32, inUse InUse) error {
	if _, _, err := parseName(name); err != nil {
		return err
	}
	if why := neverRotated(name); why != "" {
		return fmt.Errorf("no key of keyset %s is ever retired: %s", name, why)
	}
	if inUse == nil {
		return fmt.Errorf("retiring key %d of %s: nobody has looked whether it is in use", keyID, name)
	}
	return change(dir, name, func(m *keyset.Manager, h *keyset.Handle) error {
		info := h.KeysetInfo()
		if info.GetPrimaryKeyId() == keyID {
			return fmt.Errorf("key %d is the primary one: run `lethe keys rotate %s` first, and retire it when nothing uses it any more", keyID, name)
		}
		if !hasKey(h, keyID) {
			return fmt.Errorf("there is no key %d: see `lethe keys list`", keyID)
		}
		where, err := inUse(keyID)
		if err != nil {
			return fmt.Errorf("finding out whether key %d is in use: %w", keyID, err)
		}
		if where != "" {
			return fmt.Errorf("key %d is still used: %s", keyID, where)
		}
		return m.Delete(keyID)
	})
}

func hasKey(h *keyset.Handle, keyID uint32) bool {
	for _, k := range h.KeysetInfo().GetKeyInfo() {
		if k.GetKeyId() == keyID {
			return true
		}
	}
	return false
}

// change loads, alters and stores one keyset under the lock.
func change(dir, name string, f func(*keyset.Manager, *keyset.Handle) error) error {
	unlock, err := openDir(dir, false)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := load(dir, name)
	if err != nil {
		return err
	}
	m := keyset.NewManagerFromHandle(h)
	if err := f(m, h); err != nil {
		return fmt.Errorf("changing keyset %s: %w", name, err)
	}
	if h, err = m.Handle(); err != nil {
		return fmt.Errorf("changing keyset %s: %w", name, err)
	}
	return store(dir, name, h, false)
}

// Export writes the keysets that the role needs, and no others, into outDir: for the ledger, public keys only. A keyset that is there already
// is replaced if the one that takes its place still has its primary key (an older export), else refused (somebody else's keys).
func Export(dir string, role Role, outDir string) (written []string, err error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	need, err := needed(dir, []Role{role})
	if err != nil {
		return nil, err
	}
	unlock, err := openDir(outDir, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := distinct(dir, outDir); err != nil {
		return nil, err
	}
	handles := map[string]*keyset.Handle{}
	for _, name := range need {
		if err := prepare(dir, role, outDir, name, handles); err != nil {
			return nil, err
		}
	}
	for _, name := range need {
		target := exportName(role, name)
		if h := handles[target]; h != nil {
			if err := store(outDir, target, h, false); err != nil {
				return written, err
			}
			delete(handles, target)
			written = append(written, target)
		}
	}
	return written, nil
}

func distinct(dir, outDir string) error {
	a, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("opening key folder: %w", err)
	}
	b, err := os.Stat(outDir)
	if err != nil {
		return fmt.Errorf("opening key folder: %w", err)
	}
	if os.SameFile(a, b) {
		return errors.New("exporting keys: the target is the key folder itself; give another")
	}
	return nil
}

// exportName gives the name under which a role gets a keyset.
func exportName(role Role, name string) string {
	if k, _, _ := parseName(name); role == RoleLedger && k == kindSigning {
		return name + publicSuffix
	}
	return name
}

// prepare loads one keyset for export and compares it with what is in the target folder.
func prepare(dir string, role Role, outDir, name string, handles map[string]*keyset.Handle) error {
	target := exportName(role, name)
	k, _, _ := parseName(name)
	if k == kindPublic && handles[target] != nil {
		return nil // the private keyset is here as well, and at least as new
	}
	h, err := load(dir, name)
	if err != nil {
		return err
	}
	if target != name {
		if h, err = h.Public(); err != nil {
			return fmt.Errorf("taking the public keys of %s: %w", name, err)
		}
	}
	there, err := exists(outDir, target)
	if err != nil {
		return fmt.Errorf("opening keyset: %w", err)
	}
	if there {
		old, err := load(outDir, target)
		if err != nil {
			return err
		}
		if !hasKey(h, old.KeysetInfo().GetPrimaryKeyId()) {
			return fmt.Errorf("exporting keyset %s: %s holds other keys: move it away if it is not needed any more", target, path(outDir, target))
		}
	}
	handles[target] = h
	return nil
}
