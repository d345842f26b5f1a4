package schema

import "errors"

// Errors that callers branch on. No text made here carries a byte of a message.
var (
	// ErrUnknownSchema: the fingerprint is none of ours; the writer is newer than this reader.
	ErrUnknownSchema = errors.New("unknown schema")
	// ErrForged: the message is well formed and its seal or signature does not fit.
	ErrForged = errors.New("message does not authenticate")
	// ErrUnknownKey: sealed or signed under a key that this process does not have. AEAD.Open and Verifier return it.
	ErrUnknownKey = errors.New("unknown key")
	// ErrMalformed: the bytes are not the Avro of their schema.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLarge: longer than MaxMessage.
	ErrTooLarge = errors.New("message too large")
)

// MaxMessage is the size of the largest event or receipt, in bytes.
const MaxMessage = 1 << 20

// MaxKey is the size of the longest CRM key (in its CanonicalKey form) that an event can carry, in bytes.
const MaxKey = 63

// Encoder writes events as Avro in single-object encoding. One goroutine at a time.
type Encoder struct{ seal AEAD }

// NewEncoder makes an encoder that seals with seal.
func NewEncoder(seal AEAD) *Encoder { return &Encoder{seal: seal} }

// Append appends the event to dst.
func (e *Encoder) Append(dst []byte, ev *Event) ([]byte, error) { return dst, ErrMalformed }

// Decoder reads events. Safe for concurrent use.
type Decoder struct{ seal AEAD }

// NewDecoder makes a decoder that opens with seal.
func NewDecoder(seal AEAD) *Decoder { return &Decoder{seal: seal} }

// Decode reads one event and authenticates it. Its error is one of the sentinels above. The event shares no memory with value.
func (d *Decoder) Decode(value []byte) (*Event, error) { return nil, ErrMalformed }

// Verifier verifies with public keys alone. It returns nil, ErrUnknownKey or ErrForged. A replica's receipts are good under that replica's keys only.
type Verifier interface {
	Verify(replica string, keyID uint32, data, signature []byte) error
}

// AppendReceipt appends the single-object encoded Receipt to dst: the same receipt gives the same bytes.
func AppendReceipt(dst []byte, r *Receipt) ([]byte, error) { return dst, ErrMalformed }

// DecodeReceipt reads what AppendReceipt writes.
func DecodeReceipt(value []byte) (*Receipt, error) { return nil, ErrMalformed }

// SignReceipt gives the single-object encoded SignedReceipt.
func SignReceipt(s Signer, r *Receipt) ([]byte, error) { return nil, ErrMalformed }

// DecodeSignedReceipt reads what SignReceipt writes; nothing is verified.
func DecodeSignedReceipt(value []byte) (*SignedReceipt, error) { return nil, ErrMalformed }

// VerifyReceipt verifies the signature and gives the receipt.
func VerifyReceipt(v Verifier, s *SignedReceipt) (*Receipt, error) { return nil, ErrMalformed }
