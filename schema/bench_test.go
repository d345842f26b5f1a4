package schema

import "testing"

type quietPRF struct{}

func (quietPRF) Compute(dst *[32]byte, data []byte) { copy(dst[:], data) }

// plainAEAD seals nothing, so that the codec alone is measured.
type plainAEAD struct{}

func (plainAEAD) AppendSeal(dst, plaintext, _ []byte) ([]byte, error) {
	return append(dst, plaintext...), nil
}
func (plainAEAD) Open(ciphertext, _ []byte) ([]byte, error) { return ciphertext, nil }

func BenchmarkEncode(b *testing.B) {
	ev := samples()["consent_change"]
	b.Run("lethe", func(b *testing.B) {
		enc, buf := NewEncoder(plainAEAD{}), make([]byte, 0, 1024)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := enc.Append(buf, ev); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("goavro", func(b *testing.B) {
		codec, native, buf := codecOf(b, int(TypeConsentChange)), nativeEvent(b, ev), make([]byte, 0, 1024)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := codec.BinaryFromNative(buf, native); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	ev := samples()["consent_change"]
	value, err := NewEncoder(plainAEAD{}).Append(nil, ev)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("lethe", func(b *testing.B) {
		dec := NewDecoder(plainAEAD{})
		b.ReportAllocs()
		for b.Loop() {
			if _, err := dec.Decode(value); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("goavro", func(b *testing.B) {
		codec := codecOf(b, int(TypeConsentChange))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := codec.NativeFromBinary(value[headerSize:]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkIdentifiers(b *testing.B) {
	key := CanonicalKey(nil, []byte("4711"))
	b.ReportAllocs()
	for b.Loop() {
		testIDs.SubjectRef(key)
	}
}
