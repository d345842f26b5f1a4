package schema

import "testing"

func TestHotPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools")
	}
	enc, buf := NewEncoder(plainAEAD{}), make([]byte, 0, 4096)
	for name, ev := range samples() {
		if n := testing.AllocsPerRun(100, func() { _, _ = enc.Append(buf, ev) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	ids := NewIdentifiers(quietPRF{}, "crm")
	key, pk := CanonicalKey(nil, []byte("4711")), []byte("\x0212")
	if n := testing.AllocsPerRun(100, func() {
		ref := ids.SubjectRef(key)
		ids.CaseID(ref)
		ids.ContactRef("public.customer_email", pk)
		ids.EventID(EventKey{Incarnation: 1, Number: 2, Table: "public.customer", PK: pk, Rule: "r"})
	}); n > 0 {
		t.Errorf("identifiers: %v allocations", n)
	}
}

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
