package schema

import "errors"

// What callers branch on. No text made in this package carries a byte of a message.
var (
	// ErrUnknownSchema: the fingerprint is none of ours; the writer is newer than this reader.
	ErrUnknownSchema = errors.New("unknown schema: this process is older than the writer, upgrade it")
	// ErrForged: the message is well formed, and its seal or signature does not fit it.
	ErrForged = errors.New("message does not authenticate: it was altered, or made without the key")
	// ErrUnknownKey: sealed or signed under a key that this process does not have. AEAD.Open and Verifier return it.
	ErrUnknownKey = errors.New("key not in this process's keyset: export the keys again and restart")
	// ErrMalformed: the bytes are not the Avro of their schema.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLarge: longer than MaxMessage.
	ErrTooLarge = errors.New("message larger than 1 MiB")
)

// MaxMessage is the size of the largest event or receipt, in bytes.
const MaxMessage = 1 << 20

// MaxKey is the size of the longest CRM key (in its CanonicalKey form) that an event can carry, in bytes: sealed keys are all of
// one size, so that their length says nothing.
const (
	MaxKey     = sealedSize - 1
	sealedSize = 64
)
