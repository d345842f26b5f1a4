package mysql

import (
	"slices"
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// bare is a world whose run role has nothing but its login and its way into the database, and without ledger tables.
func bare(t *testing.T, flavor string, change ...func(*config.Replica)) *world {
	t.Helper()
	w := newWorld(t, flavor, change...)
	w.r.Close()
	w.exec(UninstallSQL(w.cfg) + `REVOKE ALL PRIVILEGES, GRANT OPTION FROM ` + w.role + `@'%'; GRANT EXECUTE ON ` + databasePattern(w.name, false) + `.* TO ` + w.role + `@'%'`)
	return w
}

func (w *world) options() CheckOptions {
	return CheckOptions{Name: "marketing", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest()}
}

// check looks with the run role's own login, in new sessions.
func (w *world) check() []Finding {
	w.Helper()
	findings, err := Check(w.ctx, w.login(w.role), w.options())
	if err != nil {
		w.Fatal(err)
	}
	return findings
}

// checkAs looks with the owner's login.
func (w *world) checkAs() []Finding {
	w.Helper()
	o := w.options()
	o.Role = w.role
	findings, err := Check(w.ctx, w.db, o)
	if err != nil {
		w.Fatal(err)
	}
	return findings
}

// fix runs the statements of findings as the client would, as the owner.
func (w *world) fix(findings []Finding) {
	w.Helper()
	for _, f := range findings {
		if f.FixSQL != "" {
			w.exec(f.FixSQL)
		}
	}
}

// codes lists the findings of a severity as code and object, without the database.
func (w *world) codes(findings []Finding, severity ledger.Severity) []string {
	var out []string
	for _, f := range findings {
		if f.Severity == severity {
			out = append(out, f.Code+" "+strings.TrimPrefix(strings.Replace(f.Object, w.name, "", 1), "."))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// The fixes of a check give the run role exactly what it needs: with them everything that a replica does works.
func TestCheckGrantsWhatRunNeeds(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := bare(t, flavor, func(c *config.Replica) { c.Erase.CoolOff = 0 })
		findings := w.check()
		if got, want := w.codes(findings, ledger.SeverityError), []string{"privilege_missing "}; !slices.Equal(got, want) {
			t.Fatalf("findings %+v, want %v", findings, want)
		}
		w.fix(findings)
		findings = w.check()
		want := []string{
			"ledger the tables with prefix lethe_", "privilege_missing contact", "privilege_missing do_not_contact", "privilege_missing note",
		}
		if got := w.codes(findings, ledger.SeverityError); !slices.Equal(got, want) {
			t.Fatalf("findings %v, want %v", got, want)
		}
		w.fix(findings)
		if left := w.codes(w.check(), ledger.SeverityError); len(left) > 0 {
			t.Fatalf("after the fixes there is still %v", left)
		}
		w.run = w.loginAs(w.role)
		w.r = w.replica()
		w.assign()
		w.person(1, 2)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, &schema.Objection{Raised: true, Scope: "direct_marketing"}),
			w.erasure(1), w.erasure(2), w.decide(2, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT state, COUNT(*) FROM lethe_pending GROUP BY state`, "verified|1")
		w.want(`SELECT crm_id, firstname, usable FROM contact ORDER BY crm_id`, "1|NULL|0\n2|Jeanne|1")
		w.want(`SELECT COUNT(*) FROM do_not_contact`, "1")
		if _, err := w.run.ExecContext(w.ctx, `UPDATE contact SET crm_id = 9`); !denied(err) {
			t.Errorf("the run role may change the CRM key: %v", err)
		}
		if _, err := w.run.ExecContext(w.ctx, `DELETE FROM lethe_receipt`); !denied(err) {
			t.Errorf("the run role may delete receipts: %v", err)
		}
	})
}

// An owner sees at once what the run role lacks, and run refuses to start without the sight of every table.
func TestOwnerGrantsEverythingAtOnce(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := bare(t, flavor)
		w.fix(w.checkAs())
		if left := w.codes(w.checkAs(), ledger.SeverityError); len(left) > 0 {
			t.Errorf("after the fixes there is still %v", left)
		}
		if left := w.codes(w.check(), ledger.SeverityError); len(left) > 0 {
			t.Errorf("the run role sees %v", left)
		}
		w.exec(`REVOKE REFERENCES ON ` + databasePattern(w.name, false) + `.* FROM ` + w.role + `@'%'`)
		w.run = w.loginAs(w.role)
		err := w.replica().Start(w.ctx)
		if err == nil || !strings.Contains(err.Error(), "foreign keys of every table") {
			t.Errorf("run starts without seeing every table: %v", err)
		}
	})
}

// A session knows the grants on a whole database as they were when it entered it: a worker that was running while they were
// given must not overlook a table for the rest of its life.
func TestSightIsThatOfNow(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor)
		sight := ` ON ` + databasePattern(w.name, false) + `.* `
		w.exec(`REVOKE REFERENCES` + sight + `FROM ` + w.role + `@'%';
			CREATE TABLE visit (contact_id BIGINT, ip_address VARCHAR(40), FOREIGN KEY (contact_id) REFERENCES contact (contact_id))`)
		pool := w.login(w.role)
		pool.SetMaxOpenConns(1) // the session that is there already
		if err := pool.PingContext(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.exec(`GRANT REFERENCES` + sight + `TO ` + w.role + `@'%'`)
		m, findings, err := compile(w.ctx, pool, w.cfg)
		if err != nil || ledger.ErrorOf("", findings) != nil || !slices.Equal(m.Unmapped, []string{w.name + ".visit.ip_address"}) {
			t.Errorf("findings %+v, %v; unmapped %v", findings, err, m.Unmapped)
		}
	})
}

// What check prints for Lethe's own tables leaves behind what Setup does.
func TestCheckPrintsWhatSetupDoes(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor)
		grants := func() string {
			return w.lines(`SELECT Table_name, Table_priv, Column_priv FROM mysql.tables_priv WHERE Db = DATABASE() AND Table_name LIKE 'lethe\_%' ORDER BY 1`)
		}
		want := w.left() + grants()
		w.exec(UninstallSQL(w.cfg))
		w.fix(w.checkAs())
		if got := w.left() + grants(); got != want {
			t.Errorf("the statements leave\n%s\nand Setup\n%s", got, want)
		}
	})
}

// faulty are worlds in which something is wrong, and what a check says of it.
var faulty = map[string]struct {
	change func(*config.Replica)
	broken string
	want   string // code and object
	says   string
	fixed  bool // the statement mends it
	one    bool // both servers behave alike: MariaDB is enough
}{
	"column":    {broken: `ALTER TABLE contact DROP COLUMN offers`, want: "column_missing contact.offers", says: "does not exist", one: true},
	"table":     {broken: `DROP TABLE note`, want: "table_missing note", says: "correct the mapping", one: true},
	"engine":    {broken: `ALTER TABLE note DROP FOREIGN KEY note_ibfk_1; ALTER TABLE note ENGINE=MyISAM`, want: "table_engine note", says: "MyISAM", fixed: true},
	"privilege": {broken: `REVOKE UPDATE ON contact FROM {role}`, want: "privilege_missing contact", says: "lacks UPDATE on", fixed: true},
	"delete":    {broken: `REVOKE DELETE ON note FROM {role}`, want: "privilege_missing note", says: "may not delete", fixed: true},
	"sight":     {broken: `REVOKE REFERENCES ON {db}.* FROM {role}`, want: "privilege_missing ", says: "does not see", fixed: true},
	"ledger table": {
		broken: `REVOKE INSERT ON lethe_receipt FROM {role}`, want: "privilege_missing lethe_receipt", says: "lacks INSERT", fixed: true,
	},
	"ledger meta": {broken: `REVOKE SELECT ON lethe_meta FROM {role}`, want: "privilege_missing lethe_meta", says: "lacks SELECT", fixed: true},
	"digest": {
		broken: `UPDATE lethe_meta SET v = 'ab' WHERE k = 'mapping_digest'`, want: "mapping_digest the tables with prefix lethe_", says: "another mapping is the active one",
		fixed: true, one: true,
	},
	"foreign": {broken: `UPDATE lethe_meta SET v = 'other' WHERE k = 'replica'`, want: "ledger the tables with prefix lethe_", says: "of its own", one: true},
	"newer":   {broken: `UPDATE lethe_meta SET v = '99' WHERE k = 'schema_version'`, want: "ledger the tables with prefix lethe_", says: "newer Lethe", one: true},
	"cut off": {
		broken: `DELETE FROM lethe_meta WHERE k = 'schema_version'`, want: "ledger the tables with prefix lethe_", says: "lethe setup", fixed: true, one: true,
	},
	"witness": {broken: `REVOKE ALL ON lethe_witness FROM {role}`, want: "privilege_missing lethe_witness", says: "lacks", fixed: true},
	"audience": {
		change: func(c *config.Replica) { c.Audience = "select contact_id contact where" }, want: "audience marketing.audience", says: "1064",
	},
	"audience column": {
		change: func(c *config.Replica) { c.Audience = "select contact_id from contact where gone" }, want: "audience marketing.audience", says: "1054",
	},
	"audience of two columns": {
		change: func(c *config.Replica) { c.Audience = "select contact_id, crm_id from contact" }, want: "audience marketing.audience", says: "1222",
	},
	"audience that writes": {
		change: func(c *config.Replica) { c.Audience = "delete from contact" }, want: "audience marketing.audience", says: "1064",
	},
	"audience of two statements": {
		change: func(c *config.Replica) { c.Audience = "select 1) q) a; delete from contact; --" }, want: "audience marketing.audience", says: "1064",
	},
	"audience privilege": {
		broken: "CREATE TABLE `seg ment` (member bigint)",
		change: func(c *config.Replica) { c.Audience = "select member from `seg ment`" }, want: "privilege_missing seg ment", says: "lacks SELECT on member", fixed: true,
	},
}

func TestCheckNamesEachFault(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		mended := newWorld(t, flavor) // what a fix mends is whole again for the next fault
		for name, tc := range faulty {
			if tc.one && flavor != testenv.MariaDB {
				continue
			}
			t.Run(name, func(t *testing.T) {
				w := mended
				if !tc.fixed && tc.broken != "" {
					w = newWorld(t, flavor)
				}
				w.cfg = leads()
				if tc.change != nil {
					tc.change(w.cfg)
					w.setup()
					defer func() { w.cfg = leads(); w.setup() }()
				}
				if tc.broken != "" {
					if left := w.codes(w.check(), ledger.SeverityError); tc.change == nil && len(left) > 0 {
						t.Fatalf("before the fault there is %v", left)
					}
					w.exec(strings.NewReplacer("{role}", w.role+"@'%'", "{db}", databasePattern(w.name, false)).Replace(tc.broken))
				}
				findings := w.check()
				i := slices.IndexFunc(findings, func(f Finding) bool {
					return f.Severity == ledger.SeverityError && w.codes([]Finding{f}, f.Severity)[0] == tc.want && strings.Contains(f.Message, tc.says)
				})
				if i < 0 {
					t.Fatalf("want %s (%s), got %+v", tc.want, tc.says, findings)
				}
				if !tc.fixed {
					return
				}
				w.fix(findings)
				if left := w.codes(w.check(), ledger.SeverityError); len(left) > 0 {
					t.Errorf("after the fix there is still %v", left)
				}
			})
		}
	})
}

func TestCheckWarnsOfWhatOutlivesAnErasure(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor)
		w.exec(`ALTER TABLE contact ADD mobile VARCHAR(20);
			CREATE TABLE visit (contact_id BIGINT, ip_address VARCHAR(40), FOREIGN KEY (contact_id) REFERENCES contact (contact_id));
			CREATE TRIGGER history BEFORE UPDATE ON contact FOR EACH ROW SET @changed = 1`)
		findings := w.checkAs()
		for _, want := range []string{"unmapped_personal_data contact.mobile", "unmapped_personal_data visit.ip_address"} {
			if got := w.codes(findings, ledger.SeverityWarning); !slices.Contains(got, want) {
				t.Errorf("warnings %v, want %s", got, want)
			}
			// The run role has no privilege on visit, and sees it all the same.
			if got := w.codes(w.check(), ledger.SeverityWarning); !slices.Contains(got, want) {
				t.Errorf("warnings of the run role %v, want %s", got, want)
			}
		}
		if got := w.codes(findings, ledger.SeverityInfo); !slices.Contains(got, "trigger contact") {
			t.Errorf("infos %v", got)
		}
	})
}

func TestCheckOfTheReadBackLogin(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor)
		o := w.options()
		o.Role, o.VerifyRole = w.role, testenv.UniqueName("verify")
		findings, err := Check(w.ctx, w.db, o)
		if got := w.codes(findings, ledger.SeverityError); err != nil || !slices.Equal(got, []string{"login_missing " + o.VerifyRole + "@%"}) {
			t.Fatalf("a login that does not exist: %v, %v", got, err)
		}
		w.fix(findings)
		t.Cleanup(func() { w.server.Exec(t, "", "DROP USER "+o.VerifyRole+"@'%'") })
		if findings, err = Check(w.ctx, w.db, o); err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if f.Code == ledger.CodePrivilege && (!strings.HasPrefix(f.FixSQL, "GRANT SELECT (") || !strings.Contains(f.FixSQL, o.VerifyRole)) {
				t.Errorf("the read-back login is to get %s", f.FixSQL)
			}
		}
		if len(w.codes(findings, ledger.SeverityError)) == 0 {
			t.Error("the read-back login lacks nothing")
		}
		w.fix(findings)
		findings, err = Check(w.ctx, w.db, o)
		if left := w.codes(findings, ledger.SeverityError); err != nil || len(left) > 0 {
			t.Errorf("after the grants: %v, %v", left, err)
		}
		// The run role may not look at the other login, and says so.
		findings, err = Check(w.ctx, w.login(w.role), o)
		if got := w.codes(findings, ledger.SeverityWarning); err != nil || !slices.Contains(got, "grants_unreadable "+o.VerifyRole+"@%") {
			t.Errorf("warnings %v, %v", got, err)
		}
		// That one itself may, also while it has no right in any database.
		w.exec("REVOKE ALL PRIVILEGES, GRANT OPTION FROM " + o.VerifyRole + "@'%'; ALTER USER " + o.VerifyRole + "@'%' ACCOUNT UNLOCK")
		c, err := driver.ParseDSN(w.server.DSN("", o.VerifyRole))
		if err != nil {
			t.Fatal(err)
		}
		if o.VerifyDB, err = Open(c, Session{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = o.VerifyDB.Close() })
		findings, err = Check(w.ctx, w.login(w.role), o)
		if got := w.codes(findings, ledger.SeverityError); err != nil || len(got) == 0 {
			t.Errorf("seen by itself, without any grant: %v, %v", got, err)
		}
		w.fix(findings)
		findings, err = Check(w.ctx, w.login(w.role), o)
		if left := append(w.codes(findings, ledger.SeverityError), w.codes(findings, ledger.SeverityWarning)...); err != nil || len(left) > 0 {
			t.Errorf("seen by itself, after the grants: %v, %v", left, err)
		}
	})
}

// Rights that come by a role, by a pattern or for all databases are rights.
func TestCheckKnowsRoles(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor)
		role, inner := testenv.UniqueName("role"), testenv.UniqueName("inner")
		t.Cleanup(func() { w.server.Exec(t, "", "DROP ROLE "+role+", "+inner) })
		w.exec(`REVOKE ALL PRIVILEGES, GRANT OPTION FROM ` + w.role + `@'%'; CREATE ROLE ` + role + `; CREATE ROLE ` + inner + `;
			GRANT SELECT, INSERT, UPDATE, DELETE ON ` + databasePattern(w.name, false) + `.* TO ` + inner + `; GRANT ` + inner + ` TO ` + role + `;
			GRANT ` + role + ` TO ` + w.role + `@'%'`)
		if left := w.codes(w.checkAs(), ledger.SeverityError); len(left) == 0 {
			t.Error("a role that is not active at login counts")
		}
		activate := `ALTER USER ` + w.role + `@'%' DEFAULT ROLE ` + role
		if flavor == testenv.MariaDB {
			activate = `SET DEFAULT ROLE ` + role + ` FOR ` + w.role + `@'%'`
		}
		w.exec(activate)
		for who, findings := range map[string][]Finding{"owner": w.checkAs(), "run role": w.check()} {
			if left := w.codes(findings, ledger.SeverityError); len(left) > 0 {
				t.Errorf("%s: with the rights of a role there is still %v", who, left)
			}
		}
	})
}

// A name without host means every account of it.
func TestEveryAccountOfALoginIsLookedAt(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor)
		w.exec(`CREATE USER ` + w.role + `@'10.%'`)
		t.Cleanup(func() { w.server.Exec(t, "", "DROP USER "+w.role+"@'10.%'") })
		findings := w.checkAs()
		if !slices.ContainsFunc(findings, func(f Finding) bool { return strings.Contains(f.FixSQL, "TO `"+w.role+"`@`10.%`;") }) {
			t.Fatalf("no finding of the second account: %+v", findings)
		}
		w.setup()
		w.fix(w.checkAs())
		if left := w.codes(w.checkAs(), ledger.SeverityError); len(left) > 0 {
			t.Errorf("after the fixes there is still %v", left)
		}
	})
}

func TestServerThatTakesNoWritesIsNamed(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor, Settings: map[string]string{"read_only": "1"}})
		s := &site{TB: t, ctx: t.Context(), server: server, cfg: leads(), name: server.NewDatabase(t)}
		findings, err := Check(s.ctx, s.login(server.Root()), CheckOptions{Name: "marketing", Source: "crm", Config: s.cfg})
		if err != nil || !slices.ContainsFunc(findings, func(f Finding) bool { return f.Code == CodeStandby && f.Severity == ledger.SeverityError }) {
			t.Errorf("findings %+v, %v", findings, err)
		}
	})
}

func TestGrantsAreParsed(t *testing.T) {
	g := parseGrants([]string{
		"GRANT USAGE ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*ABC ON x'",
		"GRANT RELOAD, PROCESS ON *.* TO `u`@`%`",
		"GRANT REFERENCES ON `my\\_db`.* TO `u`@`%`",
		"GRANT ALL PRIVILEGES ON `all`.* TO `u`@`%` WITH GRANT OPTION",
		"GRANT DELETE ON `shard_%`.* TO `u`@`%`",
		"GRANT SELECT (`a b`, `x,y)`, `t``k`), INSERT, UPDATE (`a ON b`) ON `db`.`ta ble` TO `u`@`%`",
		"GRANT SELECT (a, b) ON `db`.`old` TO `u`@`%`",
		"GRANT EXECUTE ON PROCEDURE `db`.`p` TO `u`@`%`",
		"GRANT `r`@`%`,`s`@`%` TO `u`@`%`",
		"GRANT `maria` TO `u`@`%`",
		"GRANT PROXY ON ``@`%` TO `u`@`%`",
		"SET DEFAULT ROLE `maria` FOR `u`@`%`",
		"GRANT", "GRANT SELECT", "GRANT SELECT (", "GRANT SELECT (`a`", "GRANT SELECT ON `db", "GRANT SELECT ON x", "REVOKE SELECT ON `secret`.* FROM `u`@`%`", "",
	}, false)
	for _, test := range []struct {
		privilege, database, table, column string
		want                               bool
	}{
		{"RELOAD", "any", "t", "", true},
		{"SELECT", "any", "t", "", false},
		{"REFERENCES", "my_db", "t", "", true},
		{"REFERENCES", "myxdb", "t", "", false},
		{"SELECT", "all", "t", "c", true},
		{"DELETE", "shard_7", "t", "", true},
		{"DELETE", "shards7", "t", "", true},
		{"DELETE", "shard", "t", "", false},
		{"SELECT", "db", "ta ble", "a b", true},
		{"SELECT", "db", "ta ble", "X,Y)", true},
		{"SELECT", "db", "ta ble", "t`k", true},
		{"SELECT", "db", "ta ble", "", false},
		{"INSERT", "db", "ta ble", "any", true},
		{"UPDATE", "db", "ta ble", "a ON b", true},
		{"UPDATE", "db", "ta ble", "other", false},
		{"SELECT", "db", "old", "b", true},
		{"EXECUTE", "db", "p", "", false},
		{"UPDATE", "db", "", "", false},
	} {
		if got := g.may(test.privilege, test.database, test.table, test.column); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
	if want := []account{{"r", "%", false}, {"s", "%", false}, {"maria", "", true}}; !slices.Equal(g.roles, want) {
		t.Errorf("roles %+v, want %+v", g.roles, want)
	}
	g = parseGrants([]string{"GRANT SELECT, INSERT ON *.* TO `u`@`%`", "REVOKE INSERT ON `hr`.* FROM `u`@`%`", "GRANT DELETE ON `a_b`.* TO `u`@`%`"}, true)
	if g.may("INSERT", "hr", "t", "") || !g.may("SELECT", "hr", "t", "") || !g.may("INSERT", "crm", "t", "") || g.may("DELETE", "axb", "t", "") {
		t.Error("partial revokes are not taken out, or a name is taken for a pattern")
	}
}

func FuzzParseGrants(f *testing.F) {
	f.Add("GRANT SELECT (`a`, `b`), UPDATE (`a`) ON `db`.`t` TO `u`@`%`")
	f.Add("GRANT `r`@`%`,`s`@`%` TO `u`@`%`")
	f.Add("REVOKE SELECT, INSERT ON `db`.* FROM `u`@`%`")
	f.Fuzz(func(t *testing.T, line string) {
		g := parseGrants([]string{line}, false)
		g.may("SELECT", "db", "t", "a")
	})
}
