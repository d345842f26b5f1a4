package app_test

import (
	"slices"
	"strings"
	"testing"

	"lethe/internal/app"
)

// Setup makes everything that check asks for, once; uninstall takes it away again.
func TestSetupMakesCheckCleanAndUninstallUndoesIt(t *testing.T) {
	t.Parallel()
	for _, version := range []int{15, 18} {
		w := newWorld(t, version, nil)
		cfg := w.load()
		before := w.check(cfg)
		for where, code := range map[string]string{
			"keys": "keys", "kafka": "topic_missing", "source": "login_refused", "replica=marketing": "login_refused", "replica=reporting": "login_refused",
		} {
			if !slices.ContainsFunc(before.Findings, func(f app.Finding) bool { return f.Where == where && f.Code == code && len(f.Fix) > 0 }) {
				t.Errorf("nothing is there, and %s does not say %s with its fix: %+v", where, code, before.Findings)
			}
		}
		dry := w.owners()
		dry.DryRun = true
		r, err := app.Setup(t.Context(), cfg, dry)
		if err != nil || len(r.Done) != 0 || len(r.Left) < 5 {
			t.Errorf("a dry run did %v, left %d, %v", r.Done, len(r.Left), err)
		}
		if got := w.text("crm", "SELECT count(*) FROM pg_roles WHERE rolname = 'lethe'"); got != "0" {
			t.Error("a dry run made the role")
		}

		r = w.setup(cfg)
		for _, want := range []string{"created topic", "CREATE ROLE", "CREATE PUBLICATION", "pg_create_logical_replication_slot", "made Lethe's own tables", "GRANT"} {
			if !slices.ContainsFunc(r.Done, func(d app.Done) bool { return strings.Contains(d.What, want) }) {
				t.Errorf("setup does not tell of %s: %v", want, r.Done)
			}
		}
		w.clean(cfg)
		if r = w.setup(cfg); len(r.Done) != 0 {
			t.Errorf("the second setup did %v", r.Done)
		}
		uninstall(w, app.Uninstall)
	}
}

// A mapping that grew is activated, and said.
func TestSetupActivatesAnotherMapping(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	w.setup(w.load())
	cfg := w.load("{set: {lastname: null}}", "{set: {lastname: null, newsletter: false}}")
	f := find(w.check(cfg), "replica=marketing", "mapping_digest", "lethe")
	if f == nil {
		t.Fatal("check does not see that another mapping is active")
	}
	r := w.setup(cfg)
	if !slices.ContainsFunc(r.Done, func(d app.Done) bool { return strings.Contains(d.What, "activated the mapping") }) {
		t.Errorf("setup did %v", r.Done)
	}
	w.clean(cfg)
	if _, err := app.Setup(t.Context(), cfg, app.SetupOptions{ReplicaDSN: map[string]string{"nobody": "x"}}); err == nil || !strings.Contains(err.Error(), "marketing, reporting") {
		t.Errorf("an unknown replica: %v", err)
	}
}

func TestSetupWithAnOwnerOfLethesTablesAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 15, nil)
	cfg := w.load()
	w.pg.Exec(t, "", "CREATE ROLE lethe_owner LOGIN", "CREATE ROLE lethe LOGIN REPLICATION", "GRANT CREATE ON DATABASE marketing TO lethe_owner")
	w.pg.Exec(t, "marketing", "GRANT USAGE, CREATE ON SCHEMA public TO lethe_owner")
	r, err := app.Setup(t.Context(), cfg, app.SetupOptions{ReplicaDSN: map[string]string{"marketing": w.pg.DSN("marketing", "lethe_owner")}})
	if err != nil {
		t.Fatal(err)
	}
	// It may not grant on tables that are not its own: the statements stay for their owner.
	var left []app.Finding
	for _, f := range r.Left {
		if f.Severity == app.SeverityError {
			left = append(left, f)
		}
	}
	if len(left) == 0 {
		t.Fatal("nothing is left to the owner of the mapped tables")
	}
	w.psql(left)
	if r := w.check(cfg, "sink=marketing"); slices.ContainsFunc(r.Findings, func(f app.Finding) bool {
		return f.Where == "replica=marketing" && f.Severity == app.SeverityError
	}) {
		t.Errorf("after the owner's grants: %+v", r.Findings)
	}
}
