package schema

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func encode(t testing.TB, ev *Event) []byte {
	t.Helper()
	b, err := NewEncoder(testSeal).Append(nil, ev)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".hex")
	if *update {
		if err := os.WriteFile(file, []byte(hex.EncodeToString(got)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != strings.TrimSpace(string(want)) {
		t.Errorf("%s: bytes changed, so that written messages are read no more:\n got %x\nwant %s", name, got, want)
	}
}

func TestEventsGolden(t *testing.T) {
	for name, ev := range samples() {
		b := encode(t, ev)
		golden(t, name, b)
		got, err := NewDecoder(testSeal).Decode(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(ev, got); diff != "" {
			t.Errorf("%s (-written +read):\n%s", name, diff)
		}
	}
}

func TestReceiptsGolden(t *testing.T) {
	for name, r := range sampleReceipts() {
		b, err := AppendReceipt(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b)
		got, err := DecodeReceipt(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Errorf("%s (-written +read):\n%s", name, diff)
		}
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	enc := NewEncoder(testSeal)
	all, ends := []byte("before"), []int{6}
	evs := samples()
	for _, name := range []string{"heartbeat", "consent_change", "gap"} {
		var err error
		if all, err = enc.Append(all, evs[name]); err != nil {
			t.Fatal(err)
		}
		if want := encode(t, evs[name]); !bytes.Equal(all[ends[len(ends)-1]:], want) {
			t.Errorf("%s differs from what a fresh encoder writes", name)
		}
		ends = append(ends, len(all))
	}
	bad := *evs["gap"]
	bad.Source = "\xff"
	got, err := enc.Append(all, &bad)
	if err == nil || !bytes.Equal(got, all) {
		t.Errorf("after an error: %v, %d bytes, want the %d given", err, len(got), len(all))
	}
}

// Every single changed byte, every cut and every addition is noticed.
func TestNoByteCanBeAltered(t *testing.T) {
	dec := NewDecoder(testSeal)
	for name, ev := range samples() {
		b := encode(t, ev)
		for i := range b {
			for _, flip := range []byte{1, 2, 0x80, 0xff} {
				m := bytes.Clone(b)
				m[i] ^= flip
				got, err := dec.Decode(m)
				if got != nil || !isSentinel(err) {
					t.Fatalf("%s, byte %d ^ %x: %v, %v", name, i, flip, got, err)
				}
			}
			if _, err := dec.Decode(b[:i]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("%s cut at %d: %v", name, i, err)
			}
		}
		if _, err := dec.Decode(append(bytes.Clone(b), 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s with a trailing byte: %v", name, err)
		}
	}
}

func isSentinel(err error) bool {
	for _, s := range []error{ErrForged, ErrMalformed, ErrUnknownSchema, ErrUnknownKey, ErrTooLarge} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

func TestDecodeTellsTheFaultsApart(t *testing.T) {
	heartbeat := samples()["heartbeat"]
	b := encode(t, heartbeat)
	digest := bytes.Clone(b)
	digest[bytes.Index(b, heartbeat.ConfigDigest[:])] ^= 1
	unknown := bytes.Clone(b)
	unknown[5] ^= 1
	receipt, err := AppendReceipt(nil, sampleReceipts()["receipt_erasure"])
	if err != nil {
		t.Fatal(err)
	}
	// The fields of another event cannot be had under this event's seal.
	other := encode(t, samples()["gap"])
	sealedSizeOnWire := 2 + 1 + sealedSize + 16
	spliced := append(bytes.Clone(b[:len(b)-sealedSizeOnWire]), other[len(other)-sealedSizeOnWire:]...)
	overlong := append(bytes.Clone(b[:len(b)-sealedSizeOnWire]), 0x80|b[len(b)-sealedSizeOnWire]&0x7f, b[len(b)-sealedSizeOnWire+1]|0x80, 0)
	overlong = append(overlong, b[len(b)-sealedSizeOnWire+2:]...)
	cases := map[string]struct {
		value []byte
		want  error
	}{
		"digest altered":     {digest, ErrForged},
		"other event's seal": {spliced, ErrForged},
		"another schema":     {unknown, ErrUnknownSchema},
		"a receipt":          {receipt, ErrUnknownSchema},
		"no header":          {b[10:], ErrMalformed},
		"nothing":            {nil, ErrMalformed},
		"length in 3 bytes":  {overlong, ErrMalformed},
		"too large":          {append(bytes.Clone(b), make([]byte, MaxMessage)...), ErrTooLarge},
	}
	for name, c := range cases {
		if _, err := NewDecoder(testSeal).Decode(c.value); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := NewDecoder(newFixedAEAD(8)).Decode(b); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("sealed under a key that is not here: %v", err)
	}
}

// rawAEAD seals what it likes: it stands for a writer with the key and a fault.
type rawAEAD struct {
	*fixedAEAD
	plain []byte
}

func (a rawAEAD) AppendSeal(dst, _, aad []byte) ([]byte, error) {
	return a.fixedAEAD.AppendSeal(dst, a.plain, aad)
}

func TestPaddingMustBeExact(t *testing.T) {
	full := make([]byte, sealedSize)
	dirty := bytes.Clone(full)
	dirty[9] = 1
	long := bytes.Clone(full)
	long[0] = sealedSize
	for name, plain := range map[string][]byte{"dirty": dirty, "longer than there is": long, "short": full[1:], "none": nil} {
		b, err := NewEncoder(rawAEAD{testSeal, plain}).Append(nil, samples()["heartbeat"])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewDecoder(testSeal).Decode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The bodies of events of one type have one length whatever the key is.
func TestKeyLengthDoesNotShow(t *testing.T) {
	ev := samples()["objection"]
	sizes := map[int]bool{}
	for n := 0; n <= MaxKey; n++ {
		ev.CRMKey = bytes.Repeat([]byte{'k'}, n)
		b := encode(t, ev)
		sizes[len(b)] = true
		got, err := NewDecoder(testSeal).Decode(b)
		if err != nil || !bytes.Equal(got.CRMKey, ev.CRMKey) {
			t.Fatalf("key of %d bytes: %v", n, err)
		}
	}
	if len(sizes) != 1 {
		t.Errorf("sizes %v", sizes)
	}
	ev.CRMKey = make([]byte, MaxKey+1)
	if _, err := NewEncoder(testSeal).Append(nil, ev); err == nil || !strings.Contains(err.Error(), "63") {
		t.Errorf("key of 64 bytes: %v, want an error that names the limit", err)
	}
}

func TestEncoderRefuses(t *testing.T) {
	const canary = "canary-jean-dupont"
	cases := map[string]func(*Event){
		"no body":                   func(e *Event) { e.Body = nil },
		"not UTF-8":                 func(e *Event) { e.Rule = canary + "\xff" },
		"kind":                      func(e *Event) { e.Kind = 9 },
		"channel":                   func(e *Event) { e.Body = &ConsentChange{Channel: canary} },
		"state":                     func(e *Event) { e.Body = &ConsentChange{Channel: "sms", State: 99} },
		"aspect":                    func(e *Event) { e.Body = &SourceReport{Aspect: canary} },
		"no subject":                func(e *Event) { e.SubjectRef = SubjectRef{} },
		"subject of a heartbeat":    func(e *Event) { e.Body = &Heartbeat{} },
		"key too long":              func(e *Event) { e.CRMKey = bytes.Repeat([]byte(canary), 10) },
		"reason not UTF-8":          func(e *Event) { e.Body = &CaseDecision{Reason: canary + "\xff"} },
		"body of another's package": func(e *Event) { e.Body = foreignBody{} },
	}
	for name, spoil := range cases {
		ev := *samples()["objection"]
		spoil(&ev)
		_, err := NewEncoder(testSeal).Append(nil, &ev)
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if name != "not UTF-8" && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the value is in the error: %v", name, err)
		}
	}
	ev := *samples()["pass_marker"]
	ev.Body = &PassMarker{Tables: []string{strings.Repeat("t", MaxMessage)}}
	if _, err := NewEncoder(testSeal).Append(nil, &ev); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

type foreignBody struct{}

func (foreignBody) Type() Type { return 200 }

// A count is believed only as far as there are bytes for its items.
func TestArrayCountsAreNoBombs(t *testing.T) {
	b := encode(t, samples()["pass_marker"])
	at := bytes.Index(b, []byte("public.customer")) - 2
	for _, count := range []int64{1 << 40, -1 << 40, -1 << 63, 1<<63 - 1} {
		m := binary.AppendVarint(bytes.Clone(b[:at]), count)
		m = append(m, b[at+1:]...)
		allocs := testing.AllocsPerRun(1, func() {
			if _, err := NewDecoder(testSeal).Decode(m); !errors.Is(err, ErrMalformed) {
				t.Errorf("count %d: %v", count, err)
			}
		})
		if allocs > 50 {
			t.Errorf("count %d: %v allocations", count, allocs)
		}
	}
}

func TestSealedParts(t *testing.T) {
	for name, want := range map[string]int{"consent_change": 2, "subject_erasure": 2, "heartbeat": 1} {
		parts, err := SealedParts(encode(t, samples()[name]))
		if err != nil || len(parts) != want {
			t.Fatalf("%s: %d parts, %v", name, len(parts), err)
		}
		for _, p := range parts {
			if p[0] != testSeal.keyID {
				t.Errorf("%s: not a ciphertext", name)
			}
		}
	}
}

func TestMatchKeys(t *testing.T) {
	for name, want := range map[string]int{"contact_point": 2, "consent_change": 0} {
		if keys, err := MatchKeys(encode(t, samples()[name])); err != nil || len(keys) != want {
			t.Errorf("%s: %d keys, %v", name, len(keys), err)
		}
	}
	if _, err := MatchKeys([]byte("no event")); !errors.Is(err, ErrMalformed) {
		t.Errorf("no event: %v", err)
	}
}

type edSigner struct{ private ed25519.PrivateKey }

func (s edSigner) Sign(data []byte) (uint32, []byte, error) {
	return 3_000_000_001, ed25519.Sign(s.private, data), nil
}

// edVerifier has one public key, of the replica marketing.
type edVerifier struct{ public ed25519.PublicKey }

func (v edVerifier) Verify(replica string, keyID uint32, data, signature []byte) error {
	if replica != "marketing" || keyID != 3_000_000_001 {
		return ErrUnknownKey
	}
	if !ed25519.Verify(v.public, data, signature) {
		return ErrForged
	}
	return nil
}

func TestSignedReceipts(t *testing.T) {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public, _ := private.Public().(ed25519.PublicKey)
	want := sampleReceipts()["receipt_erasure"]
	b, err := SignReceipt(edSigner{private}, want)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "signed_receipt", b)
	s, err := DecodeSignedReceipt(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := VerifyReceipt(edVerifier{public}, s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for i := range b {
		m := bytes.Clone(b)
		m[i] ^= 1
		s, err := DecodeSignedReceipt(m)
		if err == nil {
			_, err = VerifyReceipt(edVerifier{public}, s)
		}
		if !isSentinel(err) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
	other, err := SignReceipt(edSigner{private}, sampleReceipts()["receipt_consents"])
	if err != nil {
		t.Fatal(err)
	}
	if s, err = DecodeSignedReceipt(other); err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyReceipt(edVerifier{public}, s); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a receipt of another replica under this one's key: %v", err)
	}
	s.Signature = s.Signature[:10]
	if _, err := VerifyReceipt(edVerifier{public}, s); !errors.Is(err, ErrForged) {
		t.Errorf("a short signature: %v", err)
	}
}

func sampleReconsentDue() *ReconsentDue {
	return &ReconsentDue{
		Replica: "marketing", SubjectRef: SubjectRef{7}, Purpose: "newsletter", Channel: "sms", Cause: "contact_point_changed", Contact: ContactRef{5},
		EventID: EventID{1}, Order: NewOrder(1, 1, 0x16B3748, 3), At: commitTime,
	}
}

func TestReconsentDue(t *testing.T) {
	want := sampleReconsentDue()
	b, err := AppendReconsentDue([]byte("before"), want)
	if err != nil || !bytes.HasPrefix(b, []byte("before")) {
		t.Fatalf("%q, %v", b, err)
	}
	b = b[len("before"):]
	golden(t, "reconsent_due", b)
	got, err := DecodeReconsentDue(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for i := range b {
		if _, err := DecodeReconsentDue(b[:i]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	// The two kinds of record on the topic of receipts are told apart by their schema.
	if _, err := DecodeSignedReceipt(b); !errors.Is(err, ErrUnknownSchema) {
		t.Errorf("read as a receipt: %v", err)
	}
	for name, spoil := range map[string]func(*ReconsentDue){
		"channel":   func(d *ReconsentDue) { d.Channel = "canary" },
		"not UTF-8": func(d *ReconsentDue) { d.Cause = "canary\xff" },
		"too large": func(d *ReconsentDue) { d.Purpose = strings.Repeat("p", MaxMessage) },
	} {
		d := sampleReconsentDue()
		spoil(d)
		if b, err := AppendReconsentDue([]byte{1}, d); err == nil || len(b) != 1 || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, %d bytes", name, err, len(b))
		}
	}
}

func TestReceiptRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Receipt){
		"no event type": func(r *Receipt) { r.EventType = 0 },
		"state":         func(r *Receipt) { r.State = 77 },
		"evidence":      func(r *Receipt) { r.Evidence = 5 },
		"not UTF-8":     func(r *Receipt) { r.Gaps = []string{"\xc0"} },
		"too large":     func(r *Receipt) { r.Gaps = []string{strings.Repeat("g", MaxMessage)} },
	} {
		r := *sampleReceipts()["receipt_erasure"]
		spoil(&r)
		if b, err := AppendReceipt([]byte{1}, &r); err == nil || len(b) != 1 {
			t.Errorf("%s: %v, %d bytes", name, err, len(b))
		}
	}
}

func TestEventsDoNotPrintWhatIsSealed(t *testing.T) {
	for _, name := range []string{"subject_erasure", "consent_change"} {
		ev := samples()[name]
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			for _, x := range []any{ev, *ev, []*Event{ev}, []Event{*ev}} {
				s := fmt.Sprintf(verb, x)
				for _, canary := range []string{"4711", "DOC-2026", "FORM-9", "52 55 49 49", "34373131", "0x34, 0x37"} {
					if strings.Contains(s, canary) {
						t.Errorf("%s of %T prints %s: %s", verb, x, canary, s)
					}
				}
			}
		}
		b, err := json.Marshal(ev)
		if err != nil {
			t.Fatal(err)
		}
		for _, canary := range []string{"CRMKey", "Authorisation", "Evidence"} {
			if bytes.Contains(b, []byte(canary)) {
				t.Errorf("JSON has %s: %s", canary, b)
			}
		}
	}
}
