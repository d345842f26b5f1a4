package testenv_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lethe/internal/testenv"
)

func flavors(t *testing.T, f func(t *testing.T, flavor string)) {
	t.Helper()
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			f(t, flavor)
		})
	}
}

// ask returns the one value of a query as text.
func ask(t *testing.T, m *testenv.MySQL, db, query string, args ...any) string {
	t.Helper()
	var got sql.NullString
	if err := m.Open(t, db).QueryRowContext(t.Context(), query, args...).Scan(&got); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return got.String
}

func TestMySQLSurvivesKillAndStop(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		m := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
		m.Exec(t, "", "CREATE DATABASE kept; CREATE TABLE kept.kept (n int)", "INSERT INTO kept.kept VALUES (1)")
		before := m.GTIDs(t)
		if before == "" {
			t.Error("no GTIDs after three transactions")
		}
		for round, end := range []func() error{m.Kill, m.Stop} {
			pid, port := m.PID(), m.Port
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Fatalf("round %d: the server is still there: %v", round, err)
			}
			if err := m.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if m.Port != port {
				t.Fatalf("round %d: port changed from %d to %d", round, port, m.Port)
			}
			if n := ask(t, m, "kept", "SELECT n FROM kept"); n != "1" {
				t.Fatalf("round %d: kept row: %q", round, n)
			}
			if got := m.GTIDs(t); got != before {
				t.Fatalf("round %d: GTIDs changed from %s to %s", round, before, got)
			}
		}
		log, err := os.ReadFile(m.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if want := "crash recovery"; !strings.Contains(strings.ToLower(string(log)), want) {
			t.Errorf("Kill was no crash: the log lacks %q", want)
		}
	})
}

func TestMySQLIsConfiguredAsDocumented(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		m := testenv.SharedMySQL(t, flavor)
		db := m.NewDatabase(t)
		want := map[string]string{
			"log_bin": "1", "binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL",
			"time_zone": "+05:30", "character_set_server": "utf8mb4", "max_connections": "200", "performance_schema": "0",
			"bind_address": "127.0.0.1",
		}
		version := ask(t, m, db, "SELECT version()")
		switch flavor {
		case testenv.MariaDB:
			want["log_slave_updates"] = "1"
			if !strings.Contains(version, "MariaDB") {
				t.Errorf("version %s is no MariaDB", version)
			}
		case testenv.MySQLServer:
			want["gtid_mode"], want["enforce_gtid_consistency"], want["log_replica_updates"] = "ON", "ON", "1"
			if !strings.HasPrefix(version, "9.") {
				t.Errorf("version %s is no MySQL 9", version)
			}
		}
		for name, value := range want {
			if got := ask(t, m, db, "SELECT @@GLOBAL."+name); got != value {
				t.Errorf("%s = %q, want %q", name, got, value)
			}
		}
		if got := m.Flavor(); got != flavor {
			t.Errorf("flavor %q, want %q", got, flavor)
		}
	})
}

func TestMySQLTakesSettingsAndLogins(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		m := testenv.NewMySQL(t, testenv.MySQLOptions{
			Flavor: flavor, ServerID: 4711, WithoutGTID: true, Settings: map[string]string{"max_connections": "33"},
		})
		for name, want := range map[string]string{"server_id": "4711", "max_connections": "33"} {
			if got := ask(t, m, "", "SELECT @@GLOBAL."+name); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
		if flavor == testenv.MySQLServer {
			if got := ask(t, m, "", "SELECT @@GLOBAL.gtid_mode"); got != "OFF" {
				t.Errorf("gtid_mode = %q", got)
			}
		}
		m.Exec(t, "", "CREATE DATABASE d; CREATE USER open@'%'; CREATE USER guarded@'%' IDENTIFIED BY 'right'; GRANT ALL ON d.* TO open@'%', guarded@'%'")
		login := func(dsn string) error {
			pool, err := sql.Open("mysql", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			return pool.PingContext(t.Context())
		}
		if err := login(m.DSN("d", "open")); err != nil {
			t.Errorf("login without a password: %v", err)
		}
		guarded := m.DSN("d", "guarded")
		if err := login(strings.Replace(guarded, "guarded@", "guarded:right@", 1)); err != nil {
			t.Errorf("login with the password: %v", err)
		}
		if err := login(guarded); err == nil {
			t.Error("login without the password succeeded")
		}
	})
}

func TestPausedMySQLGoesOn(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		m := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
		pool := m.Open(t, "")
		if err := pool.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.Pause(); err != nil {
			t.Fatal(err)
		}
		answered := make(chan error, 1)
		go func() {
			_, err := pool.ExecContext(t.Context(), "DO 1")
			answered <- err
		}()
		select {
		case err := <-answered:
			t.Fatalf("a paused server answered: %v", err)
		case <-time.After(200 * time.Millisecond):
		}
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	})
}

func TestMySQLReplicaTakesOver(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		a := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
		b := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
		if ask(t, a, "", "SELECT @@server_id") == ask(t, b, "", "SELECT @@server_id") {
			t.Error("two servers have the same id")
		}
		a.Exec(t, "", "CREATE DATABASE d; CREATE TABLE d.kept (n int PRIMARY KEY); INSERT INTO d.kept VALUES (1)")
		b.Follow(t, a)
		a.Exec(t, "d", "INSERT INTO kept VALUES (2)")
		b.CatchUp(t, a)
		if a.GTIDs(t) != b.GTIDs(t) {
			t.Errorf("the replica's GTIDs are %s, not %s", b.GTIDs(t), a.GTIDs(t))
		}
		if got := ask(t, b, "d", "SELECT count(*) FROM kept"); got != "2" {
			t.Errorf("%s rows in the replica, want 2", got)
		}
		if err := a.Kill(); err != nil {
			t.Fatal(err)
		}
		b.Promote(t)
		b.Exec(t, "d", "INSERT INTO kept VALUES (3)")
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Follow(t, b)
		a.CatchUp(t, b)
		if got := ask(t, a, "d", "SELECT count(*) FROM kept"); got != "3" {
			t.Errorf("%s rows in the server that was the primary, want 3", got)
		}
	})
}

func TestMySQLDataIsCopied(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		m := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor})
		m.Exec(t, "", "CREATE DATABASE d; CREATE TABLE d.copied (n int)")
		want := m.GTIDs(t)
		copied := filepath.Join(m.Dir, "copied")
		if err := m.CopyData(copied); err == nil {
			t.Error("the data of a running server were copied")
		}
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := m.CopyData(copied); err != nil {
			t.Fatal(err)
		}
		c := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor, DataDir: copied})
		if got := c.GTIDs(t); got != want {
			t.Errorf("the copy has GTIDs %s, not %s", got, want)
		}
		c.Exec(t, "d", "SELECT * FROM copied")
	})
}

func TestUsedMySQLDatabaseIsDropped(t *testing.T) {
	t.Parallel()
	flavors(t, func(t *testing.T, flavor string) {
		m := testenv.SharedMySQL(t, flavor)
		var db string
		t.Run("user", func(t *testing.T) {
			db = m.NewDatabase(t)
			m.Exec(t, db, "CREATE TABLE locked (n int)")
			pool, err := sql.Open("mysql", m.DSN(db, ""))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close() })
			tx, err := pool.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(t.Context(), "INSERT INTO locked VALUES (1)"); err != nil {
				t.Fatal(err)
			}
		})
		if n := ask(t, m, "", "SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?", db); n != "0" {
			t.Error("the database is left")
		}
		for name, f := range map[string]func() error{"Stop": m.Stop, "Kill": m.Kill, "Pause": m.Pause, "Close": m.Close} {
			if err := f(); err == nil {
				t.Errorf("%s of a shared server succeeded", name)
			}
		}
	})
}
