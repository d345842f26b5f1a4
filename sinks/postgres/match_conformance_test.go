package postgres

import (
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func TestMatchConformance(t *testing.T) { sinktest.RunMatch(t, matchHarness{}) }

type matchHarness struct{}

// NewMatch implements sinktest.MatchHarness: the mapping of leads, as the suite wants it.
func (matchHarness) NewMatch(t *testing.T, s sinktest.Setup, withKey bool) sinktest.MatchInstance {
	t.Helper()
	i := &matchInstance{world: newLeads(t, func(c *config.Replica) {
		c.Mode, c.Erase.CoolOff = s.Mode, s.CoolOff
		c.Breaker = config.Breaker{NewCases: 1000, Window: time.Minute}
		c.Consent[1].Purpose = "offers"
		c.Find.Email, c.Find.Phone = []string{"lead.email"}, []string{"lead.phone"}
		if s.Mode != ledger.ModeErase {
			c.Erase = config.Erase{}
		}
		if withKey {
			c.Person.CRMKey = []string{"crm_id"}
		}
	})}
	i.exec(`DELETE FROM lethe.partition`) // the suite's log has another number of partitions
	return i
}

type matchInstance struct{ *world }

// Open implements sinktest.MatchInstance.
func (i *matchInstance) Open() sinks.Replica {
	i.Helper()
	r, err := New(Options{
		Name: "marketing", Source: "crm", Config: i.cfg, Pool: i.pool, Seal: i.keys, Pseudonym: sinktest.PRF("marketing"), Signer: i.keys,
		MappingDigest: i.cfg.Digest(), Version: "test", Logger: zerolog.Nop(), Match: sinktest.Maker{},
		LockTimeout: 2 * time.Second, StatementTimeout: 10 * time.Second, RecheckFirst: 200 * time.Millisecond,
	})
	if err != nil {
		i.Fatal(err)
	}
	i.Cleanup(r.Close)
	return r
}

func rowValues(row sinktest.Row) []any {
	var out []any
	for _, v := range []string{row.CRMKey, row.First, row.Last, row.Born, row.Email, row.Phone, row.Street, row.City} {
		out = append(out, textOrNull(v))
	}
	return out
}

// InsertRow implements sinktest.MatchInstance.
func (i *matchInstance) InsertRow(row sinktest.Row) string {
	i.Helper()
	var id int64
	err := i.admin.QueryRow(i.ctx, `INSERT INTO lead (crm_id, firstname, lastname, born, email, phone, street, city, newsletter, sms)
		VALUES ($1, $2, $3, $4::text::date, $5, $6, $7, $8, false, false) RETURNING id`, rowValues(row)...).Scan(&id)
	if err != nil {
		i.Fatal(err)
	}
	return strconv.FormatInt(id, 10)
}

// ChangeRow implements sinktest.MatchInstance.
func (i *matchInstance) ChangeRow(key string, row sinktest.Row) {
	i.Helper()
	i.exec(`UPDATE lead SET crm_id = $1, firstname = $2, lastname = $3, born = $4::text::date, email = $5, phone = $6, street = $7, city = $8 WHERE id = $9::text::bigint`,
		append(rowValues(row), key)...)
}

// ReadRow implements sinktest.MatchInstance.
func (i *matchInstance) ReadRow(key string) (p sinktest.RowState) {
	i.Helper()
	rows, err := i.admin.Query(i.ctx, `SELECT coalesce(firstname, lastname, born::text, email, phone, street, city) IS NOT NULL, usable, newsletter, sms, no_marketing, frozen
		FROM lead WHERE id = $1::text::bigint`, key)
	if err != nil {
		i.Fatal(err)
	}
	_, err = pgx.ForEachRow(rows, []any{&p.Personal, &p.Usable, &p.Newsletter, &p.Offers, &p.Objects, &p.Frozen}, func() error {
		p.Found = true
		return nil
	})
	if err != nil {
		i.Fatal(err)
	}
	return p
}

// Rescan implements sinktest.MatchInstance.
func (i *matchInstance) Rescan() { i.exec(`UPDATE lethe.scan SET wanted = true`) }

// IndexedKeys implements sinktest.MatchInstance.
func (i *matchInstance) IndexedKeys() (n int) {
	i.Helper()
	if err := i.admin.QueryRow(i.ctx, `SELECT count(*) FROM lethe.row_key`).Scan(&n); err != nil {
		i.Fatal(err)
	}
	return n
}

// Desk implements sinktest.MatchInstance.
func (i *matchInstance) Desk() sinktest.MatchDesk { return NewDesk(i.cfg, i.pool) }

// Encode implements sinktest.MatchInstance.
func (i *matchInstance) Encode(ev *schema.Event) []byte { return i.keys.Encode(i, ev) }
