package schema

// PRF is a keyed pseudo-random function (HMAC-SHA-256). Implementations are safe for concurrent use and do not keep data.
type PRF interface {
	Compute(dst *[32]byte, data []byte)
}

// AEAD seals and opens; the key id travels in the ciphertext. Safe for concurrent use. AppendSeal appends to dst.
type AEAD interface {
	AppendSeal(dst, plaintext, associatedData []byte) ([]byte, error)
	Open(ciphertext, associatedData []byte) ([]byte, error)
}

// Signer signs receipts (Ed25519). Safe for concurrent use.
type Signer interface {
	Sign(data []byte) (keyID uint32, signature []byte, err error)
}
