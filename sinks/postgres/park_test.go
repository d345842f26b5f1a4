package postgres

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// bisect applies a batch as the worker does: halves around a poison event, which is parked.
func (w *world) bisect(events ...*schema.Event) {
	w.Helper()
	b := w.batch(events...)
	out, err := w.r.Apply(w.ctx, b)
	switch {
	case err == nil:
		for _, p := range out.Places {
			w.places[p.Partition] = p
		}
	case sinks.Classify(err) != sinks.Poison:
		w.Fatalf("apply: %v", err)
	case len(events) > 1:
		w.bisect(events[:len(events)/2]...)
		w.bisect(events[len(events)/2:]...)
	default:
		place, err := w.r.Park(w.ctx, b.From[0], &b.Records[0], sinks.CodeOf(err))
		if err != nil {
			w.Fatalf("park: %v", err)
		}
		w.places[place.Partition] = place
	}
}

func (w *world) parked() []ledger.ParkedEvent {
	w.Helper()
	p, err := w.r.Parked(w.ctx, false, 100)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// canary is what a constraint would quote.
const canary = "Zyzzyva"

func poisoned(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, 15)
	w.person(1, 2)
	w.exec(`UPDATE contact SET firstname = '` + canary + `', newsletter = false, offers = 0 WHERE crm_id = 1`)
	w.exec(`ALTER TABLE contact ADD CONSTRAINT no_newsletter CHECK (NOT newsletter OR crm_id <> 1)`)
	return w
}

func TestPoisonParksAndBlocksItsSubject(t *testing.T) {
	w := poisoned(t)
	grant := w.event(1, consent("newsletter", schema.ConsentGiven))
	_, err := w.r.Apply(w.ctx, w.batch(grant))
	if sinks.Classify(err) != sinks.Poison || sinks.CodeOf(err) != "23514" {
		t.Fatalf("constraint: %v", err)
	}
	if strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "no_newsletter") {
		t.Errorf("the error quotes the row: %v", err)
	}
	w.bisect(grant, w.event(2, consent("newsletter", schema.ConsentWithdrawn)))
	w.want(`SELECT newsletter FROM contact WHERE crm_id = 2`, "false")
	w.want(`SELECT error_code FROM lethe.parked`, "23514")
	// Replayed while nothing has changed, it stays.
	p := w.parked()[0]
	if err := w.r.ReplayParked(w.ctx, p.Partition, p.Offset, "ops"); err != nil {
		t.Fatal(err)
	}
	w.due()
	w.want(`SELECT tries, want IS NULL, done_at IS NULL FROM lethe.parked`, "2|true|true")
	// Permissions wait behind, prohibitions pass.
	w.apply(w.event(1, consent("offers", schema.ConsentGiven)))
	w.want(`SELECT offers FROM contact WHERE crm_id = 1`, "0")
	w.apply(w.event(1, &schema.Objection{Raised: true, Scope: "direct_marketing"}))
	w.want(`SELECT no_marketing FROM contact WHERE crm_id = 1`, "true")
	w.apply(w.event(1, &schema.Objection{Scope: "direct_marketing"}))
	w.want(`SELECT no_marketing FROM contact WHERE crm_id = 1`, "true")
	if parked := w.parked(); len(parked) != 3 || parked[1].Code != ledger.CodeBlocked {
		t.Fatalf("parked %+v", parked)
	}
	w.exec(`ALTER TABLE contact DROP CONSTRAINT no_newsletter`)
	if err := w.r.ReplayParked(w.ctx, p.Partition, p.Offset, "ops"); err != nil {
		t.Fatal(err)
	}
	w.due()
	w.want(flags, "1|true|1|false|false|false|true\n2|false|1|false|false|false|true")
	w.want(`SELECT count(*) FILTER (WHERE done_at IS NOT NULL AND bytes IS NULL), min(outcome) FROM lethe.parked`, "3|applied")
	w.want(`SELECT blocked IS NULL FROM lethe.subject ORDER BY 1`, "true\ntrue")
	w.apply(w.event(1, consent("offers", schema.ConsentWithdrawn)))
	w.want(`SELECT offers FROM contact WHERE crm_id = 1`, "0")
}

// What waits behind a refused event is not replayed in front of it, also when an operator replays everything.
func TestReplayKeepsBehindTheRefusedEvent(t *testing.T) {
	w := poisoned(t)
	w.bisect(w.event(1, consent("newsletter", schema.ConsentGiven)))
	w.apply(w.event(1, consent("offers", schema.ConsentGiven)))
	for _, p := range w.parked() {
		if err := w.r.ReplayParked(w.ctx, p.Partition, p.Offset, "ops"); err != nil {
			t.Fatal(err)
		}
	}
	w.due()
	w.want(`SELECT offers FROM contact WHERE crm_id = 1`, "0")
	w.exec(`ALTER TABLE contact DROP CONSTRAINT no_newsletter; UPDATE lethe.parked SET want = 'replay'`)
	w.due()
	w.want(`SELECT offers, newsletter FROM contact WHERE crm_id = 1`, "1|true")
}

func TestDiscardedEventIsRecorded(t *testing.T) {
	w := poisoned(t)
	w.bisect(w.event(1, consent("newsletter", schema.ConsentGiven)))
	w.apply(w.event(1, consent("offers", schema.ConsentGiven)))
	p, err := w.r.Parked(w.ctx, false, 1)
	if err != nil || len(p) != 1 {
		t.Fatal(p, err)
	}
	if err := w.r.DiscardParked(w.ctx, p[0].Partition, p[0].Offset, "dpo"); err != nil {
		t.Fatal(err)
	}
	if err := w.r.DiscardParked(w.ctx, p[0].Partition, 999, "dpo"); sinks.CodeOf(err) != "not_parked" {
		t.Errorf("discarding what is not parked: %v", err)
	}
	w.due()
	w.want(`SELECT outcome, wanted_by FROM lethe.parked ORDER BY off`, "discarded|dpo\napplied|lethe")
	w.want(`SELECT offers FROM contact WHERE crm_id = 1`, "1")
}

func TestUndecodableRecordBlocksTheSubjectOfItsKey(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	b := w.batch(w.event(1, consent("newsletter", schema.ConsentGiven)))
	rec := b.Records[0]
	ev := rec.Event
	rec.Event, rec.Err, rec.Value = nil, errors.New("bad bytes"), []byte("rubbish")
	if _, err := w.r.Apply(w.ctx, &sinks.Batch{From: b.From, Records: []sinks.Record{rec}}); sinks.Classify(err) != sinks.Poison {
		t.Errorf("apply: %v", err)
	}
	place, err := w.r.Park(w.ctx, b.From[0], &rec, ledger.CodeUndecodable)
	if err != nil {
		t.Fatal(err)
	}
	w.places[place.Partition] = place
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
	w.want(`SELECT error_code FROM lethe.parked ORDER BY off`, "undecodable\nsubject_blocked")
	w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	w.want(`SELECT newsletter FROM contact`, "false")
	w.want(`SELECT sealed_key IS NOT NULL, blocked FROM lethe.subject`, "true|undecodable")
	rec.Key, rec.Offset = nil, place.NextOffset+1
	if _, err := w.r.Park(w.ctx, w.places[w.partition(ev)], &rec, ledger.CodeUndecodable); sinks.Classify(err) != sinks.Permanent {
		t.Errorf("parking bytes without a key: %v", err)
	}
}

func TestWrongKeyIsPoison(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	for _, key := range [][]byte{crmKeyParts("1", "2"), crmKeyParts("no number")} {
		ev := w.event(1, consent("newsletter", schema.ConsentWithdrawn))
		ev.CRMKey = key
		_, err := w.r.Apply(w.ctx, w.batch(ev))
		if sinks.Classify(err) != sinks.Poison || strings.Contains(err.Error(), "no number") {
			t.Errorf("apply with a wrong key: %v", err)
		}
	}
}

func crmKeyParts(parts ...string) []byte {
	b := make([][]byte, len(parts))
	for i, p := range parts {
		b[i] = []byte(p)
	}
	return schema.CanonicalKey(nil, b...)
}

func TestLockedRowIsTransient(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	w.r.opts.LockTimeout = 50_000_000
	tx, err := w.admin.Begin(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(w.ctx, `SELECT FROM contact FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	b := w.batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	_, err = w.r.Apply(w.ctx, b)
	if sinks.CodeOf(err) != "55P03" || sinks.Classify(err) != sinks.Transient {
		t.Errorf("apply on a locked row: %v", err)
	}
	if err := tx.Rollback(w.ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := w.r.Apply(w.ctx, b); err != nil || out.Applied != 1 {
		t.Errorf("apply afterwards: %+v, %v", out, err)
	}
}

func TestDroppedColumnIsPermanentUntilItIsBack(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)))
	w.exec(`ALTER TABLE contact RENAME offers TO promos`)
	b := w.batch(w.event(1, consent("offers", schema.ConsentGiven)))
	_, err := w.r.Apply(w.ctx, b)
	if sinks.Classify(err) != sinks.Permanent || sinks.HintOf(err) == "" {
		t.Errorf("apply without the column: %v", err)
	}
	_, err = w.r.Assign(w.ctx, []int32{0})
	if sinks.CodeOf(err) != ledger.CodeColumnMissing || !strings.Contains(sinks.HintOf(err), "public.contact.offers") {
		t.Errorf("assign without the column: %v", err)
	}
	w.exec(`ALTER TABLE contact RENAME promos TO offers`)
	if _, err := w.r.Apply(w.ctx, b); err != nil {
		t.Errorf("apply with the column back: %v", err)
	}
}

func TestMissingPrivilegeIsPermanent(t *testing.T) {
	w := newWorld(t, 15)
	w.person(1)
	w.exec(`REVOKE UPDATE ON contact FROM ` + w.role)
	_, err := w.r.Apply(w.ctx, w.batch(w.event(1, consent("newsletter", schema.ConsentWithdrawn))))
	if sinks.CodeOf(err) != "42501" || sinks.Classify(err) != sinks.Permanent {
		t.Errorf("apply without UPDATE: %v", err)
	}
	w.want(`SELECT sum(next_offset)::int FROM lethe.partition`, "0")
}

// TestIdentifiersAreNeverSQL maps a table and columns whose names would end a statement if they were not quoted.
func TestIdentifiersAreNeverSQL(t *testing.T) {
	const name = `we"ird'; DROP TABLE contact; --`
	w := newWorld(t, 15)
	w.exec(`CREATE TABLE ` + pgx.Identifier{name}.Sanitize() + ` (id text PRIMARY KEY, ` + pgx.Identifier{"crm " + name}.Sanitize() +
		` bigint UNIQUE, ` + pgx.Identifier{"a" + name}.Sanitize() + ` boolean)`)
	w.exec(`GRANT SELECT, UPDATE ON ` + pgx.Identifier{name}.Sanitize() + ` TO ` + w.role)
	w.exec(`INSERT INTO ` + pgx.Identifier{name}.Sanitize() + ` VALUES ('x''y', 1, true)`)
	w.cfg = &config.Replica{
		Name: "marketing", Mode: ledger.ModeErase, Postgres: &config.PostgresServer{},
		Person:   config.Person{Table: name, Key: "id", CRMKey: []string{"crm " + name}},
		Consent:  []config.ConsentAction{{Purpose: "newsletter", Channel: "email", Set: set(name, map[string]config.Value{"a" + name: value(ledger.KindPermitted)})}},
		Suppress: []config.Action{{Set: set(name, map[string]config.Value{"a" + name: constant(false)})}},
	}
	w.setup()
	w.r = w.replica()
	w.assign()
	w.apply(w.event(1, consent("newsletter", schema.ConsentWithdrawn)))
	w.want(`SELECT * FROM `+pgx.Identifier{name}.Sanitize(), "x'y|1|false")
	w.apply(w.event(1, &schema.SubjectErasure{}))
	w.want(`SELECT e->'k'->>'id' FROM lethe.pending, jsonb_array_elements(undo) e`, "x'y")
	w.want(`SELECT count(*) FROM contact`, "0")
}
