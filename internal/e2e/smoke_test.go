package e2e

import (
	"fmt"
	"testing"
	"time"
)

// The publisher's day with nothing going wrong, on both versions on both sides, ended once by SIGTERM under load.
func TestDayIsFollowed(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint("CRM on ", version), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{crmVersion: version})
			lethe := w.start()
			lethe.waitReady(soon)
			p := w.player()
			p.begin(5 * time.Millisecond)
			w.want(&w.marketing, soon, "select count(*) >= 5 from lethe.pending", "true")
			lethe.terminate(10 * time.Second)
			p.rest()
			p.finish()
			w.start().waitReady(soon)
			w.followed(within)
		})
	}
}
