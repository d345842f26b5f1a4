package testenv

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
)

// Follow makes the server a replica of another one of its flavor, by GTID and
// read-only, and returns when it is connected. What it has already the primary
// must have too.
func (m *MySQL) Follow(tb testing.TB, primary *MySQL) {
	tb.Helper()
	if m.flavor == MariaDB {
		m.Exec(tb, "", "STOP SLAVE; SET GLOBAL read_only = ON; SET GLOBAL gtid_slave_pos = @@gtid_binlog_pos;"+
			fmt.Sprintf("CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = %d, MASTER_USER = '%s', MASTER_USE_GTID = slave_pos, "+
				"MASTER_CONNECT_RETRY = 1; START SLAVE", primary.Port, mysqlRoot))
	} else {
		m.Exec(tb, "", "STOP REPLICA; SET GLOBAL super_read_only = ON;"+
			fmt.Sprintf("CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = %d, SOURCE_USER = '%s', SOURCE_AUTO_POSITION = 1, "+
				"SOURCE_CONNECT_RETRY = 1, GET_SOURCE_PUBLIC_KEY = 1; START REPLICA", primary.Port, mysqlRoot))
	}
	Eventually(tb, startTimeout, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		return m.following(ctx)
	})
}

// following returns nil when both threads of a replica run.
func (m *MySQL) following(ctx context.Context) (err error) {
	pool, err := m.open("", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	query, reads, applies := "SHOW REPLICA STATUS", "Replica_IO_Running", "Replica_SQL_Running"
	if m.flavor == MariaDB {
		query, reads, applies = "SHOW SLAVE STATUS", "Slave_IO_Running", "Slave_SQL_Running"
	}
	status, err := oneRow(ctx, pool, query)
	if err != nil {
		return err
	}
	if status[reads] != "Yes" || status[applies] != "Yes" {
		return fmt.Errorf("replicating: reads %s, applies %s: %s %s", status[reads], status[applies], status["Last_IO_Error"], status["Last_SQL_Error"])
	}
	return nil
}

// oneRow returns the only row of a query by its columns' names.
func oneRow(ctx context.Context, pool *sql.DB, query string) (map[string]string, error) {
	rows, err := pool.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	if !rows.Next() {
		return nil, errors.Join(fmt.Errorf("%s: no row", query), rows.Err())
	}
	values := make([]sql.NullString, len(names))
	into := make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	if err := rows.Scan(into...); err != nil {
		return nil, err
	}
	row := map[string]string{}
	for i, name := range names {
		row[name] = values[i].String
	}
	return row, rows.Err()
}

// GTIDs returns what the server has executed: gtid_executed of MySQL,
// gtid_binlog_pos of MariaDB.
func (m *MySQL) GTIDs(tb testing.TB) string {
	tb.Helper()
	variable := "@@GLOBAL.gtid_executed"
	if m.flavor == MariaDB {
		variable = "@@GLOBAL.gtid_binlog_pos"
	}
	var set string
	if err := m.Open(tb, "").QueryRowContext(context.Background(), "SELECT "+variable).Scan(&set); err != nil {
		tb.Fatalf("reading GTIDs: %v", err)
	}
	return set
}

// CatchUp waits until a replica has executed all that the primary has by now.
func (m *MySQL) CatchUp(tb testing.TB, primary *MySQL) {
	tb.Helper()
	wait := "SELECT WAIT_FOR_EXECUTED_GTID_SET(?, ?)" // 0, or 1 when it took too long
	if m.flavor == MariaDB {
		wait = "SELECT MASTER_GTID_WAIT(?, ?)" // 0, or -1
	}
	var late int
	row := m.Open(tb, "").QueryRowContext(context.Background(), wait, primary.GTIDs(tb), startTimeout.Seconds())
	if err := row.Scan(&late); err != nil || late != 0 {
		tb.Fatalf("waiting for a replica: %d, %v", late, err)
	}
}

// Promote ends a server's life as a replica: it keeps what it has executed so
// far, forgets its primary and takes writes.
func (m *MySQL) Promote(tb testing.TB) {
	tb.Helper()
	if m.flavor == MariaDB {
		m.Exec(tb, "", "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = OFF")
		return
	}
	m.Exec(tb, "", "STOP REPLICA; RESET REPLICA ALL; SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF")
}
