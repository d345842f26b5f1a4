package postgres

import (
	"errors"
	"testing"
	"time"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

const flags = `SELECT crm_id, newsletter, offers, reconsent, no_marketing, frozen, usable FROM contact ORDER BY crm_id`

func TestConsentsReachTheirColumns(t *testing.T) {
	for _, version := range []int{15, 18} {
		w := newWorld(t, version)
		w.person(1, 2, 3)
		out := w.apply(
			w.event(1, consent("newsletter", schema.ConsentWithdrawn)),
			w.event(2, consent("offers", schema.ConsentRefused)),
			w.event(3, consent("newsletter", schema.ConsentGiven)),
		)
		w.want(flags, "1|false|1|false|false|false|true\n2|true|0|false|false|false|true\n3|true|1|false|false|false|true")
		if out.Applied != 2 || out.Unchanged != 1 || len(out.Unusable) != 2 {
			t.Errorf("outcome %+v", out)
		}
		out = w.apply(w.event(1, consent("newsletter", schema.ConsentRenewedGiven)))
		w.want(`SELECT newsletter FROM contact WHERE crm_id = 1`, "true")
		if out.Applied != 1 || len(out.Unusable) != 0 {
			t.Errorf("outcome %+v", out)
		}
		receipts := w.receipts()
		if len(receipts) != 2 || len(receipts[0].Events) != 3 || receipts[0].State != schema.ReceiptApplied {
			t.Errorf("receipts %+v", receipts)
		}
	}
}

func TestConsentWithoutBasisPermitsNothing(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	c := consent("newsletter", schema.ConsentGiven)
	c.LegalBasis = ""
	if out := w.apply(w.event(1, c)); out.Refused != 1 {
		t.Errorf("outcome %+v", out)
	}
	w.want(`SELECT newsletter FROM contact`, "false")
}

func TestObjectionAndRestriction(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1, 2)
	w.apply(
		w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}),
		w.event(2, consent("newsletter", schema.ConsentGiven)), w.event(2, &schema.ProcessingRestriction{Imposed: true}),
	)
	w.want(flags, "1|false|0|false|true|false|true\n2|false|0|false|false|true|true")
	w.want(`SELECT kind, due_at <= now() FROM lethe.readback ORDER BY kind`, "Objection|true\nProcessingRestriction|true")
	w.apply(w.event(1, &schema.Objection{Scope: "direct_marketing"}), w.event(2, &schema.ProcessingRestriction{}))
	w.want(flags, "1|true|0|false|false|false|true\n2|true|0|false|false|false|true")
	own := 0
	for _, rc := range w.receipts() {
		if rc.EventType == schema.TypeObjection || rc.EventType == schema.TypeProcessingRestriction {
			own++
			if rc.State != schema.ReceiptApplied || len(rc.Rows) != 1 || rc.Rows[0].Changed != 1 {
				t.Errorf("receipt %+v", rc)
			}
		}
	}
	if own != 4 {
		t.Errorf("%d receipts of objections and restrictions, want 4", own)
	}
}

func TestErasureSuppressesAndKeepsUndo(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1, 2)
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
	opened, marker := w.event(1, &schema.SubjectErasure{}), w.event(1, &schema.SubjectErasure{Marker: true})
	out := w.apply(opened, marker)
	if out.Applied != 1 || out.Unchanged != 1 || len(out.Unusable) != 1 {
		t.Errorf("outcome %+v", out)
	}
	w.want(flags, "1|false|0|false|false|false|false\n2|true|1|false|false|false|true")
	w.want(`SELECT channel, reason FROM do_not_contact`, "email|3")
	w.want(`SELECT state, wait, matched, due_at - suppressed_at = '1 hour' FROM lethe.pending`, "suppressed|cool_off|true|true")
	w.want(`SELECT e->>'t', e->'k'->>'contact_id', e->'s'->>'usable', e->'s'->>'newsletter', e->'s'->>'offers', e->>'i'
		FROM lethe.pending, jsonb_array_elements(undo) e`, "contact|1|true|true|1|<nil>\ndo_not_contact|1|<nil>|<nil>|<nil>|true")
	// What comes later permits nothing, in whatever order it was committed.
	out = w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), marker)
	if out.Refused != 1 || out.Stale != 1 {
		t.Errorf("outcome %+v", out)
	}
	w.want(`SELECT newsletter, usable FROM contact WHERE crm_id = 1`, "false|false")
	cases := 0
	for _, rc := range w.receipts() {
		if rc.EventType == schema.TypeSubjectErasure {
			cases++
			if rc.State != schema.ReceiptSuppressed || rc.CaseID.IsZero() || rc.Evidence != schema.EvidenceApplied {
				t.Errorf("receipt %+v", rc)
			}
		}
	}
	if cases != 1 {
		t.Errorf("%d receipts of the erasure, want 1", cases)
	}
}

func TestObserveWritesNothing(t *testing.T) {
	w := newWorld(t, 15, func(c *config.Replica) { c.Mode = ledger.ModeObserve })
	w.person(1, 2)
	out := w.apply(w.event(1, &schema.SubjectErasure{}), w.event(2, consent("newsletter", schema.ConsentWithdrawn)))
	if out.Applied != 2 {
		t.Errorf("outcome %+v", out)
	}
	w.want(flags, "1|true|1|false|false|false|true\n2|true|1|false|false|false|true")
	w.want(`SELECT count(*) FROM do_not_contact`, "0")
	for _, rc := range w.receipts() {
		if rc.State != schema.ReceiptPlanned {
			t.Errorf("receipt in state %v, want planned", rc.State)
		}
	}
	// The same case is suppressed once the mode allows it.
	w.cfg.Mode = ledger.ModeErase
	w.setup()
	w.r = w.replica()
	w.assign()
	w.due()
	w.due()
	w.want(flags, "1|false|0|false|false|false|false\n2|false|1|false|false|false|true")
	w.want(`SELECT due_at > now() + interval '55 minutes' FROM lethe.pending`, "true") // the cool-off begins now
}

func TestRowThatComesLaterGetsTheFold(t *testing.T) {
	w := newWorld(t, 15)
	out := w.apply(
		w.event(1, consent("newsletter", schema.ConsentWithdrawn)), w.event(2, &schema.SubjectErasure{}),
		w.event(3, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	if out.NoMatch != 3 {
		t.Errorf("outcome %+v", out)
	}
	w.want(`SELECT count(*) FROM lethe.subject WHERE recheck_at > now() AND unmatched_since IS NOT NULL`, "3")
	if next := w.due(); next.IsZero() || time.Until(next) > time.Minute {
		t.Errorf("next look-up at %v, want within a minute", next)
	}
	w.person(1, 2, 3)
	w.due()
	w.want(`SELECT newsletter FROM contact WHERE crm_id = 1`, "true") // not due yet
	w.exec(`UPDATE lethe.subject SET recheck_at = now()`)
	w.due()
	w.want(flags, "1|false|1|false|false|false|true\n2|false|0|false|false|false|false\n3|false|0|false|true|false|true")
	w.want(`SELECT count(*) FROM lethe.subject WHERE recheck_at IS NOT NULL OR unmatched_since IS NOT NULL`, "0")
	w.want(`SELECT matched, undo IS NOT NULL FROM lethe.pending`, "true|true")
	w.want(`SELECT count(*) FROM lethe.readback`, "0") // the objection has been read back
	w.want(`SELECT state, count(*) FROM lethe.receipt GROUP BY 1 ORDER BY 1`, "applied|3\nno_match|2\nsuppressed|1\nverified|1")
}

func TestRecheckGetsRarerAndEnds(t *testing.T) {
	w := newWorld(t, 15)
	w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	w.exec(`UPDATE lethe.subject SET recheck_at = now(), unmatched_since = now() - interval '2 hours'`)
	w.due()
	w.want(`SELECT recheck_at > now() + interval '50 minutes' FROM lethe.subject`, "true")
	w.exec(`UPDATE lethe.subject SET recheck_at = now(), unmatched_since = now() - interval '91 days'`)
	w.due()
	w.want(`SELECT recheck_at IS NULL, unmatched_since IS NULL FROM lethe.subject`, "true|false")
}

func TestConsentRunsOut(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	c := consent("newsletter", schema.ConsentGiven)
	c.ValidUntil = time.Now().Add(time.Hour)
	w.apply(w.event(1, c))
	w.want(`SELECT newsletter FROM contact`, "true")
	w.want(`SELECT next_change_at > now() FROM lethe.subject`, "true")
	w.exec(`UPDATE lethe.fact SET valid_until = now() - interval '1 minute'`)
	w.exec(`UPDATE lethe.subject SET next_change_at = now()`)
	w.due()
	w.want(`SELECT newsletter, reconsent FROM contact`, "false|true")
	w.want(`SELECT next_change_at IS NULL FROM lethe.subject`, "true")
}

func TestZombieIsFenced(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	zombie := w.replica()
	if err := zombie.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	old := w.batch(w.event(1, consent("newsletter", schema.ConsentGiven)))
	places := w.allPlaces()
	w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	if _, err := zombie.Apply(w.ctx, old); !errors.Is(err, sinks.ErrFenced) || sinks.Classify(err) != sinks.Fenced {
		t.Errorf("apply of the zombie: %v, want fenced", err)
	}
	if _, err := zombie.Park(w.ctx, old.From[0], &old.Records[0], "x"); !errors.Is(err, sinks.ErrFenced) {
		t.Errorf("park of the zombie: %v, want fenced", err)
	}
	if _, err := zombie.RunDue(w.ctx, places); !errors.Is(err, sinks.ErrFenced) {
		t.Errorf("chores of the zombie: %v, want fenced", err)
	}
	w.want(`SELECT newsletter FROM contact`, "false")
	w.want(`SELECT sum(next_offset) FROM lethe.partition`, "{1 0 false finite true}")
	if _, err := w.r.Assign(w.ctx, []int32{0, 1, 2, 3}); err != nil {
		t.Error(err)
	}
}

func TestOtherMappingWaits(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	b := w.batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	w.exec(`UPDATE lethe.meta SET v = 'ff' WHERE k = 'mapping_digest'`)
	if _, err := w.r.Apply(w.ctx, b); !errors.Is(err, sinks.ErrDigest) {
		t.Errorf("apply under another mapping: %v", err)
	}
	if _, err := w.r.Assign(w.ctx, []int32{0}); !errors.Is(err, sinks.ErrDigest) {
		t.Errorf("assign under another mapping: %v", err)
	}
	w.want(`SELECT newsletter FROM contact`, "true")
	w.exec(`UPDATE lethe.meta SET v = '99' WHERE k = 'schema_version'`)
	if err := w.replica().Start(w.ctx); sinks.CodeOf(err) != "ledger_newer" {
		t.Errorf("start on a newer ledger: %v", err)
	}
	w.exec(`DROP SCHEMA lethe CASCADE`)
	if err := w.replica().Start(w.ctx); sinks.CodeOf(err) != "ledger_missing" {
		t.Errorf("start without ledger: %v", err)
	}
}

func TestPauseHoldsEverything(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	if err := w.r.Pause(w.ctx, "dpo"); err != nil {
		t.Fatal(err)
	}
	b := w.batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	if _, err := w.r.Apply(w.ctx, b); sinks.CodeOf(err) != sinks.CodePaused || sinks.Classify(err) != sinks.Transient {
		t.Errorf("apply while paused: %v", err)
	}
	w.want(`SELECT paused FROM lethe.status`, "true")
	if err := w.r.Resume(w.ctx, "dpo"); err != nil {
		t.Fatal(err)
	}
	w.want(`SELECT v LIKE 'dpo 20%' FROM lethe.meta WHERE k = 'resumed'`, "true")
	if out, err := w.r.Apply(w.ctx, b); err != nil || out.Applied != 1 {
		t.Errorf("apply after resume: %+v, %v", out, err)
	}
}

func TestGapsDecisionsHeartbeats(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.apply(
		w.event(0, &schema.Gap{Opened: true, GapID: "g1", Cause: "slot_lost"}),
		w.event(1, &schema.CaseDecision{Decision: schema.DecisionHold, Reason: "complaint", DecidedBy: "dpo", DecidedAt: time.Now()}),
		w.event(1, &schema.CaseDecision{Decision: schema.DecisionCancel, Replica: "another"}),
		w.event(0, &schema.Heartbeat{EmittedAt: time.Now()}),
		w.event(0, &schema.PassMarker{Begin: true}),
		w.event(1, &schema.ContactPoint{}),
	)
	w.want(`SELECT decision, reason, decided_by, done_at IS NULL, ref = (SELECT ref FROM lethe.subject) FROM lethe.decision`,
		"hold|complaint|dpo|true|true")
	w.want(`SELECT open_gaps, erasures_by_state, parked, unmatched, behind < interval '1 minute' FROM lethe.status`,
		"1|map[suppressed:1]|0|0|true")
	w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "all"}))
	rc := w.receipts()
	if last := rc[len(rc)-1]; len(last.Gaps) != 1 || last.Gaps[0] != "g1" {
		t.Errorf("receipt made in a gap: %+v", last)
	}
	w.apply(w.event(0, &schema.Gap{GapID: "g1", Cause: "slot_lost"}))
	w.want(`SELECT open_gaps FROM lethe.status`, "0")
}

func TestRunRoleCannotChangeTables(t *testing.T) {
	w := newWorld(t, 15)
	for _, sql := range []string{
		`CREATE TABLE lethe.x (i int)`, `ALTER TABLE lethe.fact ADD x int`, `DROP TABLE lethe.meta`, `DELETE FROM lethe.receipt`,
		`UPDATE lethe.receipt SET body = ''`,
	} {
		if _, err := w.pool.Exec(w.ctx, sql); err == nil {
			t.Errorf("the run role may do: %s", sql)
		}
	}
}

// TestRestoredOffsetAppliesTwiceWithOneEffect sets the places back, as a restored backup does, and applies the same log
// again.
func TestRestoredOffsetAppliesTwiceWithOneEffect(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1, 2)
	events := []*schema.Event{
		w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, consent("newsletter", schema.ConsentWithdrawn)),
		w.event(2, &schema.Objection{Raised: true, Scope: "all"}), w.event(2, &schema.SubjectErasure{}),
	}
	w.apply(events...)
	before := w.one(`SELECT jsonb_agg(f ORDER BY f) FROM lethe.fact f`)
	w.exec(`UPDATE lethe.partition SET next_offset = 0`)
	w.assign()
	if out := w.apply(events...); out.Stale != 4 && out.Stale+out.Unchanged+out.Refused != 4 {
		t.Errorf("outcome of the second time %+v", out)
	}
	if after := w.one(`SELECT jsonb_agg(f ORDER BY f) FROM lethe.fact f`); after != before {
		t.Errorf("facts changed:\n%s\n%s", before, after)
	}
	w.want(`SELECT count(*) FROM lethe.receipt WHERE state = 'suppressed'`, "1")
	w.want(`SELECT count(*) FROM lethe.pending`, "1")
}

// TestTwoWorkersOneWins races two workers over the same places.
func TestTwoWorkersOneWins(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	other := w.replica()
	if err := other.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	b := w.batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
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
		t.Errorf("two workers: %v and %v, want one fenced", first, second)
	}
	w.want(`SELECT count(*) FROM lethe.receipt`, "1")
}
