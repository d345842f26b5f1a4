package app_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lethe/capture"
	"lethe/internal/app"
	"lethe/internal/keys"
	"lethe/schema"
)

// people inserts customers, and their copies in both replicas.
func (w *world) people(n int) {
	w.Helper()
	for i := 1; i <= n; i++ {
		w.pg.Exec(w.TB, "crm", "INSERT INTO customer (last_name) VALUES ('Durand')")
		w.pg.Exec(w.TB, "marketing", fmt.Sprintf("INSERT INTO contact (crm_id, lastname) VALUES (%d, 'Durand'); INSERT INTO contact_note (contact_id, body) VALUES (currval('contact_contact_id_seq'), 'x')", i))
		w.pg.Exec(w.TB, "reporting", fmt.Sprintf("INSERT INTO dim_customer (nk, full_name) VALUES (%d, 'Durand')", i))
	}
}

func (w *world) erase(id int) {
	w.Helper()
	w.pg.Exec(w.TB, "crm", fmt.Sprintf("UPDATE customer SET last_name = NULL, status = 'E', blocked = true WHERE customer_id = %d; "+
		"INSERT INTO customer_note (customer_id, note_code) VALUES (%d, 'GDPR')", id, id))
}

// cases waits until as many cases are known in each replica, and returns them by case.
func (w *world) cases(ctx context.Context, cases int) map[string][]app.CaseInfo {
	w.Helper()
	cfg := w.load()
	var out map[string][]app.CaseInfo
	w.eventually("cases", func() (bool, string) {
		list, err := app.Cases(ctx, cfg, "", false, 100)
		if err != nil {
			w.Fatal(err)
		}
		out = map[string][]app.CaseInfo{}
		for _, c := range list {
			out[c.Case] = append(out[c.Case], c)
		}
		return len(list) == 2*cases, fmt.Sprintf("%d rows", len(list))
	})
	return out
}

// An operator plans, sees cases, decides, pauses, and looks at the status, against running roles.
func TestOperatorsDay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.setup(cfg)
	w.people(4)
	plans, err := app.Plan(t.Context(), cfg, "", []string{"2"})
	if err != nil || len(plans) != 2 || plans[0].Found != 1 || plans[1].Found != 1 {
		t.Fatalf("plan: %+v, %v", plans, err)
	}
	if _, err := app.Plan(t.Context(), cfg, "", []string{"2", "FR"}); err == nil || !strings.Contains(err.Error(), "customer_id") {
		t.Errorf("a key with too many parts: %v", err)
	}
	before := app.ReadStatus(t.Context(), cfg)
	if before.Err() != nil || before.Kafka.Checkpoint != nil || before.Source.SlotState != "reserved" || before.Source.Reading {
		t.Errorf("before the first run: %v, %+v", before.Err(), before)
	}

	stop := w.run(cfg)
	for id := 1; id <= 3; id++ {
		w.erase(id)
	}
	byCase := w.cases(t.Context(), 3)
	var ids []string
	for id, list := range byCase {
		ids = append(ids, id)
		for _, c := range list {
			if c.State != "suppressed" || c.Wait != "cool_off" || c.Receipt != "suppressed" || c.Due.IsZero() {
				t.Errorf("case %+v", c)
			}
		}
	}
	slices.Sort(ids)
	w.decideAll(t, ids)
	w.pauseAndResume(t)
	w.retire(t)

	s := app.ReadStatus(t.Context(), cfg)
	if s.Err() != nil || s.Kafka.Checkpoint == nil || !s.Source.Reading || s.Replicas[0].LagEvents < 0 || !s.Replicas[0].MappingActive {
		t.Errorf("status: %v, %+v", s.Err(), s)
	}
	if m := s.Replicas[0]; m.Erasures["suppressed"] != 1 || m.Waiting["held"] != 1 || m.OldestUnprovenSecond <= 0 || len(m.Partitions) != 3 {
		t.Errorf("marketing: %+v", m.Status)
	}
	stop()
}

func (w *world) decideAll(t *testing.T, ids []string) {
	t.Helper()
	cfg := w.load()
	decide := func(d schema.Decision, replica string, wait time.Duration, ids ...string) ([]app.Decided, error) {
		return app.Decide(t.Context(), cfg, app.DecideOptions{Cases: ids, Decision: d, Replica: replica, Reason: "test", By: "dpo", Wait: wait})
	}
	want := func(d []app.Decided, err error, outcome string, replicas int) {
		t.Helper()
		if err != nil || len(d) == 0 || len(d[0].Outcomes) != replicas || d[0].Outcomes["marketing"] != outcome {
			t.Errorf("decided %+v, %v", d, err)
		}
	}
	// Case 0 is cancelled everywhere, 1 held in marketing alone, 2 released.
	d, err := decide(schema.DecisionCancel, "", time.Minute, ids[0])
	want(d, err, "done", 2)
	d, err = decide(schema.DecisionHold, "marketing", time.Minute, ids[1])
	want(d, err, "done", 1)
	if got := w.text("marketing", "SELECT count(*) FROM contact WHERE blocked"); got != "2" {
		t.Errorf("%s persons are suppressed after a cancel, want 2", got)
	}
	d, err = decide(schema.DecisionRelease, "", time.Minute, ids[2])
	want(d, err, "done", 2)
	w.pg.Exec(t, "marketing", "UPDATE lethe.pending SET due_at = now() WHERE NOT held")
	w.pg.Exec(t, "reporting", "UPDATE lethe.pending SET due_at = now()")
	w.eventually("case 2 is proven and case 1 waits", func() (bool, string) {
		var got []string
		for id, list := range w.cases(t.Context(), 3) {
			for _, c := range list {
				if id == ids[1] && c.Replica == "marketing" && c.Wait == "held" || id == ids[2] && c.Receipt == "verified" {
					got = append(got, c.Replica)
				}
			}
		}
		return len(got) == 3, fmt.Sprint(got)
	})
	if d, err = decide(schema.DecisionCancel, "reporting", time.Minute, ids[2]); err == nil || len(d) != 1 || d[0].Outcomes["reporting"] != "too_late" {
		t.Errorf("a cancel after phase 2: %+v, %v", d, err)
	}
	for name, o := range map[string]app.DecideOptions{
		"an address":   {Cases: ids, By: "jean.durand@exemple.fr"},
		"a name":       {Cases: ids, By: "Jean Durand"},
		"nobody":       {Cases: ids},
		"free text":    {Cases: ids, By: "dpo", Reason: "he called"},
		"no such case": {Cases: []string{schema.CaseID{1}.String()}, By: "dpo"},
		"no case id":   {Cases: []string{"42"}, By: "dpo"},
		"no replica":   {Cases: ids, By: "dpo", Replica: "x"},
	} {
		if _, err := app.Decide(t.Context(), cfg, o); err == nil || strings.Contains(err.Error(), "durand") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (w *world) pauseAndResume(t *testing.T) {
	t.Helper()
	cfg := w.load()
	if err := app.Pause(t.Context(), cfg, "marketing", "ops"); err != nil {
		t.Fatal(err)
	}
	if s := app.ReadStatus(t.Context(), cfg); !s.Replicas[0].Paused || !strings.HasPrefix(s.Replicas[0].PausedBy, "ops ") || s.Replicas[1].Paused {
		t.Errorf("paused: %+v", s.Replicas)
	}
	w.pg.Exec(t, "crm", "INSERT INTO consent (customer_id, purpose, status) VALUES (4, 'NL', 'Y')")
	if err := app.Resume(t.Context(), cfg, "marketing", "ops"); err != nil {
		t.Fatal(err)
	}
	w.eventually("the consent is applied", func() (bool, string) {
		got := w.text("marketing", "SELECT newsletter FROM contact WHERE crm_id = 4")
		return got == "true", got
	})
	if err := app.Pause(t.Context(), cfg, "nobody", "ops"); err == nil || !strings.Contains(err.Error(), "marketing, reporting") {
		t.Errorf("an unknown replica: %v", err)
	}
}

// retire rotates the seal key: the old one is refused while rows or the topic need it.
func (w *world) retire(t *testing.T) {
	t.Helper()
	cfg := w.load()
	list, err := keys.List(cfg.Keys.Dir)
	if err != nil {
		t.Fatal(err)
	}
	old := map[string]uint32{}
	for _, set := range list {
		old[set.Name] = set.Keys[0].ID
	}
	for _, set := range []string{"seal", "match", "proof-marketing"} {
		if _, err := keys.Rotate(cfg.Keys.Dir, set); err != nil {
			t.Fatal(err)
		}
	}
	for set, says := range map[string]string{"seal": "subjects", "proof-marketing": "receipts are signed"} {
		err := keys.Retire(cfg.Keys.Dir, set, old[set], app.KeyInUse(t.Context(), cfg, set))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("retiring %s: %v", set, err)
		}
	}
	hold := func(id uint32, value string) {
		w.pg.Exec(t, "marketing", fmt.Sprintf(`INSERT INTO lethe.contact_key (ref, contact_ref, value, type, key_id, norm_version, standing)
			VALUES ('r', 'c', '%s', 'email_strict', %d, 1, 'live')`, value, id))
	}
	hold(old["match"], "a")
	if err := keys.Retire(cfg.Keys.Dir, "match", old["match"], app.KeyInUse(t.Context(), cfg, "match")); err == nil ||
		!strings.Contains(err.Error(), "replica marketing: 1 contact points") {
		t.Errorf("a contact point is known under the old key alone: %v", err)
	}
	list, err = keys.List(cfg.Keys.Dir)
	for _, set := range list {
		for _, k := range set.Keys {
			if set.Name == "match" && k.Primary {
				hold(k.ID, "b")
			}
		}
	}
	if err := errors.Join(err, keys.Retire(cfg.Keys.Dir, "match", old["match"], app.KeyInUse(t.Context(), cfg, "match"))); err != nil {
		t.Errorf("every contact point is known under the new key, and: %v", err)
	}
	for _, db := range []string{"marketing", "reporting"} {
		w.pg.Exec(t, db, "UPDATE lethe.subject SET sealed_key = NULL")
	}
	if where, err := app.KeyInUse(t.Context(), cfg, "seal")(old["seal"]); err != nil || !strings.Contains(where, w.prefix+".events") {
		t.Errorf("the topic still needs the key: %q, %v", where, err)
	}
	if where, err := app.KeyInUse(t.Context(), cfg, "seal")(old["seal"] + 1); err != nil || where != "" {
		t.Errorf("a key that nothing uses: %q, %v", where, err)
	}
}

// A gap is told by every command, and resumed.
func TestGapIsToldAndResumed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.setup(cfg)
	w.people(1)
	stop := w.run(cfg)
	w.captured(cfg)
	if _, err := app.ResumeGap(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "does not stand at one") {
		t.Errorf("resuming where nothing is lost: %v", err)
	}
	stop()
	w.dropSlot()
	stop = w.run(cfg)
	w.eventually("the gap is announced", func() (bool, string) {
		list, err := app.Gaps(t.Context(), cfg)
		return err == nil && len(list.Capture) == 1 && list.Capture[0].Blocks && len(list.Replicas) == 2, fmt.Sprintf("%+v, %v", list, err)
	})
	var gap *capture.GapError
	if s := app.ReadStatus(t.Context(), cfg); !errors.As(s.Err(), &gap) && s.Source.SlotState != "missing" {
		t.Errorf("status: %v, %+v", s.Err(), s.Source)
	}
	w.setup(cfg) // makes the slot again
	c, err := app.ResumeGap(t.Context(), cfg)
	if err != nil || c.Incarnation != 2 {
		t.Fatalf("resumed as %+v, %v", c, err)
	}
	r := w.check(cfg)
	if !r.Gap || len(r.Errors()) != 0 {
		t.Errorf("check of an open gap: %+v", r)
	}
	w.erase(1)
	w.eventually("capture goes on", func() (bool, string) {
		got := w.text("marketing", "SELECT blocked FROM contact WHERE crm_id = 1")
		return got == "true", got
	})
	w.pg.Exec(t, "crm", "DROP TABLE consent")
	w.eventually("a mapped table that is dropped is a gap, and capture goes on", func() (bool, string) {
		list, err := app.Gaps(t.Context(), cfg)
		return err == nil && len(list.Capture) == 2 && list.Capture[1].Cause == capture.GapDropped && !list.Capture[1].Blocks && len(list.Replicas) == 4,
			fmt.Sprintf("%+v, %v", list, err)
	})
	stop()
	if s := app.ReadStatus(t.Context(), cfg); !app.IsGap(s.Err()) {
		t.Errorf("status of an open gap: %v", s.Err())
	}
}

// Parked events are listed and settled.
func TestDeadLettersAreListedAndSettled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.setup(cfg)
	w.people(1)
	w.pg.Exec(t, "marketing", "ALTER TABLE contact ADD CONSTRAINT never CHECK (NOT newsletter)")
	w.run(cfg)
	w.eventually("the first pass, which would tell the consent once more", func() (bool, string) {
		desk, err := app.OpenPasses(t.Context(), cfg)
		if err != nil {
			return false, err.Error()
		}
		defer desk.Close()
		report, err := desk.Report(t.Context())
		return err == nil && report.Pass != nil && report.Pass.State == "ended", fmt.Sprintf("%+v, %v", report, err)
	})
	w.pg.Exec(t, "crm", "INSERT INTO consent (customer_id, purpose, status) VALUES (1, 'NL', 'Y')")
	var list []app.DeadLetter
	w.eventually("a parked event", func() (bool, string) {
		var err error
		list, err = app.DeadLetters(t.Context(), cfg, "", false, 10)
		return err == nil && len(list) == 1, fmt.Sprintf("%d, %v", len(list), err)
	})
	if p := list[0]; p.Replica != "marketing" || p.Code != "23514" || p.EventID == "" {
		t.Errorf("parked %+v", p)
	}
	place := []app.Place{{Partition: list[0].Partition, Offset: list[0].Offset}}
	w.pg.Exec(t, "marketing", "ALTER TABLE contact DROP CONSTRAINT never")
	if err := app.SettleDeadLetters(t.Context(), cfg, "marketing", place, false, "a@b.c"); err == nil {
		t.Error("an address decides")
	}
	if err := app.SettleDeadLetters(t.Context(), cfg, "reporting", place, false, "ops"); err == nil || !strings.Contains(err.Error(), "dead-letters list") {
		t.Errorf("a place that is not parked: %v", err)
	}
	if err := app.SettleDeadLetters(t.Context(), cfg, "marketing", place, false, "ops"); err != nil {
		t.Fatal(err)
	}
	w.eventually("the event is applied", func() (bool, string) {
		all, err := app.DeadLetters(t.Context(), cfg, "marketing", true, 10)
		got := w.text("marketing", "SELECT newsletter FROM contact")
		return err == nil && got == "true" && len(all) == 1 && all[0].Outcome == "applied", fmt.Sprintf("%s, %+v, %v", got, all, err)
	})
}
