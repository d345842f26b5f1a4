package deploy

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"

	"lethe/config"
	"lethe/internal/demo"
	"lethe/internal/mysqlconn"
	"lethe/internal/pii"
	"lethe/internal/testenv"
	"lethe/sinks/mysql"
)

var flavors = []string{testenv.MariaDB, testenv.MySQLServer}

// mysqlDatabase is a database of a private server, where the scripts may make logins.
type mysqlDatabase struct {
	t      *testing.T
	server *testenv.MySQL
	name   string
}

// newMySQL runs a script twice, as after a change of the mapping, and gives the logins no password.
func newMySQL(t *testing.T, flavor, name, tables, script string, logins ...string) *mysqlDatabase {
	t.Helper()
	d := &mysqlDatabase{t: t, server: testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor}), name: name}
	d.server.Exec(t, "", "CREATE DATABASE "+name)
	d.server.Exec(t, name, tables)
	text := readFile(t, script)
	d.server.Exec(t, "", text, text)
	for _, login := range logins {
		if err := d.try(login, "SELECT 1"); pii.MySQLNumber(err) == 0 {
			t.Errorf("%s may log in without a password: %v", login, err)
		}
		d.server.Exec(t, "", "ALTER USER `"+login+"`@`%` ACCOUNT UNLOCK")
	}
	return d
}

func (d *mysqlDatabase) try(login, statement string) error {
	d.t.Helper()
	c, err := mysqlconn.Login{DSN: d.server.DSN("", login), Anywhere: true}.Config()
	if err != nil {
		d.t.Fatal(err)
	}
	connector, err := driver.NewConnector(c)
	if err != nil {
		d.t.Fatal(err)
	}
	pool := sql.OpenDB(connector)
	defer pool.Close()
	_, err = pool.ExecContext(d.t.Context(), statement)
	return err
}

func (d *mysqlDatabase) allowed(login string, statements ...string) {
	d.t.Helper()
	for _, statement := range statements {
		if err := d.try(login, statement); err != nil {
			d.t.Errorf("%s: %v\n%s", login, err, statement)
		}
	}
}

// denied wants statements refused for want of a privilege, and not for any other reason.
func (d *mysqlDatabase) denied(login string, statements ...string) {
	d.t.Helper()
	for _, statement := range statements {
		err := d.try(login, statement)
		switch pii.MySQLNumber(err) {
		case 1044, 1142, 1143, 1227, 1370:
		case 0:
			d.t.Errorf("%s may: %s (%v)", login, statement, err)
		default:
			d.t.Errorf("%s: %s: want a missing privilege, got %v", login, statement, err)
		}
	}
}

// The source's login reads the log and what `check` compares, and writes nothing but the heartbeat.
func TestMySQLSourceGrants(t *testing.T) {
	tables, _, _ := demo.MySQLSchemas()
	for _, flavor := range flavors {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			d := newMySQL(t, flavor, "crm", tables, "mysql-source.sql", "lethe")
			d.allowed("lethe",
				"SHOW BINARY LOGS", "SELECT customer_id, last_name, status FROM crm.customer", "SELECT consent_id, status FROM crm.consent",
				"UPDATE crm.lethe_heartbeat SET emitted_ms = 1, beat = beat + 1 WHERE id = 1", "DO GET_LOCK('lethe:crm', 0)",
				"SELECT 1 / COUNT(*) FROM information_schema.columns WHERE table_schema = 'crm' AND table_name = 'customer' AND column_name = 'no_marketing'",
			)
			d.denied("lethe",
				"SELECT last_contact FROM crm.customer", "SELECT body FROM crm.customer_note", "UPDATE crm.customer SET status = 'X'",
				"DELETE FROM crm.consent", "INSERT INTO crm.lethe_heartbeat VALUES (2, 0, 0)", "DELETE FROM crm.lethe_heartbeat",
				"CREATE TABLE crm.mine (a INT)", "ALTER TABLE crm.lethe_heartbeat ADD mine INT", "CREATE USER mine", "SET sql_log_bin = 0",
				"SET GLOBAL binlog_format = 'STATEMENT'", "SELECT * FROM mysql.user", "RESET "+map[string]string{testenv.MariaDB: "MASTER", testenv.MySQLServer: "BINARY LOGS AND GTIDS"}[flavor],
			)
		})
	}
}

// replicaConfig is the mapping that deploy/mysql-replica.sql grants.
const replicaConfig = `
version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: ["localhost:9092"]}
source:
  mysql: {dsn: "lethe@tcp(db)/crm"}
  subject: {table: crm.customer, key: customer_id, on_delete: erasure}
  erased: {when: 'status == "E"'}
  tables: {crm.customer: {erase: [last_name]}}
replicas:
  marketing:
    recipient: {name: Agency, role: processor}
    mode: erase
    mysql: {dsn: "lethe@tcp(db)/marketing", verify: {dsn: "lethe_verify@tcp(db)/marketing"}}
    person: {table: contact, key: contact_id, crm_key: crm_id}
    suppress:
      - set: {contact.blocked: true}
      - insert: {table: do_not_contact, values: {contact_id: $key, channel: all, reason: erased, added_at: $now}}
    erase:
      tables:
        contact: {set: {firstname: null, lastname: null, email: {token: "e-{random}@erased.invalid"}, mobile: null, city: null, profile: null}}
        contact_note: {by: contact_id, delete: true}
        campaign_send: {by: contact_id, set: {address: null}}
`

// The three logins of a replica: the owner makes Lethe's tables and reads nobody, the run role writes mapped columns and no
// proof away, the third one only reads.
func TestMySQLReplicaGrants(t *testing.T) {
	cfg, err := config.Parse([]byte(replicaConfig), "replica.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := cfg.Replicas["marketing"]
	_, tables, _ := demo.MySQLSchemas()
	for _, flavor := range flavors {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			d := newMySQL(t, flavor, "marketing", tables, "mysql-replica.sql", "lethe", "lethe_owner", "lethe_verify")
			d.server.Exec(t, "marketing", "INSERT INTO contact (contact_id, crm_id) VALUES (1, 1); INSERT INTO contact_note (contact_id) VALUES (1)")
			setUpMySQL(t, d, cfg.Name, r)
			setUpMySQL(t, d, cfg.Name, r) // Again, as after a change of the mapping.
			checkMySQLRun(d)
			d.allowed("lethe_verify", "SELECT contact_id, firstname FROM marketing.contact", "SELECT address FROM marketing.campaign_send")
			d.denied("lethe_verify",
				"SELECT body FROM marketing.contact_note", "UPDATE marketing.contact SET blocked = 0", "DELETE FROM marketing.contact_note",
				"SELECT * FROM marketing.lethe_receipt", "SELECT * FROM marketing.lethe_meta",
			)
			d.denied("lethe_owner", "SELECT firstname FROM marketing.contact", "UPDATE marketing.contact SET blocked = 0", "CREATE TABLE marketing.mine (a INT)",
				"GRANT SELECT ON marketing.contact TO lethe_verify", "DROP TABLE marketing.contact", "SELECT * FROM mysql.user")
		})
	}
}

// setUpMySQL does what lethe setup does, with the login of the owner.
func setUpMySQL(t *testing.T, d *mysqlDatabase, source string, r *config.Replica) {
	t.Helper()
	c, err := mysqlconn.Login{DSN: d.server.DSN(d.name, "lethe_owner")}.Config()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := mysql.Open(c, mysql.Session{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	_, err = mysql.Setup(context.WithoutCancel(t.Context()), pool, mysql.SetupOptions{Name: r.Name, Source: source, Config: r, Digest: r.Digest(), RunRole: "lethe"})
	if err != nil {
		t.Fatalf("%s: %v", d.server.Flavor(), err)
	}
}

func checkMySQLRun(d *mysqlDatabase) {
	d.t.Helper()
	d.allowed("lethe",
		"UPDATE marketing.contact SET firstname = NULL, blocked = 1 WHERE crm_id = 1",
		"DELETE FROM marketing.contact_note WHERE contact_id = 1",
		"INSERT INTO marketing.do_not_contact (contact_id, channel, reason, added_at) VALUES (1, 'all', 'erased', UTC_TIMESTAMP())",
		"DELETE FROM marketing.do_not_contact WHERE contact_id = 1 AND channel = 'all'",
		"INSERT INTO marketing.lethe_receipt (receipt_id, event_id, part, state, body) VALUES ('a', 'b', 0, 'verified', 'c')",
		"UPDATE marketing.lethe_receipt SET sent_at = UTC_TIMESTAMP() WHERE receipt_id = 'a'",
		"SELECT receipt_id FROM marketing.lethe_receipt WHERE sent_at IS NOT NULL FOR UPDATE SKIP LOCKED",
		"UPDATE marketing.lethe_witness SET n = n + 1",
		"INSERT INTO marketing.lethe_meta (k, v) VALUES ('paused', '1') ON DUPLICATE KEY UPDATE v = VALUES(v)",
		"DELETE FROM marketing.lethe_meta WHERE k = 'paused'",
		"SELECT * FROM marketing.lethe_status",
	)
	denied := []string{
		"UPDATE marketing.contact SET crm_id = 2", "DELETE FROM marketing.contact", "INSERT INTO marketing.contact (crm_id) VALUES (3)",
		"SELECT body FROM marketing.contact_note", "UPDATE marketing.lethe_receipt SET body = 'c'", "CREATE TABLE marketing.mine (a INT)",
		"DROP TABLE marketing.lethe_fact", "ALTER TABLE marketing.lethe_receipt ADD mine INT", "TRUNCATE marketing.lethe_receipt",
	}
	for _, table := range strings.Fields("receipt subject partition decision gap parked witness") {
		denied = append(denied, fmt.Sprintf("DELETE FROM marketing.lethe_%s", table))
	}
	d.denied("lethe", denied...)
}
