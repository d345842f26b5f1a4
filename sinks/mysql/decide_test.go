package mysql

import (
	"testing"
	"time"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// A case whose phase 2 has run is open again where a value was left. Its undo is gone by then.
func TestCancelAfterPhase2IsTooLate(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(putBack)
		w.person(1)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.erasure(1))
		w.runDue()
		w.want(`SELECT state, error_code, email IS NULL FROM lethe_pending, contact`, "suppressed|residual_values|1")
		w.exec(`UPDATE lethe_pending SET due_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR`)
		w.apply(w.decide(1, schema.DecisionHold), w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT decision, outcome FROM lethe_decision ORDER BY 1`, "cancel|too_late\nhold|too_late")
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
		w.want(`SELECT newsletter, state FROM contact, lethe_subject`, "0|erased")
	}, erasing)
}

// Decisions that come in one batch are carried out in the order of the log: here the last word is hold.
func TestDecisionsOfOneBatchKeepTheirOrder(t *testing.T) {
	bothWorlds(t, func(w *world) {
		var events []*schema.Event
		for id := 1; id <= 6; id++ {
			w.person(id)
			events = append(events, w.erasure(id))
		}
		for range 2 {
			for id := 1; id <= 6; id++ {
				events = append(events, w.decide(id, schema.DecisionRelease), w.decide(id, schema.DecisionHold))
			}
		}
		w.apply(events...)
		w.runDue()
		w.want(`SELECT COUNT(*) FROM contact WHERE firstname IS NULL`, "0")
		w.want(`SELECT DISTINCT held FROM lethe_pending`, "1")
	}, erasing)
}

// A decision on an erasure that is parked waits for it.
func TestDecisionWaitsForItsParkedErasure(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.exec(`ALTER TABLE contact ADD CONSTRAINT always_usable CHECK (usable = 1)`)
		w.park(w.erasure(1))
		w.apply(w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT done_at IS NULL FROM lethe_decision`, "1")
		w.exec(`ALTER TABLE contact DROP CONSTRAINT always_usable`)
		parked, err := w.r.Parked(w.ctx, false, 1)
		if err != nil || len(parked) != 1 {
			w.Fatalf("parked: %v, %v", parked, err)
		}
		if err := w.r.ReplayParked(w.ctx, parked[0].Partition, parked[0].Offset, "ops"); err != nil {
			w.Fatal(err)
		}
		w.runDue()
		w.runDue()
		w.want(`SELECT outcome FROM lethe_decision`, "done")
		w.want(`SELECT usable, firstname FROM contact`, "1|Jeanne")
		w.states(1, "suppressed cancelled")
	}, erasing)
}

// A cancel that the replica refuses holds its case, and holds up no other.
func TestRefusedCancelHoldsItsCaseOnly(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.apply(w.erasure(1))
		w.exec(`ALTER TABLE contact ADD CONSTRAINT gone CHECK (NOT usable OR crm_id <> 1)`)
		w.apply(w.decide(1, schema.DecisionCancel), w.erasure(2))
		w.runDue()
		w.want(`SELECT outcome FROM lethe_decision`, ledger.DecisionRefused)
		w.want(`SELECT crm_id, firstname IS NULL FROM contact ORDER BY 1`, "1|0\n2|1")
		w.want(`SELECT held, error_code IS NULL FROM lethe_pending WHERE state = 'suppressed'`, "1|0")
		w.exec(`ALTER TABLE contact DROP CONSTRAINT gone`)
		w.apply(w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT usable FROM contact WHERE crm_id = 1`, "1")
	}, erasing)
}

// What phase 1 changed in a table whose column is gone since cannot be restored: the case is held and says why.
func TestCancelWithoutItsColumnIsRefused(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, consent("offers", schema.ConsentGiven)), w.erasure(1))
		w.cfg.Consent = w.cfg.Consent[:1]
		w.exec(`ALTER TABLE contact DROP COLUMN offers`)
		w.restart()
		w.apply(w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT outcome FROM lethe_decision`, ledger.DecisionRefused)
		w.want(`SELECT held, error_code FROM lethe_pending`, "1|"+ledger.CodeUndoColumn)
	}, erasing)
}

// The prior values come back as they were, whatever their type, and into the row that they come from: keys that a collation
// takes for one, and numbers beyond what a floating one holds.
func TestCancelRestoresEveryType(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(`CREATE TABLE account (
				account_id VARCHAR(20) CHARACTER SET latin1 NOT NULL, part BIGINT UNSIGNED NOT NULL, contact_id BIGINT NOT NULL,
				code VARCHAR(10) CHARACTER SET latin1, amount DECIMAL(30, 4), flags BIT(9), kind ENUM('lead', 'client'),
				seen DATETIME(3), born DATE, tags SET('a', 'b'), ratio DOUBLE, at_zone TIMESTAMP NULL, level TINYINT,
				PRIMARY KEY (account_id, part), KEY (contact_id));
			ALTER TABLE account MODIFY account_id VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_bin NOT NULL`)
		w.grant("SELECT, UPDATE", "account")
		columns := map[string]config.Value{}
		for name, v := range map[string]any{
			"code": "gone", "amount": 0, "flags": 0, "kind": "lead", "seen": "2000-01-01", "born": "2000-01-01", "tags": "", "ratio": 0.5,
			"at_zone": "2000-01-01", "level": 0,
		} {
			if n, ok := v.(int); ok {
				v = int64(n)
			}
			columns[name] = fixed(v)
		}
		w.cfg.Suppress = append(w.cfg.Suppress, config.Action{Set: setOf("account", columns)})
		w.cfg.Erase.Tables["account"] = &config.EraseTable{By: "contact_id", Set: map[string]config.Value{"code": nulled()}}
		w.restart()
		w.person(1)
		const rows = `SELECT account_id, part, code, amount, flags + 0, kind, seen, born, tags, ratio, at_zone, level FROM account ORDER BY 1, 2`
		w.exec(`INSERT INTO account SELECT x.id, 18446744073709551615 - x.n, contact_id, 'caf\u00e9', 12345678901234567890.1234, 257, 'client',
			'2024-02-29 12:34:56.789', '1960-02-29', 'a,b', 0.1, '2024-07-01 10:00:00', NULL
			FROM contact, (SELECT 'abc' AS id, 0 AS n UNION SELECT 'ABC', 0 UNION SELECT 'abc', 1) x`)
		w.exec(`UPDATE account SET code = 'été', level = 7 WHERE account_id = 'ABC'`)
		before := w.lines(rows)
		w.apply(w.erasure(1))
		w.want(`SELECT DISTINCT code, amount + 0, kind, level FROM account`, "gone|0.0000|lead|0")
		w.apply(w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(rows, before)
		w.states(1, "suppressed cancelled")
	}, erasing)
}

// A deadlock in a decision ends its whole transaction: it is tried again, and is no fault of the mapping's.
func TestDeadlockInADecisionIsTriedAgain(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1), w.decide(1, schema.DecisionCancel))
		w.exec(`CREATE TABLE ballast (n INT PRIMARY KEY); INSERT INTO ballast WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 500) SELECT n FROM r`)
		other, err := w.db.BeginTx(w.ctx, nil)
		if err != nil {
			w.Fatal(err)
		}
		defer func() { _ = other.Rollback() }()
		do := func(statement string) {
			w.Helper()
			if _, err := other.ExecContext(w.ctx, statement); err != nil {
				w.Fatalf("%s: %v", statement, err)
			}
		}
		do(`UPDATE ballast SET n = n + 1000`) // the server gives up the transaction that has changed less
		do(`UPDATE contact SET changed_at = UTC_TIMESTAMP()`)
		chores := make(chan error, 1)
		go func() {
			_, err := w.r.RunDue(w.ctx, w.All())
			chores <- err
		}()
		w.until(`SELECT COUNT(*) FROM information_schema.INNODB_TRX x JOIN information_schema.PROCESSLIST p ON p.ID = x.trx_mysql_thread_id
			WHERE x.trx_state = 'LOCK WAIT' AND p.DB = DATABASE()`, "1")
		do(`UPDATE lethe_pending SET error_code = 'x'`)
		if err := <-chores; sinks.Classify(err) != sinks.Transient || sinks.CodeOf(err) != "mysql_1213" {
			w.Errorf("the deadlock is %v", err)
		}
		if err := other.Rollback(); err != nil {
			w.Fatal(err)
		}
		w.runDue()
		w.states(1, "suppressed cancelled")
		w.want(`SELECT usable FROM contact`, "1")
	}, erasing)
}

// until waits until a query returns a text. It asks seldom: InnoDB's tables about itself are renewed only once nobody has
// read them for 100 ms.
func (w *world) until(query, want string) {
	w.Helper()
	for range 12 {
		if w.lines(query) == want {
			return
		}
		select {
		case <-w.ctx.Done():
		case <-time.After(150 * time.Millisecond):
		}
	}
	w.Fatalf("%s: not %s within 2 s", query, want)
}
