package mysql

import (
	"database/sql"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func TestMatchConformance(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) { sinktest.RunMatch(t, matchHarness{flavor}) })
}

type matchHarness struct{ flavor string }

// matching is the mapping of leads() for people who are found by what their rows say; its tables are findTables's.
func matching(c *config.Replica) {
	c.Find = &config.Find{
		Email: []string{"contact.email"}, Phone: []string{"contact.phone"}, Name: []string{"contact.firstname", "contact.lastname"},
		BirthDate: "contact.born", Postal: []string{"contact.street", "contact.city"}, Scan: time.Hour,
	}
	c.Person.CRMKey = nil
	c.Consent[1].Channel = "sms"
	if c.Mode != ledger.ModeErase {
		return
	}
	c.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{
		"firstname": nulled(), "lastname": nulled(), "email": nulled(), "phone": nulled(), "born": nulled(), "street": nulled(), "city": nulled(),
	}}
}

// matchColumns make mappedTables those of matching. The database's collation ignores capitals and accents.
const matchColumns = `ALTER TABLE contact ADD lastname VARCHAR(64), ADD phone VARCHAR(40), ADD born DATE, ADD street VARCHAR(80), ADD city VARCHAR(60),
	MODIFY crm_id BIGINT NULL, ALTER newsletter SET DEFAULT 0, ALTER offers SET DEFAULT 0`

// NewMatch implements sinktest.MatchHarness.
func (h matchHarness) NewMatch(t *testing.T, s sinktest.Setup, withKey bool) sinktest.MatchInstance {
	t.Helper()
	site := newSiteOn(t, testenv.SharedMySQL(t, h.flavor), func(c *config.Replica) {
		c.Mode, c.Erase.CoolOff = s.Mode, s.CoolOff
		c.Breaker = config.Breaker{NewCases: 1000, Window: time.Minute}
		if s.Mode != ledger.ModeErase {
			c.Erase = config.Erase{}
		}
		matching(c)
		if withKey {
			c.Person.CRMKey = []string{"crm_id"}
		}
	})
	site.exec(matchColumns)
	return &matchInstance{worldOn(t, site)}
}

type matchInstance struct{ *world }

// Open implements sinktest.MatchInstance.
func (i *matchInstance) Open() sinks.Replica {
	return i.replica(func(o *Options) { o.RecheckFirst, o.Logger = 200*time.Millisecond, zerolog.Nop() })
}

func rowValues(row sinktest.Row) []any {
	return []any{
		textArg(row.CRMKey), textArg(row.First), textArg(row.Last), textArg(row.Born), textArg(row.Email), textArg(row.Phone), textArg(row.Street), textArg(row.City),
	}
}

// InsertRow implements sinktest.MatchInstance.
func (i *matchInstance) InsertRow(row sinktest.Row) string {
	i.Helper()
	result, err := i.db.ExecContext(i.ctx, `INSERT INTO contact (crm_id, firstname, lastname, born, email, phone, street, city) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		rowValues(row)...)
	if err != nil {
		i.Fatal(err)
	}
	id, err := result.LastInsertId()
	if err != nil {
		i.Fatal(err)
	}
	return strconv.FormatInt(id, 10)
}

// ChangeRow implements sinktest.MatchInstance.
func (i *matchInstance) ChangeRow(key string, row sinktest.Row) {
	i.Helper()
	_, err := i.db.ExecContext(i.ctx, `UPDATE contact SET crm_id = ?, firstname = ?, lastname = ?, born = ?, email = ?, phone = ?, street = ?, city = ?
		WHERE contact_id = ?`, append(rowValues(row), key)...)
	if err != nil {
		i.Fatal(err)
	}
}

// ReadRow implements sinktest.MatchInstance.
func (i *matchInstance) ReadRow(key string) (p sinktest.RowState) {
	i.Helper()
	err := eachRow(i.ctx, i.db, `SELECT COALESCE(firstname, lastname, born, email, phone, street, city) IS NOT NULL, usable, newsletter, offers, no_marketing = 'Y', frozen
		FROM contact WHERE contact_id = ?`, []any{key}, func(rows *sql.Rows) error {
		p.Found = true
		return rows.Scan(&p.Personal, &p.Usable, &p.Newsletter, &p.Offers, &p.Objects, &p.Frozen)
	})
	if err != nil {
		i.Fatal(err)
	}
	return p
}

// Rescan implements sinktest.MatchInstance.
func (i *matchInstance) Rescan() { i.exec(`UPDATE lethe_scan SET wanted = 1`) }

// IndexedKeys implements sinktest.MatchInstance.
func (i *matchInstance) IndexedKeys() (n int) {
	i.Helper()
	if err := i.db.QueryRowContext(i.ctx, `SELECT COUNT(*) FROM lethe_row_key`).Scan(&n); err != nil {
		i.Fatal(err)
	}
	return n
}

// Desk implements sinktest.MatchInstance.
func (i *matchInstance) Desk() sinktest.MatchDesk { return NewDesk(i.cfg, i.run) }

// Encode implements sinktest.MatchInstance.
func (i *matchInstance) Encode(ev *schema.Event) []byte { return i.keys.Encode(i, ev) }

// newMatchWorld is a world whose mapping finds people; change edits it.
func newMatchWorld(t *testing.T, flavor, tables string, change ...func(*config.Replica)) *world {
	t.Helper()
	s := newSiteOn(t, testenv.SharedMySQL(t, flavor), append([]func(*config.Replica){erasing, matching}, change...)...)
	s.exec(matchColumns)
	if tables != "" {
		s.exec(tables)
	}
	return worldOn(t, s)
}

// mail makes the event that a person has an e-mail address.
func (w *world) mail(id int, address string) *schema.Event {
	return w.event(id, &schema.ContactPoint{Contact: schema.ContactRef{byte(id)}, Kind: schema.ContactEmail, Keys: sinktest.Maker{}.Email(address)})
}

// chores runs the chores so often that whatever follows at once has followed.
func (w *world) chores() {
	w.Helper()
	for range 12 {
		w.due("due", "recheck_at")
		w.runDue()
	}
}

// After a partial restore rows that were erased are back: they are found again by what they say, once all have been read anew.
func TestRestoredRowsAreFoundAgain(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newMatchWorld(t, flavor, "")
		w.exec(`INSERT INTO contact (email) VALUES ('jeanne@exemple.fr'), ('paul@exemple.fr'); CREATE TABLE backup AS SELECT * FROM contact;
			CREATE TABLE backup_witness AS SELECT * FROM lethe_witness`)
		w.chores()
		w.apply(w.mail(1, "jeanne@exemple.fr"), w.erasure(1))
		w.chores()
		w.states(1, "suppressed applied verified")
		w.want(`SELECT email FROM contact ORDER BY contact_id`, "NULL\npaul@exemple.fr")
		w.want(`SELECT COUNT(*) FROM lethe_row_key`, "1")
		w.exec(`DELETE FROM do_not_contact; DELETE FROM contact; INSERT INTO contact SELECT * FROM backup; DELETE FROM lethe_witness;
			INSERT INTO lethe_witness SELECT * FROM backup_witness`)
		w.r = w.replica() // which looks at the witnesses at once
		w.assign()
		w.chores()
		w.want(`SELECT email, usable FROM contact ORDER BY contact_id`, "NULL|0\npaul@exemple.fr|1")
		w.states(1, "suppressed applied verified applied verified")
	})
}

// Rows of other tables say who a person is too, their keys spelled otherwise; a change of hands of such a row is one of persons.
func TestPersonsAreFoundByRowsOfOtherTables(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newMatchWorld(t, flavor, `CREATE TABLE mailbox (id INT AUTO_INCREMENT PRIMARY KEY, contact_id BIGINT NOT NULL, address VARCHAR(90) CHARACTER SET latin1,
			FOREIGN KEY (contact_id) REFERENCES contact (contact_id))`, func(c *config.Replica) {
			c.Erase.Tables["mailbox"] = &config.EraseTable{By: "contact_id", Delete: true}
			c.Find.Email = []string{"contact.email", "mailbox.address"}
		})
		w.exec(`INSERT INTO contact (contact_id, firstname) VALUES (1, 'Jeanne'), (2, 'Paul'), (3, 'Luc');
			INSERT INTO mailbox (contact_id, address) VALUES (1, 'other@exemple.fr'), (1, 'jéanne@exemple.fr'), (2, 'jeanne@exemple.fr'), (3, 'luc@exemple.fr')`)
		w.apply(w.mail(1, "jéanne@exemple.fr"))
		w.chores()
		w.apply(w.erasure(1))
		w.chores()
		w.states(1, "suppressed applied verified")
		w.want(`SELECT contact_id, firstname, usable FROM contact ORDER BY contact_id`, "1|NULL|0\n2|Paul|1\n3|Luc|1")
		w.want(`SELECT contact_id, address FROM mailbox ORDER BY id`, "2|jeanne@exemple.fr\n3|luc@exemple.fr")
		w.want(`SELECT person FROM lethe_row_key ORDER BY person`, "2\n3")
	})
}

// The run role gets what finding people needs, and nothing more.
func TestCheckGrantsWhatFindingNeeds(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newMatchWorld(t, flavor, "")
		w.r.Close()
		w.exec(UninstallSQL(w.cfg) + `REVOKE ALL PRIVILEGES, GRANT OPTION FROM ` + w.role + `@'%'; GRANT EXECUTE ON ` + databasePattern(w.name, false) + `.* TO ` + w.role + `@'%'`)
		w.fix(w.check())
		w.fix(w.check())
		if left := w.codes(w.check(), ledger.SeverityError); len(left) > 0 {
			t.Fatalf("after the fixes there is still %v", left)
		}
		w.run = w.loginAs(w.role)
		w.r = w.replica()
		w.assign()
		w.exec(`INSERT INTO contact (email, firstname, lastname, born) VALUES ('jeanne@exemple.fr', 'Jeanne', 'Martin', '1970-01-01'), ('paul@exemple.fr', NULL, NULL, NULL)`)
		w.apply(w.mail(1, "jeanne@exemple.fr"), w.event(1, consent("newsletter", schema.ConsentGiven)))
		w.chores()
		w.want(`SELECT newsletter FROM contact ORDER BY contact_id`, "1\n0")
		w.apply(w.erasure(1))
		w.chores()
		w.states(1, "suppressed applied verified")
		w.exec(`UPDATE lethe_scan SET wanted = 1`)
		w.chores()
		if _, err := w.run.ExecContext(w.ctx, `UPDATE contact SET contact_id = 9`); !denied(err) {
			t.Errorf("the run role may change person.key: %v", err)
		}
		if _, err := w.run.ExecContext(w.ctx, `DELETE FROM lethe_match_pair`); !denied(err) {
			t.Errorf("the run role may forget what was decided: %v", err)
		}
	})
}

// An address that thousands have is nobody's: it leads nowhere, and reading stops early; the others of the batch are found. One
// that thousands of subjects hold is shared, whoever they are.
func TestPlaceholdersLeadNowhere(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newMatchWorld(t, flavor, "")
		w.exec(`SET SESSION /*M! max_recursive_iterations = 100000 */ /*!80000 cte_max_recursion_depth = 100000 */;
			INSERT INTO contact (email) WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 4500) SELECT 'info@exemple.fr' FROM n;
			INSERT INTO contact (contact_id, email) VALUES (9001, 'jeanne@exemple.fr'), (9002, 'paul@exemple.fr')`)
		w.chores()
		w.apply(w.mail(1, "info@exemple.fr"), w.mail(2, "jeanne@exemple.fr"), w.mail(3, "paul@exemple.fr"))
		w.exec(`SET SESSION /*M! max_recursive_iterations = 100000 */ /*!80000 cte_max_recursion_depth = 100000 */;
			INSERT INTO lethe_contact_key (ref, contact_ref, value, type, key_id, norm_version, standing)
			WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 4500)
			SELECT UNHEX(SHA2(n.n, 256)), k.contact_ref, k.value, k.type, k.key_id, k.norm_version, 'live' FROM n JOIN (SELECT * FROM lethe_contact_key
				WHERE value IN (SELECT value FROM lethe_row_key WHERE person = '9002')) k`)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, consent("newsletter", schema.ConsentGiven)))
		w.want(`SELECT contact_id FROM contact WHERE newsletter`, "9001")
		w.apply(w.event(3, &schema.Objection{Raised: true, Scope: "direct_marketing"}), w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		w.want(`SELECT contact_id FROM contact WHERE no_marketing = 'Y'`, "9002")
	})
}
