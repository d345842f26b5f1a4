package mysql

import (
	"slices"
	"testing"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// address is a contact point with one address.
func address(point byte, text string) *schema.ContactPoint {
	k := schema.MatchKey{Type: "email_strict", KeyID: 1, NormVersion: 1}
	copy(k.Value[:], text)
	return &schema.ContactPoint{Contact: schema.ContactRef{point}, Kind: schema.ContactEmail, Keys: []schema.MatchKey{k}}
}

func boundTo(point byte, state schema.ConsentState) *schema.ConsentChange {
	c := consent("newsletter", state)
	c.Contact = schema.ContactRef{point}
	return c
}

// A proven erasure leaves keyed values and nothing else; what comes up later is kept apart and listed.
func TestErasureLeavesKeyedValues(t *testing.T) {
	bothWorlds(t, func(w *world) {
		const standings = `SELECT standing, COUNT(*) FROM lethe_contact_key GROUP BY 1 ORDER BY 1`
		w.person(1)
		w.apply(w.event(1, address(1, "a")), w.event(1, boundTo(1, schema.ConsentWithdrawn)))
		w.apply(w.event(1, address(1, "b")), w.event(1, boundTo(1, schema.ConsentWithdrawn)))
		w.want(standings, "live|1\npast|1")
		w.want(`SELECT COUNT(*) FROM lethe_contact_block`, "2") // of both values
		w.apply(w.event(1, &schema.SubjectErasure{Marker: true}))
		for range 20 {
			w.runDue()
		}
		w.want(`SELECT state FROM lethe_pending`, "verified")
		w.want(`SELECT (SELECT COUNT(*) FROM lethe_contact), (SELECT COUNT(*) FROM lethe_contact_block), (SELECT COUNT(*) FROM lethe_fact)`, "0|0|0")
		w.want(standings, "live|1\npast|1")
		w.apply(w.event(1, address(2, "c")), w.event(1, consent("newsletter", schema.ConsentGiven)))
		w.want(standings, "live|1\npast|1\nrevived|1")
		list, err := NewDesk(w.cfg, w.run).Findings(w.ctx, 10)
		if err != nil {
			w.Fatal(err)
		}
		var kinds []string
		for _, f := range list {
			kinds = append(kinds, f.Kind)
			if f.Ref == nil || f.Times != 1 || f.LastAt.IsZero() {
				w.Errorf("finding %+v", f)
			}
		}
		slices.Sort(kinds)
		if want := []string{ledger.FindingRefused, ledger.FindingRevived}; !slices.Equal(kinds, want) {
			w.Errorf("findings %v, want %v", kinds, want)
		}
	}, func(c *config.Replica) { c.Erase.CoolOff = 0 })
}

// Two transactions that run beside each other see nothing of each other: a withdrawal is told once more when everything that ran beside it
// has ended.
func TestWithdrawalIsToldAgain(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.apply(w.event(2, boundTo(2, schema.ConsentGiven)), w.event(1, address(1, "a")), w.event(1, boundTo(1, schema.ConsentWithdrawn)))
		w.runDue() // there is nobody to tell yet
		w.want(`SELECT reason, at > UTC_TIMESTAMP() + INTERVAL 1 MINUTE FROM lethe_touch`, ledger.TouchAgain+"|1")
		w.exec(`CREATE TABLE unseen AS SELECT * FROM lethe_contact_block`)
		w.exec(`DELETE FROM lethe_contact_block`)
		w.apply(w.event(2, address(2, "a")))
		w.exec(`INSERT INTO lethe_contact_block SELECT * FROM unseen`)
		w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "1")
		w.exec(`UPDATE lethe_touch SET at = UTC_TIMESTAMP(6)`)
		for range 3 {
			w.runDue()
		}
		w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "0")
		w.want(`SELECT COUNT(*) FROM lethe_touch`, "0")
		list, err := NewDesk(w.cfg, w.run).Findings(w.ctx, 10)
		if err != nil || len(list) != 1 || list[0].Kind != ledger.FindingShared || list[0].Times != 1 {
			w.Errorf("findings %+v, %v: want the one value that two hold", list, err)
		}
	})
}
