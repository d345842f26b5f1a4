package postgres

import (
	"testing"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// A person who is on the do-not-contact list for another reason already is erased like everybody else.
func TestOtherOptOutIsNoObstacle(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1)
	w.exec(`INSERT INTO do_not_contact (contact_id, channel, reason) SELECT contact_id, 'email', 1 FROM contact`)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.want(`SELECT usable, reason FROM contact JOIN do_not_contact USING (contact_id)`, "false|1")
	w.runDue()
	w.states(1, "suppressed applied verified")
	w.want(`SELECT count(*) FROM do_not_contact`, "1")
}

// Rows that are held are no residual values, but the proof names them and until when.
func TestProofNamesWhatIsHeld(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.exec(`CREATE TABLE invoice (invoice_id bigint PRIMARY KEY, contact_id bigint REFERENCES contact, payer_name text, made_on date);
		GRANT SELECT ON invoice TO ` + w.role)
	w.cfg.Hold = map[string]config.Hold{"invoice": {By: "contact_id", Basis: "legal_obligation", For: config.Period{Years: 10}, From: "invoice.made_on"}}
	w.setup()
	w.r = w.replica()
	w.assign()
	w.person(1)
	w.exec(`INSERT INTO invoice SELECT i, contact_id, 'Jeanne', date '2020-02-29' + i FROM contact, generate_series(0, 1) i`)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.states(1, "suppressed applied verified")
	var held string
	for _, rc := range w.receipts() {
		for _, r := range rc.Residuals {
			if r.Kind != "backup" {
				held += r.Kind + " " + r.Until.Format("2006-01-02")
			}
		}
	}
	if held != "hold:public.invoice 2030-03-01" {
		t.Errorf("the proof names %q", held)
	}
}

// json has no equality of its own.
func TestDocumentsAreCompared(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.exec(`ALTER TABLE contact ADD COLUMN profile json, ADD COLUMN spot point; ALTER TABLE do_not_contact ADD COLUMN origin json`)
	w.cfg.Erase.Tables["contact"].Set["profile"] = constant(`{"gone": true}`)
	w.cfg.Erase.Tables["contact"].Set["spot"] = constant("(0,0)")
	w.cfg.Suppress[1].Insert.Values["origin"] = constant(`{"by":"lethe"}`)
	w.setup()
	w.r = w.replica()
	w.assign()
	w.person(1)
	w.exec(`UPDATE contact SET profile = '{"likes": "boats"}'`)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.states(1, "suppressed applied verified")
	w.want(`SELECT profile::text, spot::text FROM contact`, `{"gone": true}|(0,0)`)
}

// Where phase 2 takes the CRM key a second round finds nobody, and proves nothing.
func TestLostCRMKeyIsNoProof(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.exec(`ALTER TABLE contact ALTER COLUMN crm_id DROP NOT NULL`)
	w.cfg.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{"crm_id": value(ledger.KindNull), "email": value(ledger.KindNull), "firstname": value(ledger.KindNull)}}
	w.setup()
	w.r = w.replica()
	w.assign()
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	w.states(1, "suppressed applied verified")
	w.exec(`UPDATE contact SET firstname = 'Jeanne'; UPDATE lethe_witness SET n = 0`)
	w.runDue()
	w.want(`SELECT state, matched FROM lethe.pending`, "suppressed|false")
}
