package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	capturepg "lethe/capture/postgres"
	"lethe/config"
	"lethe/internal/pii"
	sinkspg "lethe/sinks/postgres"
)

// SetupOptions say where to set up, with the logins of owners. A place that is not named is not touched.
type SetupOptions struct {
	Kafka bool
	// SourceDSN is the owner's; empty: not the source. SourceRole is Lethe's login there; default the user of the config's
	// dsn.
	SourceDSN, SourceRole string
	// ReplicaDSN are the owners' by replica, ReplicaRole the run roles where they are not the user of the config's dsn.
	ReplicaDSN, ReplicaRole map[string]string
	// StatusRoles may read lethe.status in the replicas.
	StatusRoles []string
	// DryRun changes nothing, and says what would be done.
	DryRun bool
}

// Done is one thing that setup did, or would do.
type Done struct {
	Where string `json:"where"`
	What  string `json:"what"`
}

// SetupReport is what was done, and what is left to a person.
type SetupReport struct {
	Done []Done    `json:"done"`
	Left []Finding `json:"left"`
}

func (r *SetupReport) did(where, what string) { r.Done = append(r.Done, Done{where, what}) }

func (r *SetupReport) left(where string, findings []Finding) {
	for _, f := range findings {
		f.Where = where
		if f.Severity != SeverityInfo {
			r.Left = append(r.Left, f)
		}
	}
}

// Setup makes what Lethe needs: topics, then the source, then the replicas in the order of their names. Doing it again
// changes nothing. What was done before an error is in the report.
func Setup(ctx context.Context, cfg *config.Config, o SetupOptions) (*SetupReport, error) {
	r := &SetupReport{Done: []Done{}, Left: []Finding{}}
	if faults := cfg.NotInThisVersion(); len(faults) > 0 {
		return r, cfg.Faults(faults)
	}
	for _, m := range []map[string]string{o.ReplicaDSN, o.ReplicaRole} {
		for name := range m {
			if cfg.Replicas[name] == nil {
				return r, errNoReplica(cfg, name)
			}
		}
	}
	if o.Kafka {
		if err := setupKafka(ctx, cfg, o, r); err != nil {
			return r, err
		}
	}
	if o.SourceDSN != "" {
		if err := setupSource(ctx, cfg, o, r); err != nil {
			return r, err
		}
	}
	for _, name := range ReplicaNames(cfg) {
		if o.ReplicaDSN[name] == "" {
			continue
		}
		if err := setupReplica(ctx, cfg, cfg.Replicas[name], o, r); err != nil {
			return r, fmt.Errorf("setting up replica %s: %w", name, err)
		}
	}
	return r, nil
}

func setupKafka(ctx context.Context, cfg *config.Config, o SetupOptions, r *SetupReport) error {
	conn, err := connectKafka(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	t := topics(cfg, conn)
	if !o.DryRun {
		created, err := t.Setup(ctx)
		for _, name := range created {
			r.did(WhereKafka, "created topic "+name)
		}
		if err != nil {
			return err
		}
	}
	var left []Finding
	for _, f := range t.Check(ctx) {
		left = append(left, Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: statement(f.Fix)})
	}
	r.left(WhereKafka, left)
	return nil
}

func setupSource(ctx context.Context, cfg *config.Config, o SetupOptions, r *SetupReport) error {
	options, err := SourceOptions(cfg)
	if err != nil {
		return err
	}
	if o.SourceRole != "" {
		// Setup connects with the owner's dsn and takes no more than the login's name from this one.
		options.DSN = "user='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(o.SourceRole) + "'"
	}
	if o.DryRun {
		findings, err := capturepg.Preview(ctx, o.SourceDSN, config.Secret{}, options)
		r.left(WhereSource, fromSource(findings))
		return err
	}
	ran, left, err := capturepg.Setup(ctx, o.SourceDSN, config.Secret{}, options)
	for _, sql := range ran {
		r.did(WhereSource, sql)
	}
	r.left(WhereSource, fromSource(left))
	return err
}

// setupReplica makes the run role where it is missing, Lethe's own tables, and the grants on the mapped tables as far as
// the owner's login may give them.
func setupReplica(ctx context.Context, cfg *config.Config, replica *config.Replica, o SetupOptions, r *SetupReport) error {
	where := whereReplica + replica.Name
	role := o.ReplicaRole[replica.Name]
	if role == "" {
		role = userOf(replica.Postgres.DSN)
	}
	conn, err := connectPostgres(ctx, o.ReplicaDSN[replica.Name], config.Secret{})
	if err != nil {
		return err
	}
	defer closePostgres(ctx, conn)
	if missing, err := setupRole(ctx, conn, where, role, o.DryRun, r); err != nil || missing {
		return err
	}
	look := func() ([]sinkspg.Finding, error) {
		verify := ""
		if replica.Postgres.Verify != nil {
			verify = userOf(replica.Postgres.Verify.DSN)
		}
		return sinkspg.Check(ctx, conn, sinkspg.CheckOptions{
			Name: replica.Name, Source: cfg.Name, Config: replica, Digest: replica.Digest(), Role: role, VerifyRole: verify,
		})
	}
	findings, err := look()
	if err != nil {
		return err
	}
	if !o.DryRun {
		err := setupLedger(ctx, conn, sinkspg.SetupOptions{
			Name: replica.Name, Source: cfg.Name, Config: replica, Digest: replica.Digest(), RunRole: role, StatusRoles: o.StatusRoles,
		}, where, findings, r)
		if err != nil {
			return err
		}
		if findings, err = look(); err != nil {
			return err
		}
		if grantMissing(ctx, conn, where, findings, r) {
			if findings, err = look(); err != nil {
				return err
			}
		}
	}
	r.left(where, fromReplica(findings))
	return nil
}

// setupRole makes the run role. It reports missing only in a dry run: nothing more can be looked at then.
func setupRole(ctx context.Context, conn *pgx.Conn, where, role string, dryRun bool, r *SetupReport) (missing bool, err error) {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", role).Scan(&exists); err != nil {
		return false, fmt.Errorf("looking for role %s: %w", role, pii.DriverError(err))
	}
	if exists {
		return false, nil
	}
	sql := "CREATE ROLE " + pgx.Identifier{role}.Sanitize() + " LOGIN"
	if dryRun {
		r.left(where, []Finding{{
			Code: capturepg.CodeRoleMissing, Severity: SeverityError, Object: role, Message: "the login of `lethe run` does not exist", Fix: []string{sql},
		}})
		return true, nil
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		return false, fmt.Errorf("running %q (have an administrator make the role): %w", sql, pii.DriverError(err))
	}
	r.did(where, sql+" (give it a password with \\password)")
	return false, nil
}

// setupLedger makes Lethe's own tables and activates the mapping, and tells only what that changed.
func setupLedger(ctx context.Context, conn *pgx.Conn, o sinkspg.SetupOptions, where string, before []sinkspg.Finding, r *SetupReport) error {
	_, err := sinkspg.Setup(ctx, conn, o)
	if err != nil {
		return err
	}
	has := func(code string) bool {
		return slices.ContainsFunc(before, func(f sinkspg.Finding) bool { return f.Code == code })
	}
	if has(sinkspg.CodeLedger) {
		r.did(where, "made Lethe's own tables and activated the mapping")
	}
	if has(sinkspg.CodeDigest) {
		r.did(where, "activated the mapping; erased people go through phase 2 again under it")
	}
	return nil
}

// grantMissing gives the run role what it lacks on mapped tables. An owner of Lethe's tables alone may not do that: then
// the findings stay.
func grantMissing(ctx context.Context, conn *pgx.Conn, where string, findings []sinkspg.Finding, r *SetupReport) (granted bool) {
	for _, f := range findings {
		if f.Code != sinkspg.CodePrivilege || !strings.HasPrefix(f.FixSQL, "GRANT ") {
			continue
		}
		if _, err := conn.Exec(ctx, f.FixSQL); err != nil {
			continue // it stays among the findings, with its statement
		}
		granted = true
		r.did(where, strings.TrimSuffix(f.FixSQL, ";"))
	}
	return granted
}

// ErrNothingToSetUp is the error of a setup that names no place.
var ErrNothingToSetUp = errors.New("say what to set up: --kafka, --source-dsn, --replica-dsn NAME=DSN")
