package e2e

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"lethe/internal/canary"
	"lethe/internal/demo"
	"lethe/internal/testenv"
)

// As TestNothingPersonalIsLeftBehind, with a CRM on MySQL and a replica on MariaDB, and the other way round: constraints and
// triggers whose messages quote rows, connections that are killed, a code that nobody has mapped. go-mysql's own errors and
// its words on standard output quote rows too; whatever a process says is in its log here, standard output included.
func TestNothingPersonalIsLeftBehindOnMySQL(t *testing.T) {
	t.Parallel()
	my, maria := testenv.MySQLServer, testenv.MariaDB
	for _, flavors := range [][2]string{{my, maria}, {maria, my}} {
		t.Run(flavors[0], func(t *testing.T) {
			t.Parallel()
			crm := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavors[0]})
			broker := testenv.NewKafka(t, testenv.KafkaOptions{})
			w := newWorld(t, options{kafka: broker, on: engines{crm: crm, marketing: testenv.SharedMySQL(t, flavors[1])}})
			nothingPersonalOnMySQL(t, w, broker)
		})
	}
}

func nothingPersonalOnMySQL(t *testing.T, w *world, broker *testenv.Kafka) {
	t.Helper()
	w.exec(&w.marketing, "alter table contact add constraint quoting_"+w.name+" check (crm_id <> 10 or not offers_sms)")
	w.exec(&w.marketing, "create trigger refuse before update on contact for each row begin declare said varchar(128); "+
		"if old.crm_id = 20 and new.newsletter_optin <> old.newsletter_optin then set said = concat('cannot change ', coalesce(old.email, ''), old.lastname); "+
		"signal sqlstate '45000' set message_text = said; end if; end")
	for _, key := range []int64{markedKey, markedOther} {
		w.exec(&w.crm, "insert into customer (customer_id, last_name, first_name, national_id, gender) values ($1, 'Zqcanary', 'Zqcanary', '19999981234', 'F')", key)
		w.exec(&w.crm, "insert into customer_email (email_id, customer_id, email) values ($1, $1, 'zqcanary@exemple.fr')", key)
		w.exec(&w.crm, `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
			values ($1, 'NL', 'E', $1, 'Y', 'C', 'zqcanary-document')`, key)
		w.exec(&w.marketing, "insert into contact (crm_id, firstname, lastname, email) values ($1, 'Zqcanary', 'Zqcanary', concat($1, '@zqcanary.fr'))", key)
	}
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	w.exec(&w.crm, `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
		values (10, 'OFF', 'S', 10, 'Y', 'C', 'zqcanary-document') on duplicate key update status = 'Y'`)
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = 20 and purpose_code = 'NL'")
	for _, id := range []int64{markedKey, 40, 50, 60} {
		w.exec(&w.crm, "call gdpr_erase_identity($1)", id)
		w.exec(&w.crm, "call gdpr_erase_traces($1)", id)
	}
	w.holds(&w.marketing, "select firstname is null from contact where crm_id = $1", markedKey)
	w.holds(&w.marketing, "select count(*) > 0 from lethe.parked where error_code in ('mysql_3819', 'mysql_4025')")
	w.holds(&w.marketing, "select count(*) > 0 from lethe.parked where error_code = 'mysql_1644'")
	w.cutStream()
	p.steps(30)
	lethe.waitReady(within)
	w.holds(&w.marketing, "select count(*) > 2 from lethe.pending where state = 'verified'")

	answers := w.operator()
	w.exec(&w.crm, "insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis) values ($1, 'zqcanary-purpose', 'E', 1, 'Y', 'C')", markedOther)
	lethe.waitRole(soon, roleCapture, false)
	for _, path := range []string{"/metrics", "/readyz"} {
		_, body, err := lethe.get(path)
		if err != nil {
			t.Fatal(err)
		}
		answers[path] = body
	}
	lethe.terminate(15 * time.Second)
	if err := broker.Stop(); err != nil {
		t.Fatal(err)
	}
	w.scanMySQL(broker, answers)
}

// scanMySQL looks for the markers in what the process left: logs, config and keys, every topic as it lies on the disk,
// answers, and Lethe's own tables.
func (w *world) scanMySQL(broker *testenv.Kafka, answers map[string][]byte) {
	w.t.Helper()
	scanner, err := canary.New(append([]string{markedKeyText}, demo.Markers...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	var hits []canary.Hit
	for _, root := range []string{w.dir, broker.Dir} {
		found, err := scanner.Tree(root, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		hits = append(hits, found...)
	}
	for table, text := range w.mysqlLedger(&w.marketing) {
		answers[table] = text
	}
	for place, text := range answers {
		found, err := scanner.Reader(place, strings.NewReader(string(text)))
		if err != nil {
			w.t.Fatal(err)
		}
		hits = append(hits, found...)
	}
	for i, h := range hits {
		if i == 20 {
			w.t.Errorf("… and %d more", len(hits)-i)
			break
		}
		w.t.Error(h)
	}
	log, err := os.ReadFile(w.processes[len(w.processes)-1].log)
	if err != nil || !strings.Contains(string(log), "mysql_") && !strings.Contains(string(log), "MySQL") {
		w.t.Errorf("the process met no error of the databases: %v", err)
	}
	found, err := scanner.Reader("the CRM", strings.NewReader(w.query(&w.crm, "select last_name from customer where customer_id = $1", markedOther)))
	if err != nil || len(found) == 0 {
		w.t.Errorf("the scanner finds nothing in the CRM itself: %v", err)
	}
}

// mysqlLedger returns Lethe's own tables as text.
func (w *world) mysqlLedger(db *database) map[string][]byte {
	w.t.Helper()
	tables := strings.Fields(w.query(db, `select table_name from information_schema.tables where table_schema = database() and table_name like 'lethe\_%'`))
	if len(tables) < 8 {
		w.t.Fatalf("Lethe's tables are %q", tables)
	}
	out := map[string][]byte{}
	for _, table := range tables {
		out[table] = w.tableText(db, table)
	}
	return out
}

// tableText returns every value of a table.
func (w *world) tableText(db *database, table string) []byte {
	w.t.Helper()
	rows, err := db.pool.QueryContext(w.ctx, "select * from "+table)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		w.t.Fatal(err)
	}
	var text bytes.Buffer
	cells, into := make([]sql.RawBytes, len(names)), make([]any, len(names))
	for i := range cells {
		into[i] = &cells[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s\n", cells)
	}
	if err := rows.Err(); err != nil {
		w.t.Fatal(err)
	}
	return text.Bytes()
}
