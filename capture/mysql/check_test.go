package mysql

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/internal/mysqlconn"
	"lethe/internal/testenv"
)

// checked is a database with a login of Lethe's that has no more than it is granted.
type checked struct {
	server  *testenv.MySQL
	db      string
	user    string
	options Options
}

// newChecked runs statements in a fresh database. ~ in them is the login.
func newChecked(t *testing.T, server *testenv.MySQL, needs map[string]TableNeeds, statements ...string) *checked {
	t.Helper()
	c := &checked{server: server, db: server.NewDatabase(t), user: testenv.UniqueName("lethe")}
	for i, s := range statements {
		statements[i] = strings.ReplaceAll(s, "~", c.user)
	}
	server.Exec(t, c.db, statements...)
	t.Cleanup(func() { server.Exec(t, "", "DROP USER IF EXISTS "+c.user) })
	c.options = Options{
		Name: c.db, Login: mysqlconn.Login{DSN: server.DSN(c.db, c.user)}, Heartbeat: c.db + ".lethe_heartbeat", RequireGTID: true, MaxBinlogLag: 1 << 30,
		Needs: map[string]TableNeeds{},
	}
	for table, n := range needs {
		c.options.Needs[c.db+"."+table] = n
	}
	return c
}

func (c *checked) owner() mysqlconn.Login {
	return mysqlconn.Login{DSN: c.server.DSN(c.db, c.server.Root())}
}

func (c *checked) check(t *testing.T) []Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	findings, err := Check(ctx, c.options)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

// expect compares findings, as "severity code object" without the database's name.
func (c *checked) expect(t *testing.T, findings []Finding, want ...string) {
	t.Helper()
	var got []string
	for _, f := range findings {
		got = append(got, strings.NewReplacer(c.db+".", "", "`"+c.user+"`@`%`", "LOGIN", c.user, "LOGIN").Replace(string(f.Severity)+" "+f.Code+" "+f.Object))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("findings:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		for _, f := range findings {
			t.Logf("%+v", f)
		}
	}
}

// find returns the one finding with a code.
func (c *checked) find(t *testing.T, findings []Finding, code string) Finding {
	t.Helper()
	i := slices.IndexFunc(findings, func(f Finding) bool { return f.Code == code })
	if i < 0 {
		t.Fatalf("no finding %s in %+v", code, findings)
	}
	return findings[i]
}

var oneTable = map[string]TableNeeds{"customer": {Columns: []string{"id", "name"}, SubjectColumns: []string{"id"}, ReadsDelete: true}}

const createCustomer = "CREATE TABLE customer (id INT PRIMARY KEY, name VARCHAR(20), secret VARCHAR(20))"

func TestSetupMakesWhatCheckAsksFor(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, oneTable, createCustomer)
		want, statements := []string{
			"error login_missing LOGIN", "error login_lacks_privilege LOGIN", "error login_lacks_privilege LOGIN", "error heartbeat_missing lethe_heartbeat",
			"error heartbeat_denied lethe_heartbeat", "error table_denied customer",
		}, 7
		if server.Flavor() == testenv.MariaDB {
			// MariaDB shows foreign keys to no login that has privileges on columns alone.
			want, statements = append(want, "warning foreign_keys_unread customer"), 8
		}
		c.expect(t, must(Preview(t.Context(), c.owner(), c.options)), want...)
		ran, left, err := Setup(t.Context(), c.owner(), c.options)
		if err != nil {
			t.Fatal(err)
		}
		c.expect(t, left)
		if len(ran) != statements || !strings.HasPrefix(ran[0], "CREATE USER") || !strings.HasSuffix(ran[0], "ACCOUNT LOCK") {
			t.Errorf("setup ran %q", ran)
		}
		if _, err := Check(t.Context(), c.options); err == nil {
			t.Error("the login has no password yet, and must not be open to anybody")
		}
		if ran, left, err = Setup(t.Context(), c.owner(), c.options); err != nil || len(ran)+len(left) != 0 {
			t.Errorf("setup again: %v, ran %q, left %+v", err, ran, left)
		}
		server.Exec(t, c.db, "ALTER USER "+c.user+" ACCOUNT UNLOCK")
		c.expect(t, c.check(t))
		list, err := UninstallSQL(t.Context(), c.options)
		if err != nil || len(list) != 2 {
			t.Fatalf("%v, %q", err, list)
		}
		server.Exec(t, c.db, list[0])
		c.expect(t, c.check(t), "error heartbeat_missing lethe_heartbeat")
		if list, err = UninstallSQL(t.Context(), c.options); err != nil || len(list) != 1 {
			t.Errorf("uninstalled: %v, %q", err, list)
		}
	})
}

// MariaDB 11 leaves generated columns out of the images of changed and deleted rows: capture would stop there.
func TestCheckRefusesGeneratedColumnsOfMariaDB11(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, map[string]TableNeeds{"customer": {Columns: []string{"id", "s"}, SubjectColumns: []string{"id"}}},
			"CREATE TABLE customer (id INT PRIMARY KEY, s VARCHAR(20) AS (CONCAT('n', id)) STORED, d INT DEFAULT (1 + 1))")
		if _, _, err := Setup(t.Context(), c.owner(), c.options); err != nil {
			t.Fatal(err)
		}
		server.Exec(t, c.db, "ALTER USER "+c.user+" ACCOUNT UNLOCK")
		var want []string
		if leavesOutGenerated(t, server) {
			want = append(want, "error column_generated customer.s")
		}
		c.expect(t, c.check(t), want...)
	})
}

func leavesOutGenerated(t *testing.T, server *testenv.MySQL) bool {
	t.Helper()
	var version string
	if err := server.Open(t, "").QueryRowContext(t.Context(), "SELECT @@version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	return server.Flavor() == testenv.MariaDB && !parseVersion(version).before(11, 0)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestCheckNamesEachPrivilegeThatIsMissing(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, oneTable, createCustomer, "CREATE USER ~", "GRANT SELECT (id, secret) ON customer TO ~")
		findings := c.check(t)
		want := []string{
			"error login_lacks_privilege LOGIN", "error login_lacks_privilege LOGIN", "error heartbeat_missing lethe_heartbeat",
			"error heartbeat_denied lethe_heartbeat", "error table_denied customer",
		}
		if server.Flavor() == testenv.MariaDB {
			want = append(want, "warning foreign_keys_unread customer")
		}
		c.expect(t, findings, want...)
		for _, f := range findings {
			server.Exec(t, c.db, f.FixSQL...)
		}
		c.expect(t, c.check(t))
		if !strings.Contains(c.find(t, findings, CodeTableDenied).FixSQL[0], "SELECT (`name`)") {
			t.Errorf("%+v", c.find(t, findings, CodeTableDenied))
		}
	})
}

// Privileges of a role, and on databases by a pattern, count as well.
func TestCheckReadsRoles(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, oneTable, createCustomer, "CREATE USER ~", "CREATE ROLE r~")
		t.Cleanup(func() { server.Exec(t, "", "DROP ROLE IF EXISTS r"+c.user) })
		server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
		role := "r" + c.user
		server.Exec(t, c.db, "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO "+role,
			"GRANT SELECT, UPDATE ON `"+strings.ReplaceAll(c.db[:len(c.db)-1], "_", `\_`)+"_`.* TO "+role, "GRANT "+role+" TO "+c.user)
		if server.Flavor() == testenv.MariaDB {
			server.Exec(t, c.db, "SET DEFAULT ROLE "+role+" FOR "+c.user)
		} else {
			server.Exec(t, c.db, "SET DEFAULT ROLE ALL TO "+c.user)
		}
		c.expect(t, c.check(t))
		c.expect(t, must(Preview(t.Context(), c.owner(), c.options)))
	})
}

func TestCheckNamesEachFaultOfATable(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		id := TableNeeds{Columns: []string{"id"}}
		c := newChecked(t, server, map[string]TableNeeds{
			"plain": {Columns: []string{"id", "gone", "ID", "place", "big"}, Mapped: []string{"v", "slip"}}, "absent": id, "maybe": {Columns: []string{"id"}, Optional: true},
			"seen": id, "heap": id, "keyed": {Columns: []string{"code", "plaincode"}, SubjectColumns: []string{"code", "plaincode"}},
		}, "CREATE TABLE plain (id INT PRIMARY KEY, v INT, place POINT, big VARCHAR(9) CHARACTER SET big5, unmapped POINT)",
			"CREATE VIEW seen AS SELECT id FROM plain", "CREATE TABLE heap (id INT PRIMARY KEY) ENGINE=MyISAM",
			"CREATE TABLE keyed (code VARCHAR(9), plaincode VARCHAR(9) COLLATE utf8mb4_bin)", "CREATE USER ~", "GRANT ALL ON *.* TO ~")
		server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
		want := []string{
			"error column_missing plain.gone", "error column_missing plain.ID", "error column_missing plain.slip", "error column_type plain.place",
			"error column_charset plain.big", "error table_missing absent", "warning table_missing maybe", "error table_kind seen", "error table_engine heap",
			"warning key_collation keyed.code", "warning table_without_key keyed",
		}
		c.expect(t, c.check(t), want...)
		c.expect(t, must(Preview(t.Context(), c.owner(), c.options)), want...)
	})
}

// A login that sees every column is refused one that does not exist, as one that it may not read: no grant mends that.
func TestCheckKnowsAColumnThatIsGone(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, map[string]TableNeeds{"plain": {Columns: []string{"id", "hidden", "gone"}}},
			"CREATE TABLE plain (id INT PRIMARY KEY, hidden INT)", "CREATE USER ~", "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO ~")
		server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
		server.Exec(t, c.db, "GRANT SELECT, UPDATE ON "+quoteTable(c.options.Heartbeat)+" TO "+c.user, "GRANT SELECT (id) ON plain TO "+c.user,
			"GRANT REFERENCES ON "+c.db+".* TO "+c.user)
		c.expect(t, c.check(t), "error column_missing plain.gone", "error table_denied plain")
	})
}

func TestCheckWalksTheForeignKeys(t *testing.T) {
	customer := TableNeeds{Columns: []string{"id"}, SubjectColumns: []string{"id"}, ReadsDelete: true}
	child := TableNeeds{Columns: []string{"id", "customer", "channel"}, SubjectColumns: []string{"customer"}, ReadsDelete: true}
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, map[string]TableNeeds{"customer": customer, "mine": child, "orphaned": child, "cascaded": child, "nulled": child, "moved": child, "still": child},
			"CREATE TABLE customer (id INT PRIMARY KEY)", "CREATE TABLE channel (id INT PRIMARY KEY)",
			"CREATE TABLE mine (id INT PRIMARY KEY, customer INT, channel INT, FOREIGN KEY (customer) REFERENCES customer (id) ON DELETE CASCADE)",
			"CREATE TABLE orphaned (id INT PRIMARY KEY, customer INT, channel INT, FOREIGN KEY (customer) REFERENCES customer (id) ON DELETE SET NULL)",
			"CREATE TABLE cascaded (id INT PRIMARY KEY, customer INT, channel INT, CONSTRAINT `odd name` FOREIGN KEY (channel) REFERENCES channel (id) ON DELETE CASCADE)",
			"CREATE TABLE nulled (id INT PRIMARY KEY, customer INT, channel INT, FOREIGN KEY (channel) REFERENCES channel (id) ON DELETE SET NULL)",
			"CREATE TABLE moved (id INT PRIMARY KEY, customer INT, channel INT, FOREIGN KEY (customer) REFERENCES customer (id) ON UPDATE CASCADE ON DELETE CASCADE)",
			"CREATE TABLE still (id INT PRIMARY KEY, customer INT, channel INT, other INT, FOREIGN KEY (other) REFERENCES channel (id) ON DELETE SET NULL, "+
				"FOREIGN KEY (channel) REFERENCES channel (id))",
			"CREATE USER ~", "GRANT SELECT, UPDATE ON *.* TO ~", "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO ~")
		server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
		want := []string{"warning cascade_unseen cascaded", "warning cascade_unseen nulled", "warning cascade_unseen moved"}
		if server.Flavor() == testenv.MySQLServer {
			want = nil // the server is later than 9.5
			in := &inspection{o: c.options, version: version{9, 5, 0}}
			conn, closing, err := ownConnection(t.Context(), c.options.Login)
			if err != nil {
				t.Fatal(err)
			}
			in.conn = conn
			if err := in.tableStates(t.Context()); err != nil {
				t.Error(err)
			}
			if err := closing(); err != nil {
				t.Error(err)
			}
			var cascades []Finding
			for _, f := range in.findings {
				if f.Code == CodeCascade {
					cascades = append(cascades, f)
				}
			}
			c.expect(t, cascades, "warning cascade_unseen cascaded", "warning cascade_unseen nulled", "warning cascade_unseen moved")
		}
		c.expect(t, c.check(t), want...)
	})
}

// From 9.6 on MySQL writes cascades into the log: that is why Check is silent about them there.
func TestMySQLWritesCascadesIntoTheLog(t *testing.T) {
	server := testenv.SharedMySQL(t, testenv.MySQLServer)
	db := server.NewDatabase(t)
	server.Exec(t, db, "CREATE TABLE p (id INT PRIMARY KEY)", "CREATE TABLE c (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE)",
		"INSERT INTO p VALUES (1)", "INSERT INTO c VALUES (7, 1)")
	log := startLog(t, server, db)
	server.Exec(t, db, "DELETE FROM p")
	expectRows(t, log.changes(t, map[string]TableNeeds{db + ".c": {Columns: []string{"id", "p"}}}, 1), "delete 7|1 > ")
}

func TestCheckFindsKeysThatAreSpelledInTwoWays(t *testing.T) {
	customer := TableNeeds{Columns: []string{"code"}, SubjectColumns: []string{"code"}, ReadsDelete: true}
	child := TableNeeds{Columns: []string{"id", "customer"}, SubjectColumns: []string{"customer"}}
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		c := newChecked(t, server, map[string]TableNeeds{"customer": customer, "consent": child},
			"CREATE TABLE customer (code VARCHAR(9) PRIMARY KEY)", "CREATE TABLE consent (id INT PRIMARY KEY, customer VARCHAR(9), FOREIGN KEY (customer) REFERENCES customer (code))",
			"INSERT INTO customer VALUES ('Abc')", "INSERT INTO consent VALUES (1, 'Abc')", "CREATE USER ~", "GRANT ALL ON *.* TO ~")
		server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
		c.expect(t, c.check(t), "warning key_collation customer.code", "warning key_collation consent.customer")
		server.Exec(t, c.db, "INSERT INTO consent VALUES (2, 'aBC')")
		c.expect(t, c.check(t), "warning key_collation customer.code", "warning key_collation consent.customer", "error key_spellings consent")
		server.Exec(t, c.db, "DROP TABLE consent, customer", "CREATE TABLE customer (code VARCHAR(9) COLLATE utf8mb4_bin PRIMARY KEY)",
			"CREATE TABLE consent (id INT PRIMARY KEY, customer VARCHAR(9) COLLATE utf8mb4_bin, FOREIGN KEY (customer) REFERENCES customer (code))",
			"INSERT INTO customer VALUES ('Abc')", "INSERT INTO consent VALUES (1, 'Abc')")
		c.expect(t, c.check(t))
		server.Exec(t, c.db, "INSERT INTO consent VALUES (2, 'Abc ')")
		c.expect(t, c.check(t), "error key_spellings consent")
	})
}

func TestCheckNamesSettings(t *testing.T) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) {
			settings := map[string]string{
				"binlog_format": "MIXED", "binlog_row_image": "MINIMAL", "binlog_row_metadata": "MINIMAL", "binlog_expire_logs_seconds": "3600",
				"read_only": "ON", "binlog_ignore_db": "secret",
			}
			o := testenv.MySQLOptions{Flavor: flavor, Settings: settings, ServerID: 77, WithoutGTID: true}
			if flavor == testenv.MySQLServer {
				settings["binlog_row_value_options"] = "PARTIAL_JSON"
			}
			server := testenv.NewMySQL(t, o)
			server.Exec(t, "", "CREATE DATABASE secret")
			c := newChecked(t, server, oneTable, createCustomer, "CREATE USER ~", "GRANT ALL ON *.* TO ~")
			c.options.ServerID = 77
			c.options.Needs["secret.customer"] = TableNeeds{Columns: []string{"id"}, Optional: true}
			server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
			want := []string{
				"error server_is_read_only read_only", "error server_id server_id", "error binlog_format binlog_format", "error binlog_row_image binlog_row_image",
				"error binlog_row_metadata binlog_row_metadata", "warning binlog_expiry binlog_expire_logs_seconds", "error binlog_filter secret",
				"warning table_missing secret.customer",
			}
			if flavor == testenv.MySQLServer {
				want = append(want, "error gtid_off gtid_mode", "warning binlog_row_value_options binlog_row_value_options")
			}
			findings := c.check(t)
			c.expect(t, findings, want...)
			if ran, left, err := Setup(t.Context(), c.owner(), c.options); err != nil || len(ran) > 0 || len(left) != len(findings) {
				t.Errorf("setup changed the server: %v, ran %q, left %+v", err, ran, left)
			}
			for _, f := range findings {
				server.Exec(t, c.db, f.FixSQL...)
			}
			server.Exec(t, c.db, "SET GLOBAL read_only = OFF")
			c.options.ServerID = 78
			c.expect(t, c.check(t), "error binlog_filter secret", "warning table_missing secret.customer")
		})
	}
}

func TestCheckKnowsVersions(t *testing.T) {
	for text, want := range map[string]string{
		"5.7.44-log": CodeVersionOld, "8.0.40": "", "9.7.0-2": "", "10.0.1": CodeVersionUntested,
		"10.5.28-MariaDB": CodeVersionOld, "10.6.21-MariaDB-log": "", "11.8.2-MariaDB-ubu2404": "", "12.0.1-MariaDB": CodeVersionUntested,
	} {
		in := &inspection{
			settings: map[string]string{"version": text, "read_only": "OFF", "server_id": "1"}, version: parseVersion(text), mariadb: strings.Contains(text, "MariaDB"),
		}
		if err := in.server(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range in.findings {
			got += f.Code
		}
		if got != want {
			t.Errorf("%s gives %q, want %q", text, got, want)
		}
	}
}

func TestCheckNamesMariaDBsTypes(t *testing.T) {
	server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MariaDB, Settings: map[string]string{"mysql56_temporal_format": "OFF"}})
	c := newChecked(t, server, map[string]TableNeeds{"customer": {Columns: []string{"id", "ip", "u", "packed"}}},
		"CREATE TABLE customer (id INT PRIMARY KEY, ip INET6, u UUID, packed VARCHAR(99) COMPRESSED, at DATETIME(3), fine DATETIME)",
		"CREATE USER ~", "GRANT ALL ON *.* TO ~")
	server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
	findings := c.check(t)
	c.expect(t, findings, "error column_type customer.ip", "error column_type customer.u", "error column_type customer.packed", "error column_format_old customer.at")
	server.Exec(t, c.db, "SET GLOBAL mysql56_temporal_format = ON")
	server.Exec(t, c.db, c.find(t, findings, CodeColumnFormat).FixSQL...)
	c.expect(t, c.check(t), "error column_type customer.ip", "error column_type customer.u", "error column_type customer.packed")
}

func TestGrantsAreReadAsTheServersWriteThem(t *testing.T) {
	var gs grants
	for _, line := range []string{
		"GRANT USAGE ON *.* TO `x`@`%`", "GRANT `role`@`%` TO `x`@`%`", "GRANT SELECT (`a`, `b``c`), REFERENCES, INSERT ON `db`.`t` TO `x`@`%`",
		"GRANT SELECT, UPDATE ON `crm\\_1%`.* TO `x`@`%` WITH GRANT OPTION", "GRANT EXECUTE ON PROCEDURE `db`.`p` TO `x`@`%`",
	} {
		if g, ok := parseGrant(line); ok {
			gs = append(gs, g)
		}
	}
	for _, c := range []struct {
		privilege, database, table string
		columns, want              []string
	}{
		{"SELECT", "db", "t", []string{"a", "b`c", "d"}, []string{"d"}},
		{"SELECT", "db", "t", nil, []string{""}},
		{"INSERT", "db", "t", []string{"a"}, nil},
		{"SELECT", "db", "u", []string{"a"}, []string{"a"}},
		{"UPDATE", "crm_12", "any", nil, nil},
		{"UPDATE", "crmx12", "any", nil, []string{""}},
	} {
		if got := gs.lacks(c.privilege, c.database, c.table, c.columns...); !slices.Equal(got, c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("%s on %s.%s lacks %q, want %q", c.privilege, c.database, c.table, got, c.want)
		}
	}
	if gs.global("REPLICATION SLAVE") {
		t.Error("a privilege that was not granted")
	}
}
