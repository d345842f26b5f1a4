package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks/ledger"
)

// bare is a world whose run role has nothing but its login, and whose ledger tables do not exist.
func bare(t *testing.T, version int, change ...func(*config.Replica)) *world {
	t.Helper()
	w := newWorld(t, version, change...)
	w.r.Close()
	w.exec(`DROP SCHEMA lethe CASCADE; DROP TABLE lethe_witness; DROP OWNED BY ` + w.role)
	return w
}

func (w *world) check() []ledger.Finding {
	w.Helper()
	conn, err := pgx.Connect(w.ctx, w.pg.DSN(w.db, w.role))
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close(w.ctx)
	findings, err := Check(w.ctx, conn, CheckOptions{Name: "marketing", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest()})
	if err != nil {
		w.Fatal(err)
	}
	return findings
}

// fix runs the statements of findings as psql would, as the owner.
func (w *world) fix(findings []ledger.Finding) {
	w.Helper()
	for _, f := range findings {
		if f.FixSQL == "" {
			continue
		}
		if _, err := w.admin.PgConn().Exec(w.ctx, f.FixSQL).ReadAll(); err != nil {
			w.Fatalf("the fix of %s %s: %v\n%s", f.Code, f.Object, err, f.FixSQL)
		}
	}
}

func codes(findings []ledger.Finding, severity ledger.Severity) []string {
	var out []string
	for _, f := range findings {
		if f.Severity == severity {
			out = append(out, f.Code+" "+f.Object)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// The fixes of a check give the run role exactly what it needs: with them everything that a replica does works.
func TestCheckGrantsWhatRunNeeds(t *testing.T) {
	for _, version := range []int{15, 18} {
		w := bare(t, version, erasing)
		findings := w.check()
		want := []string{
			"ledger lethe", "privilege_missing public.contact", "privilege_missing public.do_not_contact", "privilege_missing public.note",
		}
		if got := codes(findings, ledger.SeverityError); !slices.Equal(got, want) {
			t.Fatalf("findings %v, want %v", got, want)
		}
		w.fix(findings)
		if left := codes(w.check(), ledger.SeverityError); len(left) > 0 {
			t.Fatalf("after the fixes there is still %v", left)
		}
		w.r = w.replica()
		w.assign()
		w.person(1, 2)
		w.apply(w.event(1, consent("newsletter", schema.ConsentGiven)), w.event(2, &schema.Objection{Raised: true, Scope: "direct_marketing"}),
			w.event(1, &schema.SubjectErasure{}), w.event(2, &schema.SubjectErasure{}), w.decide(2, schema.DecisionCancel))
		w.runDue()
		w.states(1, "suppressed applied verified")
		w.states(2, "suppressed cancelled")
		if got := w.one(`SELECT has_column_privilege($1, 'contact', 'crm_id', 'UPDATE') AS x`, w.role); got != `{"x": false}` {
			t.Errorf("the run role may change the CRM key: %s", got)
		}
	}
}

// What check prints for Lethe's own tables leaves behind what Setup does.
func TestCheckPrintsWhatSetupDoes(t *testing.T) {
	w := newWorld(t, 15)
	left := func() string {
		return w.one(`SELECT jsonb_build_object(
			'meta', (SELECT jsonb_object_agg(k, v) FROM lethe.meta),
			'witness', (SELECT jsonb_agg(x) FROM lethe_witness x),
			'columns', (SELECT jsonb_agg(table_name || '.' || column_name || ' ' || data_type ORDER BY table_name, ordinal_position)
				FROM information_schema.columns WHERE table_schema = 'lethe'),
			'indexes', (SELECT jsonb_agg(indexdef ORDER BY indexdef) FROM pg_indexes WHERE schemaname = 'lethe'),
			'grants', (SELECT jsonb_agg(DISTINCT table_name || ' ' || privilege_type) FROM information_schema.table_privileges
				WHERE grantee = $1 AND (table_schema = 'lethe' OR table_name = 'lethe_witness'))) AS x`, w.role)
	}
	want := left()
	w.exec(`DROP SCHEMA lethe CASCADE; DROP TABLE lethe_witness`)
	w.fix(w.check())
	if got := left(); got != want {
		t.Errorf("the statements leave\n%s\nand Setup\n%s", got, want)
	}
}

func TestCheckNamesEachFault(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*config.Replica)
		broken string
		want   string // code and object
		says   string
		fixed  bool // the statement mends it
	}{
		"column": {broken: `ALTER TABLE contact DROP COLUMN offers`, want: "column_missing public.contact.offers", says: "does not exist"},
		"table":  {broken: `DROP TABLE note`, want: "table_missing note", says: "correct the mapping"},
		"privilege": {
			broken: `REVOKE UPDATE ON contact FROM {role}`, want: "privilege_missing public.contact", says: "lacks UPDATE on", fixed: true,
		},
		"schema": {
			broken: `REVOKE USAGE ON SCHEMA public FROM public`, want: "privilege_missing public", says: "may not use the schema", fixed: true,
		},
		"ledger schema": {broken: `REVOKE USAGE ON SCHEMA lethe FROM {role}`, want: "privilege_missing lethe", says: "may not use the schema", fixed: true},
		"ledger table": {
			broken: `REVOKE INSERT ON lethe.receipt FROM {role}`, want: `privilege_missing "lethe"."receipt"`, says: "lacks INSERT", fixed: true,
		},
		"digest": {
			broken: `UPDATE lethe.meta SET v = 'ab' WHERE k = 'mapping_digest'`, want: "mapping_digest lethe", says: "another mapping is the active one", fixed: true,
		},
		"foreign": {broken: `UPDATE lethe.meta SET v = 'other' WHERE k = 'replica'`, want: "ledger lethe", says: "schema of its own"},
		"newer":   {broken: `UPDATE lethe.meta SET v = '99' WHERE k = 'schema_version'`, want: "ledger lethe", says: "newer Lethe"},
		"witness": {broken: `REVOKE ALL ON lethe_witness FROM {role}`, want: `privilege_missing "public"."lethe_witness"`, says: "lacks", fixed: true},
		"row security": {
			broken: `ALTER TABLE contact ENABLE ROW LEVEL SECURITY`, want: "row_security public.contact", says: "neither erase nor prove", fixed: true,
		},
		"audience": {
			change: func(c *config.Replica) { c.Audience = "select contact_id contact where" }, want: "audience marketing.audience", says: "42",
		},
		"audience column": {
			change: func(c *config.Replica) { c.Audience = "select contact_id from contact where gone" }, want: "audience marketing.audience", says: "42703",
		},
		"audience privilege": {
			broken: `CREATE TABLE segment (member bigint)`,
			change: func(c *config.Replica) { c.Audience = "select member from segment" }, want: "privilege_missing public.segment", says: "lacks SELECT on member", fixed: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var change []func(*config.Replica)
			if tc.change != nil {
				change = append(change, tc.change)
			}
			w := newWorld(t, 15, change...)
			if tc.broken != "" {
				if left := codes(w.check(), ledger.SeverityError); tc.change == nil && len(left) > 0 {
					t.Fatalf("before the fault there is %v", left)
				}
				w.exec(strings.ReplaceAll(tc.broken, "{role}", w.role))
			}
			findings := w.check()
			i := slices.IndexFunc(findings, func(f ledger.Finding) bool {
				return f.Severity == ledger.SeverityError && f.Code+" "+f.Object == tc.want && strings.Contains(f.Message, tc.says)
			})
			if i < 0 {
				t.Fatalf("want %s (%s), got %+v", tc.want, tc.says, findings)
			}
			if !tc.fixed {
				return
			}
			w.fix(findings)
			if left := codes(w.check(), ledger.SeverityError); len(left) > 0 {
				t.Errorf("after the fix there is still %v", left)
			}
		})
	}
}

func TestCheckWarnsOfWhatOutlivesAnErasure(t *testing.T) {
	w := newWorld(t, 15)
	w.exec(`ALTER TABLE contact ADD mobile text`)
	w.exec(`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER history BEFORE UPDATE ON contact FOR EACH ROW EXECUTE FUNCTION keep()`)
	findings := w.check()
	if got := codes(findings, ledger.SeverityWarning); !slices.Contains(got, "unmapped_personal_data public.contact.mobile") {
		t.Errorf("warnings %v", got)
	}
	if got := codes(findings, ledger.SeverityInfo); !slices.Contains(got, "trigger public.contact") {
		t.Errorf("infos %v", got)
	}
}

func TestCheckOfTheReadBackLogin(t *testing.T) {
	w := newWorld(t, 15)
	verify := testenv.UniqueName("lethe_verify")
	w.pg.Exec(t, "", "CREATE ROLE "+verify+" LOGIN")
	t.Cleanup(func() { w.pg.Exec(t, "", "DROP ROLE "+verify) })
	t.Cleanup(func() { w.pg.Exec(t, w.db, "DROP OWNED BY "+verify) })
	o := CheckOptions{Name: "marketing", Source: "crm", Config: w.cfg, Digest: w.cfg.Digest(), Role: w.role, VerifyRole: verify}
	findings, err := Check(w.ctx, w.admin, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Code == ledger.CodePrivilege && (!strings.HasPrefix(f.FixSQL, "GRANT SELECT (") || !strings.Contains(f.FixSQL, verify)) {
			t.Errorf("the read-back login is to get %s", f.FixSQL)
		}
	}
	w.fix(findings)
	findings, err = Check(w.ctx, w.admin, o)
	if left := codes(findings, ledger.SeverityError); err != nil || len(left) > 0 {
		t.Errorf("after the grants: %v, %v", left, err)
	}
}
