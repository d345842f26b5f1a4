package postgres

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func TestPlanCountsAndChangesNothing(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1, 2)
	w.exec(`INSERT INTO note (contact_id, body) SELECT contact_id, 'again' FROM contact WHERE crm_id = 1`)
	desk := NewDesk(w.cfg, w.pool)
	p, err := desk.Plan(w.ctx, []string{"1"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range p.Steps {
		got = append(got, strings.Join([]string{string(rune('0' + s.Phase)), s.Table, s.Action, s.By, strings.Join(s.Columns, "+"), string(rune('0' + s.Rows))}, " "))
	}
	want := []string{
		"1 contact suppress crm_id usable 1", "1 do_not_contact insert contact_id added_at+channel+contact_id+reason 1",
		"1 contact consent crm_id newsletter+reconsent+offers+no_marketing+frozen 1",
		"2 note delete contact_id  2", "2 contact set crm_id email+firstname 1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if p.Found != 1 || len(p.Persons) != 1 {
		t.Errorf("found %d as %v", p.Found, p.Persons)
	}
	w.want(`SELECT count(*) FROM contact WHERE usable AND firstname IS NOT NULL`, "2")
	if p, err = desk.Plan(w.ctx, []string{"77"}); err != nil || p.Found != 0 || p.Steps[3].Rows != 0 {
		t.Errorf("a stranger: %+v, %v", p, err)
	}
	if _, err = desk.Plan(w.ctx, []string{"1", "2"}); err == nil || !strings.Contains(err.Error(), "1 parts") {
		t.Errorf("a key of two parts: %v", err)
	}
	for _, key := range []string{"abc", "99999999999999999999"} {
		_, err = desk.Plan(w.ctx, []string{key})
		if err == nil || !strings.Contains(err.Error(), "does not have the type of person.crm_key") || strings.Contains(err.Error(), key) {
			t.Errorf("a key of another type: %v", err)
		}
	}
}

// TestStatusNamesWhatKeepsACaseBack: where no wait is set, the error code is what the case waits for.
func TestStatusNamesWhatKeepsACaseBack(t *testing.T) {
	w := newWorld(t, 15, erasing, func(c *config.Replica) {
		c.Erase.Tables["contact"] = &config.EraseTable{Set: map[string]config.Value{"firstname": value(ledger.KindNull)}}
	})
	w.person(1)
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.runDue()
	s, err := NewDesk(w.cfg, w.pool).Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{ledger.ReasonUnmapped: 1}, s.Waiting); diff != "" {
		t.Error(diff)
	}
}

// TestPlanListsEveryPhaseInEveryMode: people start with observe and read here what the next mode would do.
func TestPlanListsEveryPhaseInEveryMode(t *testing.T) {
	for mode, active := range map[string]string{ledger.ModeObserve: "", ledger.ModeSuppress: "111", ledger.ModeErase: "11122"} {
		w := newWorld(t, 15, erasing, func(c *config.Replica) { c.Mode = mode })
		w.person(1)
		p, err := NewDesk(w.cfg, w.pool).Plan(w.ctx, []string{"1"})
		if err != nil {
			t.Fatal(err)
		}
		all, now := "", ""
		for _, s := range p.Steps {
			all += strconv.Itoa(s.Phase)
			if s.Active {
				now += strconv.Itoa(s.Phase)
			}
			if s.Rows == 0 && s.Table != "note" {
				t.Errorf("%s: no rows counted in %+v", mode, s)
			}
		}
		if all != "11122" || now != active {
			t.Errorf("%s lists phases %s, of which %q are active", mode, all, now)
		}
	}
}

func TestCasesTellStateAndEffectiveReceipt(t *testing.T) {
	w := newWorld(t, 15, erasing)
	w.person(1, 2, 3)
	w.apply(w.event(1, &schema.SubjectErasure{}), w.event(2, &schema.SubjectErasure{}), w.event(3, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}),
		w.decide(2, schema.DecisionCancel), w.event(4, &schema.SubjectErasure{}))
	w.runDue()
	desk := NewDesk(w.cfg, w.pool)
	cases, err := desk.Cases(w.ctx, false, 100)
	if err != nil {
		t.Fatal(err)
	}
	got := map[schema.CaseID]string{}
	for _, c := range cases {
		got[c.ID] = c.State + " " + c.Wait + " " + c.Receipt
	}
	want := map[schema.CaseID]string{}
	for id, s := range map[int]string{
		1: "verified none verified", 2: "cancelled none cancelled", 3: "suppressed decision suppressed", 4: "suppressed no_row no_match",
	} {
		want[w.ids.CaseID(w.ids.SubjectRef(crmKey(id)))] = s
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	open, err := desk.Cases(w.ctx, true, 100)
	if err != nil || len(open) != 2 {
		t.Errorf("%d cases are open (%v), want 2", len(open), err)
	}
	s, err := desk.Status(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"verified": 1, "cancelled": 1, "suppressed": 1, "no_match": 1}, s.Receipts); diff != "" {
		t.Error(diff)
	}
	if s.Replica != "marketing" || s.Erasures["suppressed"] != 2 || s.Waiting["decision"] != 1 || s.OldestProof <= 0 || len(s.Places) != 4 || s.Paused {
		t.Errorf("status %+v", s)
	}
	id := w.ids.CaseID(w.ids.SubjectRef(crmKey(3)))
	key, found, err := desk.FindCase(w.ctx, id, w.keys)
	if err != nil || !found || !bytes.Equal(key, crmKey(3)) {
		t.Errorf("the key of case 3: %t, %v", found, err)
	}
	if _, found, err = desk.FindCase(w.ctx, schema.CaseID{1}, w.keys); found || err != nil {
		t.Errorf("a case that does not exist: %t, %v", found, err)
	}
}

// gathered returns the values by name and the values of the labels but for the replica.
func gathered(t *testing.T, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "state" || l.GetName() == "wait" {
					name += " " + l.GetValue()
				}
			}
			out[name] = m.GetGauge().GetValue()
		}
	}
	return out
}

func TestGaugesTellWhatTheLedgerHolds(t *testing.T) {
	w := newWorld(t, 15, erasing)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w.r.gauges)
	if got := gathered(t, registry); len(got) != 0 {
		t.Fatalf("before the first count: %v", got)
	}
	w.person(1, 2)
	w.apply(w.event(1, &schema.SubjectErasure{}), w.event(2, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}))
	w.runDue()
	got := gathered(t, registry)
	for name, want := range map[string]float64{
		"lethe_pending suppressed decision": 1, "lethe_pending verified none": 1, "lethe_parked_events": 0, "lethe_gaps_open": 0,
		"lethe_receipts verified": 1, "lethe_receipts suppressed": 1, "lethe_receipts failed": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%t), want %v", name, v, ok, want)
		}
	}
	if got["lethe_oldest_unproven_erasure_seconds"] <= 0 {
		t.Error("the age of the erasure that waits is not told")
	}
	// The next count is 15 s away, whatever the chores do until then.
	w.apply(w.decide(2, schema.DecisionCancel))
	w.runDue()
	if got := gathered(t, registry)["lethe_pending suppressed decision"]; got != 1 {
		t.Errorf("counted again at once: %v", got)
	}
	w.r.gauges.Expire()
	w.runDue()
	if got := gathered(t, registry)["lethe_pending suppressed decision"]; got != 0 {
		t.Errorf("not counted again: %v", got)
	}
}

func TestRotationSealsRowsAgain(t *testing.T) {
	w := newWorld(t, 15)
	seal := &sinktest.Rotating{Keys: w.keys, ID: 7, Known: []uint32{7}}
	w.r.core.Seal = seal
	w.person(1, 2, 3)
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, consent("newsletter", schema.ConsentGiven)))
	// Of a key that was lost: it must not hold up the others.
	w.exec(`INSERT INTO lethe.subject (ref, part, sealed_key) VALUES ('\x01', 0, '\x0100000001ff')`)
	w.runDue()
	desk := NewDesk(w.cfg, w.pool)
	keyID := func(b []byte) (uint32, error) { return binary.BigEndian.Uint32(b[1:]), nil }
	if n, _, err := desk.SealedUnder(w.ctx, 7, keyID); err != nil || n != 2 {
		t.Fatalf("%d rows under key 7 (%v), want 2", n, err)
	}
	seal.ID, seal.Known = 8, []uint32{8, 7}
	w.r.reseal = ledger.ResealRounds{}
	w.runDue()
	if n, _, err := desk.SealedUnder(w.ctx, 7, keyID); err != nil || n != 0 {
		t.Errorf("%d rows are still under key 7 (%v)", n, err)
	}
	if n, _, err := desk.SealedUnder(w.ctx, 8, keyID); err != nil || n != 2 {
		t.Errorf("%d rows under key 8 (%v), want 2", n, err)
	}
	seal.Known = []uint32{8}
	ref := w.r.core.Ref(w.ids.SubjectRef(crmKey(2)))
	var sealed []byte
	if err := w.admin.QueryRow(w.ctx, `SELECT sealed_key FROM lethe.subject WHERE ref = $1`, ref[:]).Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	if parts, err := w.r.core.OpenKey(ref[:], sealed); err != nil || !slices.Equal(parts, []string{"2"}) {
		t.Errorf("the key of subject 2 opens to %d parts: %v", len(parts), err)
	}
}

func TestReceiptsTellTheirProofKey(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	desk := NewDesk(w.cfg, w.pool)
	if found, err := desk.SignedUnder(w.ctx, 1); found || err != nil {
		t.Fatalf("without receipts: %t, %v", found, err)
	}
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
	if found, err := desk.SignedUnder(w.ctx, 1); !found || err != nil {
		t.Errorf("key 1 signed: %t, %v", found, err)
	}
	if found, err := desk.SignedUnder(w.ctx, 2); found || err != nil {
		t.Errorf("key 2 signed: %t, %v", found, err)
	}
}
