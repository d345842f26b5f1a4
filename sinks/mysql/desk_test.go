package mysql

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
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func TestPlanCountsAndChangesNothing(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2)
		w.exec(`INSERT INTO note (contact_id, body) SELECT contact_id, 'again' FROM contact WHERE crm_id = 1`)
		desk := NewDesk(w.cfg, w.run)
		p, err := desk.Plan(w.ctx, []string{"1"})
		if err != nil {
			w.Fatal(err)
		}
		var got []string
		for _, s := range p.Steps {
			got = append(got, strings.Join([]string{strconv.Itoa(s.Phase), s.Table, s.Action, s.By, strings.Join(s.Columns, "+"), strconv.FormatInt(s.Rows, 10)}, " "))
		}
		want := []string{
			"1 contact suppress crm_id usable 1", "1 do_not_contact insert contact_id added_at+channel+contact_id+reason 1",
			"1 contact consent crm_id newsletter+reconsent+offers+no_marketing+frozen 1",
			"2 note delete contact_id  2", "2 contact set crm_id email+firstname 1",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			w.Error(diff)
		}
		if p.Found != 1 || len(p.Persons) != 1 || p.Persons[0] != w.lines(`SELECT contact_id FROM contact WHERE crm_id = 1`) {
			w.Errorf("found %d as %v", p.Found, p.Persons)
		}
		w.want(`SELECT COUNT(*) FROM contact WHERE usable AND firstname IS NOT NULL`, "2")
		if p, err = desk.Plan(w.ctx, []string{"77"}); err != nil || p.Found != 0 || p.Steps[3].Rows != 0 {
			w.Errorf("a stranger: %+v, %v", p, err)
		}
		if _, err = desk.Plan(w.ctx, []string{"1", "2"}); err == nil || !strings.Contains(err.Error(), "1 parts") {
			w.Errorf("a key of two parts: %v", err)
		}
		for _, key := range []string{"abc", "99999999999999999999"} {
			_, err = desk.Plan(w.ctx, []string{key})
			if sinks.Classify(err) != sinks.Permanent || !strings.Contains(err.Error(), "does not have the type of person.crm_key") || strings.Contains(err.Error(), key) {
				w.Errorf("a key of another type: %v", err)
			}
		}
	}, erasing)
}

// People start with observe and read here what the next mode would do.
func TestPlanListsEveryPhaseInEveryMode(t *testing.T) {
	s := newSite(t, testenv.MariaDB)
	s.exec(`INSERT INTO contact (crm_id) VALUES (1)`)
	for mode, active := range map[string]string{ledger.ModeObserve: "", ledger.ModeSuppress: "111", ledger.ModeErase: "11122"} {
		s.cfg.Mode = mode
		p, err := NewDesk(s.cfg, s.db).Plan(s.ctx, []string{"1"})
		if err != nil {
			t.Fatal(err)
		}
		all, now := "", ""
		for _, step := range p.Steps {
			all += strconv.Itoa(step.Phase)
			if step.Active {
				now += strconv.Itoa(step.Phase)
			}
		}
		if all != "11122" || now != active {
			t.Errorf("%s lists phases %s, of which %q are active", mode, all, now)
		}
	}
}

func TestCasesTellStateAndEffectiveReceipt(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1, 2, 3)
		w.apply(w.erasure(1), w.erasure(2), w.event(3, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}), w.decide(2, schema.DecisionCancel), w.erasure(4))
		w.runDue()
		desk := NewDesk(w.cfg, w.run)
		cases, err := desk.Cases(w.ctx, false, 100)
		if err != nil {
			w.Fatal(err)
		}
		got, want := map[schema.CaseID]string{}, map[schema.CaseID]string{}
		for _, c := range cases {
			got[c.ID] = c.State + " " + c.Wait + " " + c.Receipt
		}
		for id, s := range map[string]string{
			"1": "verified none verified", "2": "cancelled none cancelled", "3": "suppressed decision suppressed", "4": "suppressed no_row no_match",
		} {
			want[w.CaseID(id)] = s
		}
		if diff := cmp.Diff(want, got); diff != "" {
			w.Error(diff)
		}
		open, err := desk.Cases(w.ctx, true, 100)
		if err != nil || len(open) != 2 {
			w.Errorf("%d cases are open (%v), want 2", len(open), err)
		}
		s, err := desk.Status(w.ctx)
		if err != nil {
			w.Fatal(err)
		}
		if diff := cmp.Diff(map[string]int{"verified": 1, "cancelled": 1, "suppressed": 1, "no_match": 1}, s.Receipts); diff != "" {
			w.Error(diff)
		}
		if s.Replica != "marketing" || s.Erasures["suppressed"] != 2 || s.Waiting["decision"] != 1 || s.Waiting["no_row"] != 1 || s.OldestProof <= 0 ||
			len(s.Places) != 4 || s.Paused || s.Unmatched != 1 {
			w.Errorf("status %+v", s)
		}
		key, found, err := desk.FindCase(w.ctx, w.CaseID("3"), w.keys)
		if err != nil || !found || !bytes.Equal(key, schema.CanonicalKey(nil, []byte("3"))) {
			w.Errorf("the key of case 3: %t, %v", found, err)
		}
		if _, found, err = desk.FindCase(w.ctx, schema.CaseID{1}, w.keys); found || err != nil {
			w.Errorf("a case that does not exist: %t, %v", found, err)
		}
	}, erasing)
}

func TestDecisionOutcomeIsTold(t *testing.T) {
	w := newWorld(t, testenv.MySQLServer, erasing)
	w.person(1)
	hold := w.decide(1, schema.DecisionHold)
	w.apply(w.event(1, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}), hold)
	desk := NewDesk(w.cfg, w.run)
	if got, err := desk.DecisionOutcome(w.ctx, hold.EventID); got != "" || err != nil {
		t.Errorf("before it is carried out: %q, %v", got, err)
	}
	w.runDue()
	if got, err := desk.DecisionOutcome(w.ctx, hold.EventID); got != ledger.DecisionDone || err != nil {
		t.Errorf("outcome %q, %v", got, err)
	}
	if got, err := desk.DecisionOutcome(w.ctx, schema.EventID{1}); got != "" || err != nil {
		t.Errorf("of no decision: %q, %v", got, err)
	}
}

func TestPauseHoldsAndResumeTellsWho(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.person(1)
		desk := NewDesk(w.cfg, w.run)
		for range 2 { // the first one stays
			if err := desk.Pause(w.ctx, "dba"); err != nil {
				w.Fatal(err)
			}
		}
		if _, err := w.r.Apply(w.ctx, w.Batch(w.erasure(1))); sinks.CodeOf(err) != sinks.CodePaused {
			w.Errorf("applied while paused: %v", err)
		}
		s, err := desk.Status(w.ctx)
		if err != nil || !s.Paused || !strings.HasPrefix(s.PausedBy, "dba 20") {
			w.Errorf("status %+v, %v", s, err)
		}
		for range 2 { // the second one ends nothing
			if err := desk.Resume(w.ctx, ""); err != nil {
				w.Fatal(err)
			}
		}
		w.want(`SELECT v LIKE '- 20% +00; paused by dba 20%' OR v LIKE '- 20%+00; paused by dba 20%+00' FROM lethe_meta WHERE k = 'resumed'`, "1")
		if paused, err := w.r.Paused(w.ctx); paused || err != nil {
			w.Errorf("still paused: %v, %v", paused, err)
		}
		w.apply(w.erasure(1))
	})
}

func TestParkedEventsAreListedAndDecided(t *testing.T) {
	w := newWorld(t, testenv.MariaDB)
	w.person(1)
	w.exec(`ALTER TABLE contact ADD CHECK (newsletter OR crm_id <> 1)`)
	ev := w.event(1, consent("newsletter", schema.ConsentWithdrawn))
	w.park(ev)
	desk := NewDesk(w.cfg, w.run)
	parked, err := desk.Parked(w.ctx, false, 10)
	if err != nil || len(parked) != 1 || parked[0].EventID != ev.EventID || parked[0].Code != "mysql_4025" || parked[0].ParkedAt.IsZero() {
		t.Fatalf("parked %+v, %v", parked, err)
	}
	p := parked[0]
	for range 2 { // asking again is no mistake
		if err := desk.ReplayParked(w.ctx, p.Partition, p.Offset, "dpo"); err != nil {
			t.Fatal(err)
		}
	}
	if parked, err = desk.Parked(w.ctx, false, 10); err != nil || parked[0].Want != ledger.WantReplay {
		t.Errorf("parked %+v, %v", parked, err)
	}
	if err := desk.DiscardParked(w.ctx, p.Partition, p.Offset, "dpo"); err != nil {
		t.Fatal(err)
	}
	w.runDue()
	if parked, err = desk.Parked(w.ctx, false, 10); err != nil || len(parked) != 0 {
		t.Errorf("still parked %+v, %v", parked, err)
	}
	if parked, err = desk.Parked(w.ctx, true, 10); err != nil || len(parked) != 1 || parked[0].DoneAt.IsZero() {
		t.Errorf("done %+v, %v", parked, err)
	}
	if err := desk.ReplayParked(w.ctx, p.Partition, p.Offset, "dpo"); sinks.CodeOf(err) != "not_parked" {
		t.Errorf("replay of what is done: %v", err)
	}
}

func TestGapsAreListed(t *testing.T) {
	bothWorlds(t, func(w *world) {
		w.exec(`INSERT INTO lethe_gap (gap_id, part, cause, opened_at, closed_at) VALUES ('g1', 0, 'slot', '2026-01-01 10:00:00', '2026-01-02'),
			('g1', 1, 'slot', '2026-01-01 11:00:00', NULL), ('g2', 0, 'topic', '2026-02-01', '2026-02-03')`)
		desk := NewDesk(w.cfg, w.run)
		gaps, err := desk.Gaps(w.ctx)
		if err != nil || len(gaps) != 2 || gaps[0].ID != "g2" || gaps[0].ClosedAt.IsZero() || !gaps[1].ClosedAt.IsZero() || gaps[1].OpenedAt.Hour() != 10 {
			w.Errorf("gaps %+v, %v", gaps, err)
		}
		if s, err := desk.Status(w.ctx); err != nil || !slices.Equal(s.OpenGaps, []string{"g1"}) {
			w.Errorf("status %+v, %v", s, err)
		}
	})
}

func TestGaugesTellWhatTheLedgerHolds(t *testing.T) {
	bothWorlds(t, func(w *world) {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(w.r.gauges)
		w.person(1, 2)
		w.apply(w.erasure(1), w.event(2, &schema.SubjectErasure{Phase2: schema.Phase2OnDecision}))
		w.runDue()
		families, err := registry.Gather()
		if err != nil {
			w.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					if l.GetName() == "state" || l.GetName() == "wait" {
						name += " " + l.GetValue()
					}
				}
				got[name] = m.GetGauge().GetValue()
			}
		}
		for name, want := range map[string]float64{
			"lethe_pending suppressed decision": 1, "lethe_pending verified none": 1, "lethe_parked_events": 0, "lethe_gaps_open": 0,
			"lethe_receipts verified": 1, "lethe_receipts suppressed": 1, "lethe_receipts failed": 0,
		} {
			if v, ok := got[name]; !ok || v != want {
				w.Errorf("%s is %v (%t), want %v", name, v, ok, want)
			}
		}
		if got["lethe_oldest_unproven_erasure_seconds"] <= 0 {
			w.Error("the age of the erasure that waits is not told")
		}
	}, erasing)
}

func TestKeysInUseAreFound(t *testing.T) {
	bothWorlds(t, func(w *world) {
		seal := &sinktest.Rotating{Keys: w.keys, ID: 7, Known: []uint32{7}}
		w.r = w.replica(func(o *Options) { o.Seal = seal })
		w.assign()
		w.person(1, 2)
		desk := NewDesk(w.cfg, w.run)
		if found, err := desk.SignedUnder(w.ctx, 1); found || err != nil {
			w.Fatalf("without receipts: %t, %v", found, err)
		}
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, consent("newsletter", schema.ConsentGiven)))
		keyID := func(b []byte) (uint32, error) { return binary.BigEndian.Uint32(b[1:]), nil }
		for id, want := range map[uint32]int{7: 2, 8: 0} {
			if n, _, err := desk.SealedUnder(w.ctx, id, keyID); err != nil || n != want {
				w.Errorf("%d rows under key %d (%v), want %d", n, id, err, want)
			}
		}
		for id, want := range map[uint32]bool{1: true, 2: false} {
			if found, err := desk.SignedUnder(w.ctx, id); found != want || err != nil {
				w.Errorf("key %d signed: %t, %v", id, found, err)
			}
		}
	}, func(c *config.Replica) { c.Audience = "" })
}
