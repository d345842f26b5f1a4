package mysql

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

func TestConformance(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) { sinktest.Run(t, harness{flavor}) })
}

type harness struct{ flavor string }

// New implements sinktest.Harness: the mapping of leads(), as the suite wants it.
func (h harness) New(t *testing.T, s sinktest.Setup) sinktest.Instance {
	i := &instance{world: newWorld(t, h.flavor, func(c *config.Replica) {
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
	i.exec(`DELETE FROM lethe_partition`) // the suite's log has another number of partitions
	return i
}

type instance struct{ *world }

// Open implements sinktest.Instance.
func (i *instance) Open() sinks.Replica {
	return i.replica(func(o *Options) { o.RecheckFirst, o.Logger = 200*time.Millisecond, zerolog.Nop() })
}

// InsertPerson implements sinktest.Instance.
func (i *instance) InsertPerson(crmKey string) {
	i.Helper()
	i.exec(`INSERT INTO contact (crm_id, firstname, email, newsletter) VALUES (` + crmKey + `, 'Jeanne', 'jeanne@exemple.fr', 0)`)
}

// ReadPerson implements sinktest.Instance.
func (i *instance) ReadPerson(crmKey string) (p sinktest.Person) {
	i.Helper()
	rows, err := i.db.QueryContext(i.ctx, `SELECT firstname IS NOT NULL OR email IS NOT NULL, usable, newsletter, no_marketing = 'Y', frozen
		FROM contact WHERE crm_id = ?`, crmKey)
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
	if err := rows.Err(); err != nil {
		i.Fatal(err)
	}
	return p
}

// Refuse implements sinktest.Instance.
func (i *instance) Refuse(crmKey string, refuse bool) {
	i.Helper()
	i.exec(`DROP TRIGGER IF EXISTS refuse`)
	if refuse {
		i.exec(`CREATE TRIGGER refuse BEFORE UPDATE ON contact FOR EACH ROW
			BEGIN IF OLD.crm_id = ` + crmKey + ` THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF; END`)
	}
}

// Absent implements sinktest.Instance.
func (i *instance) Absent() (n int) {
	i.Helper()
	if err := i.db.QueryRowContext(i.ctx, `SELECT COUNT(*) FROM lethe_finding WHERE kind = 'absent'`).Scan(&n); err != nil {
		i.Fatal(err)
	}
	return n
}

// Encode implements sinktest.Instance.
func (i *instance) Encode(ev *schema.Event) []byte { return i.keys.Encode(i, ev) }
