package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lethe/internal/testenv"
)

const serversFile = `
version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: [%%brokers%%], partitions: 2, replication_factor: 1}
source:
  postgres: {dsn: "%%crm%%", slot: lethe, publication: lethe, max_retained_wal: 1GB}
  heartbeat: 200ms
  subject: {table: public.customer, key: customer_id, on_delete: erasure}
  erased: {when: 'status == "E"'}
  tables: {public.customer: {erase: [last_name]}}
replicas:
  marketing:
    recipient: {name: Agency, role: processor}
    mode: erase
    postgres: {dsn: "%%marketing%%"}
    person: {table: contact, key: contact_id, crm_key: crm_id}
    suppress: [{set: {contact.blocked: true}}]
    erase: {cool_off: 1h, tables: {contact: {set: {lastname: null}}}}
http: {listen: "127.0.0.1:0"}
`

var (
	errNoCase    = errors.New("there is no case yet")
	errNoCapture = errors.New("capture does not read yet")
)

// cli is the command line in this process.
type cli struct {
	testing.TB
	config string
	all    bytes.Buffer // everything that was ever printed
}

// run wants an exit code and returns what was printed to stdout.
func (c *cli) run(ctx context.Context, code int, args ...string) string {
	c.Helper()
	got, out, errs := c.try(ctx, args...)
	if got != code {
		c.Fatalf("lethe %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errs)
	}
	return out
}

// try returns the exit code, and what was printed to stdout and stderr.
func (c *cli) try(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	root := rootCommand()
	root.SetArgs(append(args, "--config", c.config))
	root.SetOut(&out)
	root.SetErr(&errs)
	code = report(&errs, root.ExecuteContext(ctx))
	c.all.Write(out.Bytes())
	c.all.Write(errs.Bytes())
	return code, out.String(), errs.String()
}

// psql runs a script as psql does, as the owner.
func psql(t *testing.T, pg *testenv.Postgres, db, script string) {
	t.Helper()
	bin, err := testenv.PostgresBin(15)
	if err != nil {
		t.Fatal(err)
	}
	cmd := pg.Command(t.Context(), "psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", pg.DSN(db, ""))
	cmd.Path, cmd.Err = filepath.Join(bin, "psql"), nil
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s\n%s", err, out, script)
	}
}

// An operator sets up with nothing but psql and what check prints, then works through a day. Of the people nothing but the
// replica's own keys is ever printed.
func TestCommandsOnRealServers(t *testing.T) {
	pg := testenv.NewPostgres(t, testenv.Options{Settings: map[string]string{"max_slot_wal_keep_size": "4GB"}})
	broker := testenv.NewKafka(t, testenv.KafkaOptions{})
	pg.Exec(t, "", "CREATE DATABASE crm")
	pg.Exec(t, "", "CREATE DATABASE marketing")
	pg.Exec(t, "crm", "CREATE TABLE customer (customer_id bigserial PRIMARY KEY, last_name text, status char(1) NOT NULL DEFAULT 'A', spare text)")
	pg.Exec(t, "marketing", "CREATE TABLE contact (contact_id bigserial PRIMARY KEY, crm_id bigint NOT NULL UNIQUE, lastname text, blocked boolean NOT NULL DEFAULT false)")
	c := &cli{TB: t, config: filepath.Join(t.TempDir(), "lethe.yaml")}
	text := strings.NewReplacer("%%brokers%%", strings.Join(broker.Brokers(), ", "), "%%crm%%", pg.DSN("crm", "lethe"), "%%marketing%%", pg.DSN("marketing", "lethe")).
		Replace(serversFile)
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	c.run(ctx, exitFindings, "run", "--log-level", "error")
	// The login first: what it may do can be looked at only then.
	psql(t, pg, "crm", c.run(ctx, exitFindings, "check", "--fix-sql", "--role", "capture"))
	psql(t, pg, "crm", c.run(ctx, exitFindings, "check", "--fix-sql", "--role", "capture"))
	psql(t, pg, "marketing", c.run(ctx, exitFindings, "check", "--fix-sql", "--role", "sink=marketing"))
	c.run(ctx, exitOK, "keys", "init")
	if out := c.run(ctx, exitFindings, "check"); !strings.Contains(out, "kafka-topics.sh") || strings.Contains(out, "source\n  error") {
		t.Errorf("only the topics should be missing:\n%s", out)
	}
	c.run(ctx, exitOK, "setup", "--kafka")
	if out := c.run(ctx, exitOK, "check"); !strings.Contains(out, "everything that run needs is there") {
		t.Errorf("check says\n%s", out)
	}

	c.day(ctx, func(sql ...string) { pg.Exec(t, "crm", sql...) }, func(sql ...string) { pg.Exec(t, "marketing", sql...) })
}

const canary = "Zyxcanary"

// day is an operator's: an erasure is held, the replica paused, the erasure cancelled, and everything is looked at.
func (c *cli) day(ctx context.Context, crm, marketing func(sql ...string)) {
	t := c.TB
	t.Helper()
	marketing("INSERT INTO contact (crm_id, lastname) VALUES (1, '" + canary + "')")
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan string, 1)
	runner := &cli{TB: t, config: c.config}
	go func() {
		defer close(done)
		done <- runner.run(running, exitOK, "run", "--log-format", "json")
	}()
	c.captured(ctx)
	crm("INSERT INTO customer (last_name) VALUES ('"+canary+"')", "UPDATE customer SET last_name = NULL, status = 'E'")
	var id string
	testenv.Eventually(t, time.Minute, func() error {
		var list []struct{ Case, State string }
		if err := json.Unmarshal([]byte(c.run(ctx, exitOK, "cases", "--json")), &list); err != nil || len(list) != 1 {
			return errNoCase
		}
		id = list[0].Case
		return nil
	})
	if out := c.run(ctx, exitOK, "cases", "--open"); !regexp.MustCompile(id + ` +marketing +suppressed +cool_off`).MatchString(out) {
		t.Errorf("cases:\n%s", out)
	}
	if out := c.run(ctx, exitOK, "plan", "1"); !strings.Contains(out, "phase 2  set       contact: 1 rows by crm_id (lastname)") {
		t.Errorf("plan:\n%s", out)
	}
	if out := c.run(ctx, exitOK, "hold", id, "--by", "dpo", "--wait"); !strings.Contains(out, "marketing: done") {
		t.Errorf("hold:\n%s", out)
	}
	c.run(ctx, exitOK, "pause", "marketing", "--by", "ops")
	if out := c.run(ctx, exitOK, "status"); !strings.Contains(out, "PAUSED by ops") || !strings.Contains(out, "held 1") || !strings.Contains(out, "read by capture") {
		t.Errorf("status:\n%s", out)
	}
	c.run(ctx, exitOK, "resume", "marketing")
	c.run(ctx, exitOK, "status", "--json")
	c.run(ctx, exitOK, "dead-letters", "list")
	c.run(ctx, exitOK, "gap", "list")
	c.run(ctx, exitOK, "uninstall", "--print-sql")
	c.run(ctx, exitOK, "cancel", id, "--by", "dpo", "--wait=1m")
	stop()
	<-done
	if strings.Contains(c.all.String()+runner.all.String(), canary) {
		t.Error("a person's name was printed")
	}
	if !strings.Contains(runner.all.String(), `"lethe runs"`) || !strings.Contains(runner.all.String(), `"lethe has stopped"`) {
		t.Errorf("run does not tell its start and its end:\n%s", runner.all.String())
	}
}

// captured waits until capture reads: what MySQL wrote before its first start it does not see.
func (c *cli) captured(ctx context.Context) {
	c.Helper()
	testenv.Eventually(c, time.Minute, func() error {
		var status struct{ Source struct{ Reading bool } }
		if err := json.Unmarshal([]byte(c.run(ctx, exitOK, "status", "--json")), &status); err != nil || !status.Source.Reading {
			return errNoCapture
		}
		return nil
	})
}
