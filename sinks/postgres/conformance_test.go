package postgres

import (
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func TestConformance(t *testing.T) { sinktest.Run(t, harness{}) }

type harness struct{}

// New implements sinktest.Harness: the mapping of marketing(), as the suite wants it.
func (harness) New(t *testing.T, s sinktest.Setup) sinktest.Instance {
	i := &instance{world: newWorld(t, 15, func(c *config.Replica) {
		c.Mode = s.Mode
		c.Erase.CoolOff = s.CoolOff
		c.Gated = s.Gated
		c.Breaker = config.Breaker{NewCases: s.NewCases, Window: s.Window}
		if s.NewCases == 0 {
			c.Breaker = config.Breaker{NewCases: 1000, Window: time.Minute}
		}
		if s.Mode != ledger.ModeErase {
			c.Erase = config.Erase{}
		}
	})}
	i.exec(`DELETE FROM lethe.partition`) // the suite's log has another number of partitions
	return i
}

type instance struct{ *world }

// Open implements sinktest.Instance.
func (i *instance) Open() sinks.Replica {
	r, err := New(Options{
		Name: "marketing", Source: "crm", Config: i.cfg, Pool: i.pool, Seal: i.keys, Pseudonym: sinktest.PRF("marketing"), Signer: i.keys,
		MappingDigest: i.cfg.Digest(), Version: "test", Logger: zerolog.Nop(),
		LockTimeout: 2 * time.Second, StatementTimeout: 10 * time.Second, RecheckFirst: 200 * time.Millisecond,
	})
	if err != nil {
		i.Fatal(err)
	}
	i.Cleanup(r.Close)
	return r
}

// InsertPerson implements sinktest.Instance.
func (i *instance) InsertPerson(crmKey string) {
	i.Helper()
	i.exec(`INSERT INTO contact (crm_id, firstname, email, newsletter) VALUES ($1::text::bigint, 'Jeanne', 'jeanne@exemple.fr', false)`, crmKey)
}

// ReadPerson implements sinktest.Instance.
func (i *instance) ReadPerson(crmKey string) (p sinktest.Person) {
	i.Helper()
	rows, err := i.admin.Query(i.ctx, `SELECT firstname IS NOT NULL OR email IS NOT NULL, usable, newsletter, no_marketing, frozen
		FROM contact WHERE crm_id = $1::text::bigint`, crmKey)
	if err != nil {
		i.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		p.Found = true
		if err := rows.Scan(&p.Personal, &p.Usable, &p.Newsletter, &p.Objects, &p.Frozen); err != nil {
			i.Fatal(err)
		}
	}
	if rows.Err() != nil {
		i.Fatal(rows.Err())
	}
	return p
}

// Refuse implements sinktest.Instance.
func (i *instance) Refuse(crmKey string, refuse bool) {
	i.Helper()
	i.exec(`CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$`)
	i.exec(`DROP TRIGGER IF EXISTS refuse ON contact`)
	if refuse {
		i.exec(`CREATE TRIGGER refuse BEFORE UPDATE ON contact FOR EACH ROW WHEN (OLD.crm_id = ` + crmKey + `) EXECUTE FUNCTION refuse()`)
	}
}

// Absent implements sinktest.Instance.
func (i *instance) Absent() (n int) {
	i.Helper()
	if err := i.admin.QueryRow(i.ctx, `SELECT count(*) FROM lethe.finding WHERE kind = 'absent'`).Scan(&n); err != nil {
		i.Fatal(err)
	}
	return n
}

// Encode implements sinktest.Instance.
func (i *instance) Encode(ev *schema.Event) []byte {
	i.Helper()
	value, err := schema.NewEncoder(i.keys).Append(nil, ev)
	if err != nil {
		i.Fatalf("encoding event: %v", err)
	}
	return value
}
