package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"

	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/prf/hmacprf"
	tinked25519 "github.com/tink-crypto/tink-go/v2/signature/ed25519"

	"lethe/schema"
)

// Tink keeps the keys; on the hot path their primitives are the standard library's, because Tink's allocate at every call and
// look for the key. The outputs are Tink's own, byte for byte where they are deterministic: the tests compare them.

var errOtherKind = errors.New("holds keys of another kind than its name says")

// enabled calls f for each usable key, the primary first.
func enabled(h *keyset.Handle, f func(*keyset.Entry) error) error {
	primary, err := h.Primary()
	if err != nil {
		return errors.New("has no primary key")
	}
	if err := f(primary); err != nil {
		return err
	}
	for i := range h.Len() {
		e, err := h.Entry(i)
		if err != nil {
			return errors.New("cannot be read")
		}
		if e.KeyID() == primary.KeyID() || e.KeyStatus() != keyset.Enabled {
			continue
		}
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// hmacPRF is HMAC-SHA-256. States are pooled: one costs two compressions and several allocations to make.
type hmacPRF struct{ pool sync.Pool }

func newPRF(key []byte) *hmacPRF {
	p := new(hmacPRF)
	p.pool.New = func() any { return hmac.New(sha256.New, key) }
	return p
}

// Compute implements schema.PRF.
func (p *hmacPRF) Compute(dst *[32]byte, data []byte) {
	h := p.pool.Get().(hash.Hash)
	h.Reset()
	h.Write(data)
	h.Sum(dst[:0])
	h.Reset() // nothing of the data stays behind
	p.pool.Put(h)
}

func prfs(h *keyset.Handle) (out []MatchKey, err error) {
	return out, enabled(h, func(e *keyset.Entry) error {
		k, ok := e.Key().(*hmacprf.Key)
		if !ok {
			return errOtherKind
		}
		params, ok := k.Parameters().(*hmacprf.Parameters)
		if !ok || params.HashType() != hmacprf.SHA256 {
			return errOtherKind
		}
		out = append(out, MatchKey{ID: e.KeyID(), PRF: newPRF(k.KeyBytes().Data(insecuresecretdataaccess.Token{}))})
		return nil
	})
}

// Sizes of Tink's AES-GCM output: prefix 01 and the key id, nonce, ciphertext, tag.
const (
	prefixSize = 5
	prefixTink = 0x01
)

// sealer is AES-256-GCM with random nonces. They come from the kernel at each call and are never drawn in advance: a restored
// snapshot of a virtual machine would use them twice. A key is good for 2^32 messages: rotate it before.
type sealer struct{ keys []sealKey } // primary first

type sealKey struct {
	id  uint32
	gcm cipher.AEAD
}

func newSealer(h *keyset.Handle) (*sealer, error) {
	s := new(sealer)
	return s, enabled(h, func(e *keyset.Entry) error {
		k, ok := e.Key().(*aesgcm.Key)
		if !ok {
			return errOtherKind
		}
		params, ok := k.Parameters().(*aesgcm.Parameters)
		if !ok || params.Variant() != aesgcm.VariantTink || params.IVSizeInBytes() != 12 || params.TagSizeInBytes() != 16 {
			return errOtherKind
		}
		block, err := aes.NewCipher(k.KeyBytes().Data(insecuresecretdataaccess.Token{}))
		if err != nil {
			return err
		}
		gcm, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return err
		}
		s.keys = append(s.keys, sealKey{id: e.KeyID(), gcm: gcm})
		return nil
	})
}

// AppendSeal implements schema.AEAD. dst must not overlap associatedData.
func (s *sealer) AppendSeal(dst, plaintext, associatedData []byte) ([]byte, error) {
	k := &s.keys[0]
	dst = append(dst, prefixTink)
	dst = binary.BigEndian.AppendUint32(dst, k.id)
	return k.gcm.Seal(dst, nil, plaintext, associatedData), nil //nolint:gosec // this AEAD draws the nonce itself
}

// Open implements schema.AEAD. Its error is schema.ErrUnknownKey or schema.ErrForged.
func (s *sealer) Open(ciphertext, associatedData []byte) ([]byte, error) {
	id, err := SealedKeyID(ciphertext)
	if err != nil {
		return nil, schema.ErrForged
	}
	for i := range s.keys {
		if s.keys[i].id != id {
			continue
		}
		plain, err := s.keys[i].gcm.Open(nil, nil, ciphertext[prefixSize:], associatedData)
		if err != nil {
			return nil, schema.ErrForged
		}
		return plain, nil
	}
	return nil, schema.ErrUnknownKey
}

// SealedKeyID gives the id of the key under which a ciphertext was sealed. It authenticates nothing: it serves Retire's question.
func SealedKeyID(ciphertext []byte) (uint32, error) {
	if len(ciphertext) < prefixSize || ciphertext[0] != prefixTink {
		return 0, errors.New("reading key id: not a sealed value")
	}
	return binary.BigEndian.Uint32(ciphertext[1:]), nil
}

// signer signs with the primary key. The key id travels beside the signature; Tink's form of it is 01, key id, signature.
type signer struct {
	id      uint32
	private ed25519.PrivateKey
}

// Sign implements schema.Signer.
func (s *signer) Sign(data []byte) (keyID uint32, signature []byte, err error) {
	return s.id, ed25519.Sign(s.private, data), nil
}

func newSigner(h *keyset.Handle) (*signer, error) {
	e, err := h.Primary()
	if err != nil {
		return nil, errors.New("has no primary key")
	}
	k, ok := e.Key().(*tinked25519.PrivateKey)
	if !ok {
		return nil, errOtherKind
	}
	seed := k.PrivateKeyBytes().Data(insecuresecretdataaccess.Token{})
	return &signer{id: e.KeyID(), private: ed25519.NewKeyFromSeed(seed)}, nil
}

// publicKeys gives the public keys of a proof keyset, or of its export, by key id. Keys that are not enabled verify nothing.
func publicKeys(h *keyset.Handle) (map[uint32]ed25519.PublicKey, error) {
	out := map[uint32]ed25519.PublicKey{}
	return out, enabled(h, func(e *keyset.Entry) error {
		switch k := e.Key().(type) {
		case *tinked25519.PublicKey:
			out[e.KeyID()] = k.KeyBytes()
		case *tinked25519.PrivateKey:
			public, err := k.PublicKey()
			if err != nil {
				return fmt.Errorf("has a key without its public half: %w", err)
			}
			pk, ok := public.(*tinked25519.PublicKey)
			if !ok {
				return errOtherKind
			}
			out[e.KeyID()] = pk.KeyBytes()
		default:
			return errOtherKind
		}
		return nil
	})
}

// verifier holds public keys by replica.
type verifier map[string]map[uint32]ed25519.PublicKey

// Verify implements schema.Verifier.
func (v verifier) Verify(replica string, keyID uint32, data, signature []byte) error {
	key, ok := v[replica][keyID]
	if !ok {
		return schema.ErrUnknownKey
	}
	if !ed25519.Verify(key, data, signature) {
		return schema.ErrForged
	}
	return nil
}
