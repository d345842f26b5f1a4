package postgres

import (
	"testing"
	"time"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// erasing is a mapping whose cool-off is over at once.
func erasing(c *config.Replica) {
	c.Erase.CoolOff = 0
	c.Breaker = config.Breaker{NewCases: 20, Window: time.Minute}
	c.Residuals = map[string]config.Period{"backup": {Days: 35}}
}

func (w *world) runDue() {
	w.Helper()
	if _, err := w.r.RunDue(w.ctx, w.allPlaces()); err != nil {
		w.Fatalf("run due: %v", err)
	}
}

// states lists the receipts of the case of a person in the order of their making.
func (w *world) states(id int, want string) {
	w.Helper()
	caseID := w.ids.CaseID(w.ids.SubjectRef(crmKey(id)))
	w.want(`SELECT coalesce(string_agg(state, ' ' ORDER BY made_at, attempt, state), '') FROM lethe.receipt WHERE case_id = $1`, want, caseID[:])
}

func (w *world) decide(id int, d schema.Decision) *schema.Event {
	return w.event(id, &schema.CaseDecision{Decision: d, DecidedBy: "dpo", DecidedAt: time.Now().UTC().Truncate(time.Millisecond)})
}

func TestErasureFromSuppressionToProof(t *testing.T) {
	for _, version := range []int{15, 18} {
		w := newWorld(t, version, erasing)
		w.person(1, 2)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, &schema.SubjectErasure{}))
		w.want(`SELECT usable, newsletter, firstname IS NULL FROM contact ORDER BY crm_id`, "false|false|false\ntrue|true|false")
		w.runDue()
		w.want(`SELECT firstname IS NULL, email IS NULL, usable FROM contact ORDER BY crm_id`, "true|true|false\nfalse|false|true")
		w.want(`SELECT count(*) FROM note`, "1")
		w.states(1, "suppressed applied verified")
		w.want(`SELECT state, wait, attempts, undo IS NULL, work IS NULL FROM lethe.pending`, "verified|none|1|true|true")
		w.want(`SELECT count(*) FROM lethe.fact`, "0")
		w.want(`SELECT state FROM lethe.subject`, "erased")
		w.want(`SELECT v FROM lethe.meta WHERE k = 'witness'`, "1")

		var body []byte
		if err := w.admin.QueryRow(w.ctx, `SELECT body FROM lethe.receipt WHERE state = 'verified'`).Scan(&body); err != nil {
			t.Fatal(err)
		}
		signed, err := schema.DecodeSignedReceipt(body)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := schema.VerifyReceipt(w.keys, signed)
		if err != nil {
			t.Fatal(err)
		}
		if rc.Verification == nil || rc.Verification.Remaining != 0 || rc.Evidence != schema.EvidenceReadBack || len(rc.Residuals) != 1 {
			t.Errorf("the verified receipt says %+v", rc)
		}

		// A grant after the erasure is refused and changes nothing.
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
		w.want(`SELECT newsletter FROM contact WHERE crm_id = 1`, "false")
	}
}

func TestSuppressModeNeverErases(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) { c.Mode = ledger.ModeSuppress })
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT usable, firstname IS NULL FROM contact`, "false|false")
	w.states(1, "suppressed")
}

func TestCoolOffIsWaitedFor(t *testing.T) {
	w := newWorld(t, 15) // one hour
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	next, err := w.r.RunDue(w.ctx, w.allPlaces())
	if err != nil {
		t.Fatal(err)
	}
	if next.IsZero() || time.Until(next) > time.Hour {
		t.Errorf("the next chore is at %v", next)
	}
	w.want(`SELECT firstname IS NULL FROM contact`, "false")
	w.exec(`UPDATE lethe.pending SET due_at = now()`)
	w.runDue()
	w.states(1, "suppressed applied verified")
}

func TestCancelRestoresThenFolds(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, consent("offers", schema.ConsentGiven)))
	erasure := w.event(1, &schema.SubjectErasure{})
	w.apply(erasure)
	w.want(`SELECT usable, newsletter, offers FROM contact`, "false|false|0")
	// A withdrawal while the case waits is a fact that outlives the cancel.
	w.apply(w.event(1, consent("offers", schema.ConsentWithdrawn)), w.decide(1, schema.DecisionCancel))
	w.runDue()
	w.want(`SELECT usable, newsletter, offers, firstname FROM contact`, "true|true|0|Jeanne")
	w.want(`SELECT count(*) FROM do_not_contact`, "0")
	w.want(`SELECT state FROM lethe.subject`, "live")
	w.states(1, "suppressed cancelled")
	// The same marker once more does not open the case again; a newer one does.
	w.apply(erasure)
	w.want(`SELECT count(*) FROM lethe.pending`, "0")
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.want(`SELECT usable FROM contact`, "false")
}

func TestHoldBeatsProceedUntilRelease(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}))
	w.runDue()
	w.states(1, "suppressed")
	w.apply(w.decide(1, schema.DecisionHold), w.decide(1, schema.DecisionProceed))
	w.runDue()
	w.want(`SELECT decision, outcome FROM lethe.decision ORDER BY decision`, "hold|done\nproceed|held")
	w.want(`SELECT firstname IS NULL FROM contact`, "false")
	w.apply(w.decide(1, schema.DecisionRelease))
	w.runDue()
	w.want(`SELECT firstname IS NULL FROM contact`, "true")
	w.apply(w.decide(1, schema.DecisionCancel))
	w.runDue()
	w.want(`SELECT outcome FROM lethe.decision WHERE decision = 'cancel'`, ledger.DecisionTooLate)
}

func TestBreakerHoldsTheWholeBurst(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) { c.Breaker.NewCases = 2 })
	w.person(1, 2, 3)
	w.apply(w.event(1, &schema.SubjectErasure{}), w.event(2, &schema.SubjectErasure{}), w.event(3, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT count(*) FROM contact WHERE NOT usable AND firstname IS NOT NULL`, "3")
	w.want(`SELECT count(*) FROM lethe.pending WHERE wait = 'breaker'`, "3")
	w.states(2, "suppressed awaiting_release")
	w.apply(w.decide(2, schema.DecisionRelease))
	w.runDue()
	w.want(`SELECT crm_id FROM contact WHERE firstname IS NULL`, "2")
	w.states(2, "suppressed awaiting_release applied verified")
}

func TestResidualValueFailsAfterThreeAttempts(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.exec(`CREATE FUNCTION put_back() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN NEW.firstname := OLD.firstname; RETURN NEW; END $$;
		CREATE TRIGGER put_back BEFORE UPDATE ON contact FOR EACH ROW EXECUTE FUNCTION put_back()`)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	for range ledger.MaxAttempts {
		w.exec(`UPDATE lethe.pending SET due_at = now() WHERE due_at < 'infinity'`)
		w.runDue()
	}
	w.want(`SELECT state, attempts, error_code, due_at FROM lethe.pending`, "suppressed|3|residual_values|infinity")
	w.states(1, "suppressed applied applied applied failed")
	w.exec(`DROP TRIGGER put_back ON contact`)
	w.apply(w.decide(1, schema.DecisionRelease))
	w.runDue()
	w.want(`SELECT state FROM lethe.pending`, "verified")
}

func TestAudienceThatReturnsThePersonIsAResidual(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) { c.Audience = "select contact_id from contact" })
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT error_code FROM lethe.pending`, ledger.ReasonResidual)
}

func TestRefusedEraseHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1, 2)
	w.exec(`ALTER TABLE contact ADD CHECK (firstname IS NOT NULL OR crm_id <> 1)`)
	w.apply(w.event(1, &schema.SubjectErasure{}), w.event(2, &schema.SubjectErasure{}))
	w.runDue()
	w.states(2, "suppressed applied verified")
	w.want(`SELECT error_code, state FROM lethe.pending WHERE state = 'suppressed'`, "23514|suppressed")
}

func TestNothingIsVerifiedWhileAGapIsOpen(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, &schema.Gap{Opened: true, GapID: "g1", Cause: "slot_lost"}), w.event(1, &schema.SubjectErasure{}),
		w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	w.runDue()
	w.states(1, "suppressed applied")
	w.want(`SELECT state, wait, error_code FROM lethe.pending`, "applied|gap|gap_open")
	w.want(`SELECT count(*) FROM lethe.receipt WHERE state = 'verified'`, "0")
	w.apply(w.event(1, &schema.Gap{GapID: "g1", Cause: "slot_lost"}))
	w.exec(`UPDATE lethe.pending SET due_at = now()`)
	w.runDue()
	w.states(1, "suppressed applied verified")
}

func TestUnmappedPersonalColumnKeepsVerifiedAway(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) {
		c.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{"firstname": value(ledger.KindNull)}}
	})
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT state, error_code FROM lethe.pending`, "applied|unmapped_columns")
}

func TestPersonalColumnThatIsAddedKeepsVerifiedAway(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.exec(`ALTER TABLE contact ADD COLUMN mobile text; UPDATE contact SET mobile = '0601020304'`)
	w.r.compiledAt = time.Now().Add(-ledger.MappingAge - time.Second)
	w.runDue()
	w.want(`SELECT state, error_code FROM lethe.pending`, "applied|unmapped_columns")
}

func TestObjectionIsReadBack(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	w.exec(`UPDATE contact SET no_marketing = false`) // another writer
	w.runDue()
	w.want(`SELECT attempts, error_code FROM lethe.readback`, "1|not_followed")
	w.want(`SELECT no_marketing FROM contact`, "true")
	w.exec(`UPDATE lethe.readback SET due_at = now()`)
	w.runDue()
	w.want(`SELECT count(*) FROM lethe.readback`, "0")
	w.want(`SELECT string_agg(state, ' ' ORDER BY made_at) FROM lethe.receipt`, "applied verified")
}

func TestPartialRestoreIsErasedAgain(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.states(1, "suppressed applied verified")
	// The mapped schema comes back from a backup: its person, and its witness.
	w.exec(`UPDATE contact SET firstname = 'Jeanne', email = 'x@exemple.fr', usable = true; UPDATE lethe_witness SET n = 0`)
	w.runDue()
	w.want(`SELECT firstname IS NULL, email IS NULL, usable FROM contact`, "true|true|false")
	w.want(`SELECT state, attempts FROM lethe.pending`, "verified|4") // a round of its own
	w.want(`SELECT n = (SELECT v::bigint FROM lethe.meta WHERE k = 'witness') FROM lethe_witness`, "true")
}

// The ETL may make a person's row anew between the phases: phase 1 has not seen that one.
func TestRowMadeAnewBetweenThePhases(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, &schema.SubjectErasure{}))
	w.exec(`UPDATE contact SET usable = true, newsletter = true`)
	w.runDue()
	w.want(`SELECT firstname IS NULL, usable, newsletter FROM contact`, "true|false|false")
	w.states(1, "suppressed applied verified")
}

func TestFencedWorkerErasesNothing(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	stale := w.allPlaces()
	w.apply(w.event(1, &schema.SubjectErasure{}))
	if _, err := w.r.RunDue(w.ctx, stale); sinks.Classify(err) != sinks.Fenced {
		t.Errorf("a worker with old places got %v", err)
	}
	w.want(`SELECT firstname IS NULL FROM contact`, "false")
}

func TestOutboxKeepsReceiptsUntilSent(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	parts := []int32{0, 1, 2, 3}
	first, err := w.r.Unsent(w.ctx, parts, 10)
	if err != nil || len(first) != 1 {
		t.Fatalf("unsent: %d, %v", len(first), err)
	}
	again, err := w.r.Unsent(w.ctx, parts, 10)
	if err != nil || len(again) != 1 || string(again[0].Body) != string(first[0].Body) {
		t.Fatalf("the receipt is not the same to the byte: %v", err)
	}
	if err := w.r.MarkSent(w.ctx, []schema.ReceiptID{first[0].ID}); err != nil {
		t.Fatal(err)
	}
	if rest, err := w.r.Unsent(w.ctx, parts, 10); err != nil || len(rest) != 0 {
		t.Errorf("after marking: %d, %v", len(rest), err)
	}
}

// TestLargerMappingReachesCasesThatAnUnmappedColumnHeldBack: mapping the column is what the operator was told to do.
func TestLargerMappingReachesCasesThatAnUnmappedColumnHeldBack(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) {
		c.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{"firstname": value(ledger.KindNull)}}
	})
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.want(`SELECT state, error_code FROM lethe.pending`, "applied|unmapped_columns")
	w.cfg.Erase.Tables["contact"].Set["email"] = value(ledger.KindNull)
	w.setup()
	w.r = w.replica()
	w.assign()
	w.runDue()
	w.want(`SELECT state, error_code IS NULL FROM lethe.pending`, "verified|true")
	w.want(`SELECT email IS NULL FROM contact`, "true")
}
