package postgres

import (
	"strings"
	"testing"

	"lethe/sinks/ledger"
)

// Tables of version 1 are migrated with what they hold, and the run role gets the new ones.
func TestSetupMigratesFromVersion1(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(`DROP SCHEMA lethe CASCADE`)
	if _, err := w.admin.PgConn().Exec(w.ctx, strings.ReplaceAll(migrations[0], "{s}", "lethe")).ReadAll(); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO lethe.meta (k, v) VALUES ('schema_version', '1'), ('replica', 'marketing'), ('source', 'crm'), ('witness', '3'), ('mapping_digest', 'old')`)
	w.exec(`INSERT INTO lethe.subject (ref, part, state) VALUES ('\x01', 0, 'suppressed')`)
	for range 2 { // the second time nothing is left to do
		w.setup()
		w.want(`SELECT v FROM lethe.meta WHERE k IN ('schema_version', 'witness') ORDER BY k`, "2\n3")
		w.want(`SELECT part, state FROM lethe.subject`, "0|suppressed")
		w.want(`SELECT incomplete, absent, passes_running FROM lethe.status`, "true|0|0")
	}
	for _, p := range runPrivileges {
		w.want(`SELECT has_table_privilege($1, 'lethe.' || $2, 'SELECT')`, "true", w.role, p[0])
	}
	if got := len(migrations); got != ledger.SchemaVersion {
		t.Errorf("%d migrations lead to version %d", got, ledger.SchemaVersion)
	}
}

// A replica that was upgraded may call things verified as before, until the first pass is announced; a new one never before the
// first pass has ended.
func TestNewReplicaNeedsAPass(t *testing.T) {
	w := newWorld(t, 15)
	options := SetupOptions{Name: "marketing", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest(), RunRole: w.role}
	unproven := func(want bool, when string) {
		t.Helper()
		w.r = w.replica()
		w.assign()
		got, err := w.r.mayVerify(w.ctx, w.pool)
		if err != nil || got.Incomplete != want {
			t.Errorf("%s: %+v, %v; want incomplete %v", when, got, err, want)
		}
		s, err := NewDesk(w.cfg, w.pool).Status(w.ctx)
		if err != nil || !s.Incomplete || s.Unproven != want {
			t.Errorf("%s: status incomplete %v, unproven %v: %v", when, s.Incomplete, s.Unproven, err)
		}
		w.want(`SELECT incomplete FROM lethe.status`, "true")
	}
	w.exec(`DROP SCHEMA lethe CASCADE`)
	if _, err := Setup(w.ctx, w.admin, options); err != nil {
		t.Fatal(err)
	}
	unproven(true, "a new replica")
	w.exec(`DROP SCHEMA lethe CASCADE`)
	if _, err := w.admin.PgConn().Exec(w.ctx, strings.ReplaceAll(migrations[0], "{s}", "lethe")).ReadAll(); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO lethe.meta (k, v) VALUES ('schema_version', '1'), ('replica', 'marketing'), ('source', 'crm'), ('witness', '0'), ('mapping_digest', 'old')`)
	for range 2 {
		if _, err := Setup(w.ctx, w.admin, options); err != nil {
			t.Fatal(err)
		}
		unproven(false, "a replica that was there before")
	}
}
