// Package deploy tests what is shipped beside the binary: alert rules, the service unit and the scripts that grant.
package deploy

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	data, err := os.ReadFile("prometheus/lethe-alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, group := range file.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) < 10 {
		t.Fatalf("only %d rules", len(rules))
	}
	return rules
}

// TestAlerts: every alert says what, how long, how bad, and where the runbook is; and the runbook has that section.
func TestAlerts(t *testing.T) {
	operations, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, runbook, found := strings.Cut(string(operations), "\n## Runbook\n")
	if !found {
		t.Fatal("docs/OPERATIONS.md has no section Runbook")
	}
	sections := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(runbook, -1) {
		sections[m[1]] = true
	}
	for _, r := range readRules(t) {
		if r.Alert == "" || r.Expr == "" || !regexp.MustCompile(`^\d+[smh]$`).MatchString(r.For) {
			t.Errorf("alert %q lacks its name, expr or for", r.Alert)
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s: severity is %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", r.Alert)
		}
		if got, want := r.Annotations["runbook"], "docs/OPERATIONS.md#"+strings.ToLower(r.Alert); got != want {
			t.Errorf("%s: runbook is %q, want %q", r.Alert, got, want)
		}
		if !sections[r.Alert] {
			t.Errorf("%s has no section in docs/OPERATIONS.md", r.Alert)
		}
		delete(sections, r.Alert)
		for _, pair := range []string{"()", "[]", "{}"} {
			if strings.Count(r.Expr, pair[:1]) != strings.Count(r.Expr, pair[1:]) {
				t.Errorf("%s: %s are not balanced in %s", r.Alert, pair, r.Expr)
			}
		}
	}
	for left := range sections {
		t.Errorf("the runbook has a section %s without an alert", left)
	}
}

var metricName = regexp.MustCompile(`lethe_[a-z_]+`)

// TestMetricsExist: an alert or a page that names a metric which nobody exposes would stay silent for ever.
func TestMetricsExist(t *testing.T) {
	exposed := make(map[string]bool)
	literal := regexp.MustCompile(`"(lethe_[a-z_]+)"`)
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range literal.FindAllSubmatch(source, -1) {
			exposed[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	operations, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]string{}
	for _, name := range metricName.FindAllString(string(operations), -1) {
		named[name] = "docs/OPERATIONS.md"
	}
	for _, r := range readRules(t) {
		for _, name := range metricName.FindAllString(r.Expr, -1) {
			named[strings.TrimSuffix(name, "_bucket")] = r.Alert
		}
	}
	roles := map[string]bool{"lethe_owner": true, "lethe_verify": true}
	for name, where := range named {
		if !exposed[name] && !roles[name] {
			t.Errorf("%s names metric %s, which nothing exposes", where, name)
		}
	}
}

// TestServiceUnit has systemd read the unit, with a command that exists on every machine.
func TestServiceUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	unit, err := os.ReadFile("systemd/lethe.service")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(unit), "ExecStart=/usr/bin/lethe", "ExecStart=/bin/true", 1)
	if text == string(unit) {
		t.Fatal("ExecStart is not /usr/bin/lethe")
	}
	file := filepath.Join(t.TempDir(), "lethe.service")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, line := range []string{"NoNewPrivileges=yes", "ProtectSystem=strict", "RestartPreventExitStatus=2", "LimitCORE=0", "Environment=GOTRACEBACK=crash"} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("the unit lacks %s", line)
		}
	}
}
