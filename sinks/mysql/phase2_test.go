package mysql

import (
	"testing"
	"time"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

func TestErasureFromSuppressionToProof(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.erasure(1))
		w.want(`SELECT usable, newsletter, firstname IS NULL FROM contact ORDER BY crm_id`, "0|0|0\n1|1|0")
		w.runDue()
		w.want(`SELECT firstname IS NULL, email IS NULL, usable FROM contact ORDER BY crm_id`, "1|1|0\n0|0|1")
		w.want(`SELECT COUNT(*) FROM note`, "1")
		w.states(1, "suppressed applied verified")
		w.want(`SELECT state, wait, attempts, prior IS NULL, work IS NULL, due_at IS NULL FROM lethe_pending`, "verified|none|1|1|1|1")
		w.want(`SELECT COUNT(*) FROM `+allFacts, "0")
		w.want(`SELECT state FROM lethe_subject`, "erased")
		w.want(`SELECT v FROM lethe_meta WHERE k = 'witness'`, "1")
		for _, rc := range w.receipts() {
			switch rc.State {
			case schema.ReceiptVerified:
				if rc.Verification == nil || rc.Verification.Remaining != 0 || rc.Evidence != schema.EvidenceReadBack || len(rc.Residuals) != 1 {
					w.Errorf("the verified receipt says %+v", rc)
				}
			case schema.ReceiptApplied:
				if rc.EventType == schema.TypeSubjectErasure && len(rc.Rows) != 2 {
					w.Errorf("the receipt of phase 2 lists %+v", rc.Rows)
				}
			}
		}
		// A grant after the erasure is refused and changes nothing.
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
		w.want(`SELECT newsletter FROM contact WHERE crm_id = 1`, "0")
	}, erasing)
}

func TestSuppressModeNeverErases(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.runDue()
		w.want(`SELECT usable, firstname IS NULL FROM contact`, "0|0")
		w.states(1, "suppressed")
	}, erasing, func(c *config.Replica) { c.Mode = ledger.ModeSuppress })
}

func TestCoolOffIsWaitedFor(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		if next := w.runDue(); next.IsZero() || time.Until(next) > time.Hour {
			w.Errorf("the next chore is at %v", next)
		}
		w.want(`SELECT firstname IS NULL FROM contact`, "0")
		w.due("pending", "due_at")
		w.runDue()
		w.states(1, "suppressed applied verified")
	})
}

func TestCancelRestoresThenFolds(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(1, consent("offers", schema.ConsentGiven)))
		erasure := w.erasure(1)
		w.apply(erasure)
		w.want(`SELECT usable, newsletter, offers FROM contact`, "0|0|0")
		w.want(`SELECT COUNT(*) FROM do_not_contact`, "1")
		// A withdrawal while the case waits is a fact that outlives the cancel.
		w.apply(w.event(1, consent("offers", schema.ConsentWithdrawn)), w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT usable, newsletter, offers, firstname FROM contact`, "1|1|0|Jeanne")
		w.want(`SELECT COUNT(*) FROM do_not_contact`, "0")
		w.want(`SELECT state FROM lethe_subject`, "live")
		w.states(1, "suppressed cancelled")
		// The same marker once more does not open the case again; a newer one does.
		w.apply(erasure)
		w.want(`SELECT COUNT(*) FROM lethe_pending`, "0")
		w.apply(w.erasure(1))
		w.want(`SELECT usable FROM contact`, "0")
	}, erasing)
}

func TestHoldBeatsProceedUntilRelease(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}))
		w.runDue()
		w.states(1, "suppressed")
		w.apply(w.decide(1, schema.DecisionHold), w.decide(1, schema.DecisionProceed))
		w.runDue()
		w.want(`SELECT decision, outcome FROM lethe_decision ORDER BY decision`, "hold|done\nproceed|held")
		w.want(`SELECT firstname IS NULL FROM contact`, "0")
		w.apply(w.decide(1, schema.DecisionRelease))
		w.runDue()
		w.want(`SELECT firstname IS NULL FROM contact`, "1")
		w.apply(w.decide(1, schema.DecisionCancel))
		w.runDue()
		w.want(`SELECT outcome FROM lethe_decision WHERE decision = 'cancel'`, ledger.DecisionTooLate)
	}, erasing)
}

func TestBreakerHoldsTheWholeBurst(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2, 3)
		w.apply(w.erasure(1), w.erasure(2), w.erasure(3))
		w.runDue()
		w.want(`SELECT COUNT(*) FROM contact WHERE NOT usable AND firstname IS NOT NULL`, "3")
		w.want(`SELECT COUNT(*) FROM lethe_pending WHERE wait = 'breaker'`, "3")
		w.states(2, "suppressed awaiting_release")
		w.apply(w.decide(2, schema.DecisionRelease))
		w.runDue()
		w.want(`SELECT crm_id FROM contact WHERE firstname IS NULL`, "2")
		w.states(2, "suppressed awaiting_release applied verified")
	}, erasing, func(c *config.Replica) { c.Breaker.NewCases = 2 })
}

// As many cases as the breaker allows go through.
func TestBreakerLetsASmallBurstPass(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.apply(w.erasure(1), w.erasure(2))
		w.runDue()
		w.want(`SELECT COUNT(*) FROM contact WHERE firstname IS NULL`, "2")
	}, erasing, func(c *config.Replica) { c.Breaker.NewCases = 2 })
}

// Releasing one case of a pass releases the others, except one that somebody holds.
func TestReleaseOfAPass(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2, 3)
		for id := 1; id <= 3; id++ {
			ev := w.erasure(id)
			ev.Kind, ev.RunID = schema.KindSnapshot, "pass-1"
			w.apply(ev)
		}
		w.runDue()
		w.want(`SELECT COUNT(*) FROM lethe_pending WHERE wait = 'breaker'`, "3")
		w.states(1, "suppressed awaiting_release")
		w.apply(w.decide(3, schema.DecisionHold))
		w.runDue()
		w.apply(w.decide(1, schema.DecisionRelease))
		w.runDue()
		w.want(`SELECT crm_id FROM contact WHERE firstname IS NULL ORDER BY 1`, "1\n2")
	}, erasing)
}

// putBack is a trigger by which somebody else undoes what phase 2 does.
const putBack = `CREATE TRIGGER put_back BEFORE UPDATE ON contact FOR EACH ROW SET NEW.firstname = OLD.firstname`

func TestResidualValueFailsAfterThreeAttempts(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(putBack)
		w.person(1)
		w.apply(w.erasure(1))
		w.runDue()
		for range ledger.MaxAttempts {
			w.due("pending", "due_at")
			w.runDue()
		}
		w.want(`SELECT state, attempts, error_code, due_at = '`+never+`' FROM lethe_pending`, "suppressed|3|residual_values|1")
		w.states(1, "suppressed applied applied applied failed")
		w.exec(`DROP TRIGGER put_back`)
		w.apply(w.decide(1, schema.DecisionRelease))
		w.runDue()
		w.want(`SELECT state FROM lethe_pending`, "verified")
	}, erasing)
}

func TestAudienceThatReturnsThePersonIsAResidual(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.runDue()
		w.want(`SELECT error_code FROM lethe_pending`, ledger.ReasonResidual)
	}, erasing, func(c *config.Replica) { c.Audience = "select contact_id from contact" })
}

func TestRefusedEraseHoldsUpNoOther(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.exec(`ALTER TABLE contact ADD CONSTRAINT keeps CHECK (firstname IS NOT NULL OR email <> 'p1@exemple.fr' AND email IS NOT NULL OR crm_id <> 1)`)
		w.apply(w.erasure(1), w.erasure(2))
		w.runDue()
		w.states(2, "suppressed applied verified")
		w.want(`SELECT error_code IS NULL, state, attempts FROM lethe_pending WHERE state = 'suppressed'`, "0|suppressed|3")
		w.want(`SELECT firstname IS NULL FROM contact ORDER BY crm_id`, "0\n1")
	}, erasing)
}

// A trigger, NOT NULL of a column that came later and a foreign key of a table that came later each refuse their own case.
func TestRefusalsOfEveryKindAreOfOneCase(t *testing.T) {
	for name, refuse := range map[string]string{
		"trigger": `CREATE TRIGGER refuse BEFORE UPDATE ON contact FOR EACH ROW
			IF NEW.crm_id = 1 AND NEW.firstname IS NULL THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF`,
		"foreign key": `CREATE TABLE late (note_id BIGINT, FOREIGN KEY (note_id) REFERENCES note (note_id));
			INSERT INTO late SELECT n.note_id FROM note n JOIN contact c USING (contact_id) WHERE c.crm_id = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			bothWorlds(t, func(w *world) {
				w.person(1, 2)
				w.r.forget()
				if err := w.r.Start(w.ctx); err != nil {
					w.Fatal(err)
				}
				w.exec(refuse)
				w.apply(w.erasure(1), w.erasure(2))
				w.runDue()
				w.states(2, "suppressed applied verified")
				w.states(1, "suppressed failed")
				w.want(`SELECT state, attempts, error_code IS NULL FROM lethe_pending WHERE state = 'suppressed'`, "suppressed|3|0")
			}, erasing)
		})
	}
}

func TestNothingIsVerifiedWhileAGapIsOpen(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, &schema.Gap{Opened: true, GapID: "g1", Cause: "slot_lost"}), w.erasure(1),
			w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
		w.runDue()
		w.states(1, "suppressed applied")
		w.want(`SELECT state, wait, error_code FROM lethe_pending`, "applied|gap|gap_open")
		w.want(`SELECT COUNT(*) FROM lethe_receipt WHERE state = 'verified'`, "0")
		w.apply(w.event(1, &schema.Gap{GapID: "g1", Cause: "slot_lost"}))
		w.due("pending", "due_at")
		w.runDue()
		w.states(1, "suppressed applied verified")
	}, erasing)
}

// firstnameOnly is a mapping that forgets the address.
func firstnameOnly(c *config.Replica) {
	c.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{"firstname": nulled()}}
}

// Mapping the column is what the operator is told to do: it reaches the cases that the column held back.
func TestUnmappedPersonalColumnKeepsVerifiedAway(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.runDue()
		w.want(`SELECT state, error_code FROM lethe_pending`, "applied|unmapped_columns")
		w.cfg.Erase.Tables["contact"].Set["email"] = nulled()
		w.restart()
		w.runDue()
		w.want(`SELECT state, error_code IS NULL FROM lethe_pending`, "verified|1")
		w.want(`SELECT email IS NULL FROM contact`, "1")
	}, erasing, firstnameOnly)
}

func TestPersonalColumnThatIsAddedKeepsVerifiedAway(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.erasure(1))
		w.exec(`ALTER TABLE contact ADD COLUMN mobile VARCHAR(20); UPDATE contact SET mobile = '0601020304'`)
		w.r.compiledAt = time.Now().Add(-ledger.MappingAge - time.Second)
		w.runDue()
		w.want(`SELECT state, error_code FROM lethe_pending`, "applied|unmapped_columns")
	}, erasing)
}

// The ETL may make a person's row anew between the phases: phase 1 has not seen that one.
func TestRowMadeAnewBetweenThePhases(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.erasure(1))
		w.exec(`UPDATE contact SET usable = 1, newsletter = 1`)
		w.runDue()
		w.want(`SELECT firstname IS NULL, usable, newsletter FROM contact`, "1|0|0")
		w.states(1, "suppressed applied verified")
	}, erasing)
}

func TestFencedWorkerErasesNothing(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		stale := w.All()
		w.apply(w.erasure(1))
		if _, err := w.r.RunDue(w.ctx, stale); sinks.Classify(err) != sinks.Fenced {
			w.Errorf("a worker with old places got %v", err)
		}
		w.want(`SELECT firstname IS NULL FROM contact`, "0")
	}, erasing)
}
