package e2e

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lethe/internal/app"
	"lethe/internal/demo"
	"lethe/internal/testenv"
)

// engines are the servers of a world's databases that are not on PostgreSQL; nil: PostgreSQL.
type engines struct{ crm, marketing, reporting *testenv.MySQL }

// sharedEngines are servers of these flavors for CRM, marketing and reporting that other tests use too; empty: PostgreSQL.
func sharedEngines(t *testing.T, flavors [3]string) (on engines) {
	t.Helper()
	for i, server := range []**testenv.MySQL{&on.crm, &on.marketing, &on.reporting} {
		if flavors[i] != "" {
			*server = testenv.SharedMySQL(t, flavors[i])
		}
	}
	return on
}

// anywhere plays a test on PostgreSQL, and with the CRM and the replicas on MySQL and MariaDB by turns.
func anywhere(t *testing.T, play func(t *testing.T, o options)) {
	t.Helper()
	my, maria := testenv.MySQLServer, testenv.MariaDB
	for name, flavors := range map[string][3]string{"postgres": {}, my: {my, maria, my}, maria: {maria, my, maria}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, options{on: sharedEngines(t, flavors)})
		})
	}
}

// cutStream ends the connection by which the log is read, and nothing else.
func (w *world) cutStream() {
	w.t.Helper()
	if w.crm.mysql == nil {
		if got := w.query(&w.crm, "select count(pg_terminate_backend(active_pid)) from pg_replication_slots where slot_name = $1", w.name); got != "1" {
			w.t.Errorf("terminated %s walsenders", got)
		}
		return
	}
	ids := strings.Fields(w.query(&w.crm, "select id from information_schema.processlist where command like 'Binlog Dump%' and user = $1", w.crm.run))
	if len(ids) != 1 {
		w.t.Errorf("%d connections read the log", len(ids))
	}
	for _, id := range ids {
		w.exec(&w.crm, "kill "+id)
	}
}

// openMySQL makes one of the three databases with the publisher's tables. The logins are made by the scripts of deploy/.
func (w *world) openMySQL(db *database, server *testenv.MySQL, prefix, tables string) {
	w.t.Helper()
	*db = database{
		mysql: server, name: server.NewDatabase(w.t), run: w.name + prefix, owner: w.name + prefix + "_owner", verify: w.name + prefix + "_verify",
	}
	server.Exec(w.t, db.name, tables)
	db.pool = server.Open(w.t, db.name)
	w.listen(db)
}

// listen opens the connection of the oracle.
func (w *world) listen(db *database) {
	w.t.Helper()
	db.oracle = w.mysqlConn(db)
}

// mysqlConn is a connection of its own.
func (w *world) mysqlConn(db *database) *sql.Conn {
	w.t.Helper()
	conn, err := db.pool.Conn(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() }) // the server may be gone by the test's intent
	return conn
}

// databases are connections for the oracle; connections are new ones.
func (w *world) databases() demo.Databases { return w.publisherOn((*world).oracleOn) }

func (w *world) connections() demo.Databases {
	w.t.Helper()
	return w.publisherOn((*world).connect)
}

func (w *world) publisherOn(open func(*world, *database) demo.DB) demo.Databases {
	return demo.Databases{CRM: open(w, &w.crm), Marketing: open(w, &w.marketing), Reporting: open(w, &w.reporting)}
}

func (w *world) oracleOn(db *database) demo.DB {
	if db.mysql != nil {
		return demo.OnMySQL(db.oracle)
	}
	return demo.OnPostgres(db.conn)
}

func (w *world) connect(db *database) demo.DB {
	if db.mysql != nil {
		return demo.OnMySQL(w.mysqlConn(db))
	}
	return demo.OnPostgres(db.Connect(w.t, db.name))
}

func (d *database) mysqlExec(ctx context.Context, statement string, args ...any) error {
	statement, args = mysqlArgs(mysqlOf(statement), args)
	_, err := d.pool.ExecContext(ctx, statement, args...)
	return err
}

// mysqlScript runs a script of deploy/ as an administrator, with the names of this world, and gives the logins no password.
func (w *world) mysqlScript(db *database, file, database string, change func(string) string) {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join("../../deploy", file))
	if err != nil {
		w.t.Fatal(err)
	}
	script := change(string(text))
	for _, r := range [][2]string{
		{"`" + database + "`.*", "`" + strings.ReplaceAll(db.name, "_", `\_`) + "`.*"},
		{"`" + database + "`.", "`" + db.name + "`."},
		{"`lethe`@", "`" + db.run + "`@"},
		{"`lethe_owner`@", "`" + db.owner + "`@"},
		{"`lethe_verify`@", "`" + db.verify + "`@"},
	} {
		script = strings.ReplaceAll(script, r[0], r[1])
	}
	db.mysql.Exec(w.t, "", script)
	for _, login := range []string{db.run, db.owner, db.verify} {
		if strings.Contains(script, "`"+login+"`@") {
			db.mysql.Exec(w.t, "", "ALTER USER `"+login+"`@`%` ACCOUNT UNLOCK")
			w.t.Cleanup(func() {
				if db.mysql.PID() != 0 {
					db.mysql.Exec(w.t, "", "DROP USER IF EXISTS `"+login+"`@`%`")
				}
			})
		}
	}
}

// setupMySQLSource runs the source's script, and wants `lethe check` to find nothing to complain of then.
func (w *world) setupMySQLSource() {
	w.t.Helper()
	w.mysqlScript(&w.crm, "mysql-source.sql", "crm", func(s string) string { return s })
	w.wantSound(roleCapture, "mysql-source.sql")
}

// wantSound wants check to find no error of the database of a role.
func (w *world) wantSound(role, script string) {
	w.t.Helper()
	report, err := app.Check(w.ctx, w.cfg, []string{role})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Severity == app.SeverityError && f.IsSQL() {
			w.t.Errorf("after deploy/%s check finds: %s %s: %s %q", script, f.Code, f.Object, f.Message, f.Fix)
		}
	}
}

// reportingGrants stand in the place of those on the marketing replica's tables.
const reportingGrants = "GRANT SELECT (customer_sk, customer_nk, full_name, birth_year, gender, postcode, contactable, frozen, usable),\n" +
	"  UPDATE (full_name, birth_year, gender, postcode, contactable, frozen, usable) ON `marketing`.`dim_customer` TO `lethe`@`%`;\n" +
	"GRANT SELECT (survey_sk, customer_sk, answer), UPDATE (answer) ON `marketing`.`fact_survey` TO `lethe`@`%`;\n" +
	"GRANT SELECT (customer_sk, customer_nk, full_name, birth_year, gender, postcode, contactable, frozen, usable)" +
	" ON `marketing`.`dim_customer` TO `lethe_verify`@`%`;\n" +
	"GRANT SELECT (survey_sk, customer_sk, answer) ON `marketing`.`fact_survey` TO `lethe_verify`@`%`;\n"

// mappedGrant is a grant on a table of the marketing replica.
var mappedGrant = regexp.MustCompile("(?m)^GRANT [^;]*`marketing`\\.`(contact|contact_note|campaign_send|do_not_contact)`[^;]*;\n")

// setupMySQLReplica runs the replica's script and makes the tables with the owner's login.
func (w *world) setupMySQLReplica(name string) {
	w.t.Helper()
	db := w.replica(name)
	w.mysqlScript(db, "mysql-replica.sql", "marketing", func(s string) string {
		if name == "marketing" {
			return s
		}
		return mappedGrant.ReplaceAllString(s, "") + reportingGrants
	})
	w.activateMySQL(name)
	w.wantSound("sink="+name, "mysql-replica.sql")
}

// activateMySQL is `lethe setup` with the owner's login.
func (w *world) activateMySQL(name string) {
	w.t.Helper()
	db := w.replica(name)
	report, err := app.Setup(w.ctx, w.cfg, app.SetupOptions{ReplicaDSN: map[string]string{name: db.login(db.owner)}})
	if err != nil {
		w.t.Fatalf("setting up %s: %v %+v", name, err, report)
	}
}
