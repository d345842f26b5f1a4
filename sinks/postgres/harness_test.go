package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// tables are a marketing database in small.
const tables = `
CREATE TABLE contact (
	contact_id bigserial PRIMARY KEY, crm_id bigint NOT NULL UNIQUE, firstname text, email text,
	newsletter boolean NOT NULL DEFAULT true, offers integer NOT NULL DEFAULT 1, reconsent boolean NOT NULL DEFAULT false,
	no_marketing boolean NOT NULL DEFAULT false, frozen boolean NOT NULL DEFAULT false, usable boolean NOT NULL DEFAULT true,
	changed_at timestamptz);
CREATE TABLE note (
	note_id bigserial PRIMARY KEY, contact_id bigint NOT NULL REFERENCES contact, body text);
CREATE TABLE do_not_contact (
	contact_id bigint NOT NULL REFERENCES contact, channel text NOT NULL, reason integer NOT NULL, added_at timestamptz,
	PRIMARY KEY (contact_id, channel));`

func value(kind string) config.Value { return config.Value{Kind: kind} }

func constant(v any) config.Value { return config.Value{Kind: ledger.KindConst, Const: v} }

func set(table string, columns map[string]config.Value) map[string]map[string]config.Value {
	return map[string]map[string]config.Value{table: columns}
}

// marketing is the mapping of tables.
func marketing() *config.Replica {
	return &config.Replica{
		Name: "marketing", Recipient: config.Recipient{Name: "Régie", Role: "processor"}, Mode: ledger.ModeErase,
		Postgres: &config.PostgresServer{},
		Person:   config.Person{Table: "contact", Key: "contact_id", CRMKey: []string{"crm_id"}},
		Suppress: []config.Action{
			{Set: set("contact", map[string]config.Value{"usable": constant(false)})},
			{Insert: &config.Insert{Table: "do_not_contact", Values: map[string]config.Value{
				"contact_id": value(ledger.KindKey), "channel": constant("email"), "reason": constant(int64(3)), "added_at": value(ledger.KindNow),
			}}},
		},
		Erase: config.Erase{CoolOff: time.Hour, Tables: map[string]*config.EraseTable{
			"contact": {Set: map[string]config.Value{"firstname": value(ledger.KindNull), "email": value(ledger.KindNull)}},
			"note":    {By: "contact_id", Delete: true},
		}},
		Consent: []config.ConsentAction{
			{Purpose: "newsletter", Channel: "email", Set: set("contact", map[string]config.Value{
				"newsletter": value(ledger.KindPermitted), "reconsent": value(ledger.KindReconsentDue), "changed_at": value(ledger.KindNow),
			})},
			{Purpose: "offers", Channel: "email", Set: set("contact", map[string]config.Value{"offers": value(ledger.KindPermitted)})},
		},
		Objection: []config.ObjectionAction{
			{Scope: "direct_marketing", Set: set("contact", map[string]config.Value{"no_marketing": value(ledger.KindObjected)})},
		},
		Restricted: &config.RestrictedAction{Set: set("contact", map[string]config.Value{"frozen": value(ledger.KindRestricted)})},
		Audience:   "select contact_id from contact where newsletter and usable and email is not null",
	}
}

// world is one replica database with its ledger, a run role without DDL rights, and a log of one test's events.
type world struct {
	testing.TB
	ctx    context.Context
	pg     *testenv.Postgres
	db     string
	role   string
	admin  *pgx.Conn
	pool   *pgxpool.Pool
	cfg    *config.Replica
	keys   *sinktest.Keys
	ids    *schema.Identifiers
	r      *Replica
	places map[int32]sinks.Place
	number uint64
	parts  int32
}

// newWorld makes a world on the shared server of a version; change edits the mapping before setup.
func newWorld(tb testing.TB, version int, change ...func(*config.Replica)) *world {
	tb.Helper()
	return newWorldOn(tb, testenv.SharedPostgres(tb, version), change...)
}

func newWorldOn(tb testing.TB, server *testenv.Postgres, change ...func(*config.Replica)) *world {
	tb.Helper()
	cfg := marketing()
	for _, f := range change {
		f(cfg)
	}
	return newWorldOf(tb, server, cfg, tables, "GRANT SELECT, UPDATE ON contact, note, do_not_contact TO {role}; GRANT INSERT ON do_not_contact TO {role}"+
		"; GRANT DELETE ON note, do_not_contact TO {role}")
}

// newWorldOf makes a world of a mapping, with its tables and what the run role may do with them.
func newWorldOf(tb testing.TB, server *testenv.Postgres, cfg *config.Replica, tables, grants string) *world {
	tb.Helper()
	w := &world{
		TB: tb, ctx: tb.Context(), pg: server, cfg: cfg, keys: sinktest.NewKeys(tb),
		ids: schema.NewIdentifiers(sinktest.PRF("subject"), "crm"), places: map[int32]sinks.Place{}, parts: 4,
	}
	w.role = testenv.UniqueName("lethe_run")
	w.pg.Exec(tb, "", "CREATE ROLE "+w.role+" LOGIN")
	tb.Cleanup(func() { w.pg.Exec(tb, "", "DROP ROLE "+w.role) })
	w.db = w.pg.NewDatabase(tb)
	w.admin = w.pg.Connect(tb, w.db)
	w.exec(tables)
	w.exec(strings.ReplaceAll(grants, "{role}", w.role))
	w.setup()
	pool, err := pgxpool.New(w.ctx, w.pg.DSN(w.db, w.role))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	w.pool = pool
	w.r = w.replica()
	w.assign()
	return w
}

func (w *world) setup() {
	w.Helper()
	_, err := Setup(w.ctx, w.admin, SetupOptions{
		Name: "marketing", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest(), RunRole: w.role,
	})
	if err != nil {
		w.Fatalf("setup: %v", err)
	}
	w.exec(`DELETE FROM lethe.meta WHERE k = $1`, ledger.MetaNeedsPass) // most tests' logs have no pass
}

// replica makes another Replica on the same database: another worker process.
func (w *world) replica() *Replica {
	w.Helper()
	r, err := New(Options{
		Name: "marketing", Source: "crm", Config: w.cfg, Pool: w.pool, Seal: w.keys, Pseudonym: sinktest.PRF("marketing"), Signer: w.keys, Match: realKeys(),
		MappingDigest: w.cfg.Digest(), Version: "test", Logger: zerolog.New(zerolog.NewTestWriter(w.TB)),
		LockTimeout: 2 * time.Second, StatementTimeout: 10 * time.Second,
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(r.Close)
	return r
}

func (w *world) assign() {
	w.Helper()
	parts := make([]int32, w.parts)
	for i := range parts {
		parts[i] = int32(i)
	}
	places, err := w.r.Assign(w.ctx, parts)
	if err != nil {
		w.Fatalf("assign: %v", err)
	}
	for _, p := range places {
		w.places[p.Partition] = p
	}
}

// allPlaces returns the places of all partitions.
func (w *world) allPlaces() []sinks.Place {
	out := make([]sinks.Place, 0, len(w.places))
	for i := range w.parts {
		out = append(out, w.places[i])
	}
	return out
}

func (w *world) exec(sql string, args ...any) {
	w.Helper()
	if _, err := w.admin.Exec(w.ctx, sql, args...); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

// one returns the text of one value.
func (w *world) one(sql string, args ...any) string {
	w.Helper()
	var v any
	if err := w.admin.QueryRow(w.ctx, "SELECT to_jsonb(x.*)::text FROM ("+sql+") x", args...).Scan(&v); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	return fmt.Sprint(v)
}

// want compares the rows of a query, one text line each, columns joined by |.
func (w *world) want(sql, want string, args ...any) {
	w.Helper()
	rows, err := w.admin.Query(w.ctx, sql, args...)
	if err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			w.Fatal(err)
		}
		parts := make([]string, len(values))
		for i, v := range values {
			parts[i] = fmt.Sprint(v)
		}
		lines = append(lines, strings.Join(parts, "|"))
	}
	if rows.Err() != nil {
		w.Fatalf("%s: %v", sql, rows.Err())
	}
	if got := strings.Join(lines, "\n"); got != want {
		w.Errorf("%s\n got: %s\nwant: %s", sql, got, want)
	}
}

// person inserts rows into contact; their CRM ids are the arguments.
func (w *world) person(ids ...int) {
	w.Helper()
	for _, id := range ids {
		w.exec(`INSERT INTO contact (crm_id, firstname, email) VALUES ($1, 'Jeanne', $2)`, id, fmt.Sprintf("p%d@exemple.fr", id))
		w.exec(`INSERT INTO note (contact_id, body) SELECT contact_id, 'called' FROM contact WHERE crm_id = $1`, id)
	}
}

func crmKey(id int) []byte { return schema.CanonicalKey(nil, []byte(strconv.Itoa(id))) }

// event makes the next event of the source about a person.
func (w *world) event(id int, body schema.Body) *schema.Event {
	w.number++
	return w.eventAt(id, w.number, body)
}

func (w *world) eventAt(id int, number uint64, body schema.Body) *schema.Event {
	key := crmKey(id)
	ev := &schema.Event{
		Header: schema.Header{
			EventID: w.ids.EventID(schema.EventKey{Number: number, Table: "t", PK: []byte(strconv.Itoa(id)), Rule: "r"}),
			Order:   schema.NewOrder(0, 1, number, 0), SubjectRef: w.ids.SubjectRef(key), Source: "crm",
			CommittedAt: time.Now().UTC().Truncate(time.Millisecond), DetectedAt: time.Now().UTC().Truncate(time.Millisecond), Rule: "r",
		},
		Body: body, CRMKey: key,
	}
	switch body.(type) {
	case *schema.SubjectErasure, *schema.CaseDecision:
		ev.CaseID = w.ids.CaseID(ev.SubjectRef)
	case *schema.Heartbeat, *schema.Gap, *schema.PassMarker:
		ev.SubjectRef, ev.CRMKey = schema.SubjectRef{}, nil
	}
	return ev
}

func consent(purpose string, state schema.ConsentState) *schema.ConsentChange {
	return &schema.ConsentChange{Purpose: purpose, Channel: "email", State: state, LegalBasis: "consent"}
}

func (w *world) partition(ev *schema.Event) int32 { return int32(ev.SubjectRef[0]) % w.parts }

// batch lays events out as the log would: by partition, offsets from the places on.
func (w *world) batch(events ...*schema.Event) *sinks.Batch {
	w.Helper()
	b := &sinks.Batch{}
	for part := range w.parts {
		p := w.places[part]
		next := p.NextOffset
		for _, ev := range events {
			if w.partition(ev) != part {
				continue
			}
			value, err := schema.NewEncoder(w.keys).Append(nil, ev)
			if err != nil {
				w.Fatalf("encoding event: %v", err)
			}
			b.Records = append(b.Records, sinks.Record{
				Partition: part, Offset: next, Key: ev.SubjectRef.AppendText(nil), Value: value, Event: ev,
			})
			next++
		}
		if next != p.NextOffset {
			b.From = append(b.From, p)
		}
	}
	return b
}

// apply commits one batch and moves the places.
func (w *world) apply(events ...*schema.Event) sinks.Outcome {
	w.Helper()
	out, err := w.r.Apply(w.ctx, w.batch(events...))
	if err != nil {
		w.Fatalf("apply: %v", err)
	}
	for _, p := range out.Places {
		w.places[p.Partition] = p
	}
	return out
}

// due runs the chores of all partitions.
func (w *world) due() time.Time {
	w.Helper()
	next, err := w.r.RunDue(w.ctx, w.allPlaces())
	if err != nil {
		w.Fatalf("chores: %v", err)
	}
	return next
}

// receipts returns all receipts, verified, in the order in which they were made.
func (w *world) receipts() []*schema.Receipt {
	w.Helper()
	rows, err := w.admin.Query(w.ctx, `SELECT body FROM lethe.receipt ORDER BY made_at, state`)
	if err != nil {
		w.Fatal(err)
	}
	bodies, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		w.Fatal(err)
	}
	out := make([]*schema.Receipt, len(bodies))
	for i, b := range bodies {
		signed, err := schema.DecodeSignedReceipt(b)
		if err != nil {
			w.Fatalf("receipt: %v", err)
		}
		if out[i], err = schema.VerifyReceipt(w.keys, signed); err != nil {
			w.Fatalf("receipt: %v", err)
		}
	}
	return out
}
