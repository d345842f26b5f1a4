package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lethe/internal/testenv"
)

// fixed runs what check prints until it prints nothing more for a role: what may be seen grows with the grants.
func (c *cli) fixed(t *testing.T, server *testenv.MySQL, role string) {
	t.Helper()
	for range 5 {
		var statements []string
		_, out, _ := c.try(t.Context(), "check", "--fix-sql", "--role", role)
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "--") {
				statements = append(statements, line)
			}
		}
		if len(statements) == 0 {
			return
		}
		server.Exec(t, "", "USE "+map[bool]string{true: "crm", false: "marketing"}[role == "capture"]+";"+strings.Join(statements, ""))
	}
	_, out, _ := c.try(t.Context(), "check", "--role", role)
	t.Errorf("check goes on printing statements for %s:\n%s", role, out)
}

// As TestCommandsOnRealServers, with a CRM on MySQL and a replica on MariaDB, and the other way round: once the
// logins are an administrator's and everything else is what check prints, once all is done by setup with owners' dsn.
func TestCommandsOnMySQL(t *testing.T) {
	for _, flavors := range [][2]string{{testenv.MySQLServer, testenv.MariaDB}, {testenv.MariaDB, testenv.MySQLServer}} {
		t.Run("CRM on "+flavors[0], func(t *testing.T) {
			t.Parallel()
			commandsOnMySQL(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavors[0]}), testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavors[1]}))
		})
	}
}

func commandsOnMySQL(t *testing.T, crm, marketing *testenv.MySQL) {
	t.Helper()
	broker := testenv.SharedKafka(t)
	crm.Exec(t, "", "CREATE DATABASE crm; CREATE TABLE crm.customer (customer_id bigint AUTO_INCREMENT PRIMARY KEY, last_name varchar(80), "+
		"status char(1) NOT NULL DEFAULT 'A', spare text)")
	marketing.Exec(t, "", "CREATE DATABASE marketing; CREATE TABLE marketing.contact (contact_id bigint AUTO_INCREMENT PRIMARY KEY, "+
		"crm_id bigint NOT NULL UNIQUE, lastname varchar(80), blocked boolean NOT NULL DEFAULT false)")
	c := &cli{TB: t, config: filepath.Join(t.TempDir(), "lethe.yaml")}
	text := strings.NewReplacer(
		`postgres: {dsn: "%%crm%%", slot: lethe, publication: lethe, max_retained_wal: 1GB}`, `mysql: {dsn: "`+crm.DSN("crm", "lethe")+`"}`,
		`postgres: {dsn: "%%marketing%%"}`, `mysql: {dsn: "`+marketing.DSN("marketing", "lethe")+`"}`,
		"public.", "crm.", "%%brokers%%", strings.Join(broker.Brokers(), ", "), "partitions: 2", "partitions: 2, topic_prefix: "+testenv.UniqueName("cli"),
	).Replace(serversFile)
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	c.run(ctx, exitFindings, "run", "--log-level", "error")
	if out := c.run(ctx, exitFindings, "check"); strings.Count(out, "login_refused") != 2 {
		t.Errorf("without logins check says\n%s", out)
	}
	c.run(ctx, exitOK, "keys", "init")
	owners := []string{"--kafka", "--source-dsn", crm.DSN("crm", ""), "--replica-dsn", "marketing=" + marketing.DSN("marketing", "")}
	if crm.Flavor() == testenv.MySQLServer {
		crm.Exec(t, "", "CREATE USER lethe@'%'")
		marketing.Exec(t, "", "CREATE USER lethe@'%'")
		c.fixed(t, crm, "capture")
		c.fixed(t, marketing, "sink=marketing")
		c.run(ctx, exitOK, "setup", "--kafka")
	} else {
		if out := c.run(ctx, exitOK, append([]string{"setup", "--dry-run"}, owners...)...); strings.Count(out, "CREATE USER") != 2 {
			t.Errorf("the dry run says\n%s", out)
		}
		out := c.run(ctx, exitOK, append([]string{"setup"}, owners...)...)
		if !strings.Contains(out, "made Lethe's own tables") || strings.Count(out, "ACCOUNT LOCK") < 2 {
			t.Errorf("setup says\n%s", out)
		}
		if out := c.run(ctx, exitFindings, "check"); strings.Count(out, "login_refused") != 2 {
			t.Errorf("of locked logins check says\n%s", out)
		}
		crm.Exec(t, "", "ALTER USER lethe@'%' ACCOUNT UNLOCK")
		marketing.Exec(t, "", "ALTER USER lethe@'%' ACCOUNT UNLOCK")
	}
	if out := c.run(ctx, exitOK, append([]string{"setup"}, owners...)...); crm.Flavor() == testenv.MariaDB && !strings.Contains(out, "nothing to do") {
		t.Errorf("another setup says\n%s", out)
	}
	if out := c.run(ctx, exitOK, "check"); !strings.Contains(out, "everything that run needs is there") {
		t.Errorf("check says\n%s", out)
	}
	c.day(ctx, func(sql ...string) { crm.Exec(t, "crm", sql...) }, func(sql ...string) { marketing.Exec(t, "marketing", sql...) })
	if out := c.run(ctx, exitOK, "status"); !strings.Contains(out, "binary log reserved") {
		t.Errorf("status says\n%s", out)
	}
	_, printed, _ := strings.Cut(c.run(ctx, exitOK, "uninstall", "--print-sql"), "-- source")
	own, printed, _ := strings.Cut(printed, "-- replica")
	crm.Exec(t, "crm", "-- source"+own)
	own, _, _ = strings.Cut(printed, "-- Kafka")
	marketing.Exec(t, "marketing", "-- replica"+own)
	for _, server := range []*testenv.MySQL{crm, marketing} {
		left := 0
		err := server.Open(t, "").QueryRowContext(ctx, "SELECT (SELECT COUNT(*) FROM information_schema.tables WHERE table_name LIKE 'lethe%')"+
			" + (SELECT COUNT(*) FROM mysql.user WHERE User = 'lethe')").Scan(&left)
		if err != nil || left > 0 {
			t.Errorf("%d tables and logins are left on %s: %v", left, server.Flavor(), err)
		}
	}
}
