package mysql

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// adopt makes tables, lets the run role change them, changes the mapping, and starts the replica anew.
func (w *world) adopt(ddl string, change func(c *config.Replica), tables ...string) {
	w.Helper()
	w.exec(ddl)
	for _, table := range tables {
		w.grant("SELECT, INSERT, UPDATE, DELETE", table)
	}
	change(w.cfg)
	w.restart()
}

// everyAction is a mapping with every kind of erasure, in tables that hang on each other.
func (w *world) everyAction() {
	w.Helper()
	w.adopt(`
		CREATE TABLE profile (
			id INT AUTO_INCREMENT PRIMARY KEY, contact_id BIGINT NOT NULL UNIQUE, login VARCHAR(60) NOT NULL UNIQUE, zip VARCHAR(10), birth_date DATE,
			age INT, comments VARCHAR(20) NOT NULL, traits JSON, initial CHAR(1) AS (LEFT(comments, 1)) STORED, changed_at DATETIME(2) NULL,
			FOREIGN KEY (contact_id) REFERENCES contact (contact_id));
		CREATE TABLE visit (visit_id INT AUTO_INCREMENT PRIMARY KEY, contact_id BIGINT NULL, page VARCHAR(20),
			FOREIGN KEY (contact_id) REFERENCES contact (contact_id));
		CREATE TABLE reply (reply_id INT AUTO_INCREMENT PRIMARY KEY, contact_id BIGINT NOT NULL, note_id BIGINT NOT NULL, body TEXT,
			KEY (contact_id), FOREIGN KEY (note_id) REFERENCES note (note_id));
		CREATE TABLE invoice (invoice_id BIGINT PRIMARY KEY, contact_id BIGINT, payer_name TEXT, made_on DATE,
			FOREIGN KEY (contact_id) REFERENCES contact (contact_id))`,
		func(c *config.Replica) {
			c.Erase.Tables["profile"] = &config.EraseTable{By: "contact_id", Set: map[string]config.Value{
				"login": {Kind: ledger.KindToken, Token: "gone-{random}"}, "zip": {Kind: ledger.KindTruncate, Truncate: 2},
				"birth_date": {Kind: ledger.KindGeneralise, Generalise: "year"}, "age": {Kind: ledger.KindGeneralise, Generalise: "10"},
				"comments": fixed("erased"), "changed_at": kindOf(ledger.KindNow),
			}, JSON: map[string]map[string]config.Value{"traits": {"likes": nulled(), "home.city": fixed("-")}}}
			c.Erase.Tables["visit"] = &config.EraseTable{By: "contact_id", Unlink: true}
			c.Erase.Tables["reply"] = &config.EraseTable{By: "contact_id", Delete: true}
			c.Hold = map[string]config.Hold{"invoice": {By: "contact_id", Basis: "legal_obligation", For: config.Period{Years: 10}, From: "invoice.made_on"}}
		}, "profile", "visit", "reply", "invoice")
	w.person(1, 2)
	w.exec(`
		INSERT INTO profile (contact_id, login, zip, birth_date, age, comments, traits)
			SELECT contact_id, CONCAT('jeanne', crm_id), '44000', '1980-06-15', 47, 'Erased', '{"likes": "boats", "home": {"city": "Nantes", "floor": 2}}' FROM contact;
		INSERT INTO visit (contact_id, page) SELECT contact_id, '/' FROM contact;
		INSERT INTO reply (contact_id, note_id, body) SELECT contact_id, note_id, 'yes' FROM note;
		INSERT INTO invoice SELECT contact_id * 10 + i, contact_id, 'Jeanne', DATE_ADD('2020-02-29', INTERVAL i DAY) FROM contact, (SELECT 0 AS i UNION SELECT 1) x`)
}

const profiles = `SELECT p.login, p.zip, CAST(p.birth_date AS CHAR), p.age, p.comments, p.initial, REPLACE(CAST(p.traits AS CHAR), ' ', ''), p.changed_at IS NULL
	FROM profile p JOIN contact c USING (contact_id) ORDER BY c.crm_id`

func TestEveryActionIsDoneAndReadBack(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.everyAction()
		before := strings.Split(w.lines(profiles), "\n")
		w.apply(w.erasure(1))
		w.runDue()
		w.states(1, "suppressed applied verified")
		after := strings.Split(w.lines(profiles), "\n")
		form := regexp.MustCompile(`^gone-[0-9a-f]{32}\|44\|1980-01-01\|40\|erased\|e\|\{"home":\{"city":"-","floor":2\},"likes":null\}\|0$`)
		if got := sortedTraits(after[0]); !form.MatchString(got) {
			w.Errorf("the erased person's profile is %s", got)
		}
		if after[1] != before[1] {
			w.Errorf("the other person's profile was %s and is %s", before[1], after[1])
		}
		w.want(`SELECT COUNT(contact_id), COUNT(*) FROM visit`, "1|2")
		w.want(`SELECT COUNT(*) FROM reply`, "1")
		w.want(`SELECT COUNT(payer_name) FROM invoice`, "4")
		for _, rc := range w.receipts() {
			if rc.State == schema.ReceiptApplied && rc.EventType == schema.TypeSubjectErasure {
				rows := map[string]int64{}
				for _, r := range rc.Rows {
					rows[r.Action] += r.Changed
				}
				if rows["delete"] != 2 || rows["unlink"] != 1 || rows["hold"] != 2 || rows["set"] != 2 {
					w.Errorf("the receipt counts %v", rows)
				}
			}
			for _, r := range rc.Residuals {
				if r.Kind != "backup" && (r.Kind != "hold:"+w.name+".invoice" || r.Until.Format("2006-01-02") != "2030-03-01") {
					w.Errorf("the proof names %s until %v", r.Kind, r.Until)
				}
			}
		}
	}, erasing)
}

// sortedTraits brings the members of the document into one order: MySQL keeps them by length and name, MariaDB as written.
func sortedTraits(line string) string {
	return strings.Replace(line, `{"likes":null,"home":{"city":"-","floor":2}}`, `{"home":{"city":"-","floor":2},"likes":null}`, 1)
}

// Whatever of a mapped value comes back, or stays, is found.
func TestEveryResidualIsFound(t *testing.T) {
	residuals := map[string]string{
		"null":         `UPDATE contact SET email = 'x@exemple.fr' WHERE crm_id = 1`,
		"token":        `UPDATE profile SET login = 'GONE-0123456789abcdef0123456789abcdef' WHERE id = 1`,
		"truncate":     `UPDATE profile SET zip = '44000' WHERE id = 1`,
		"generalise":   `UPDATE profile SET birth_date = '1980-06-15' WHERE id = 1`,
		"number":       `UPDATE profile SET age = 47 WHERE id = 1`,
		"constant":     `UPDATE profile SET comments = 'Erased' WHERE id = 1`,
		"json":         `UPDATE profile SET traits = JSON_SET(traits, '$.home.city', 'Nantes') WHERE id = 1`,
		"delete":       `INSERT INTO note (contact_id, body) SELECT contact_id, 'again' FROM contact WHERE crm_id = 1`,
		"unlink":       `INSERT INTO visit (contact_id, page) SELECT contact_id, '/' FROM contact WHERE crm_id = 1`,
		"suppress":     `UPDATE contact SET usable = 1 WHERE crm_id = 1`,
		"insert":       `DELETE FROM do_not_contact`,
		"fold":         `UPDATE contact SET newsletter = 1 WHERE crm_id = 1`,
		"second row":   `ALTER TABLE contact DROP INDEX crm_id, ADD INDEX (crm_id); INSERT INTO contact (crm_id, firstname, usable, newsletter, offers) VALUES (1, 'Jeanne', 0, 0, 0)`,
		"nothing":      `SELECT 1`,
		"other person": `UPDATE contact SET email = 'y@exemple.fr', usable = 1, newsletter = 1 WHERE crm_id = 2`,
	}
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorld(t, flavor, erasing, func(c *config.Replica) { c.Audience = "" })
		w.everyAction()
		w.apply(w.erasure(1))
		w.runDue()
		w.states(1, "suppressed applied verified")
		for name, change := range residuals {
			if name == "second row" {
				continue
			}
			w.residual(name, change)
		}
		w.residual("second row", residuals["second row"])
	})
}

// residual runs a change behind a verified erasure, and asks the read-back what it finds. Then phase 2 puts it right.
func (w *world) residual(name, change string) {
	w.Helper()
	w.exec(change)
	cases, err := w.r.collectCases(w.ctx, w.db, `SELECT `+caseColumns+` FROM {p}pending p`)
	if err != nil {
		w.Fatal(err)
	}
	remaining, _, err := w.r.readBack(w.ctx, cases)
	if err != nil {
		w.Fatal(err)
	}
	if clean := name == "nothing" || name == "other person"; (remaining[0] == 0) != clean {
		w.Errorf("%s: the read-back finds %d", name, remaining[0])
	}
	w.exec(`UPDATE lethe_pending SET state = 'suppressed', due_at = UTC_TIMESTAMP(6)`)
	w.runDue()
	if got := w.lines(`SELECT state FROM lethe_pending`); got != "verified" {
		w.Errorf("%s: phase 2 leaves the case %s", name, got)
	}
}

func TestObjectionIsReadBack(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		w.exec(`UPDATE contact SET no_marketing = 'N'`) // another writer
		w.runDue()
		w.want(`SELECT attempts, error_code FROM lethe_readback`, "1|not_followed")
		w.want(`SELECT no_marketing FROM contact`, "Y")
		w.due("readback", "due_at")
		w.runDue()
		w.want(`SELECT COUNT(*) FROM lethe_readback`, "0")
		w.want(`SELECT GROUP_CONCAT(state ORDER BY made_at SEPARATOR ' ') FROM lethe_receipt`, "applied verified")
	}, erasing)
}

// Who has objected to all marketing may be in no audience, whatever the columns say.
func TestAudienceOfAnObjectorIsAResidual(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		for range ledger.MaxAttempts {
			w.runDue()
			w.due("readback", "due_at")
		}
		w.want(`SELECT GROUP_CONCAT(state ORDER BY made_at SEPARATOR ' ') FROM lethe_receipt`, "applied failed")
		w.want(`SELECT COUNT(*) FROM lethe_readback`, "0")
	}, erasing, func(c *config.Replica) { c.Audience = "select contact_id from contact" })
}

// The audience query may only read.
func TestAudienceQueryCannotWrite(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(`SET GLOBAL log_bin_trust_function_creators = 1`)
		w.exec(`CREATE FUNCTION meddle() RETURNS INT BEGIN UPDATE contact SET firstname = 'Nobody'; RETURN 1; END`)
		w.exec(`GRANT EXECUTE ON FUNCTION meddle TO ` + w.role + `@'%'`)
		w.person(1)
		w.apply(w.erasure(1))
		if _, err := w.r.RunDue(w.ctx, w.All()); err == nil {
			w.Error("an audience query that writes was run")
		}
		w.want(`SELECT COUNT(*) FROM contact WHERE firstname = 'Nobody'`, "0")
		w.want(`SELECT state FROM lethe_pending`, "applied")
	}, erasing, func(c *config.Replica) { c.Audience = "select contact_id from contact where meddle() = 1" })
}

func TestPartialRestoreIsErasedAgain(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.apply(w.erasure(1), w.event(2, consent("newsletter", schema.ConsentWithdrawn)))
		w.runDue()
		w.states(1, "suppressed applied verified")
		// The mapped database comes back from a backup: its persons, and its witness.
		w.exec(`UPDATE contact SET firstname = 'Jeanne', email = 'x@exemple.fr', usable = 1, newsletter = 1; UPDATE lethe_witness SET n = 0`)
		w.runDue()
		w.want(`SELECT firstname IS NULL, email IS NULL, usable, newsletter FROM contact ORDER BY crm_id`, "1|1|0|0\n0|0|1|0")
		w.want(`SELECT state, attempts FROM lethe_pending`, "verified|4") // a round of its own
		w.want(`SELECT n = (SELECT v FROM lethe_meta WHERE k = 'witness') FROM lethe_witness`, "1")
		w.states(1, "suppressed applied verified applied verified")
	}, erasing)
}

// What was read back before somebody else saw a restore proves nothing.
func TestReadBackBeforeARestoreProvesNothing(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		if _, err := w.r.runPhase2(w.ctx, w.All()); err != nil {
			w.Fatal(err)
		}
		cases, err := w.r.collectCases(w.ctx, w.db, `SELECT `+caseColumns+` FROM {p}pending p`)
		if err != nil || len(cases) != 1 {
			w.Fatalf("cases: %d, %v", len(cases), err)
		}
		remaining, at, err := w.r.readBack(w.ctx, cases)
		if err != nil {
			w.Fatal(err)
		}
		w.exec(`UPDATE lethe_pending SET state = 'suppressed', due_at = '` + never + `'`) // as the owner of other partitions does
		err = w.r.inTx(w.ctx, "concluding", func(ctx context.Context, tx *tx) error { return w.r.conclude(ctx, tx, cases, remaining, at) })
		if err != nil {
			w.Fatal(err)
		}
		w.states(1, "suppressed applied")
	}, erasing)
}

// A person who is on the do-not-contact list for another reason already is erased like everybody else.
func TestOtherOptOutIsNoObstacle(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.exec(`INSERT INTO do_not_contact (contact_id, channel, reason) SELECT contact_id, 'email', 1 FROM contact`)
		w.apply(w.erasure(1))
		w.want(`SELECT usable, reason FROM contact JOIN do_not_contact USING (contact_id)`, "0|1")
		w.runDue()
		w.states(1, "suppressed applied verified")
		w.want(`SELECT COUNT(*) FROM do_not_contact`, "1")
	}, erasing)
}

// Where phase 2 takes the CRM key a second round finds nobody, and proves nothing.
func TestLostCRMKeyIsNoProof(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.adopt(`ALTER TABLE contact MODIFY crm_id BIGINT NULL`, func(c *config.Replica) {
			c.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{"crm_id": nulled(), "email": nulled(), "firstname": nulled()}}
		})
		w.person(1)
		w.apply(w.erasure(1))
		w.runDue()
		w.states(1, "suppressed applied verified")
		w.exec(`UPDATE contact SET firstname = 'Jeanne'; UPDATE lethe_witness SET n = 0`)
		w.runDue()
		w.want(`SELECT state, matched FROM lethe_pending`, "suppressed|0")
		w.states(1, "suppressed applied verified no_match")
	}, erasing)
}

// The proof of a second round has an id of its own, also where phase 2 has deleted the person's row.
func TestSecondRoundIsProvenAnew(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.runDue()
		w.want(`SELECT COUNT(*) FROM contact`, "0")
		w.states(1, "suppressed applied verified")
		w.exec(`UPDATE lethe_witness SET n = 0`)
		w.runDue()
		w.states(1, "suppressed applied verified applied verified")
		w.want(`SELECT state, matched, attempts FROM lethe_pending`, "verified|1|4")
	}, erasing, func(c *config.Replica) {
		c.Suppress = nil
		c.Erase.Tables["contact"] = &config.EraseTable{Delete: true}
		c.Erase.Tables["do_not_contact"] = &config.EraseTable{By: "contact_id", Delete: true}
	})
}

// Two persons whose CRM keys, and whose own keys, differ in capitals, accents and blanks at the end are two.
func TestCollationsMakeNoTwoPersonsOne(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.adopt(`
			CREATE TABLE member (
				id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, crm VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL,
				email VARCHAR(60), usable TINYINT(1) NOT NULL DEFAULT 1, KEY (crm));
			CREATE TABLE letter (letter_id INT AUTO_INCREMENT PRIMARY KEY, member_id VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_swedish_ci, body TEXT, KEY (member_id))`,
			func(c *config.Replica) {
				c.Person = config.Person{Table: "member", Key: "id", CRMKey: []string{"crm"}}
				c.Suppress = []config.Action{{Set: setOf("member", map[string]config.Value{"usable": fixed(false)})}}
				c.Erase.Tables = map[string]*config.EraseTable{
					"member": {Set: map[string]config.Value{"email": nulled()}}, "letter": {By: "member_id", Delete: true},
				}
				c.Consent, c.Objection, c.Restricted, c.Audience = nil, nil, nil, "select id from member where email is not null"
			}, "member", "letter")
		w.exec(`INSERT INTO member (id, crm, email) VALUES ('a1', 'anna', 'a'), ('A1', 'Anna', 'b'), ('á1', 'ánna', 'c'), ('b1', 'Anna ', 'd');
			INSERT INTO letter (member_id, body) SELECT id, 'x' FROM member`)
		w.apply(w.Event("Anna", &schema.SubjectErasure{}))
		w.runDue()
		w.want(`SELECT state FROM lethe_pending`, "verified")
		w.want(`SELECT CONCAT(id, '.'), email, usable FROM member ORDER BY email`, "A1.|NULL|0\na1.|a|1\ná1.|c|1\nb1.|d|1")
		w.want(`SELECT COUNT(*), SUM(member_id = 'A1' AND BINARY member_id = BINARY 'A1') FROM letter`, "3|0")
	}, erasing)
}

// The login that reads back needs no more than to read the mapped tables.
func TestReadBackNeedsToReadOnly(t *testing.T) {
	bothWorlds(t, func(w *world) {
		reader := testenv.UniqueName("read")
		w.exec("CREATE USER " + reader + "@'%'; GRANT SELECT ON contact TO " + reader + "@'%'; GRANT SELECT ON note TO " + reader +
			"@'%'; GRANT SELECT ON do_not_contact TO " + reader + "@'%'")
		w.Cleanup(func() { w.server.Exec(w, "", "DROP USER "+reader+"@'%'") })
		w.r = w.replica(func(o *Options) { o.VerifyDB = w.loginAs(reader) })
		w.assign()
		w.person(1, 2)
		w.apply(w.erasure(1), w.event(2, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		w.runDue()
		w.states(1, "suppressed applied verified")
		w.want(`SELECT COUNT(*) FROM lethe_receipt WHERE state = 'verified'`, "2")
	}, erasing)
}

// An audience query that never ends is ended by the server.
func TestAudienceQueryIsBounded(t *testing.T) {
	bothWorlds(t, func(w *world) {
		c, err := driver.ParseDSN(w.server.DSN(w.name, w.role))
		if err != nil {
			w.Fatal(err)
		}
		db, err := Open(c, Session{StatementTimeout: 500 * time.Millisecond})
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { _ = db.Close() })
		w.r = w.replica(func(o *Options) { o.VerifyDB = db })
		w.assign()
		w.person(1)
		w.apply(w.erasure(1))
		_, err = w.r.RunDue(w.ctx, w.All())
		if code := sinks.CodeOf(err); sinks.Classify(err) != sinks.Transient || code != "mysql_1969" && code != "mysql_3024" {
			w.Errorf("an audience query without an end is %v", err)
		}
		w.want(`SELECT state FROM lethe_pending`, "applied")
	}, erasing, func(c *config.Replica) { c.Audience = "select contact_id from contact where sleep(20) = 0" })
}
