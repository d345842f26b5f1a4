package schema

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// plainPRF shows what is hashed. Identifiers whose inputs differ must differ here.
type plainPRF struct{ input *string }

func (p plainPRF) Compute(dst *[32]byte, data []byte) {
	*p.input = string(data)
	hmacPRF("k").Compute(dst, data)
}

// The ids are stored in replicas and topics for years: these bytes never change.
func TestIdentifiersGolden(t *testing.T) {
	ref := testIDs.SubjectRef(CanonicalKey(nil, []byte("4711")))
	key := EventKey{Incarnation: 1, Epoch: 2, Number: 3, Table: "public.customer", PK: CanonicalKey(nil, []byte("4711")), Op: 2, Occurrence: 4, Rule: "r"}
	event, caseID, contact := testIDs.EventID(key), testIDs.CaseID(ref), testIDs.ContactRef("public.customer_email", []byte("\x0212"))
	receipt := testIDs.ReceiptID(event, "marketing", ReceiptVerified, 2)
	golden(t, "identifiers", slices.Concat(ref[:], event[:], caseID[:], contact[:], receipt[:]))
}

func genKey(t *rapid.T) EventKey {
	text := rapid.OneOf(rapid.SampledFrom([]string{"", "a", "ab", "a\x00", "\x01a", "public.customer"}), rapid.String())
	return EventKey{
		Incarnation: rapid.Uint32Range(0, 2).Draw(t, "inc"), Epoch: rapid.Uint32Range(0, 2).Draw(t, "epoch"), Number: rapid.Uint64Range(0, 2).Draw(t, "number"),
		Table: text.Draw(t, "table"), PK: []byte(text.Draw(t, "pk")), Op: rapid.Uint8Range(0, 2).Draw(t, "op"),
		Occurrence: rapid.Uint32Range(0, 2).Draw(t, "occ"), Rule: text.Draw(t, "rule"),
	}
}

func sameKey(a, b EventKey) bool {
	pk := bytes.Equal(a.PK, b.PK)
	a.PK, b.PK = nil, nil
	return pk && a.Incarnation == b.Incarnation && a.Epoch == b.Epoch && a.Number == b.Number && a.Table == b.Table && a.Op == b.Op &&
		a.Occurrence == b.Occurrence && a.Rule == b.Rule
}

// What is hashed for two different keys differs, wherever the borders between their parts lie.
func TestEventIDsDoNotCollideOnBorders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in string
		a, b := genKey(t), genKey(t)
		sourceA, sourceB := rapid.StringN(0, 3, 3).Draw(t, "a"), rapid.StringN(0, 3, 3).Draw(t, "b")
		idA := NewIdentifiers(plainPRF{&in}, sourceA).EventID(a)
		inA := in
		idB := NewIdentifiers(plainPRF{&in}, sourceB).EventID(b)
		same := sameKey(a, b) && sourceA == sourceB
		if same != (inA == in) || same != (idA == idB) {
			t.Fatalf("same: %t; %+v and %+v give %x and %x", same, a, b, inA, in)
		}
	})
}

func TestIdentifiersOfDifferentKindsDiffer(t *testing.T) {
	var in string
	ids := NewIdentifiers(plainPRF{&in}, "crm")
	var inputs []string
	note := func(string) { inputs = append(inputs, in) }
	note(ids.SubjectRef(nil).String())
	note(ids.SubjectRef(make([]byte, 32)).String())
	note(ids.CaseID(SubjectRef{}).String())
	note(ids.ContactRef("", nil).String())
	note(ids.ContactRef("crm", nil).String())
	note(ids.EventID(EventKey{}).String())
	note(ids.ReceiptID(EventID{}, "", 0, 0).String())
	for _, k := range []struct {
		event   EventID
		replica string
		state   ReceiptState
		attempt uint32
	}{{EventID{1}, "", 0, 0}, {EventID{}, "a", 0, 0}, {EventID{}, "", 1, 0}, {EventID{}, "", 0, 1}} {
		note(ids.ReceiptID(k.event, k.replica, k.state, k.attempt).String())
	}
	slices.Sort(inputs)
	if n := len(slices.Compact(inputs)); n != 11 {
		t.Errorf("%d different inputs of 11", n)
	}
}

func TestIdentifiersAreSafeForConcurrentUse(t *testing.T) {
	want := testIDs.SubjectRef([]byte("x"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				if testIDs.SubjectRef([]byte("x")) != want {
					t.Error("another id")
				}
			}
		})
	}
	wg.Wait()
}

func TestIDsInText(t *testing.T) {
	ref := testIDs.SubjectRef([]byte("\x044711"))
	if got, err := ParseSubjectRef(ref.String()); err != nil || got != ref || len(ref.String()) != 52 || string(ref.AppendText(nil)) != ref.String() {
		t.Errorf("subject_ref %s: %v", ref, err)
	}
	e, c := EventID{1, 2}, CaseID{3}
	if got, err := ParseEventID(e.String()); err != nil || got != e {
		t.Errorf("event id: %v", err)
	}
	if got, err := ParseCaseID(c.String()); err != nil || got != c {
		t.Errorf("case id: %v", err)
	}
	for _, s := range []string{"", "canary", c.String() + "A", ref.String()[:51], "1" + ref.String()[1:]} {
		if _, err := ParseSubjectRef(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestOrderComparesByItsParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.Uint32Range(0, 300)
		draw := func() ([4]uint64, Order) {
			p := [4]uint64{uint64(small.Draw(t, "inc")), uint64(small.Draw(t, "epoch")), rapid.Uint64().Draw(t, "n"), uint64(small.Draw(t, "ord"))}
			return p, NewOrder(uint32(p[0]), uint32(p[1]), p[2], uint32(p[3]))
		}
		a, oa := draw()
		b, ob := draw()
		if oa.Compare(ob) != slices.Compare(a[:], b[:]) {
			t.Fatalf("%s and %s", oa, ob)
		}
		if got := [4]uint64{uint64(oa.Incarnation()), uint64(oa.Epoch()), oa.Number(), uint64(oa.Ordinal())}; got != a {
			t.Fatalf("%v became %v", a, got)
		}
	})
}

func TestCanonicalKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.String(), 1, 5).Draw(t, "parts")
		raw := make([][]byte, len(parts))
		for i, p := range parts {
			raw[i] = []byte(p)
		}
		got, err := SplitKey(CanonicalKey(nil, raw...))
		if err != nil || !slices.Equal(got, parts) {
			t.Fatalf("%q became %q, %v", parts, got, err)
		}
	})
	for name, key := range map[string][]byte{
		"nothing": nil, "cut": {3, 'a'}, "length too long": {0x81, 0x00, 'a'}, "length without end": {0xff}, "plain text": []byte("4711"),
		"huge": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
	} {
		if parts, err := SplitKey(key); !errors.Is(err, ErrKeyForm) {
			t.Errorf("%s: %q, %v", name, parts, err)
		}
	}
}

func FuzzSplitKey(f *testing.F) {
	f.Add([]byte("\x044711"))
	f.Add([]byte("\x01a\x00"))
	f.Add([]byte{0x81, 0x00, 'a'})
	f.Fuzz(func(t *testing.T, key []byte) {
		parts, err := SplitKey(key)
		if err != nil {
			return
		}
		var again []byte
		for _, p := range parts {
			again = CanonicalKey(again, []byte(p))
		}
		if !bytes.Equal(again, key) {
			t.Fatalf("%s is a second form of %s", hex.EncodeToString(key), hex.EncodeToString(again))
		}
	})
}
