package keys

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"lethe/schema"
)

func TestRotate(t *testing.T) {
	dir := folder(t)
	before := open(t, dir, RoleCapture)
	for _, name := range []string{"seal", "match", "proof-marketing"} {
		if _, err := Rotate(dir, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	match := open(t, dir, RoleCapture).Match()
	if len(match) != 2 || match[1].ID != before.Match()[0].ID || match[0].ID == match[1].ID {
		t.Errorf("match versions %v: want the new one first, then the old one", match)
	}
	for _, name := range []string{"subject", "replica-marketing", "proof-marketing.public"} {
		_, err := Rotate(dir, name)
		wantError(t, err, name, "never rotated")
	}
	for _, name := range []string{"", "nonsense", "proof-../seal", "../seal"} {
		if _, err := Rotate(dir, name); err == nil {
			t.Errorf("%q was rotated", name)
		}
	}
}

func TestRotationsAtOnceLoseNoKey(t *testing.T) {
	dir := folder(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Rotate(dir, "seal"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, ks := range list {
		if ks.Name == "seal" && len(ks.Keys) != 9 {
			t.Errorf("%d keys, want 9", len(ks.Keys))
		}
	}
}

func TestRetire(t *testing.T) {
	dir := folder(t)
	old := open(t, dir, RoleCapture)
	oldID := old.Seal().(*sealer).keys[0].id
	nowhere := func(uint32) (string, error) { return "", nil }

	err := Retire(dir, "seal", oldID, nowhere)
	wantError(t, err, "primary", "lethe keys rotate seal")
	newID, err := Rotate(dir, "seal")
	if err != nil {
		t.Fatal(err)
	}
	err = Retire(dir, "seal", oldID, func(id uint32) (string, error) {
		if id != oldID {
			t.Errorf("asked for key %d", id)
		}
		return "replica marketing: 12 rows", nil
	})
	wantError(t, err, "still used", "replica marketing: 12 rows")
	boom := errors.New("broker unreachable")
	if err = Retire(dir, "seal", oldID, func(uint32) (string, error) { return "", boom }); !errors.Is(err, boom) {
		t.Errorf("when nobody knows: %v", err)
	}
	wantError(t, Retire(dir, "seal", oldID, nil), "nobody has looked")
	wantError(t, Retire(dir, "seal", oldID+newID+1, nowhere), "lethe keys list")
	wantError(t, Retire(dir, "subject", 1, nowhere), "ever retired")
	wantError(t, Retire(dir, "replica-marketing", 1, nowhere), "ever retired")

	sealed, _ := old.Seal().AppendSeal(nil, []byte("k"), nil)
	if err := Retire(dir, "seal", oldID, nowhere); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, RoleCapture).Seal().Open(sealed, nil); !errors.Is(err, schema.ErrUnknownKey) {
		t.Errorf("after retiring: %v", err)
	}
}

func TestList(t *testing.T) {
	dir := folder(t)
	if err := os.WriteFile(filepath.Join(dir, "notes.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	newID, err := Rotate(dir, "seal")
	if err != nil {
		t.Fatal(err)
	}
	list, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ks := range list {
		got = append(got, ks.Name)
		for _, k := range ks.Keys {
			if k.Status != "ENABLED" || k.Type == "" {
				t.Errorf("%s: %+v", ks.Name, k)
			}
			if ks.Name == "seal" && k.Primary != (k.ID == newID) {
				t.Errorf("primary: %+v, want %d", k, newID)
			}
		}
	}
	want := []string{"match", "proof-marketing", "proof-reporting", "replica-marketing", "replica-reporting", "seal", "subject"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestExportWritesWhatTheRoleNeedsAndNoMore(t *testing.T) {
	dir := folder(t)
	for role, want := range map[Role][]string{
		RoleCapture:           {"match", "seal", "subject"},
		RoleSink("marketing"): {"match", "proof-marketing", "replica-marketing", "seal"},
		RoleLedger:            {"proof-marketing.public", "proof-reporting.public"},
		RoleOperator: {
			"match", "proof-marketing", "proof-reporting", "replica-marketing", "replica-reporting", "seal", "subject",
		},
	} {
		out := filepath.Join(t.TempDir(), "out")
		written, err := Export(dir, role, out)
		if err != nil {
			t.Fatal(err)
		}
		there, err := names(out)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(written, want) || !slices.Equal(there, want) {
			t.Errorf("%s: wrote %v, there is %v, want %v", role, written, there, want)
		}
		open(t, out, role)
		if _, err := Export(dir, role, out); err != nil {
			t.Errorf("%s again: %v", role, err)
		}
	}
}

func TestLedgerVerifiesAndHoldsNothingSecret(t *testing.T) {
	dir, out := folder(t), filepath.Join(t.TempDir(), "out")
	sink := open(t, dir, RoleSink("marketing"))
	signer, err := sink.Proof("marketing")
	if err != nil {
		t.Fatal(err)
	}
	b, err := schema.SignReceipt(signer, &schema.Receipt{EventType: schema.TypeObjection, Replica: "marketing", State: schema.ReceiptVerified})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Rotate(dir, "proof-marketing"); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(dir, RoleLedger, out); err != nil {
		t.Fatal(err)
	}
	for name, content := range snapshot(t, out) {
		if strings.Contains(content, "Ed25519PrivateKey") || strings.Contains(content, "ASYMMETRIC_PRIVATE") {
			t.Errorf("%s holds a private key", name)
		}
	}
	ledger := open(t, out, RoleLedger)
	if ledger.Subject() != nil || ledger.Seal() != nil || ledger.Match() != nil {
		t.Error("the ledger has secret keys")
	}
	s, err := schema.DecodeSignedReceipt(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := schema.VerifyReceipt(ledger.Verifier(), s); err != nil {
		t.Errorf("signed before the rotation: %v", err)
	}
	s.Body = bytes.Clone(s.Body)
	s.Body[len(s.Body)-2] ^= 1
	if _, err := schema.VerifyReceipt(ledger.Verifier(), s); !errors.Is(err, schema.ErrForged) {
		t.Errorf("altered: %v", err)
	}
	// A receipt of one replica is not good under another's key.
	other, err := schema.SignReceipt(signer, &schema.Receipt{EventType: schema.TypeObjection, Replica: "reporting"})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = schema.DecodeSignedReceipt(other); err != nil {
		t.Fatal(err)
	}
	if _, err := schema.VerifyReceipt(ledger.Verifier(), s); !errors.Is(err, schema.ErrUnknownKey) {
		t.Errorf("another replica's key: %v", err)
	}
}

func TestExportRefusesToReplaceOtherKeys(t *testing.T) {
	dir, stranger := folder(t), folder(t)
	before := snapshot(t, stranger)
	_, err := Export(dir, RoleCapture, stranger)
	wantError(t, err, "other keys")
	for name, content := range snapshot(t, stranger) {
		if before[name] != content {
			t.Errorf("%s was changed", name)
		}
	}
	_, err = Export(dir, RoleCapture, dir)
	wantError(t, err, "folder itself")

	out := filepath.Join(t.TempDir(), "out")
	if _, err := Export(dir, RoleCapture, out); err != nil {
		t.Fatal(err)
	}
	if _, err := Rotate(dir, "seal"); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(dir, RoleCapture, out); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if !bytes.Equal([]byte(snapshot(t, out)["seal.json"]), []byte(snapshot(t, dir)["seal.json"])) {
		t.Error("the export is not what was rotated")
	}
	_, err = Export(dir, RoleSink("nobody"), filepath.Join(t.TempDir(), "o"))
	if err == nil {
		t.Error("exported keys of a replica that has none")
	}
}

// Even if a keyset appears between looking and writing, it is not replaced.
func TestCreatingNeverReplaces(t *testing.T) {
	dir := folder(t)
	before := snapshot(t, dir)
	h, err := load(folder(t), "seal")
	if err != nil {
		t.Fatal(err)
	}
	if err := store(dir, "seal", h, true); !errors.Is(err, os.ErrExist) {
		t.Errorf("creating what exists: %v", err)
	}
	if !maps.Equal(before, snapshot(t, dir)) {
		t.Error("the folder was changed")
	}
}

func TestDisabledKeysOpenNothing(t *testing.T) {
	dir := folder(t)
	old := open(t, dir, RoleCapture).Seal()
	sealed, err := old.AppendSeal(nil, []byte("k"), nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := SealedKeyID(sealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Rotate(dir, "seal"); err != nil {
		t.Fatal(err)
	}
	if err := change(dir, "seal", func(m *keyset.Manager, _ *keyset.Handle) error { return m.Disable(id) }); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, RoleCapture).Seal().Open(sealed, nil); !errors.Is(err, schema.ErrUnknownKey) {
		t.Errorf("under a disabled key: %v", err)
	}
}
