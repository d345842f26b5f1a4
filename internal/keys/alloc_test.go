//go:build !race

package keys

import "testing"

// The race detector empties pools: `make test` runs this without it.
func TestHotPathDoesNotAllocate(t *testing.T) {
	ring := open(t, folder(t), RoleCapture)
	dst, out, data, aad := make([]byte, 0, 256), new([32]byte), make([]byte, 64), make([]byte, 300)
	p, s := ring.Subject(), ring.Seal()
	if n := testing.AllocsPerRun(200, func() { p.Compute(out, data) }); n > 0 {
		t.Errorf("PRF: %v allocations", n)
	}
	if n := testing.AllocsPerRun(200, func() { _, _ = s.AppendSeal(dst, data, aad) }); n > 0 {
		t.Errorf("AppendSeal: %v allocations", n)
	}
}
