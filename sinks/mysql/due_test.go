package mysql

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// One subject that the replica refuses to write holds up no other, and no other chore.
func TestRefusedRowHoldsUpNoOther(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)), w.event(2, consent("newsletter", schema.ConsentWithdrawn)),
			w.event(3, consent("newsletter", schema.ConsentWithdrawn)))
		w.person(1, 2, 3, 4)
		w.exec(`ALTER TABLE contact ADD CONSTRAINT always CHECK (newsletter = 1 OR crm_id <> 2)`)
		w.apply(w.erasure(4))
		w.due("due", "recheck_at")
		for range 4 {
			w.runDue()
		}
		w.want(`SELECT crm_id, newsletter FROM contact ORDER BY 1`, "1|0\n2|1\n3|0\n4|0")
		w.states(4, "suppressed applied verified")
		w.want(`SELECT COUNT(*) FROM lethe_due WHERE recheck_at > UTC_TIMESTAMP(6) + INTERVAL 50 MINUTE`, "1")
		w.exec(`ALTER TABLE contact DROP CONSTRAINT always`)
		w.due("due", "recheck_at")
		w.runDue()
		w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "0")
	}, erasing)
}

// A row that appears long after its erasure is suppressed first: the cool-off begins then.
func TestRowThatComesLaterHasItsCoolOff(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.apply(w.erasure(1))
		w.exec(`UPDATE lethe_pending SET suppressed_at = suppressed_at - INTERVAL 2 DAY, due_at = due_at - INTERVAL 2 DAY`)
		w.due("due", "recheck_at")
		w.person(1)
		w.runDue()
		w.want(`SELECT usable, firstname FROM contact`, "0|Jeanne")
		w.states(1, "no_match suppressed")
		w.want(`SELECT prior IS NOT NULL, due_at > UTC_TIMESTAMP(6) + INTERVAL 50 MINUTE FROM lethe_pending`, "1|1")
	}) // one hour
}

// What people say while a larger mapping is not there yet is written once it is.
func TestGrownMappingGetsTheFolds(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, consent("offers", schema.ConsentWithdrawn)))
		w.runDue()
		w.want(`SELECT offers FROM contact`, "1")
		w.cfg.Consent = leads().Consent
		w.restart()
		w.runDue()
		w.want(`SELECT offers FROM contact`, "0")
	}, func(c *config.Replica) { c.Consent = c.Consent[:1] })
}

// A replica that was observed does everything that it was asked for once it is not.
func TestObservedReplicaCatchesUp(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2, 3)
		w.apply(w.erasure(1), w.event(2, consent("newsletter", schema.ConsentWithdrawn)), w.event(3, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		w.runDue()
		w.want(`SELECT SUM(usable), SUM(newsletter), COUNT(firstname), SUM(no_marketing = 'Y') FROM contact`, "3|3|3|0")
		w.states(1, "planned")
		w.cfg.Mode = ledger.ModeErase
		w.restart()
		w.runDue()
		w.due("pending", "due_at")
		w.runDue()
		w.want(`SELECT usable, newsletter, firstname IS NULL, no_marketing FROM contact ORDER BY crm_id`, "0|0|1|N\n1|0|0|N\n1|0|0|Y")
		w.states(1, "planned suppressed applied verified")
	}, erasing, func(c *config.Replica) { c.Mode = ledger.ModeObserve })
}

// A consent that runs out is written when it does.
func TestConsentRunsOut(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		c := consent("newsletter", schema.ConsentGiven)
		c.ValidUntil = time.Now().UTC().Add(1500 * time.Millisecond).Truncate(time.Millisecond)
		w.apply(w.event(1, c))
		next := w.runDue()
		w.want(`SELECT newsletter, reconsent + 0 FROM contact`, "1|0")
		if until := time.Until(next); until < 0 || until > 2*time.Second {
			w.Errorf("the next chore is in %v", until)
		}
		w.exec(`UPDATE lethe_due SET next_change_at = next_change_at - INTERVAL 2 SECOND`)
		w.exec(`UPDATE lethe_subject SET valid_until = valid_until - INTERVAL 2 SECOND`)
		w.runDue()
		w.want(`SELECT newsletter, reconsent + 0 FROM contact`, "0|1")
	})
}

// More subjects are due than one transaction takes.
func TestManyDueSubjectsAreDoneInSlices(t *testing.T) {
	bothWorlds(t, func(w *world) {
		const n = ledger.DueLimit + 100
		events := make([]*schema.Event, n)
		for i := range events {
			events[i] = w.event(i+1, consent("newsletter", schema.ConsentWithdrawn))
		}
		w.apply(events...)
		rows := ""
		for i := range n {
			rows += fmt.Sprintf(", (%d, 'Jeanne')", i+1)
		}
		w.exec(`INSERT INTO contact (crm_id, firstname) VALUES ` + rows[2:])
		w.due("due", "recheck_at")
		if next := w.runDue(); time.Until(next) > 0 {
			w.Errorf("the next slice is at %v", next)
		}
		w.want(`SELECT COUNT(*) FROM contact WHERE newsletter = 0`, fmt.Sprint(ledger.DueLimit))
		w.runDue()
		w.want(`SELECT COUNT(*) FROM contact WHERE newsletter = 0`, fmt.Sprint(n))
	})
}

// Another worker's open batch on a partition of its own does not hold up the chores of ours.
func TestChoresWaitForNoOtherPartition(t *testing.T) {
	bothWorlds(t, func(w *world) {
		var mine, other int
		for id := 1; mine == 0 || other == 0; id++ {
			if w.Partition(w.erasure(id)) == 0 {
				mine = id
			} else {
				other = id
			}
		}
		w.person(mine, other)
		w.apply(w.erasure(mine), w.erasure(other))
		tx, err := w.db.BeginTx(w.ctx, nil)
		if err != nil {
			w.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		part, ref := w.Partition(w.erasure(other)), w.r.core.Ref(w.erasure(other).SubjectRef)
		for statement, arg := range map[string]any{
			`UPDATE lethe_partition SET heartbeat_at = UTC_TIMESTAMP(6) WHERE part = ?`: part, `UPDATE lethe_pending SET error_code = 'x' WHERE ref = ?`: ref[:],
			`UPDATE lethe_subject SET blocked = 'x' WHERE ref = ?`: ref[:], `UPDATE contact SET offers = 2 WHERE crm_id = ?`: other,
		} {
			if _, err := tx.ExecContext(w.ctx, statement, arg); err != nil {
				w.Fatal(err)
			}
		}
		if _, err := w.r.RunDue(w.ctx, []sinks.Place{w.Places[0]}); err != nil {
			w.Fatalf("chores of partition 0: %v", err)
		}
		w.want(`SELECT state FROM lethe_pending WHERE part = 0`, "verified")
	}, erasing)
}

// The receipt that calls an event parked does not stand in the way of the one that says what its replay did.
func TestReplayHasItsReceipt(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.exec(`UPDATE contact SET newsletter = 0, offers = 0`)
		w.exec(`ALTER TABLE contact ADD CONSTRAINT no_newsletter CHECK (newsletter = 0)`)
		w.park(w.event(1, consent("newsletter", schema.ConsentGiven)))
		waiting := w.event(1, consent("offers", schema.ConsentGiven))
		w.apply(waiting)
		parked, err := w.r.Parked(w.ctx, false, 10)
		if err != nil || len(parked) != 2 {
			w.Fatalf("parked: %v, %v", parked, err)
		}
		if err := w.r.DiscardParked(w.ctx, parked[0].Partition, parked[0].Offset, "dpo"); err != nil {
			w.Fatal(err)
		}
		w.runDue()
		var outcomes []string
		for _, rc := range w.receipts() {
			for _, e := range rc.Events {
				if e.EventID == waiting.EventID {
					outcomes = append(outcomes, e.Outcome)
				}
			}
		}
		if !slices.Equal(outcomes, []string{ledger.OutcomeParked, ledger.OutcomeApplied}) {
			w.Errorf("the receipts of the waiting event say %v", outcomes)
		}
		w.want(`SELECT offers FROM contact`, "1")
	})
}

// A late row that cannot be suppressed shows in its case.
func TestRefusedSuppressionShowsInItsCase(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.apply(w.erasure(1))
		w.person(1)
		w.exec(`ALTER TABLE contact ADD CONSTRAINT always CHECK (usable = 1)`)
		w.due("due", "recheck_at")
		w.runDue()
		w.want(`SELECT matched, error_code IS NULL FROM lethe_pending`, "0|0")
		w.exec(`ALTER TABLE contact DROP CONSTRAINT always`)
		w.due("due", "recheck_at")
		w.runDue()
		w.states(1, "no_match suppressed applied verified")
	}, erasing)
}

// A paused replica does no chore.
func TestPausedReplicaDoesNothing(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.exec(`INSERT INTO lethe_meta (k, v) VALUES ('paused', 'ops')`)
		if next := w.runDue(); time.Until(next) > 2*ledger.PausedRetry {
			w.Errorf("it is asked again at %v", next)
		}
		w.want(`SELECT firstname FROM contact`, "Jeanne")
	}, erasing)
}

func TestRowsAreSealedAgain(t *testing.T) {
	bothWorlds(t, func(w *world) {
		seal := &sinktest.Rotating{Keys: w.keys, ID: 7, Known: []uint32{7}}
		w.r = w.replica(func(o *Options) { o.Seal = seal })
		w.assign()
		w.person(1, 2)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, consent("newsletter", schema.ConsentGiven)))
		// Of a key that was lost: it must not hold up the others.
		w.exec(`INSERT INTO lethe_subject (ref, part, sealed_key) VALUES (x'01', 0, x'0100000001ff')`)
		w.runDue()
		const keys = `SELECT HEX(LEFT(sealed_key, 5)), COUNT(*) FROM lethe_subject GROUP BY 1 ORDER BY 1`
		w.want(keys, "0100000001|1\n0100000007|2")
		seal.ID, seal.Known = 8, []uint32{8, 7}
		w.r = w.replica(func(o *Options) { o.Seal = seal }) // the processes restart for a rotation
		w.assign()
		w.runDue()
		w.want(keys, "0100000001|1\n0100000008|2")
		seal.Known = []uint32{8}
		w.apply(w.event(2, consent("newsletter", schema.ConsentWithdrawn)))
		w.exec(`UPDATE contact SET newsletter = 1; INSERT INTO lethe_due (ref, part, next_change_at)
			SELECT ref, part, UTC_TIMESTAMP(6) FROM lethe_subject WHERE ref <> x'01'`)
		w.runDue()
		w.want(`SELECT newsletter FROM contact ORDER BY crm_id`, "1\n0")
	})
}

// Where the mapped tables have no index everything is found all the same, and the session is left as it was.
func TestTablesWithoutIndexAreScanned(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.adopt(`ALTER TABLE contact DROP INDEX crm_id`, func(*config.Replica) {})
		if m, err := w.r.compiled(w.ctx); err != nil || m.indexed {
			w.Fatalf("the mapping counts as indexed: %v", err)
		}
		w.run.SetMaxOpenConns(1)
		settings := `SELECT @@SESSION.join_cache_level`
		if w.server.Flavor() == testenv.MySQLServer {
			settings = `SELECT @@SESSION.optimizer_switch LIKE '%block_nested_loop=off%'`
		}
		var before, after string
		if err := w.run.QueryRowContext(w.ctx, settings).Scan(&before); err != nil {
			w.Fatal(err)
		}
		w.person(1, 2)
		w.apply(w.erasure(1))
		w.runDue()
		w.states(1, "suppressed applied verified")
		if err := w.run.QueryRowContext(w.ctx, settings).Scan(&after); err != nil || after != before {
			w.Errorf("%s was %s and is %s: %v", settings, before, after, err)
		}
	}, erasing)
}
