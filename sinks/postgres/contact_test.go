package postgres

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
	w := newWorld(t, 15, func(c *config.Replica) { c.Erase.CoolOff = 0 })
	w.person(1)
	w.apply(w.event(1, address(1, "a")), w.event(1, boundTo(1, schema.ConsentWithdrawn)))
	w.apply(w.event(1, address(1, "b")), w.event(1, boundTo(1, schema.ConsentWithdrawn)))
	w.want(`SELECT standing, count(*) FROM lethe.contact_key GROUP BY 1 ORDER BY 1`, "live|1\npast|1")
	w.want(`SELECT count(*) FROM lethe.contact_block`, "2") // of both values
	w.apply(w.event(1, &schema.SubjectErasure{Marker: true}))
	for range 20 {
		w.due()
	}
	w.want(`SELECT state FROM lethe.pending`, "verified")
	w.want(`SELECT (SELECT count(*) FROM lethe.contact), (SELECT count(*) FROM lethe.contact_block), (SELECT count(*) FROM lethe.fact)`, "0|0|0")
	w.want(`SELECT standing, count(*) FROM lethe.contact_key GROUP BY 1 ORDER BY 1`, "live|1\npast|1")
	w.apply(w.event(1, address(2, "c")), w.event(1, consent("newsletter", schema.ConsentGiven)))
	w.want(`SELECT standing, count(*) FROM lethe.contact_key GROUP BY 1 ORDER BY 1`, "live|1\npast|1\nrevived|1")
	list, err := NewDesk(w.cfg, w.pool).Findings(w.ctx, 10)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, f := range list {
		kinds = append(kinds, f.Kind)
		if f.Ref == nil || f.Times != 1 || f.LastAt.IsZero() {
			t.Errorf("finding %+v", f)
		}
	}
	slices.Sort(kinds)
	if want := []string{ledger.FindingRefused, ledger.FindingRevived}; !slices.Equal(kinds, want) {
		t.Errorf("findings %v, want %v", kinds, want)
	}
}

// Two transactions that run beside each other see nothing of each other: a withdrawal is told once more when everything that ran beside it
// has ended.
func TestWithdrawalIsToldAgain(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1, 2)
	w.apply(w.event(2, boundTo(2, schema.ConsentGiven)), w.event(1, address(1, "a")), w.event(1, boundTo(1, schema.ConsentWithdrawn)))
	w.due() // there is nobody to tell yet
	w.want(`SELECT reason, at > now() + interval '1 minute' FROM lethe.touch`, ledger.TouchAgain+"|true")
	w.exec(`CREATE TABLE unseen AS SELECT * FROM lethe.contact_block; DELETE FROM lethe.contact_block`)
	w.apply(w.event(2, address(2, "a")))
	w.exec(`INSERT INTO lethe.contact_block SELECT * FROM unseen`)
	w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "true")
	w.exec(`UPDATE lethe.touch SET at = now()`)
	for range 3 {
		w.due()
	}
	w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "false")
	w.want(`SELECT count(*) FROM lethe.touch`, "0")
	list, err := NewDesk(w.cfg, w.pool).Findings(w.ctx, 10)
	if err != nil || len(list) != 1 || list[0].Kind != ledger.FindingShared || list[0].Times != 1 {
		t.Errorf("findings %+v, %v: want the one value that two hold", list, err)
	}
}
