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
	}
	for _, p := range runPrivileges {
		w.want(`SELECT has_table_privilege($1, 'lethe.' || $2, 'SELECT')`, "true", w.role, p[0])
	}
	if got := len(migrations); got != ledger.SchemaVersion {
		t.Errorf("%d migrations lead to version %d", got, ledger.SchemaVersion)
	}
}
