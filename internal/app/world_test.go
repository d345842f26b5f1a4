package app_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/keys"
	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const crmSQL = `
CREATE TABLE customer (customer_id bigserial PRIMARY KEY, last_name text, status char(1) NOT NULL DEFAULT 'A', blocked boolean NOT NULL DEFAULT false);
CREATE TABLE customer_note (note_id bigserial PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customer, note_code text NOT NULL, body text);
CREATE TABLE consent (consent_id bigserial PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customer, purpose text NOT NULL, status char(1) NOT NULL);`

const marketingSQL = `
CREATE TABLE contact (contact_id bigserial PRIMARY KEY, crm_id bigint NOT NULL UNIQUE, lastname text, newsletter boolean NOT NULL DEFAULT false, blocked boolean NOT NULL DEFAULT false);
CREATE TABLE contact_note (note_id bigserial PRIMARY KEY, contact_id bigint NOT NULL REFERENCES contact, body text);
CREATE INDEX ON contact_note (contact_id);`

const reportingSQL = `CREATE TABLE dim_customer (sk bigserial PRIMARY KEY, nk bigint NOT NULL UNIQUE, full_name text, usable boolean NOT NULL DEFAULT true);`

// file is the config. Places in double percent signs are filled in.
const file = `
version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: [%%brokers%%], topic_prefix: %%prefix%%, partitions: 3, replication_factor: 1}
source:
  postgres: {dsn: "%%crm%%", slot: %%slot%%, publication: lethe, max_retained_wal: 1GB}
  heartbeat: 200ms
  subject: {table: public.customer, key: customer_id, on_delete: erasure}
  erased:
    when: 'status == "E"'
    marker: {table: public.customer_note, when: 'note_code == "GDPR"'}
  tables:
    public.customer: {erase: [last_name], state: {blocked: true}}
    public.customer_note: {subject: customer_id}
    public.consent:
      consent:
        kind: current
        purpose: {column: purpose, map: {NL: newsletter}}
        channel: email
        state: {column: status, map: {Y: given, N: withdrawn}}
        legal_basis: consent
replicas:
  marketing:
    recipient: {name: Agency, role: processor}
    mode: erase
    postgres: {dsn: "%%marketing%%"}
    person: {table: contact, key: contact_id, crm_key: crm_id}
    suppress: [{set: {contact.blocked: true}}]
    erase:
      cool_off: 1h
      tables:
        contact: {set: {lastname: null}}
        contact_note: {by: contact_id, delete: true}
    consent: [{purpose: newsletter, channel: email, set: {contact.newsletter: $permitted}}]
    audience: "select contact_id from contact where newsletter and not blocked"
    residuals: {backup: 35d}
  reporting:
    recipient: {name: Reporting, role: controller}
    mode: erase
    postgres: {dsn: "%%reporting%%"}
    person: {table: dim_customer, key: sk, crm_key: nk}
    suppress: [{set: {dim_customer.usable: false}}]
    erase: {cool_off: 1h, tables: {dim_customer: {set: {full_name: null}}}}
http: {listen: "127.0.0.1:0"}
`

// world is a CRM, two replicas and a broker that Lethe knows nothing of yet.
type world struct {
	testing.TB
	pg     *testenv.Postgres
	kafka  *testenv.Kafka
	dir    string
	prefix string
}

// places of databases, as findings name them.
var places = map[string]string{"source": "crm", "replica=marketing": "marketing", "replica=reporting": "reporting"}

// newWorld starts a PostgreSQL of its own, because a check looks at settings of the server.
func newWorld(tb testing.TB, version int, settings map[string]string) *world {
	tb.Helper()
	if settings == nil {
		settings = map[string]string{"max_slot_wal_keep_size": "4GB"}
	}
	w := &world{
		TB: tb, pg: testenv.NewPostgres(tb, testenv.Options{Version: version, Settings: settings}), kafka: testenv.SharedKafka(tb), dir: tb.TempDir(),
		prefix: testenv.UniqueName("cli"),
	}
	if err := os.Chmod(w.dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	for name, sql := range map[string]string{"crm": crmSQL, "marketing": marketingSQL, "reporting": reportingSQL} {
		w.pg.Exec(tb, "", "CREATE DATABASE "+name)
		w.pg.Exec(tb, name, sql)
	}
	return w
}

// load reads the config with some lines changed.
func (w *world) load(replace ...string) *config.Config {
	w.Helper()
	text := strings.NewReplacer(replace...).Replace(file)
	values := []string{"%%brokers%%", strings.Join(w.kafka.Brokers(), ", "), "%%prefix%%", w.prefix, "%%slot%%", "lethe"}
	for _, db := range places {
		values = append(values, "%%"+db+"%%", w.pg.DSN(db, "lethe"))
	}
	name := filepath.Join(w.dir, "lethe.yaml")
	if err := os.WriteFile(name, []byte(strings.NewReplacer(values...).Replace(text)), 0o600); err != nil {
		w.Fatal(err)
	}
	cfg, err := config.Load(name)
	if err != nil {
		w.Fatal(err)
	}
	return cfg
}

// owners is what setup is given.
func (w *world) owners() app.SetupOptions {
	return app.SetupOptions{
		Kafka: true, SourceDSN: w.pg.DSN("crm", ""),
		ReplicaDSN: map[string]string{"marketing": w.pg.DSN("marketing", ""), "reporting": w.pg.DSN("reporting", "")},
	}
}

func (w *world) setup(cfg *config.Config) *app.SetupReport {
	w.Helper()
	if _, err := keys.Init(cfg.Keys.Dir, app.ReplicaNames(cfg)); err != nil {
		w.Fatal(err)
	}
	r, err := app.Setup(w.Context(), cfg, w.owners())
	if err != nil {
		w.Fatal(err)
	}
	return r
}

func (w *world) check(cfg *config.Config, roles ...string) *app.Report {
	w.Helper()
	r, err := app.Check(w.Context(), cfg, roles)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

// clean wants no errors, and every server looked at.
func (w *world) clean(cfg *config.Config) {
	w.Helper()
	r := w.check(cfg)
	for _, f := range r.Findings {
		if f.Severity == app.SeverityError {
			w.Errorf("check still finds %s %s %s: %s", f.Where, f.Code, f.Object, f.Message)
		}
	}
}

// find returns the error with a code and an object in a place.
func find(r *app.Report, where, code, object string) *app.Finding {
	i := slices.IndexFunc(r.Findings, func(f app.Finding) bool {
		return f.Where == where && f.Code == code && f.Object == object && f.Severity == app.SeverityError
	})
	if i < 0 {
		return nil
	}
	return &r.Findings[i]
}

// psql runs the statements of the findings as psql would: one by one, as the owner.
func (w *world) psql(findings []app.Finding) {
	w.Helper()
	for _, f := range findings {
		if !f.IsSQL() || len(f.Fix) == 0 {
			continue
		}
		conn := w.pg.Connect(w.TB, places[f.Where])
		for _, sql := range f.Fix {
			if _, err := conn.PgConn().Exec(w.Context(), sql+";").ReadAll(); err != nil {
				w.Fatalf("the fix of %s %s: %v\n%s", f.Code, f.Object, err, sql)
			}
		}
	}
}

func (w *world) text(db, sql string, args ...any) string {
	w.Helper()
	conn, err := pgx.Connect(w.Context(), w.pg.DSN(db, ""))
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close(w.Context())
	var s string
	if err := conn.QueryRow(w.Context(), "SELECT coalesce(("+sql+")::text, '')", args...).Scan(&s); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	return s
}

// eventually wants a value to become true.
func (w *world) eventually(what string, f func() (bool, string)) {
	w.Helper()
	testenv.Eventually(w.TB, time.Minute, func() error {
		ok, have := f()
		if !ok {
			return fmt.Errorf("%s: %s", what, have)
		}
		return nil
	})
}

// run runs the process until the returned function is called.
func (w *world) run(cfg *config.Config, roles ...string) (stop func()) {
	w.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	log := zerolog.New(zerolog.NewTestWriter(w.TB)).Level(zerolog.WarnLevel)
	if err := app.Preflight(ctx, cfg, app.PreflightOptions{Roles: roles, Logger: log}); err != nil {
		cancel()
		w.Fatal(err)
	}
	a, err := app.New(ctx, cfg, app.Options{Roles: roles, Version: "test", Logger: log, RecheckFirst: 200 * time.Millisecond})
	if err != nil {
		cancel()
		w.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			w.Errorf("run: %v", err)
		}
	}
	w.Cleanup(stop)
	return stop
}

// captured waits until capture has a position.
func (w *world) captured(cfg *config.Config) {
	w.Helper()
	w.eventually("a checkpoint", func() (bool, string) {
		c := app.ReadStatus(w.Context(), cfg).Kafka.Checkpoint
		return c != nil && !c.CommittedAt.IsZero(), "no position"
	})
}

// dropSlot waits until the server has noticed that nobody reads from the slot any more.
func (w *world) dropSlot() {
	w.Helper()
	w.eventually("the slot is dropped", func() (bool, string) {
		got := w.text("crm", "SELECT count(*) FROM pg_replication_slots WHERE active")
		return got == "0", got + " readers"
	})
	w.pg.Exec(w.TB, "crm", "SELECT pg_drop_replication_slot('lethe')")
}
