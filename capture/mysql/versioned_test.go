package mysql

import (
	"errors"
	"testing"

	"lethe/internal/testenv"
)

// TestSystemVersioning: the log of such a table has a deletion as an update, and the old version of a row as a new row. That
// is refused, by check and by the stream.
func TestSystemVersioning(t *testing.T) {
	server := testenv.SharedMySQL(t, testenv.MariaDB)
	c := newChecked(t, server, map[string]TableNeeds{"customer": {Columns: []string{"id"}}},
		"CREATE TABLE customer (id INT PRIMARY KEY, v INT) WITH SYSTEM VERSIONING", "CREATE USER ~", "GRANT ALL ON *.* TO ~")
	server.Exec(t, c.db, heartbeatSQL(c.options.Heartbeat)...)
	findings := c.check(t)
	c.expect(t, findings, "error table_kind customer")

	log := startLog(t, server, c.db)
	server.Exec(t, c.db, "SET SESSION system_versioning_alter_history = KEEP", "ALTER TABLE customer ADD COLUMN w INT", "INSERT INTO customer (id, v) VALUES (1, 1)", "UPDATE customer SET v = 2", "DELETE FROM customer")
	changes, err := log.decode(t, c.options.Needs)
	var columnType *ColumnTypeError
	if !errors.As(err, &columnType) || columnType.Column != rowEnd || len(changes) != 0 {
		t.Errorf("read %v, %v", changes, err)
	}
	server.Exec(t, c.db, c.find(t, findings, CodeTableKind).FixSQL...)
	c.expect(t, c.check(t))
	server.Exec(t, c.db, "DROP TABLE the_end")
	log = startLog(t, server, c.db)
	server.Exec(t, c.db, "INSERT INTO customer (id, v) VALUES (2, 1)", "DELETE FROM customer")
	changes, err = log.decode(t, c.options.Needs)
	if err != nil || len(changes) != 2 {
		t.Errorf("read %v, %v", changes, err)
	}
}
