package app_test

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/testenv"
)

// Every bad input on the source and the replicas is named, with statements that mend it: after them check is clean.
func TestCheckNamesEachFaultAndItsFix(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.setup(cfg)
	for name, tc := range map[string]struct {
		db, broken          string
		where, code, object string
		unfixed             string // what puts it right where no statement can
	}{
		"replication privilege": {"crm", "ALTER ROLE lethe NOREPLICATION", "source", "role_not_replication", "lethe", ""},
		"heartbeat privilege": {
			"crm", "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM public", "source", "heartbeat_denied", "lethe", "",
		},
		"no publication":  {"crm", "DROP PUBLICATION lethe", "source", "publication_missing", "lethe", ""},
		"table published": {"crm", "ALTER PUBLICATION lethe DROP TABLE consent", "source", "publication_lacks_table", "public.consent", ""},
		"unsafe column list": {
			"crm", "ALTER TABLE customer REPLICA IDENTITY FULL", "source", "publication_column_list_unsafe", "public.customer", "",
		},
		"deletes unseen": {"crm", "ALTER TABLE consent REPLICA IDENTITY DEFAULT", "source", "old_values_unseen", "public.consent", ""},
		"no slot":        {"crm", "SELECT pg_drop_replication_slot('lethe')", "source", "slot_missing", "lethe", ""},
		"source table":   {"crm", "ALTER TABLE consent RENAME TO consents", "source", "table_missing", "public.consent", "ALTER TABLE consents RENAME TO consent"},
		"source column": {
			"crm", "ALTER TABLE customer RENAME status TO state", "source", "column_missing", "public.customer.status", "ALTER TABLE customer RENAME state TO status",
		},
		"replica column": {
			"marketing", "ALTER TABLE contact RENAME lastname TO name", "replica=marketing", "column_missing", "public.contact.lastname",
			"ALTER TABLE contact RENAME name TO lastname",
		},
		"replica privilege": {"marketing", "REVOKE DELETE ON contact_note FROM lethe", "replica=marketing", "privilege_missing", "public.contact_note", ""},
		"ledger":            {"reporting", "DROP SCHEMA lethe CASCADE; DROP TABLE lethe_witness", "replica=reporting", "ledger", "lethe", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.TB = t
			w.pg.Exec(t, tc.db, tc.broken)
			r := w.check(cfg)
			f := find(r, tc.where, tc.code, tc.object)
			if f == nil {
				t.Fatalf("want %s %s %s, got %+v", tc.where, tc.code, tc.object, r.Findings)
			}
			if (len(f.Fix) == 0) != (tc.unfixed != "") {
				t.Errorf("the fix is %q", f.Fix)
			}
			if tc.unfixed != "" {
				w.pg.Exec(t, tc.db, tc.unfixed)
			} else {
				w.psql(r.Errors())
			}
			w.clean(cfg)
		})
	}
}

func TestCheckOfServerSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, map[string]string{"wal_level": "replica"})
	cfg := w.load()
	w.pg.Exec(t, "", "CREATE ROLE lethe LOGIN REPLICATION")
	r := w.check(cfg, app.RoleCapture)
	level, keep := find(r, "source", "wal_level", "wal_level"), find(r, "source", "max_slot_wal_keep_size_unlimited", "max_slot_wal_keep_size")
	if level == nil || keep == nil {
		t.Fatalf("got %+v", r.Findings)
	}
	w.psql([]app.Finding{*level, *keep})
	if err := w.pg.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := w.pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.setup(cfg)
	w.clean(cfg)
}

func TestCheckOfKafka(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.setup(cfg)
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &kafka.Client{Addr: kafka.TCP(w.kafka.Brokers()...), Transport: transport}
	alter := func(topic, name, value string) {
		t.Helper()
		res, err := client.AlterConfigs(t.Context(), &kafka.AlterConfigsRequest{Resources: []kafka.AlterConfigRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: w.prefix + topic, Configs: []kafka.AlterConfigRequestConfig{{Name: name, Value: value}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range res.Errors {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	// 35 days of backups, and seven to notice that one was restored.
	for _, tc := range []struct{ topic, name, bad, says string }{
		{".events", "retention.ms", "86400000", "should be 3628800000"},
		{".events", "cleanup.policy", "compact", "should be delete"},
		{".checkpoints", "cleanup.policy", "delete", "should be compact"},
	} {
		alter(tc.topic, tc.name, tc.bad)
		w.eventually(tc.name, func() (bool, string) { // a broker shows the change a little later
			f := find(w.check(cfg), "kafka", "topic_setting", w.prefix+tc.topic)
			if f == nil {
				return false, "not found"
			}
			return strings.Contains(f.Message, tc.name) && strings.Contains(f.Message, tc.says) && strings.Contains(f.Fix[0], "kafka-configs.sh"), f.Message
		})
		alter(tc.topic, tc.name, strings.TrimPrefix(tc.says, "should be "))
	}
	grown := w.load("partitions: 3", "partitions: 4")
	if f := find(w.check(grown), "kafka", "topic_partitions", w.prefix+".events"); f == nil {
		t.Error("another partition count is not named")
	}
}

func TestCheckOfTheFileAndTheKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	r := w.check(w.load(`'status == "E"'`, `'old.status == "A" and nope(status)'`, "http:", "ledger: {sqlite: l.db}\nhttp:"))
	if f := find(r, "config", "mapping", "source.erased.when"); f == nil || !strings.Contains(f.Message, "line ") {
		t.Errorf("an unknown expression: %+v", r.Findings)
	}
	if f := find(r, "config", "not_in_this_version", "ledger"); f == nil {
		t.Errorf("a section of a later version: %+v", r.Findings)
	}
	if f := find(r, "keys", "keys", w.load().Keys.Dir); f == nil || !slices.Contains(f.Fix, "lethe keys init") {
		t.Errorf("missing keys: %+v", r.Findings)
	}
}

func TestUnreachableServersAreNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	w.setup(w.load())
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	nowhere := func(db string) string {
		return "postgres://lethe@127.0.0.1:" + strconv.Itoa(port) + "/" + db + "?sslmode=disable"
	}
	some := w.load("%%reporting%%", nowhere("reporting"))
	r := w.check(some)
	if !slices.Equal(r.Unreachable, []string{"replica=reporting"}) || len(r.Errors()) != 0 {
		t.Errorf("unreachable %v, errors %+v", r.Unreachable, r.Errors())
	}
	if s := app.ReadStatus(t.Context(), some); !app.IsUnreachable(s.Err()) || s.Replicas[0].Error != "" || s.Replicas[1].Error == "" || s.Source.Error != "" {
		t.Errorf("status: %v, %+v", s.Err(), s)
	}
	// The roles wait for one that is down; only when nothing at all answers does run give up.
	if err := app.Preflight(t.Context(), some, app.PreflightOptions{Logger: zerolog.Nop()}); err != nil {
		t.Errorf("one replica is down, and run: %v", err)
	}
	all := w.load("%%reporting%%", nowhere("reporting"), "%%marketing%%", nowhere("marketing"), "%%crm%%", nowhere("crm"), "%%brokers%%", "127.0.0.1:"+strconv.Itoa(port))
	err = app.Preflight(t.Context(), all, app.PreflightOptions{Logger: zerolog.Nop(), Within: 10 * time.Millisecond})
	if !app.IsUnreachable(err) || !strings.Contains(err.Error(), "kafka, source, replica=marketing, replica=reporting") {
		t.Errorf("nothing answers, and run: %v", err)
	}
}

func TestPreflightRefusesByPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.setup(cfg)
	pre := func(o app.PreflightOptions) (refused []app.Finding, log string, err error) {
		var b bytes.Buffer
		o.Logger = zerolog.New(&b)
		err = app.Preflight(t.Context(), cfg, o)
		var fault *app.FindingsError
		if errors.As(err, &fault) {
			refused = fault.Findings
		}
		return refused, b.String(), err
	}
	if _, _, err := pre(app.PreflightOptions{}); err != nil {
		t.Fatalf("all is well, and run: %v", err)
	}

	w.pg.Exec(t, "marketing", "ALTER TABLE contact DROP COLUMN lastname")
	_, log, err := pre(app.PreflightOptions{})
	if err != nil || !strings.Contains(log, "public.contact.lastname") {
		t.Errorf("one replica's fault stops everything (%v), or is not told:\n%s", err, log)
	}
	for name, o := range map[string]app.PreflightOptions{"strict": {Strict: true}, "its own role": {Roles: []string{"sink=marketing"}}} {
		if refused, _, err := pre(o); len(refused) != 1 || !strings.Contains(err.Error(), "public.contact.lastname") {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Before the first start a missing slot is a fault of the setup; later it is a gap, which capture announces itself.
	w.pg.Exec(t, "marketing", "ALTER TABLE contact ADD COLUMN lastname text", "GRANT SELECT (lastname), UPDATE (lastname) ON contact TO lethe")
	w.pg.Exec(t, "crm", "SELECT pg_drop_replication_slot('lethe')")
	if refused, _, err := pre(app.PreflightOptions{}); len(refused) != 1 || refused[0].Code != "slot_missing" || !strings.Contains(err.Error(), "pg_create_logical_replication_slot") {
		t.Errorf("no slot at the first start: %v", err)
	}
	if refused, _, err := pre(app.PreflightOptions{Roles: []string{"sink=reporting"}}); err != nil {
		t.Errorf("a sink alone has no use for the slot: %v", refused)
	}
	w.setup(cfg)
	stop := w.run(cfg, app.RoleCapture)
	w.captured(cfg)
	stop()
	w.dropSlot()
	if _, log, err := pre(app.PreflightOptions{}); err != nil || !strings.Contains(log, "decides by itself") {
		t.Errorf("a lost slot keeps run from announcing the gap: %v", err)
	}
	if _, _, err := pre(app.PreflightOptions{Roles: []string{"sink=nobody"}}); err == nil || !strings.Contains(err.Error(), "sink=reporting") {
		t.Errorf("an unknown role: %v", err)
	}
	var faults *config.Faults
	cfg.Kafka.Embedded = true
	if _, _, err := pre(app.PreflightOptions{}); !errors.As(err, &faults) {
		t.Errorf("the demo's broker: %v", err)
	}
}
