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
