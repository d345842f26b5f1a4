package sinktest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"slices"
	"sync"
	"testing"

	"lethe/schema"
	"lethe/sinks/ledger"
)

// Keys are keys for tests: they implement schema.AEAD, schema.Signer and schema.Verifier.
type Keys struct {
	seal cipher.AEAD
	sign ed25519.PrivateKey
}

// NewKeys makes a key that signs; every Keys seals under the same key.
func NewKeys(tb testing.TB) *Keys {
	tb.Helper()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		tb.Fatal(err)
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		tb.Fatal(err)
	}
	_, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return &Keys{seal: seal, sign: sign}
}

// AppendSeal implements schema.AEAD.
func (k *Keys) AppendSeal(dst, plain, ad []byte) ([]byte, error) {
	nonce := make([]byte, k.seal.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return k.seal.Seal(append(dst, nonce...), nonce, plain, ad), nil
}

// Open implements schema.AEAD.
func (k *Keys) Open(sealed, ad []byte) ([]byte, error) {
	n := k.seal.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("too short")
	}
	return k.seal.Open(nil, sealed[:n], sealed[n:], ad)
}

// Sign implements schema.Signer.
func (k *Keys) Sign(data []byte) (uint32, []byte, error) { return 1, ed25519.Sign(k.sign, data), nil }

// Verify implements schema.Verifier.
func (k *Keys) Verify(_ string, keyID uint32, data, signature []byte) error {
	if keyID != 1 || !ed25519.Verify(k.sign.Public().(ed25519.PublicKey), data, signature) {
		return errors.New("bad signature")
	}
	return nil
}

// Encode returns an event as the topic carries it.
func (k *Keys) Encode(tb testing.TB, ev *schema.Event) []byte {
	tb.Helper()
	value, err := schema.NewEncoder(k).Append(nil, ev)
	if err != nil {
		tb.Fatalf("encoding event: %v", err)
	}
	return value
}

// Receipt reads a stored receipt and checks its signature.
func (k *Keys) Receipt(tb testing.TB, body []byte) *schema.Receipt {
	tb.Helper()
	signed, err := schema.DecodeSignedReceipt(body)
	if err != nil {
		tb.Fatalf("receipt: %v", err)
	}
	rc, err := schema.VerifyReceipt(k, signed)
	if err != nil {
		tb.Fatalf("receipt: %v", err)
	}
	return rc
}

// Rotating seals as Tink does: every ciphertext begins with the id of its key, and opens only under a known one.
type Rotating struct {
	*Keys
	ID    uint32   // of the key that seals
	Known []uint32 // those that open
}

// AppendSeal implements schema.AEAD.
func (k *Rotating) AppendSeal(dst, plain, ad []byte) ([]byte, error) {
	return k.Keys.AppendSeal(binary.BigEndian.AppendUint32(append(dst, ledger.SealPrefix), k.ID), plain, ad)
}

// Open implements schema.AEAD.
func (k *Rotating) Open(sealed, ad []byte) ([]byte, error) {
	if len(sealed) < ledger.SealIDSize || !slices.Contains(k.Known, binary.BigEndian.Uint32(sealed[1:])) {
		return nil, errors.New("unknown key")
	}
	return k.Keys.Open(sealed[ledger.SealIDSize:], ad)
}

// PRF is HMAC under a key that is its text, with the hash at hand, as the product's.
type PRF string

var hashes sync.Map // PRF → *sync.Pool

// Compute implements schema.PRF.
func (p PRF) Compute(dst *[32]byte, data []byte) {
	pool, _ := hashes.LoadOrStore(p, &sync.Pool{New: func() any { return hmac.New(sha256.New, []byte(p)) }})
	h := pool.(*sync.Pool).Get().(hash.Hash)
	h.Reset()
	h.Write(data)
	h.Sum(dst[:0])
	pool.(*sync.Pool).Put(h)
}
