package postgres

import (
	"testing"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// A case whose phase 2 has run is open again where a value was left. Its undo is gone by then.
func TestCancelAfterPhase2IsTooLate(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.exec(`CREATE FUNCTION put_back() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN NEW.firstname := OLD.firstname; RETURN NEW; END $$;
		CREATE TRIGGER put_back BEFORE UPDATE ON contact FOR EACH ROW EXECUTE FUNCTION put_back()`)
	w.person(1)
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT state, error_code, email IS NULL FROM lethe.pending, contact`, "suppressed|residual_values|true")
	w.exec(`UPDATE lethe.pending SET due_at = now() + interval '1 hour'`)
	w.apply(w.decide(1, schema.DecisionHold), w.decide(1, schema.DecisionCancel))
	w.runDue()
	w.want(`SELECT decision, outcome FROM lethe.decision ORDER BY 1`, "cancel|too_late\nhold|too_late")
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
	w.want(`SELECT newsletter, state FROM contact, lethe.subject`, "false|erased")
}

// Decisions that come in one batch are carried out in the order of the log: here the last word is hold.
func TestDecisionsOfOneBatchKeepTheirOrder(t *testing.T) {
	w := newWorld(t, 15, erasing)
	var ids []int
	for id := 1; id <= 12; id++ {
		ids = append(ids, id)
	}
	w.person(ids...)
	var events []*schema.Event
	for _, id := range ids {
		events = append(events, w.event(id, &schema.SubjectErasure{}))
	}
	for range 2 {
		for _, id := range ids {
			events = append(events, w.decide(id, schema.DecisionRelease), w.decide(id, schema.DecisionHold))
		}
	}
	w.apply(events...)
	w.runDue()
	w.want(`SELECT count(*) FROM contact WHERE firstname IS NULL`, "0")
	w.want(`SELECT DISTINCT held FROM lethe.pending`, "true")
}

// A decision on an erasure that is parked waits for it.
func TestDecisionWaitsForItsParkedErasure(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.exec(`ALTER TABLE contact ADD CONSTRAINT always_usable CHECK (usable)`)
	b := w.batch(w.event(1, &schema.SubjectErasure{}))
	if _, err := w.r.Apply(w.ctx, b); sinks.Classify(err) != sinks.Poison {
		t.Fatalf("apply: %v, want poison", err)
	}
	place, err := w.r.Park(w.ctx, b.From[0], &b.Records[0], "23514")
	if err != nil {
		t.Fatal(err)
	}
	w.places[place.Partition] = place
	w.apply(w.decide(1, schema.DecisionCancel))
	w.runDue()
	w.want(`SELECT done_at IS NULL FROM lethe.decision`, "true")
	w.exec(`ALTER TABLE contact DROP CONSTRAINT always_usable`)
	if err := w.r.ReplayParked(w.ctx, place.Partition, 0, "ops"); err != nil {
		t.Fatal(err)
	}
	w.runDue()
	w.runDue()
	w.want(`SELECT outcome FROM lethe.decision`, "done")
	w.want(`SELECT usable, firstname FROM contact`, "true|Jeanne")
	w.states(1, "suppressed cancelled")
}

// A cancel that the replica refuses holds its case, and holds up no other.
func TestRefusedCancelHoldsItsCaseOnly(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1, 2)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.exec(`ALTER TABLE contact ADD CONSTRAINT gone CHECK (NOT usable OR crm_id <> 1)`)
	w.apply(w.decide(1, schema.DecisionCancel), w.event(2, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT outcome FROM lethe.decision`, ledger.DecisionRefused)
	w.want(`SELECT crm_id, firstname IS NULL FROM contact ORDER BY 1`, "1|false\n2|true")
	w.want(`SELECT held, error_code FROM lethe.pending WHERE state = 'suppressed'`, "true|23514")
	w.exec(`ALTER TABLE contact DROP CONSTRAINT gone`)
	w.apply(w.decide(1, schema.DecisionCancel))
	w.runDue()
	w.want(`SELECT usable FROM contact WHERE crm_id = 1`, "true")
}

// The proof of a second round has an id of its own, also where phase 2 has deleted the person's row.
func TestSecondRoundIsProvenAnew(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) {
		c.Suppress = nil
		c.Erase.Tables["contact"] = &config.EraseTable{Delete: true}
		c.Erase.Tables["do_not_contact"] = &config.EraseTable{By: "contact_id", Delete: true}
	})
	w.exec(`GRANT DELETE ON contact TO ` + w.role)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.states(1, "suppressed applied verified")
	w.exec(`UPDATE lethe_witness SET n = 0`)
	w.runDue()
	w.states(1, "suppressed applied verified applied verified")
	w.want(`SELECT state, matched, attempts FROM lethe.pending`, "verified|true|4")
}

// One release lets a whole pass go on, but not the case that somebody holds.
func TestReleaseOfAPassLeavesWhatIsHeld(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1, 2, 3)
	var events []*schema.Event
	for id := 1; id <= 3; id++ {
		ev := w.event(id, &schema.SubjectErasure{})
		ev.Kind, ev.RunID = schema.KindSnapshot, "run"
		events = append(events, ev)
	}
	w.apply(events...)
	w.runDue()
	w.want(`SELECT DISTINCT wait FROM lethe.pending`, "breaker")
	w.apply(w.decide(3, schema.DecisionHold))
	w.runDue()
	w.apply(w.decide(1, schema.DecisionRelease))
	w.runDue()
	w.want(`SELECT crm_id, firstname IS NULL FROM contact ORDER BY 1`, "1|true\n2|true\n3|false")
}
