package mysql

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestSwitchover: the primary is demoted and goes on answering, as in a planned change of places. Reading goes on where the
// DSN leads.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	forFlavors(t, func(t *testing.T, flavor string) {
		p := newPair(t, flavor)
		way := newProxy(t, p.a.server.Addr())
		p.a.change = func(o *Options) {
			o.Login.DSN = strings.Replace(o.Login.DSN, p.a.server.Addr(), way.listener.Addr().String(), 1)
		}
		src := p.a.source(t)
		src.attendEvery = 100 * time.Millisecond
		r, k := startKeeping(t, src, nil)
		p.a.exec(t, "INSERT INTO a VALUES (1, 'a')")
		at := k.checkpoint(t, r.Source, r.Collect(t, 1)[0])
		p.a.exec(t, "SET GLOBAL read_only = ON")
		if err := r.Wait(t); !errors.Is(err, ErrNotPrimary) {
			t.Fatalf("Run ended with %v", err)
		}
		p.b.server.CatchUp(t, p.a.server)
		p.b.server.Promote(t)
		p.b.exec(t, "INSERT INTO a VALUES (2, 'b')")
		way.lead(p.b.server.Addr())
		r, k = startKeeping(t, src, at)
		last := r.Collect(t, 1)[0]
		if last.Rows[0].New["id"] != "2" {
			t.Errorf("read %+v", last)
		}
		at = k.checkpoint(t, r.Source, last)

		// The server that is read is no replica, and the DSN leads away from it.
		p.a.server.Follow(t, p.b.server)
		p.a.server.CatchUp(t, p.b.server)
		p.a.server.Promote(t)
		way.lead(p.a.server.Addr())
		src.leave()
		if err := r.Wait(t); !errors.Is(err, errMoved) {
			t.Fatalf("Run ended with %v", err)
		}
		p.a.exec(t, "INSERT INTO a VALUES (3, 'a')")
		r, _ = startKeeping(t, src, at)
		if last := r.Collect(t, 1)[0]; last.Rows[0].New["id"] != "3" {
			t.Errorf("read %+v", last)
		}
		stopped(t, r)
	})
}
