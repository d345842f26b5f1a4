package schema

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func FuzzEncodeEvent(f *testing.F) {
	f.Add([]byte("seed"))
	f.Fuzz(func(t *testing.T, data []byte) { rapid.MakeFuzz(eventProperty(t))(t, data) })
}

// FuzzDecodeEvent: whatever comes in, what our decoder reads goavro reads too, and nothing is believed that was not sealed.
func FuzzDecodeEvent(f *testing.F) {
	for _, ev := range samples() {
		f.Add(encode(f, ev))
	}
	genuine := map[string]bool{}
	for _, ev := range samples() {
		genuine[string(encode(f, ev))] = true
	}
	dec := NewDecoder(testSeal)
	f.Fuzz(func(t *testing.T, value []byte) {
		ev, err := dec.Decode(value)
		switch {
		case err == nil && !genuine[string(value)]:
			t.Fatalf("believed: %+v", ev)
		case err != nil && !isSentinel(err):
			t.Fatalf("%v is no sentinel", err)
		}
		p, err := parseEvent(value, nil)
		if err != nil {
			return
		}
		record, err := recordOf(value)
		if err != nil {
			t.Fatal(err)
		}
		agree(t, record, value, func() []byte {
			w := Encoder{seal: ciphertexts{&p}}
			w.w.b = append(w.w.b, headers[record][:]...)
			w.header(&p.ev.Header)
			if p.sealedField != nil {
				setSealed(p.ev, p.sealedField)
			}
			w.body(p.ev)
			w.w.bytes(p.sealedKey)
			return w.w.b
		})
	})
}

// ciphertexts gives back the ciphertext that was read as the plaintext of a field.
type ciphertexts struct{ p *parsed }

func (c ciphertexts) AppendSeal(dst, plaintext, _ []byte) ([]byte, error) {
	return append(dst, plaintext...), nil
}

func (c ciphertexts) Open(ciphertext, _ []byte) ([]byte, error) { return ciphertext, nil }

func setSealed(ev *Event, b []byte) {
	switch body := ev.Body.(type) {
	case *SubjectErasure:
		body.Authorisation = b
	case *ConsentChange:
		body.Evidence = b
	}
}

// agree: goavro reads value to the end and writes it back as it was, and so do we.
func agree(t *testing.T, record int, value []byte, again func() []byte) {
	t.Helper()
	if codecs[record] == nil {
		codecs[record] = codecOf(t, record)
	}
	native, rest, err := codecs[record].NativeFromBinary(value[headerSize:])
	if err != nil || len(rest) > 0 {
		t.Fatalf("we read what goavro does not: %v, %d bytes left", err, len(rest))
	}
	theirs, err := codecs[record].BinaryFromNative(headers[record][:], native)
	if err != nil {
		t.Fatal(err)
	}
	if ours := again(); !bytes.Equal(ours, value) || !bytes.Equal(theirs, value) {
		t.Fatalf("read and written again:\nours   %x\ngoavro %x\nwas    %x", ours, theirs, value)
	}
}

func FuzzDecodeReceipt(f *testing.F) {
	for _, r := range sampleReceipts() {
		b, err := AppendReceipt(nil, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := DecodeReceipt(value)
		if err != nil {
			if !isSentinel(err) {
				t.Fatalf("%v is no sentinel", err)
			}
			return
		}
		agree(t, recordReceipt, value, func() []byte {
			b, err := AppendReceipt(nil, r)
			if err != nil {
				t.Fatal(err)
			}
			return b
		})
	})
}

func FuzzDecodeSignedReceipt(f *testing.F) {
	f.Add(append(headers[recordSignedReceipt][:], 2, 2, 'b', 2, 's'))
	f.Fuzz(func(t *testing.T, value []byte) {
		if _, err := DecodeSignedReceipt(value); err != nil {
			if !isSentinel(err) {
				t.Fatalf("%v is no sentinel", err)
			}
			return
		}
		agree(t, recordSignedReceipt, value, func() []byte { return value })
	})
}

func FuzzDecodeReconsentDue(f *testing.F) {
	b, err := AppendReconsentDue(nil, sampleReconsentDue())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, value []byte) {
		d, err := DecodeReconsentDue(value)
		if err != nil {
			if !isSentinel(err) {
				t.Fatalf("%v is no sentinel", err)
			}
			return
		}
		agree(t, recordReconsentDue, value, func() []byte {
			b, err := AppendReconsentDue(nil, d)
			if err != nil {
				t.Fatal(err)
			}
			return b
		})
	})
}

func FuzzCanonicalForm(f *testing.F) {
	for _, v := range avroVectors {
		f.Add([]byte(v.schema))
	}
	f.Fuzz(func(t *testing.T, schema []byte) {
		once, err := canonicalForm(schema)
		if err != nil {
			return
		}
		twice, err := canonicalForm(once)
		if err == nil && !bytes.Equal(once, twice) {
			t.Fatalf("not idempotent: %s, %s", once, twice)
		}
	})
}
