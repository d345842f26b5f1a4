//go:build !race

package schema

import "testing"

// The race detector empties pools: `make test` runs this without it.
func TestHotPathDoesNotAllocate(t *testing.T) {
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
