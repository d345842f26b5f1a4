package e2e

import (
	"fmt"
	"testing"
	"time"

	"lethe/internal/testenv"
)

// The publisher's day with nothing going wrong, on every database on every side, ended once by SIGTERM under load.
func TestDayIsFollowed(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint("CRM on ", version), func(t *testing.T) {
			t.Parallel()
			dayIsFollowed(t, options{crmVersion: version})
		})
	}
	my, maria := testenv.MySQLServer, testenv.MariaDB
	for _, flavors := range [][3]string{{my, maria, ""}, {maria, my, maria}} {
		t.Run("CRM on "+flavors[0], func(t *testing.T) {
			t.Parallel()
			dayIsFollowed(t, options{on: sharedEngines(t, flavors)})
		})
	}
}

func dayIsFollowed(t *testing.T, o options) {
	t.Helper()
	w := newWorld(t, o)
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	p.begin(5 * time.Millisecond)
	w.holds(&w.marketing, "select count(*) >= 5 from lethe.pending")
	lethe.terminate(10 * time.Second)
	p.rest()
	p.finish()
	w.start().waitReady(soon)
	w.followed(within)
}
