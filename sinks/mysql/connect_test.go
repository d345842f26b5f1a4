package mysql

import (
	"testing"

	driver "github.com/go-sql-driver/mysql"
)

// What a server sets by default, here in the dsn's place, leaves no row of a list away and no statement uncommitted.
func TestSessionsDoNotFollowTheServersDefaults(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		s := newSite(t, flavor)
		c, err := driver.ParseDSN(s.server.DSN(s.name, s.server.Root()))
		if err != nil {
			t.Fatal(err)
		}
		c.Params = map[string]string{"completion_type": "1", "sql_select_limit": "1", "autocommit": "0"}
		db, err := Open(c, Session{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		db.SetMaxOpenConns(1)
		tx, err := db.BeginTx(s.ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(s.ctx, `INSERT INTO contact (crm_id) VALUES (1), (2)`); err != nil {
			t.Fatal(err)
		}
		s.want(`SELECT COUNT(*) FROM contact`, "2") // through another session
		ids, err := column1[int](s.ctx, db, `SELECT crm_id FROM contact`)
		if err != nil || len(ids) != 2 {
			t.Errorf("%d rows, error %v", len(ids), err)
		}
	})
}
