package mysql

import (
	"errors"
	"testing"
	"time"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
)

func TestConsentsReachTheirColumns(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2, 3)
		out := w.apply(
			w.event(1, consent("newsletter", schema.ConsentWithdrawn)), w.event(2, consent("newsletter", schema.ConsentGiven)),
			w.event(3, consent("offers", schema.ConsentRefused)), w.event(4, consent("offers", schema.ConsentGiven)),
		)
		if out.Applied != 2 || out.Unchanged != 1 || out.NoMatch != 1 || len(out.Unusable) != 2 {
			w.Errorf("outcome %+v", out)
		}
		for _, d := range out.Unusable {
			if d <= 0 || d > time.Minute { // the server's own zone is five and a half hours off
				w.Errorf("made unusable after %s", d)
			}
		}
		w.want(`SELECT crm_id, newsletter, reconsent + 0, offers, ABS(TIMESTAMPDIFF(SECOND, changed_at, UTC_TIMESTAMP())) < 60 FROM contact ORDER BY crm_id`,
			"1|0|0|1|1\n2|1|0|1|NULL\n3|1|0|0|1")
		w.want(`SELECT COUNT(*), (SELECT COUNT(unmatched_since) FROM lethe_due), COUNT(sealed_key) FROM lethe_subject`, "4|1|4")
		w.want(`SELECT scope, state, HEX(contact_ref) = '' FROM `+allFacts+` GROUP BY 1, 2, 3 ORDER BY 1, 2`,
			"consent:newsletter:email|given|1\nconsent:newsletter:email|withdrawn|1\nconsent:offers:email|given|1\nconsent:offers:email|refused|1")
		rc := w.receipts()
		if len(rc) == 0 || len(rc) > 4 {
			w.Fatalf("%d receipts", len(rc))
		}
		var changed int64
		for _, r := range rc {
			for _, row := range r.Rows {
				changed += row.Changed
			}
		}
		if changed != 2 {
			w.Errorf("the receipts tell of %d changed rows, want 2", changed)
		}
	})
}

// Two rows may carry one CRM key: both follow, and both are counted.
func TestEveryRowOfAPersonFollows(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(`ALTER TABLE contact DROP INDEX crm_id, ADD INDEX crm_id (crm_id)`)
		w.person(1)
		w.exec(`INSERT INTO contact (crm_id, firstname) VALUES (1, 'Jeanne')`)
		w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		w.want(`SELECT crm_id, newsletter, no_marketing, frozen FROM contact`, "1|0|Y|0\n1|0|Y|0")
		w.apply(w.erasure(1))
		w.want(`SELECT usable FROM contact`, "0\n0")
		w.want(`SELECT channel, reason FROM do_not_contact`, "email|3\nemail|3")
		for _, rc := range w.receipts() {
			for _, row := range rc.Rows {
				if row.Changed != 2 {
					w.Errorf("%s: %+v", rc.State, row)
				}
			}
		}
	})
}

func TestErasureSuppressesAndKeepsPriorValues(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.erasure(1), w.erasure(7))
		w.want(`SELECT newsletter, usable, offers, firstname FROM contact`, "0|0|0|Jeanne")
		w.want(`SELECT c.crm_id, d.channel, d.reason, ABS(TIMESTAMPDIFF(SECOND, d.added_at, UTC_TIMESTAMP())) < 60
			FROM do_not_contact d JOIN contact c USING (contact_id)`, "1|email|3|1")
		w.want(`SELECT matched, state, wait, TIMESTAMPDIFF(MINUTE, suppressed_at, due_at) FROM lethe_pending ORDER BY matched`,
			"0|suppressed|cool_off|60\n1|suppressed|cool_off|60")
		w.want(`SELECT JSON_UNQUOTE(JSON_EXTRACT(prior, '$[0].s.newsletter')), JSON_UNQUOTE(JSON_EXTRACT(prior, '$[0].s.usable')),
			JSON_EXTRACT(prior, '$[1].i'), JSON_UNQUOTE(JSON_EXTRACT(prior, '$[1].k.channel')) FROM lethe_pending WHERE matched`, "1|1|true|email")
		// The same marker again opens nothing.
		w.apply(w.erasure(1))
		w.want(`SELECT COUNT(*) FROM lethe_pending`, "2")
		w.want(`SELECT COUNT(*) FROM do_not_contact`, "1")
	})
}

func TestZombieIsFenced(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		zombie := w.replica()
		if err := zombie.Start(w.ctx); err != nil {
			w.Fatal(err)
		}
		old := w.Batch(w.event(1, consent("newsletter", schema.ConsentGiven)))
		places := w.All()
		w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		if _, err := zombie.Apply(w.ctx, old); !errors.Is(err, sinks.ErrFenced) || sinks.Classify(err) != sinks.Fenced {
			w.Errorf("apply of the zombie: %v, want fenced", err)
		}
		if _, err := zombie.Park(w.ctx, old.From[0], &old.Records[0], "x"); !errors.Is(err, sinks.ErrFenced) {
			w.Errorf("park of the zombie: %v, want fenced", err)
		}
		if _, err := zombie.RunDue(w.ctx, places); !errors.Is(err, sinks.ErrFenced) {
			w.Errorf("chores of the zombie: %v, want fenced", err)
		}
		w.want(`SELECT newsletter FROM contact`, "0")
		w.want(`SELECT SUM(next_offset) FROM lethe_partition`, "1")
	})
}

// TestTwoWorkersOneWins races two workers over the same places.
func TestTwoWorkersOneWins(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		other := w.replica()
		if err := other.Start(w.ctx); err != nil {
			w.Fatal(err)
		}
		b := w.Batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		errs := make(chan error, 2)
		for _, r := range []*Replica{w.r, other} {
			go func() {
				_, err := r.Apply(w.ctx, b)
				errs <- err
			}()
		}
		first, second := <-errs, <-errs
		if first != nil {
			first, second = second, first
		}
		if first != nil || !errors.Is(second, sinks.ErrFenced) {
			w.Errorf("two workers: %v and %v, want one fenced", first, second)
		}
		w.want(`SELECT COUNT(*) FROM lethe_receipt`, "1")
	})
}

func TestOtherMappingWaits(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		b := w.Batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		w.exec(`UPDATE lethe_meta SET v = 'ff' WHERE k = 'mapping_digest'`)
		if _, err := w.r.Apply(w.ctx, b); !errors.Is(err, sinks.ErrDigest) {
			w.Errorf("apply under another mapping: %v", err)
		}
		if _, err := w.r.Assign(w.ctx, []int32{0}); !errors.Is(err, sinks.ErrDigest) {
			w.Errorf("assign under another mapping: %v", err)
		}
		w.want(`SELECT newsletter FROM contact`, "1")
		w.exec(`UPDATE lethe_meta SET v = '99' WHERE k = 'schema_version'`)
		if err := w.replica().Start(w.ctx); sinks.CodeOf(err) != "ledger_newer" {
			w.Errorf("start on a newer ledger: %v", err)
		}
		w.exec(`DROP TABLE lethe_fact`)
		if err := w.replica().Start(w.ctx); sinks.CodeOf(err) != "ledger_missing" {
			w.Errorf("start without a table of the ledger: %v", err)
		}
	})
}

func TestGapsDecisionsHeartbeats(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.apply(
			w.event(0, &schema.Gap{Opened: true, GapID: "g1", Cause: "binlog_purged"}),
			w.event(1, &schema.CaseDecision{Decision: schema.DecisionHold, Reason: "complaint", DecidedBy: "dpo", DecidedAt: time.Now(), Checks: []string{"é"}}),
			w.event(1, &schema.CaseDecision{Decision: schema.DecisionCancel, Replica: "another"}),
			w.event(0, &schema.Heartbeat{EmittedAt: time.Now()}),
			w.event(0, &schema.PassMarker{Begin: true}),
			w.event(1, &schema.ContactPoint{}),
		)
		w.want(`SELECT decision, reason, decided_by, checks, done_at IS NULL, ref = (SELECT ref FROM lethe_subject) FROM lethe_decision`,
			`hold|complaint|dpo|["é"]|1|1`)
		w.want(`SELECT open_gaps, JSON_EXTRACT(erasures_by_state, '$.suppressed'), parked, unmatched, behind BETWEEN -5 AND 60 FROM lethe_status`,
			"1|1|0|0|1")
		w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "all"}))
		rc := w.receipts()
		if last := rc[len(rc)-1]; len(last.Gaps) != 1 || last.Gaps[0] != "g1" {
			w.Errorf("receipt made in a gap: %+v", last)
		}
		w.apply(w.event(0, &schema.Gap{GapID: "g1", Cause: "binlog_purged"}))
		w.want(`SELECT open_gaps FROM lethe_status`, "0")
	})
}

func TestRunRoleCannotChangeTables(t *testing.T) {
	bothWorlds(t, func(w *world) {
		for _, query := range []string{
			`CREATE TABLE x (i INT)`, `ALTER TABLE lethe_fact ADD x INT`, `DROP TABLE lethe_meta`, `DELETE FROM lethe_receipt`,
			`UPDATE lethe_receipt SET body = ''`, `REPLACE INTO lethe_receipt (receipt_id) VALUES ('x')`,
		} {
			if _, err := w.run.ExecContext(w.ctx, query); err == nil {
				w.Errorf("the run role may do: %s", query)
			}
		}
	})
}

// TestRestoredOffsetAppliesTwiceWithOneEffect sets the places back, as a restored backup does, and applies the same log
// again.
func TestRestoredOffsetAppliesTwiceWithOneEffect(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		events := []*schema.Event{
			w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, consent("newsletter", schema.ConsentWithdrawn)),
			w.event(2, &schema.Objection{Raised: true, Scope: "all"}), w.erasure(2),
		}
		w.apply(events...)
		const facts = `SELECT HEX(ref), scope, HEX(ord), state, HEX(event_id) FROM ` + allFacts + ` ORDER BY ref, scope`
		before := w.lines(facts)
		w.exec(`UPDATE lethe_partition SET next_offset = 0`)
		w.assign()
		if out := w.apply(events...); out.Stale+out.Unchanged+out.Refused != 4 {
			w.Errorf("outcome of the second time %+v", out)
		}
		w.want(facts, before)
		w.want(`SELECT COUNT(*) FROM lethe_receipt WHERE state = 'suppressed'`, "1")
		w.want(`SELECT COUNT(*) FROM lethe_pending`, "1")
	})
}

// The first fact of a subject lies in the subject's own row, and is changed there; those that come later have rows of their own.
func TestFirstFactLiesWithItsSubject(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		const where = `SELECT s.scope, s.fact_state, (SELECT GROUP_CONCAT(f.scope, ' ', f.state) FROM lethe_fact f WHERE f.ref = s.ref) FROM lethe_subject s`
		w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
		w.want(where, "consent:newsletter:email|withdrawn|NULL")
		w.apply(w.event(1, consent("offers", schema.ConsentGiven)), w.event(1, consent("newsletter", schema.ConsentGiven)))
		w.want(where, "consent:newsletter:email|given|consent:offers:email given")
		w.apply(w.event(1, consent("offers", schema.ConsentWithdrawn)))
		w.want(where, "consent:newsletter:email|given|consent:offers:email withdrawn")
		w.want(`SELECT newsletter, offers FROM contact`, "1|0")
		w.want(`SELECT COUNT(*) FROM lethe_due`, "0")
	})
}

// A column that is NULL in all rows of a batch is not in the statement: it becomes NULL all the same where it was not.
func TestNullTakesThePlaceOfAValue(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		const times = `SELECT s.valid_until IS NULL, (SELECT f.valid_until IS NULL FROM lethe_fact f WHERE f.ref = s.ref),
			(SELECT COUNT(next_change_at) FROM lethe_due) FROM lethe_subject s`
		for _, c := range []struct {
			until time.Time
			want  string
		}{{time.Now().Add(time.Hour), "0|0|1"}, {time.Time{}, "1|1|0"}} {
			for _, purpose := range []string{"newsletter", "offers"} {
				ev := consent(purpose, schema.ConsentGiven)
				ev.ValidUntil = c.until.Truncate(time.Millisecond)
				w.apply(w.event(1, ev))
			}
			w.want(times, c.want)
		}
	})
}

// A batch of consents of two people whose keys differ in capitals or accents only changes the row of one, also where the
// column's collation holds them to be the same.
func TestConsentReachesOnePersonOfTwoThatLookAlike(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(`CREATE TABLE member (id INT AUTO_INCREMENT PRIMARY KEY, crm VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci, yes TINYINT(1) NOT NULL DEFAULT 0, KEY (crm))`)
		w.exec(`INSERT INTO member (crm) VALUES ('anna'), ('Anna'), ('ánna'), ('anna '), ('\\anna"')`)
		w.cfg.Person = config.Person{Table: "member", Key: "id", CRMKey: []string{"crm"}}
		w.cfg.Suppress, w.cfg.Objection, w.cfg.Restricted, w.cfg.Audience, w.cfg.Erase.Tables = nil, nil, nil, "", nil
		w.cfg.Mode = "suppress"
		w.cfg.Consent = []config.ConsentAction{{Purpose: "newsletter", Channel: "email", Set: setOf("member", map[string]config.Value{"yes": kindOf("permitted")})}}
		w.grant("SELECT, UPDATE", "member")
		w.restart()
		out := w.apply(w.Event("Anna", consent("newsletter", schema.ConsentGiven)), w.Event(`\anna"`, consent("newsletter", schema.ConsentGiven)),
			w.Event("ANNA", consent("newsletter", schema.ConsentGiven)))
		if out.Applied != 2 || out.NoMatch != 1 {
			w.Errorf("outcome %+v", out)
		}
		w.want(`SELECT CONCAT('<', crm, '>'), yes FROM member ORDER BY id`, "<anna>|0\n<Anna>|1\n<ánna>|0\n<anna >|0\n<\\anna\">|1")
	})
}

// Where the last batch changed a row of every subject, the next one is tried in one statement. It has the same outcome where
// that does not hold again: a row that is as it should be, or not there.
func TestOutcomeDoesNotDependOnTheLastBatch(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		m, err := w.r.compiled(w.ctx)
		if err != nil {
			w.Fatal(err)
		}
		both := func(state schema.ConsentState) []*schema.Event {
			return []*schema.Event{w.event(1, consent("newsletter", state)), w.event(2, consent("newsletter", state))}
		}
		for i, c := range []struct {
			events             []*schema.Event
			applied, unchanged int
			noMatch            int
			all                bool // what the batch leaves for the next one
		}{
			{both(schema.ConsentWithdrawn), 2, 0, 0, true},
			{both(schema.ConsentGiven), 2, 0, 0, true},
			{append(both(schema.ConsentWithdrawn), w.event(9, consent("newsletter", schema.ConsentGiven))), 2, 0, 1, false},
			{both(schema.ConsentRefused), 0, 2, 0, false},
			{both(schema.ConsentGiven), 2, 0, 0, true},
			{[]*schema.Event{w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, consent("newsletter", schema.ConsentWithdrawn))}, 1, 1, 0, false},
		} {
			out := w.apply(c.events...)
			if out.Applied != c.applied || out.Unchanged != c.unchanged || out.NoMatch != c.noMatch || m.changesAll.Load() != c.all {
				w.Errorf("batch %d: %+v, and all are changed: %t", i, out, m.changesAll.Load())
			}
		}
		w.want(`SELECT crm_id, newsletter FROM contact ORDER BY crm_id`, "1|1\n2|0")
		w.want(`SELECT COUNT(*), (SELECT COUNT(unmatched_since) FROM lethe_due) FROM lethe_subject`, "3|1")
	})
}
