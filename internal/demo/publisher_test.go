package demo

import (
	"context"
	"database/sql"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lethe/internal/testenv"
)

// onShared makes the publisher's databases on shared servers of one kind.
func onShared(t *testing.T, kind string) Databases {
	t.Helper()
	var open func(schema int) DB
	if kind == Postgres {
		p := testenv.SharedPostgres(t, oldestPostgres)
		open = func(schema int) DB {
			db := p.NewDatabase(t)
			p.Exec(t, db, schemaOf(schema, kind))
			return OnPostgres(p.Connect(t, db))
		}
	} else {
		m := testenv.SharedMySQL(t, map[string]string{MySQL: testenv.MySQLServer, MariaDB: testenv.MariaDB}[kind])
		open = func(schema int) DB {
			db := m.NewDatabase(t)
			m.Exec(t, db, schemaOf(schema, kind))
			return OnMySQL(mysqlConn(t, m.DSN(db, "")))
		}
	}
	return Databases{CRM: open(crm), Marketing: open(marketing), Reporting: open(reporting)}
}

func mysqlConn(t *testing.T, dsn string) *sql.Conn {
	t.Helper()
	pool, err := openMySQL(dsn, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	conn, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// played is what a publisher without Lethe comes to.
type played struct {
	Counts      Counts
	Wanted      map[int64]string
	Differences []string
}

func play(t *testing.T, kind string) played {
	t.Helper()
	ctx := t.Context()
	on := onShared(t, kind)
	p := NewPublisher(100)
	if err := p.Fill(ctx, on); err != nil {
		t.Fatal(err)
	}
	diff := differencesOf(ctx, t, on)
	if len(diff) != 2*len(p.fill.late) {
		t.Errorf("after the filling %d differences, want the %d late customers in both replicas: %q", len(diff), len(p.fill.late), diff)
	}
	var erased int
	player := p.Play(on, func(int64, time.Time) { erased++ })
	for range 1200 {
		if err := player.Step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := player.FinishETL(ctx); err != nil {
		t.Fatal(err)
	}
	if erased != player.d.counts.Erasures || erased == 0 {
		t.Errorf("told of %d erasures of %d", erased, player.d.counts.Erasures)
	}
	want, err := expectations(ctx, on.CRM)
	if err != nil {
		t.Fatal(err)
	}
	out := played{Counts: player.d.counts, Wanted: map[int64]string{}, Differences: differencesOf(ctx, t, on)}
	for id, w := range want {
		out.Wanted[id] = describeWanted(w)
	}
	return out
}

func differencesOf(ctx context.Context, t *testing.T, on Databases) []string {
	t.Helper()
	diff, err := Differences(ctx, on)
	if err != nil {
		t.Fatal(err)
	}
	return diff
}

func describeWanted(w wanted) string {
	var parts []string
	for name, set := range map[string]bool{
		"1 erased": w.erased, "2 frozen": w.frozen, "3 newsletter": w.newsletter, "4 email": w.offers["E"], "5 sms": w.offers["S"], "6 phone": w.offers["T"],
	} {
		if set {
			parts = append(parts, name)
		}
	}
	return strings.Join(sorted(parts), ", ")
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// TestPublisherIsTheSameEverywhere: the day, and what the oracle makes of it, do not depend on the database.
func TestPublisherIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	want := play(t, Postgres)
	want.Differences = sorted(want.Differences)
	if len(want.Differences) == 0 {
		t.Error("without Lethe nothing differs")
	}
	for _, kind := range []string{MariaDB, MySQL} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			got := play(t, kind)
			got.Differences = sorted(got.Differences)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("on %s the day comes to something else than on PostgreSQL (-want +got):\n%s", kind, diff)
			}
		})
	}
}

// TestGrantsDoNotReachFurther: Lethe's login may read the publisher's CRM, and nothing that is not the publisher's.
func TestGrantsDoNotReachFurther(t *testing.T) {
	t.Parallel()
	for kind, flavor := range map[string]string{MariaDB: testenv.MariaDB, MySQL: testenv.MySQLServer} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testenv.RequireMySQL(t, flavor)
			ctx := t.Context()
			dir, err := os.MkdirTemp("", "lethe-demo-test-") // the test's own folder is closed to the server
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			server, err := startServer(ctx, kind, serverFolder(dir, "crm"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.close(); err != nil {
					t.Error(err)
				}
			})
			if server.kind() != kind {
				t.Errorf("the server is %s", server.kind())
			}
			if err := server.prepare(ctx, "crm", schemaOf(crm, kind)); err != nil {
				t.Fatal(err)
			}
			if err := server.grant(ctx, "crm", false); err != nil {
				t.Fatal(err)
			}
			if err := mysqlScript(ctx, server.ownerDSN("crm"), "create table later (n int)"); err != nil {
				t.Fatal(err)
			}
			for sql, allowed := range map[string]bool{
				"select * from customer": true, "show master status": flavor == testenv.MariaDB, "show binary log status": flavor == testenv.MySQLServer,
				"update customer set blocked = true": false, "select * from later": false,
			} {
				if err := mysqlScript(ctx, server.dsn("crm"), sql); (err == nil) != allowed {
					t.Errorf("%s: %v, want allowed %t", sql, err, allowed)
				}
			}
		})
	}
}
