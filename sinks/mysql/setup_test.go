package mysql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"strings"
	"sync"
	"testing"

	"lethe/internal/testenv"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// left is what a setup leaves behind, but for times.
func (s *site) left() string {
	s.Helper()
	return s.lines(`SELECT 'meta', k, v FROM lethe_meta ORDER BY k`) + "\n" + s.lines(`SELECT 'witness', replica, n FROM lethe_witness`) + "\n" +
		s.lines(`SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, COLLATION_NAME, IS_NULLABLE FROM information_schema.COLUMNS
			WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'lethe\_%' ORDER BY TABLE_NAME, ORDINAL_POSITION`) + "\n" +
		s.lines(`SELECT TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX, COLUMN_NAME FROM information_schema.STATISTICS
			WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'lethe\_%' ORDER BY 1, 2, 3`)
}

func (s *site) verify() error {
	digest := s.cfg.Digest()
	return tablesOf(s.cfg).verifyTables(s.ctx, s.db, "marketing", "crm", hex.EncodeToString(digest[:]))
}

// A setup may be cut off behind any of its statements: run then refuses the tables, and the next setup finishes them.
func TestSetupIsFinishedByTheNext(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		if _, err := s.setUp(); err != nil {
			t.Fatal(err)
		}
		want := s.left()
		conn, err := s.db.Conn(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		of := &setup{o: SetupOptions{Name: "marketing", Source: "crm", Config: s.cfg, Digest: s.cfg.Digest()}, conn: conn, ledger: tablesOf(s.cfg), database: s.name}
		statements := of.statements(s.compiled(), 0)
		for n := range statements {
			if flavor != testenv.MariaDB && n%4 != 3 {
				continue // what is tried is mostly the order of the statements
			}
			s.exec(UninstallSQL(s.cfg))
			for _, statement := range statements[:n] {
				if _, err := conn.ExecContext(s.ctx, statement); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			if err := s.verify(); sinks.CodeOf(err) != "ledger_missing" || sinks.Classify(err) != sinks.Permanent {
				t.Errorf("after %d of %d statements: %v", n, len(statements), err)
			}
			if _, err := s.setUp(); err != nil {
				t.Fatalf("setup after %d of %d statements: %v", n, len(statements), err)
			}
			if err := s.verify(); err != nil {
				t.Errorf("after a setup that %d statements were done of: %v", n, err)
			}
			if got := s.left(); got != want {
				t.Fatalf("setup after %d of %d statements leaves\n%s\nwant\n%s", n, len(statements), got, want)
			}
		}
		s.exec(`DROP TABLE lethe_gap`) // as if somebody had tidied up
		if _, err := s.setUp(); err != nil || s.left() != want {
			t.Errorf("setup does not make the table again: %v", err)
		}
	})
}

func TestSetupIsRepeatable(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		if _, err := s.setUp(); err != nil {
			t.Fatal(err)
		}
		s.exec(`UPDATE lethe_witness SET n = 7`)
		if _, err := s.setUp(); err != nil {
			t.Fatal(err)
		}
		s.want(`SELECT n FROM lethe_witness`, "7")
		s.want(`SELECT v FROM lethe_meta WHERE k = 'witness'`, "0")
		other := SetupOptions{Name: "another", Source: "crm", Config: s.cfg, Digest: s.cfg.Digest()}
		if _, err := Setup(s.ctx, s.db, other); sinks.CodeOf(err) != "ledger_foreign" {
			t.Errorf("setup of another replica on the same tables: %v", err)
		}
		s.exec(`UPDATE lethe_meta SET v = '99' WHERE k = 'schema_version'`)
		if _, err := s.setUp(); sinks.CodeOf(err) != "ledger_newer" {
			t.Errorf("setup on tables of a newer version: %v", err)
		}
		if err := s.verify(); sinks.CodeOf(err) != "ledger_newer" {
			t.Errorf("tables of a newer version: %v", err)
		}
		s.exec(UninstallSQL(s.cfg))
		s.want(`SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'lethe%'`, "0")
	})
}

// Two replicas of one database lie beside each other under prefixes of their own.
func TestPrefixesKeepReplicasApart(t *testing.T) {
	s := newSite(t, testenv.MariaDB)
	if _, err := s.setUp(); err != nil {
		t.Fatal(err)
	}
	s.cfg.MySQL.Prefix = "other_"
	if _, err := Setup(s.ctx, s.db, SetupOptions{Name: "other", Source: "crm", Config: s.cfg, Digest: s.cfg.Digest()}); err != nil {
		t.Fatal(err)
	}
	s.want(`SELECT v FROM lethe_meta WHERE k = 'replica' UNION ALL SELECT v FROM other_meta WHERE k = 'replica'`, "marketing\nother")
}

func TestTwoSetupsDoNotMeet(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if _, err := s.setUp(); err != nil {
					t.Errorf("one of four setups at once: %v", err)
				}
			})
		}
		all.Wait()
		if err := s.verify(); err != nil {
			t.Error(err)
		}
	})
}

// Where the ledger's sessions and the server disagree on the time zone, the times are UTC all the same.
func TestDefaultsAreUTC(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		if _, err := s.setUp(); err != nil {
			t.Fatal(err)
		}
		s.exec(`INSERT INTO lethe_partition (part) VALUES (1)`) // in a session of +05:30
		s.want(`SELECT ABS(TIMESTAMPDIFF(SECOND, updated_at, UTC_TIMESTAMP(6))) < 60 FROM lethe_partition`, "1")
	})
}

func TestStatusViewTellsNothingPersonal(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		reader := testenv.UniqueName("reader")
		s.exec("CREATE USER " + reader + "@'%'")
		t.Cleanup(func() { s.server.Exec(t, "", "DROP USER "+reader+"@'%'") })
		o := SetupOptions{Name: "marketing", Source: "crm", Config: s.cfg, Digest: s.cfg.Digest(), StatusRoles: []string{reader}}
		if _, err := Setup(s.ctx, s.db, o); err != nil {
			t.Fatal(err)
		}
		s.exec(`INSERT INTO lethe_partition (part, next_offset, last_committed_at) VALUES (0, 4, UTC_TIMESTAMP(6) - INTERVAL 9 SECOND), (1, 5, UTC_TIMESTAMP(6));
			INSERT INTO lethe_pending (ref, case_id, event_id, part, state, wait, committed_at, config_digest)
			VALUES ('a', 'a', 'a', 0, 'suppressed', 'decision', UTC_TIMESTAMP(), ''), ('b', 'b', 'b', 0, 'verified', 'none', UTC_TIMESTAMP(), '')`)
		db := s.login(reader)
		row := db.QueryRowContext(s.ctx, `SELECT replica, paused, events, behind BETWEEN 9 AND 30, JSON_EXTRACT(erasures_by_state, '$.suppressed'), suppressed_by_wait, erasure_errors FROM lethe_status`)
		got := make([]sql.NullString, 7)
		if err := row.Scan(&got[0], &got[1], &got[2], &got[3], &got[4], &got[5], &got[6]); err != nil {
			t.Fatal(err)
		}
		var line []string
		for _, v := range got {
			line = append(line, strings.ReplaceAll(v.String, " ", ""))
		}
		if got, want := strings.Join(line, "|"), `marketing|0|9|1|1|{"decision":1}|{}`; got != want {
			t.Errorf("status %s, want %s", got, want)
		}
		if _, err := db.ExecContext(s.ctx, `SELECT ref FROM lethe_pending`); !denied(err) {
			t.Errorf("who reads the status reads the cases too: %v", err)
		}
	})
}

// A case's and an event's key differ in one bit of what a collation calls the same letter.
func TestLedgerKeysAreBytes(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		if _, err := s.setUp(); err != nil {
			t.Fatal(err)
		}
		s.exec(`INSERT INTO lethe_fact (ref, scope, contact_ref, ord, state, event_id) VALUES ('a', 'é', '', '', '', ''), ('A', 'é', '', '', '', ''),
			('a', 'E', '', '', '', ''), ('a', 'e', '', '', '', '')`)
		s.want(`SELECT COUNT(*) FROM lethe_fact`, "4")
	})
}

// A GRANT to nobody would make a login without a password on MariaDB.
func TestSetupMakesNoLogin(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		o := SetupOptions{Name: "marketing", Source: "crm", Config: s.cfg, Digest: s.cfg.Digest(), RunRole: testenv.UniqueName("nobody")}
		if _, err := Setup(s.ctx, s.db, o); sinks.CodeOf(err) != CodeLogin || sinks.Classify(err) != sinks.Permanent {
			t.Errorf("setup for a login that does not exist: %v", err)
		}
		s.want(`SELECT COUNT(*) FROM mysql.user WHERE User = ?`, "0", o.RunRole)
		if err := s.verify(); sinks.CodeOf(err) != "ledger_missing" {
			t.Errorf("the tables are taken for complete: %v", err)
		}
	})
}

func TestSetupNeedsADatabase(t *testing.T) {
	s := newSite(t, testenv.MariaDB)
	s.name = ""
	db := s.login(s.server.Root())
	_, err := Setup(context.Background(), db, SetupOptions{Name: "marketing", Source: "crm", Config: s.cfg})
	if sinks.CodeOf(err) != "no_database" {
		t.Errorf("setup without a database: %v", err)
	}
	if _, err := Setup(context.Background(), db, SetupOptions{Name: "marketing"}); err == nil {
		t.Error("setup without a config")
	}
	if got := ledger.SchemaVersion; got != len(migrations) {
		t.Errorf("%d migrations lead to version %d", len(migrations), got)
	}
}
