package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"

	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
)

// untouched says that nothing of a batch is in the replica.
func (w *world) untouched() {
	w.Helper()
	w.want(`SELECT COALESCE(SUM(next_offset), 0), (SELECT COUNT(*) FROM `+allFacts+`), (SELECT COUNT(*) FROM lethe_subject),
		(SELECT COUNT(*) FROM lethe_receipt), (SELECT MIN(newsletter) FROM contact) FROM lethe_partition`, "0|0|0|0|1")
}

// TestDeadlockIsTriedAgain has a session of the replica's owner lock two people in the other order: the server ends Lethe's
// transaction, nothing of it stays, and the same batch goes through afterwards.
func TestDeadlockIsTriedAgain(t *testing.T) {
	bothWorlds(t, func(w *world) { w.deadlock(false) })
}

// The statement that tries to change all rows at once lies in a savepoint, which the deadlock ends with the transaction.
func TestDeadlockOfABatchThatChangesAllRows(t *testing.T) {
	bothWorlds(t, func(w *world) { w.deadlock(true) })
}

func (w *world) deadlock(changesAll bool) {
	w.Helper()
	w.person(1, 2)
	m, err := w.r.compiled(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	m.changesAll.Store(changesAll)
	owner, err := w.db.BeginTx(w.ctx, nil)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = owner.Rollback() }() // nothing, if it came to that
	do := func(query string) {
		w.Helper()
		if _, err := owner.ExecContext(w.ctx, query); err != nil {
			w.Fatal(err)
		}
	}
	// The one with fewer changed rows is ended.
	do(`INSERT INTO contact (crm_id, firstname) SELECT 1000 + a.i + 10 * b.i + 100 * c.i, 'x' FROM (SELECT 1 i UNION SELECT 2 UNION SELECT 3) a,
		(SELECT 1 i UNION SELECT 2 UNION SELECT 3) b, (SELECT 1 i UNION SELECT 2 UNION SELECT 3) c`)
	ids := w.order(1, 2) // Lethe locks the first one first
	do(`UPDATE contact SET frozen = 1 WHERE crm_id = ` + ids[1])
	b := w.Batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)), w.event(2, consent("newsletter", schema.ConsentWithdrawn)))
	done := make(chan error, 1)
	go func() {
		_, err := w.r.Apply(w.ctx, b)
		done <- err
	}()
	w.awaitLockWait()
	do(`UPDATE contact SET frozen = 1 WHERE crm_id = ` + ids[0])
	err = <-done
	if sinks.Classify(err) != sinks.Transient || sinks.CodeOf(err) != "mysql_1213" {
		w.Errorf("apply: %v, want a transient deadlock", err)
	}
	if err := owner.Rollback(); err != nil {
		w.Fatal(err)
	}
	w.untouched()
	if out, err := w.r.Apply(w.ctx, b); err != nil || out.Applied != 2 {
		w.Errorf("apply after the deadlock: %+v, %v", out, err)
	}
}

// order returns the CRM ids of two people as a batch meets them: by their references.
func (w *world) order(a, b int) [2]string {
	first, second := w.event(a, consent("x", schema.ConsentGiven)), w.event(b, consent("x", schema.ConsentGiven))
	x, y := w.r.core.Ref(first.SubjectRef), w.r.core.Ref(second.SubjectRef)
	out := [2]string{string(rune('0' + a)), string(rune('0' + b))}
	if string(x[:]) > string(y[:]) {
		out[0], out[1] = out[1], out[0]
	}
	return out
}

// awaitLockWait returns once a transaction of the server waits for a row.
func (w *world) awaitLockWait() {
	w.Helper()
	tick := time.NewTicker(150 * time.Millisecond) // who asks more often than every 100 ms sees what was
	defer tick.Stop()
	for range 60 {
		<-tick.C
		if w.lines(`SELECT COUNT(*) FROM information_schema.INNODB_TRX t JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id
			WHERE t.trx_state = 'LOCK WAIT' AND p.DB = DATABASE()`) != "0" {
			return
		}
	}
	w.Fatal("nobody waits for a lock")
}

func TestLockWaitEndsAndLeavesNothing(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		owner, err := w.db.BeginTx(w.ctx, nil)
		if err != nil {
			w.Fatal(err)
		}
		defer func() { _ = owner.Rollback() }() // nothing, if it came to that
		if _, err := owner.ExecContext(w.ctx, `UPDATE contact SET frozen = 1`); err != nil {
			w.Fatal(err)
		}
		began := time.Now()
		b := w.Batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		_, err = w.r.Apply(w.ctx, b)
		if sinks.Classify(err) != sinks.Transient || sinks.CodeOf(err) != "mysql_1205" || time.Since(began) > 8*time.Second {
			w.Errorf("apply after %s: %v, want a transient lock wait", time.Since(began), err)
		}
		if err := owner.Rollback(); err != nil {
			w.Fatal(err)
		}
		w.untouched()
		if _, err := w.r.Apply(w.ctx, b); err != nil {
			w.Error(err)
		}
	})
}

// losing opens connections whose commits reach the server and whose answers are lost.
type losing struct {
	driver.Connector
	lose bool
}

func (l *losing) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := l.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &losingConn{conn: c.(*conn), l: l}, nil
}

type losingConn struct {
	*conn
	l *losing
}

func (c *losingConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	tx, err := c.conn.BeginTx(ctx, o)
	return losingTx{tx, c}, err
}

type losingTx struct {
	driver.Tx
	c *losingConn
}

func (t losingTx) Commit() error {
	err := t.Tx.Commit()
	if t.c.l.lose {
		_ = t.c.Close()
		return driver.ErrBadConn
	}
	return err
}

// TestLostAnswerOfACommit: the error is transient, and the places tell that the batch is in.
func TestLostAnswerOfACommit(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		c, err := mysqldriver.ParseDSN(w.server.DSN(w.name, w.role))
		if err != nil {
			w.Fatal(err)
		}
		inner, err := newConnector(c, Session{})
		if err != nil {
			w.Fatal(err)
		}
		l := &losing{Connector: inner}
		db := sql.OpenDB(l)
		defer func() { _ = db.Close() }()
		w.r = w.replica(func(o *Options) { o.DB = db })
		w.assign()
		b := w.Batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		l.lose = true
		if _, err := w.r.Apply(w.ctx, b); sinks.Classify(err) != sinks.Transient {
			w.Errorf("apply: %v, want a transient error", err)
		}
		l.lose = false
		places, err := w.r.Assign(w.ctx, w.Partitions())
		if err != nil {
			w.Fatal(err)
		}
		w.Move(places...)
		if next := w.Places[b.From[0].Partition].NextOffset; next != 1 {
			w.Errorf("the place is at offset %d, want 1", next)
		}
		w.want(`SELECT newsletter FROM contact`, "0")
	})
}

// TestColumnThatVanishes: the sink stops with a permanent error, and goes on by itself once the column is back.
func TestColumnThatVanishes(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, consent("offers", schema.ConsentGiven)))
		w.exec(`ALTER TABLE contact RENAME COLUMN newsletter TO letters`)
		b := w.Batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		for range 2 { // by the statement, then by the catalog
			if _, err := w.r.Apply(w.ctx, b); sinks.Classify(err) != sinks.Permanent {
				w.Errorf("apply without the column: %v, want a permanent error", err)
			}
		}
		w.exec(`ALTER TABLE contact RENAME COLUMN letters TO newsletter`)
		if out, err := w.r.Apply(w.ctx, b); err != nil || out.Applied != 1 {
			w.Errorf("apply with the column again: %+v, %v", out, err)
		}
	})
}

// TestServersDefaultsDoNotMatter runs on a server whose sessions read SQL otherwise, refuse no value, commit nothing by
// themselves and are in another zone; then the server turns read-only, as after a failover.
func TestServersDefaultsDoNotMatter(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newWorldOn(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor, Settings: map[string]string{
			"sql_mode": "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,IGNORE_SPACE", "transaction_isolation": "SERIALIZABLE", "autocommit": "0",
			"default_time_zone": "-11:00", "character_set_server": "latin1", "collation_server": "latin1_general_ci",
		}}), erasing)
		var mode, zone string
		if err := w.run.QueryRowContext(w.ctx, `SELECT @@sql_mode, @@time_zone`).Scan(&mode, &zone); err != nil {
			w.Fatal(err)
		}
		if mode != sqlMode || zone != "+00:00" {
			w.Errorf("sessions have sql_mode %s and time zone %s", mode, zone)
		}
		w.exec(`SET autocommit = 1; INSERT INTO contact (crm_id, firstname, email) VALUES (1, 'Jeanne', 'p1@exemple.fr')`)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.erasure(1))
		w.runDue()
		w.want(`SELECT firstname, usable, newsletter FROM contact`, "NULL|0|0")
		w.want(`SELECT COUNT(*) FROM lethe_pending WHERE ABS(TIMESTAMPDIFF(MINUTE, opened_at, UTC_TIMESTAMP())) < 5 AND applied_at IS NOT NULL`, "1")
		w.exec(`SET GLOBAL read_only = 1`)
		_, err := w.r.Apply(w.ctx, w.Batch(w.event(2, consent("newsletter", schema.ConsentGiven))))
		if sinks.Classify(err) != sinks.Transient || sinks.CodeOf(err) != "mysql_1290" {
			w.Errorf("apply on a read-only server: %v, want a transient error", err)
		}
	})
}
