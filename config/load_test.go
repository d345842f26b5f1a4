package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected faults in testdata/faults")

// TestFaults is golden: each archive holds a bad file and every fault in it.
func TestFaults(t *testing.T) {
	files, err := filepath.Glob("testdata/faults/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("finding golden files: %d, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(archive.Files[0].Data, "config.yaml")
			var faults *Faults
			if !errors.As(err, &faults) {
				t.Fatalf("Parse gave %v, want *Faults", err)
			}
			got := err.Error() + "\n"
			if strings.Contains(got, "hunter2") || strings.Contains(got, "hunt er2") {
				t.Errorf("a fault shows a password:\n%s", got)
			}
			if *update {
				archive.Files[1].Data = []byte(got)
				if err := os.WriteFile(name, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), got); diff != "" {
				t.Errorf("faults differ (-want +got):\n%s", diff)
			}
		})
	}
}

func parseFile(t testing.TB, name string) *Config {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(data, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDesignExample loads the example of the design page, which uses every section, and names those that wait.
func TestDesignExample(t *testing.T) {
	c := parseFile(t, "testdata/design.yaml")
	got := make([]string, 0, 16)
	for _, f := range c.NotInThisVersion() {
		if f.Line < 2 || f.Message == "" {
			t.Errorf("fault without place: %+v", f)
		}
		got = append(got, f.Path)
	}
	want := []string{
		"kafka.schema_registry",
		"replicas.marketing.guard", "ledger",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sections of later versions differ (-want +got):\n%s", diff)
	}
	if got := c.Source.Postgres.MaxRetainedWAL; got != 10<<30 {
		t.Errorf("max_retained_wal is %d, want 10 GiB as PostgreSQL counts", got)
	}
	if got, want := c.Replicas["reporting"].Hold["fact_invoice"], (Hold{By: "customer_sk", Basis: "legal_obligation", For: Period{Years: 10}, From: "fact_invoice.invoiced_on"}); got != want {
		t.Errorf("hold is %+v, want %+v", got, want)
	}
	if got, want := c.Replicas["marketing"].Guard, (&Guard{TailLog: true, Sweep: 24 * time.Hour, Keep: Period{Years: 3}}); *got != *want {
		t.Errorf("guard is %+v, want %+v", got, want)
	}
	if got := c.Source.Tables["public.customer_merge"]; !reflect.DeepEqual(got.Subject, []string{"kept_id"}) || got.Merged.When != "done" {
		t.Errorf("merged is %+v of the subject %v", got.Merged, got.Subject)
	}
	if got, want := c.Source.Pass, (Pass{Every: 30 * 24 * time.Hour, Chunk: 1000, RowsPerSecond: 5000}); got != want {
		t.Errorf("pass is %+v, want %+v", got, want)
	}
	find := &Find{
		Email: []string{"leads.email"}, Phone: []string{"leads.mobile", "leads.phone"}, Name: []string{"leads.firstname", "leads.lastname"},
		BirthDate: "leads.born_on", Postal: []string{"leads.address1", "leads.zipcode", "leads.city"}, Changed: []string{"leads.date_modified"},
		Scan: 30 * time.Minute, Regions: c.Locale.Regions(),
	}
	if diff := cmp.Diff(find, c.Replicas["marketing"].Find); diff != "" {
		t.Errorf("find differs (-want +got):\n%s", diff)
	}
	if got := find.ChangedColumn("leads"); got != "date_modified" || find.ChangedColumn("other") != "" || !reflect.DeepEqual(find.Tables(), []string{"leads"}) {
		t.Errorf("find looks into %v, where %q changes", find.Tables(), got)
	}
	if got := c.Replicas["marketing"].Review.Due; got != 5*24*time.Hour {
		t.Errorf("review.due is %s", got)
	}
	if got := c.Locale.Regions(); len(got) != 9 || got[0] != "FR" || got[1] != "RE" {
		t.Errorf("regions are %v", got)
	}
	insert := c.Replicas["marketing"].Suppress[0].Insert
	want2 := map[string]Value{
		"lead_id": {Kind: KindKey}, "channel": {Kind: KindConst, Const: "email"},
		"reason": {Kind: KindConst, Const: int64(3)}, "date_added": {Kind: KindNow},
	}
	if diff := cmp.Diff(want2, insert.Values); diff != "" {
		t.Errorf("insert differs (-want +got):\n%s", diff)
	}
}

// TestPostgresExample loads the file that everything in this version works with, and looks at the defaults.
func TestPostgresExample(t *testing.T) {
	c := parseFile(t, "testdata/postgres.yaml")
	if later := c.NotInThisVersion(); len(later) != 0 {
		t.Errorf("not in this version: %v", later)
	}
	tables := c.Source.Tables
	if diff := cmp.Diff(map[string]any{"blocked": true, "ok_for_promo": false}, tables["public.customer"].State); diff != "" {
		t.Error(diff)
	}
	if got := tables["public.customer"].Subject; !reflect.DeepEqual(got, []string{"customer_id"}) {
		t.Errorf("the subject's own table has subject %v, want the CRM key", got)
	}
	if got := c.Source.Erased.Marker.Subject; !reflect.DeepEqual(got, []string{"customer_id"}) {
		t.Errorf("the marker has subject %v, want the CRM key", got)
	}
	if !tables["public.auth_record"].EraseRow || tables["public.epayment"].EraseRow {
		t.Error("erase: row is not told from columns")
	}
	r := c.Replicas["reporting"]
	if r.Breaker != (Breaker{NewCases: 20, Window: 10 * time.Minute}) || r.Recheck != (Period{Days: 90}) || r.Postgres.Schema != "lethe" {
		t.Errorf("defaults are %+v, %v, %q", r.Breaker, r.Recheck, r.Postgres.Schema)
	}
	if got := r.Postgres.VerifyServer(); got != r.Postgres {
		t.Errorf("without verify the read-back goes to %+v", got)
	}
	if got, want := c.Replicas["marketing"].Postgres.VerifyServer().DSN, "postgres://lethe_verify@mkt-db:5432/marketing?sslmode=verify-full"; got != want {
		t.Errorf("the read-back goes to %q, want %q", got, want)
	}
	if c.Source.Pass != (Pass{Every: 30 * 24 * time.Hour, Chunk: 1000}) || r.Review.Due != 7*24*time.Hour || c.Locale.Regions() != nil {
		t.Errorf("defaults are %+v, %+v, %v", c.Source.Pass, r.Review, c.Locale.Regions())
	}
	dim := r.Erase.Tables["dim_customer"].Set
	if dim["birth_year"] != (Value{Kind: KindGeneralise, Generalise: "10"}) || dim["postcode"] != (Value{Kind: KindTruncate, Truncate: 2}) {
		t.Errorf("values are %+v", dim)
	}
	if got := c.Replicas["marketing"].Erase.Tables["contact"].JSON["profile"]["contact.email"]; got != (Value{Kind: KindNull}) {
		t.Errorf("JSON path is %+v", got)
	}
}

func postgresExample(t *testing.T) string {
	t.Helper()
	text, err := Example("postgres", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestStarterFileOfEachMix loads what lethe init writes for databases other than PostgreSQL.
func TestStarterFileOfEachMix(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "secrets/crm-password", 0o600, "crm secret\n")
	write(t, folder, "secrets/marketing-password", 0o400, "marketing secret")
	for _, source := range Databases() {
		for _, replica := range Databases() {
			text, err := Example(source, replica)
			if err != nil {
				t.Fatal(err)
			}
			write(t, folder, "lethe.yaml", 0o644, text)
			c, err := Load(filepath.Join(folder, "lethe.yaml"))
			if err != nil {
				t.Fatalf("%s, %s: %v", source, replica, err)
			}
			if (c.Source.MySQL != nil) != (source == "mysql") || (c.Replicas["marketing"].MySQL != nil) != (replica == "mysql") {
				t.Errorf("%s, %s: the file names others:\n%s", source, replica, text)
			}
			if n := strings.Count(text, "postgres"); source == "mysql" && replica == "mysql" && n > 0 {
				t.Errorf("%d times PostgreSQL in a file for MySQL:\n%s", n, text)
			}
			if mysql := c.Source.MySQL; mysql != nil && (c.Source.Tables["crm.customer"] == nil || mysql.Password.Reveal() != "crm secret") {
				t.Errorf("%s, %s: the source is %+v with %v", source, replica, mysql, c.Source.Tables)
			}
		}
	}
	if _, err := Example("oracle", "mysql"); err == nil {
		t.Error("a starter file for a database that nobody knows")
	}
}

// TestStarterFile loads what lethe init writes, once its password files exist.
func TestStarterFile(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "lethe.yaml", 0o644, postgresExample(t))
	write(t, folder, "secrets/crm-password", 0o600, "crm secret\n")
	write(t, folder, "secrets/marketing-password", 0o400, "marketing secret")
	c, err := Load(filepath.Join(folder, "lethe.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Source.Postgres.Password.Reveal(); got != "crm secret" {
		t.Errorf("password is %q: the final newline must go", got)
	}
	if got, want := c.Keys.Dir, filepath.Join(folder, "keys"); got != want {
		t.Errorf("keys.dir is %q, want %q: relative to the file", got, want)
	}
	if later := c.NotInThisVersion(); len(later) != 0 {
		t.Errorf("the starter file is not in this version: %v", later)
	}
}

func write(t *testing.T, folder, name string, mode os.FileMode, content string) {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // The umask must not decide what is tested.
		t.Fatal(err)
	}
}

func TestSecretFiles(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "lethe.yaml", 0o644, postgresExample(t))
	write(t, folder, "secrets/crm-password", 0o640, "crm secret\n")
	_, err := Load(filepath.Join(folder, "lethe.yaml"))
	if err == nil {
		t.Fatal("a password that the group can read was accepted")
	}
	for _, want := range []string{
		"source.postgres.password_file", "can be read by others (mode 0640); chmod 600 ",
		"replicas.marketing.postgres.password_file: cannot be read", "no such file",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "crm secret") {
		t.Error("the error shows the secret")
	}

	t.Run("systemd credentials", func(t *testing.T) {
		t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(folder, "secrets"))
		write(t, folder, "secrets/marketing-password", 0o440, "x")
		if _, err := Load(filepath.Join(folder, "lethe.yaml")); err != nil {
			t.Errorf("systemd's group bits were refused: %v", err)
		}
		write(t, folder, "secrets/marketing-password", 0o444, "x")
		if _, err := Load(filepath.Join(folder, "lethe.yaml")); err == nil {
			t.Error("a credential that everybody can read was accepted")
		}
	})
	t.Run("no content", func(t *testing.T) {
		write(t, folder, "secrets/crm-password", 0o600, "\n")
		if _, err := Load(filepath.Join(folder, "lethe.yaml")); err == nil || !strings.Contains(err.Error(), "crm-password is empty") {
			t.Errorf("an empty password file gave %v", err)
		}
	})
}

func TestLoadMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "lethe.yaml"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v, want not exist", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("LETHE_TEST_HOST", "crm-db:5432")
	t.Setenv("LETHE_TEST_PASSWORD", "p$w ${x}")
	t.Setenv("LETHE_TEST_CASES", "7")
	t.Setenv("LETHE_TEST_FLAG", "$now")
	text := strings.NewReplacer(
		"lethe@crm-db:5432", "lethe@${LETHE_TEST_HOST}",
		"password_file: secrets/crm-password", "password: ${LETHE_TEST_PASSWORD}",
		"new_cases: 20", `new_cases: "${LETHE_TEST_CASES}"`,
		"contact.blocked: true", `contact.blocked: "${LETHE_TEST_FLAG}"`,
	).Replace(postgresExample(t))
	c, err := Parse([]byte(text), "lethe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Source.Postgres.DSN, "postgres://lethe@crm-db:5432/crm?sslmode=verify-full"; got != want {
		t.Errorf("dsn is %q, want %q", got, want)
	}
	if got := c.Source.Postgres.Password.Reveal(); got != "p$w ${x}" {
		t.Errorf("password is %q: a variable's value is not expanded again", got)
	}
	r := c.Replicas["marketing"]
	if r.Breaker.NewCases != 7 {
		t.Errorf("new_cases is %d", r.Breaker.NewCases)
	}
	if got := r.Suppress[0].Set["contact"]["blocked"]; got != (Value{Kind: KindConst, Const: "$now"}) {
		t.Errorf("value is %+v: what comes from the environment is a constant", got)
	}
}

func TestFaultsOfOthers(t *testing.T) {
	c := parseFile(t, "testdata/postgres.yaml")
	if err := c.Faults(nil); err != nil {
		t.Errorf("no faults gave %v", err)
	}
	err := c.Faults([]Fault{{Path: "source.tables.public.customer.objection.when", Message: "does not compile"}, {Path: "nowhere", Message: "x"}})
	want := "reading config testdata/postgres.yaml: 2 faults\n  line 1: nowhere: x\n" +
		"  line 31: source.tables.public.customer.objection.when: does not compile"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"testdata/design.yaml", "testdata/postgres.yaml", "example.yaml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	archives, err := filepath.Glob("testdata/faults/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range archives {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "fuzz.yaml")
		if err == nil {
			c.SourceDigest()
			for _, r := range c.Replicas {
				r.Digest()
			}
			c.NotInThisVersion()
			return
		}
		var faults *Faults
		if !errors.As(err, &faults) || len(faults.List) == 0 {
			t.Fatalf("error is no list of faults: %v", err)
		}
		for _, fault := range faults.List {
			if fault.Line < 1 || fault.Message == "" {
				t.Errorf("fault without place or message: %+v", fault)
			}
		}
		if _, again := Parse(data, "fuzz.yaml"); again == nil || again.Error() != err.Error() {
			t.Errorf("the second time the error is %v, was %v", again, err)
		}
	})
}
