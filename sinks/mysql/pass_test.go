package mysql

import (
	"strings"
	"testing"
)

// Tables of version 1 are migrated with what they hold.
func TestSetupMigratesFromVersion1(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		for _, statement := range migrations[0] {
			s.exec(strings.ReplaceAll(tablesOf(s.cfg).sql(statement), "{t}", tableOptions))
		}
		s.exec(`INSERT INTO lethe_meta (k, v) VALUES ('schema_version', '1'), ('replica', 'marketing'), ('source', 'crm'), ('witness', '3'),
			('mapping_digest', 'old'); INSERT INTO lethe_subject (ref, part, state) VALUES ('a', 0, 'suppressed')`)
		for range 2 { // the second time nothing is left to do
			if _, err := s.setUp(); err != nil {
				t.Fatal(err)
			}
			if err := s.verify(); err != nil {
				t.Fatal(err)
			}
			s.want(`SELECT v FROM lethe_meta WHERE k IN ('schema_version', 'witness') ORDER BY k`, "2\n3")
			s.want(`SELECT part, state FROM lethe_subject`, "0|suppressed")
			// It may call things verified as before, until a pass is announced; a new one never before a pass has ended.
			s.want(`SELECT COUNT(*) FROM lethe_meta WHERE k = 'needs_pass'`, "0")
			s.want(`SELECT incomplete, absent, passes_running FROM lethe_status`, "1|0|0")
		}
		s.exec(UninstallSQL(s.cfg))
		if _, err := s.setUp(); err != nil {
			t.Fatal(err)
		}
		s.want(`SELECT COUNT(*) FROM lethe_meta WHERE k = 'needs_pass'`, "1")
	})
}
