package keys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/prf"
	"github.com/tink-crypto/tink-go/v2/signature"

	"lethe/schema"
)

// folder gives a key folder with the keys of two replicas.
func folder(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := Init(dir, []string{"marketing", "reporting"}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t testing.TB, dir string, roles ...Role) *Ring {
	t.Helper()
	r, err := Open(dir, roles...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func TestInitMakesWhatIsMissingAndNeverOverwrites(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	made, err := Init(dir, []string{"marketing"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"subject", "match", "seal", "proof-marketing", "replica-marketing"}; !slices.Equal(made, want) {
		t.Errorf("made %v, want %v", made, want)
	}
	before := snapshot(t, dir)
	made, err = Init(dir, []string{"marketing", "reporting"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"proof-reporting", "replica-reporting"}; !slices.Equal(made, want) {
		t.Errorf("made %v, want %v", made, want)
	}
	after := snapshot(t, dir)
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s was changed", name)
		}
	}
	if len(after) != 7 {
		t.Errorf("%d files, want 7: nothing temporary stays", len(after))
	}
	for name := range after {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
}

func TestInitRefusesNamesThatLeaveTheFolder(t *testing.T) {
	for _, name := range []string{"../x", "", "a/b", "a.b", ".", "-x", strings.Repeat("n", 64)} {
		if _, err := Init(filepath.Join(t.TempDir(), "k"), []string{name}); err == nil {
			t.Errorf("replica %q was accepted", name)
		}
	}
}

func TestModesAreChecked(t *testing.T) {
	dir := folder(t)
	file := filepath.Join(dir, "seal.json")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644} {
		chmod(t, file, mode)
		_, err := Open(dir, RoleCapture)
		wantError(t, err, "chmod 600 "+file)
	}
	chmod(t, file, 0o400)
	if _, err := Open(dir, RoleCapture); err != nil {
		t.Errorf("mode 0400: %v", err)
	}
	for _, mode := range []os.FileMode{0o770, 0o702, 0o777} {
		chmod(t, dir, mode)
		_, err := Open(dir, RoleCapture)
		wantError(t, err, "chmod 700 "+dir)
		_, err = List(dir)
		wantError(t, err, "chmod 700 "+dir)
		_, err = Rotate(dir, "seal")
		wantError(t, err, "chmod 700 "+dir)
	}
	chmod(t, dir, 0o755)
	if _, err := Open(dir, RoleCapture); err != nil {
		t.Errorf("a folder that others can list, but not write: %v", err)
	}
}

func chmod(t *testing.T, file string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func TestOpenNamesAllThatIsMissing(t *testing.T) {
	dir := folder(t)
	_, err := Open(dir, RoleCapture, RoleSink("web"))
	wantError(t, err, "proof-web.json, replica-web.json", "lethe keys init")
	_, err = Open(filepath.Join(dir, "none"), RoleCapture)
	wantError(t, err, "lethe keys init")
	_, err = Open(t.TempDir(), RoleLedger)
	wantError(t, err, "keys export --role ledger")
	_, err = Open(dir)
	wantError(t, err, "no role")
	_, err = Open(dir, "sink=../x")
	wantError(t, err, "replica name")
}

func TestOpenRefusesAKeysetInAnothersPlace(t *testing.T) {
	for name, from := range map[string]string{
		"seal": "subject", "subject": "seal", "match": "proof-marketing", "proof-marketing": "match", "replica-marketing": "seal",
	} {
		dir := folder(t)
		b, err := os.ReadFile(path(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Open(dir, RoleOperator)
		wantError(t, err, path(dir, name))
	}
}

func TestErrorsShowNothingOfAFile(t *testing.T) {
	dir := folder(t)
	if err := os.WriteFile(path(dir, "seal"), []byte(`{"primaryKeyId": canary-of-a-key}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, RoleCapture)
	wantError(t, err, "seal.json")
	if strings.Contains(err.Error(), "canary") {
		t.Errorf("the error shows the file: %v", err)
	}
}

func TestRolesGetWhatTheyNeed(t *testing.T) {
	dir := folder(t)
	capture := open(t, dir, RoleCapture)
	if capture.Subject() == nil || capture.Seal() == nil || len(capture.Match()) != 1 {
		t.Error("capture lacks a key")
	}
	if _, err := capture.Proof("marketing"); err == nil {
		t.Error("capture can sign")
	}
	sink := open(t, dir, RoleSink("marketing"))
	if sink.Subject() != nil || sink.Seal() == nil || len(sink.Match()) != 1 {
		t.Error("a sink has another set of keys than it needs")
	}
	if _, err := sink.Proof("marketing"); err != nil {
		t.Error(err)
	}
	if _, err := sink.Pseudonym("marketing"); err != nil {
		t.Error(err)
	}
	_, err := sink.Proof("reporting")
	wantError(t, err, "reporting")
	_, err = sink.Pseudonym("reporting")
	wantError(t, err, "reporting")
	both := open(t, dir, RoleCapture, RoleSink("marketing"), RoleSink("reporting"))
	a, errA := both.Pseudonym("marketing")
	b, errB := both.Pseudonym("reporting")
	if both.Subject() == nil || errA != nil || errB != nil {
		t.Fatal("one process with every role lacks a key")
	}
	var x, y [32]byte
	a.Compute(&x, []byte("ref"))
	b.Compute(&y, []byte("ref"))
	if x == y {
		t.Error("two replicas can be joined on their pseudonyms")
	}
}

// The standard library's primitives give what Tink's give.
func TestPrimitivesAreTinks(t *testing.T) {
	dir := folder(t)
	ring := open(t, dir, RoleOperator)
	data, aad := []byte("some data"), []byte("associated")

	h, err := load(dir, "subject")
	if err != nil {
		t.Fatal(err)
	}
	set, err := prf.NewPRFSet(h)
	if err != nil {
		t.Fatal(err)
	}
	want, err := set.ComputePrimaryPRF(data, 32)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // a pooled state must be as good as a new one
		var got [32]byte
		ring.Subject().Compute(&got, data)
		if !bytes.Equal(got[:], want) {
			t.Fatalf("PRF: got %x, Tink %x", got, want)
		}
	}

	if h, err = load(dir, "seal"); err != nil {
		t.Fatal(err)
	}
	tinkAEAD, err := aead.New(h)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := ring.Seal().AppendSeal([]byte("before"), data, aad)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tinkAEAD.Decrypt(sealed[6:], aad); err != nil || !bytes.Equal(got, data) {
		t.Errorf("Tink opens ours: %q, %v", got, err)
	}
	theirs, err := tinkAEAD.Encrypt(data, aad)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ring.Seal().Open(theirs, aad); err != nil || !bytes.Equal(got, data) {
		t.Errorf("we open Tink's: %q, %v", got, err)
	}

	if h, err = load(dir, "proof-marketing"); err != nil {
		t.Fatal(err)
	}
	if h, err = h.Public(); err != nil {
		t.Fatal(err)
	}
	tinkVerifier, err := signature.NewVerifier(h)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ring.Proof("marketing")
	if err != nil {
		t.Fatal(err)
	}
	id, sig, err := signer.Sign(data)
	if err != nil {
		t.Fatal(err)
	}
	prefixed := append([]byte{1, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}, sig...)
	if err := tinkVerifier.Verify(prefixed, data); err != nil {
		t.Errorf("Tink verifies ours: %v", err)
	}
}

func TestSealTellsForgedFromUnknownKey(t *testing.T) {
	dir := folder(t)
	old := open(t, dir, RoleCapture).Seal()
	newID, err := Rotate(dir, "seal")
	if err != nil {
		t.Fatal(err)
	}
	now := open(t, dir, RoleCapture).Seal()
	sealedOld, _ := old.AppendSeal(nil, []byte("k"), nil)
	sealedNew, _ := now.AppendSeal(nil, []byte("k"), nil)
	if id, err := SealedKeyID(sealedNew); err != nil || id != newID {
		t.Errorf("sealed under %d, %v, want the new key %d", id, err, newID)
	}
	if _, err := now.Open(sealedOld, nil); err != nil {
		t.Errorf("a rotated keyset opens what is older: %v", err)
	}
	if _, err := old.Open(sealedNew, nil); !errors.Is(err, schema.ErrUnknownKey) {
		t.Errorf("an older keyset, what is newer: %v", err)
	}
	for i := range sealedNew {
		m := bytes.Clone(sealedNew)
		m[i] ^= 1
		if _, err := now.Open(m, nil); !errors.Is(err, schema.ErrForged) && !errors.Is(err, schema.ErrUnknownKey) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
		if _, err := now.Open(sealedNew[:i], nil); !errors.Is(err, schema.ErrForged) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := now.Open(sealedNew, []byte("x")); !errors.Is(err, schema.ErrForged) {
		t.Errorf("other associated data: %v", err)
	}
	if _, err := SealedKeyID([]byte("plain text")); err == nil {
		t.Error("a plain text has a key id")
	}
}

func TestParseRole(t *testing.T) {
	for _, s := range []string{"capture", "ledger", "operator", "sink=marketing"} {
		if r, err := ParseRole(s); err != nil || string(r) != s {
			t.Errorf("%s: %q, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "sink", "sink=", "sink=a/b", "root"} {
		if _, err := ParseRole(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	ring := open(t, folder(t), RoleOperator)
	var want [32]byte
	ring.Subject().Compute(&want, []byte("x"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				var got [32]byte
				ring.Subject().Compute(&got, []byte("x"))
				sealed, err := ring.Seal().AppendSeal(nil, got[:], nil)
				if err != nil || got != want {
					t.Errorf("%v, %x", err, got)
					return
				}
				if plain, err := ring.Seal().Open(sealed, nil); err != nil || !bytes.Equal(plain, want[:]) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkPRF(b *testing.B) {
	p, out, data := open(b, folder(b), RoleCapture).Subject(), new([32]byte), make([]byte, 80)
	b.ReportAllocs()
	for b.Loop() {
		p.Compute(out, data)
	}
}

func BenchmarkAppendSeal(b *testing.B) {
	s, dst, data, aad := open(b, folder(b), RoleCapture).Seal(), make([]byte, 0, 256), make([]byte, 64), make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = s.AppendSeal(dst, data, aad)
	}
}
