package postgres

import (
	"testing"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// One subject that the replica refuses to write holds up no other, and no other chore.
func TestRefusedRowHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)), w.event(2, consent("newsletter", schema.ConsentWithdrawn)),
		w.event(3, consent("newsletter", schema.ConsentWithdrawn)))
	w.person(1, 2, 3, 4)
	w.exec(`ALTER TABLE contact ADD CONSTRAINT always CHECK (newsletter OR crm_id <> 2)`)
	w.apply(w.event(4, &schema.SubjectErasure{}))
	w.exec(`UPDATE lethe.subject SET recheck_at = now() WHERE recheck_at IS NOT NULL`)
	for range 4 {
		w.runDue()
	}
	w.want(`SELECT crm_id, newsletter FROM contact ORDER BY 1`, "1|false\n2|true\n3|false\n4|false")
	w.states(4, "suppressed applied verified")
	w.want(`SELECT count(*) FROM lethe.subject WHERE recheck_at > now() + interval '50 minutes'`, "1")
	w.exec(`ALTER TABLE contact DROP CONSTRAINT always; UPDATE lethe.subject SET recheck_at = now() WHERE recheck_at IS NOT NULL`)
	w.runDue()
	w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "false")
}

// A row that appears long after its erasure is suppressed first: the cool-off begins then.
func TestRowThatComesLaterHasItsCoolOff(t *testing.T) {
	w := newWorld(t, 15) // one hour
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.exec(`UPDATE lethe.pending SET suppressed_at = now() - interval '2 days', due_at = now() - interval '2 days';
		UPDATE lethe.subject SET recheck_at = now()`)
	w.person(1)
	w.runDue()
	w.want(`SELECT usable, firstname FROM contact`, "false|Jeanne")
	w.states(1, "no_match suppressed")
}

// What people say while a replica is only observed is written once it is not, and so is what a larger mapping asks for.
func TestGrownMappingGetsTheFolds(t *testing.T) {
	w := newWorld(t, 15, func(c *config.Replica) { c.Consent = c.Consent[:1] })
	w.person(1)
	w.apply(w.event(1, consent("offers", schema.ConsentWithdrawn)))
	w.runDue()
	w.want(`SELECT offers FROM contact`, "1")
	w.cfg.Consent = marketing().Consent
	w.setup()
	w.r = w.replica()
	w.assign()
	w.runDue()
	w.want(`SELECT offers FROM contact`, "0")
}

// The receipt that calls an event parked does not stand in the way of the one that says what its replay did.
func TestReplayHasItsReceipt(t *testing.T) {
	w := poisoned(t)
	w.bisect(w.event(1, consent("newsletter", schema.ConsentGiven)))
	waiting := w.event(1, consent("offers", schema.ConsentGiven))
	w.apply(waiting)
	p := w.parked()[0]
	if err := w.r.DiscardParked(w.ctx, p.Partition, p.Offset, "dpo"); err != nil {
		t.Fatal(err)
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
	if len(outcomes) != 2 || outcomes[0] != ledger.OutcomeParked || outcomes[1] != ledger.OutcomeApplied {
		t.Errorf("the receipts of the waiting event say %v", outcomes)
	}
}

// A late row that cannot be suppressed shows in its case.
func TestRefusedSuppressionShowsInItsCase(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.person(1)
	w.exec(`ALTER TABLE contact ADD CONSTRAINT always CHECK (usable); UPDATE lethe.subject SET recheck_at = now()`)
	w.runDue()
	w.want(`SELECT matched, error_code FROM lethe.pending`, "false|23514")
	w.exec(`ALTER TABLE contact DROP CONSTRAINT always; UPDATE lethe.subject SET recheck_at = now()`)
	w.runDue()
	w.states(1, "no_match suppressed applied verified")
}
