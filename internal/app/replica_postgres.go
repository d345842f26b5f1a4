package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/internal/pii"
	"lethe/sinks/ledger"
	sinkspg "lethe/sinks/postgres"
)

// postgresReplica is a replica on PostgreSQL.
type postgresReplica struct {
	cfg     *config.Config
	replica *config.Replica
}

func (p *postgresReplica) open(ctx context.Context, a *App, ring *keys.Ring) (_ replica, closeAll func(), err error) {
	cfg := p.replica
	pool, err := newPool(ctx, cfg.Postgres, sinkConnections)
	if err != nil {
		return nil, nil, err
	}
	verify, err := newPool(ctx, cfg.Postgres.VerifyServer(), verifyConnections)
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	closeAll = func() {
		verify.Close()
		pool.Close()
	}
	signer, proofErr := ring.Proof(cfg.Name)
	pseudonym, pseudonymErr := ring.Pseudonym(cfg.Name)
	if err := errors.Join(proofErr, pseudonymErr); err != nil {
		closeAll()
		return nil, nil, err
	}
	r, err := sinkspg.New(sinkspg.Options{
		Name: cfg.Name, Source: a.cfg.Name, Config: cfg, Pool: pool, VerifyPool: verify, Seal: ring.Seal(), Pseudonym: pseudonym, Signer: signer,
		MappingDigest: cfg.Digest(), Version: a.options.Version, RecheckFirst: a.options.RecheckFirst, Logger: a.log, Registerer: a.registry,
		Match: matchkey.New(ring.Match(), a.cfg.Locale.Regions()),
	})
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return r, closeAll, nil
}

// newPool prepares a pool of at most n connections; it connects when it is used.
func newPool(ctx context.Context, server *config.PostgresServer, n int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(server.DSN)
	if err != nil {
		return nil, fmt.Errorf("reading the dsn: %w", pii.DriverError(err))
	}
	if server.Password.IsSet() {
		cfg.ConnConfig.Password = server.Password.Reveal()
	}
	cfg.MaxConns = n
	cfg.ConnConfig.ConnectTimeout = connectTimeout
	cfg.ConnConfig.RuntimeParams["application_name"] = "lethe"
	cfg.ConnConfig.RuntimeParams["timezone"] = "UTC"
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error { return sinkspg.HideLedger(ctx, conn, server.Schema) }
	return pgxpool.NewWithConfig(ctx, cfg)
}

func (p *postgresReplica) desk(ctx context.Context) (desk, func(), error) {
	pool, err := newPool(ctx, p.replica.Postgres, 1)
	if err != nil {
		return nil, nil, err
	}
	return sinkspg.NewDesk(p.replica, pool), pool.Close, nil
}

// connectPostgres opens one connection of a command.
func connectPostgres(ctx context.Context, dsn string, password config.Secret) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("reading the dsn: %w", pii.DriverError(err))
	}
	if password.IsSet() {
		c.Password = password.Reveal()
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	c.RuntimeParams["application_name"], c.RuntimeParams["timezone"] = "lethe", "UTC"
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", pii.DriverError(err))
	}
	return conn, nil
}

// connect opens one connection of a command to the replica.
func (p *postgresReplica) connect(ctx context.Context, dsn string, password config.Secret) (*pgx.Conn, error) {
	conn, err := connectPostgres(ctx, dsn, password)
	if err != nil {
		return nil, err
	}
	if err := sinkspg.HideLedger(ctx, conn, p.replica.Postgres.Schema); err != nil {
		closePostgres(ctx, conn)
		return nil, err
	}
	return conn, nil
}

func closePostgres(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the work is done, and nothing hangs on the goodbye
}

// checkOptions are those of the login itself; an owner names the run role.
func (p *postgresReplica) checkOptions(role string) sinkspg.CheckOptions {
	r := p.replica
	o := sinkspg.CheckOptions{Name: r.Name, Source: p.cfg.Name, Config: r, Digest: r.Digest(), Role: role}
	if r.Postgres.Verify != nil {
		o.VerifyRole = postgresUser(r.Postgres.Verify.DSN)
	}
	return o
}

func (p *postgresReplica) check(ctx context.Context) ([]Finding, error) {
	r := p.replica
	conn, err := p.connect(ctx, r.Postgres.DSN, r.Postgres.Password)
	if err != nil {
		return postgresLogin(err, "replica "+r.Name, r.Postgres.DSN)
	}
	defer closePostgres(ctx, conn)
	findings, err := sinkspg.Check(ctx, conn, p.checkOptions(""))
	if err != nil || r.Postgres.Verify == nil {
		return fromPostgresReplica(findings), err
	}
	second, err := p.checkVerifyLogin(ctx)
	return append(fromPostgresReplica(findings), second...), err
}

// postgresLogin makes a finding of a refused login.
func postgresLogin(err error, server, dsn string) ([]Finding, error) {
	role := postgresUser(dsn)
	if f, ok := loginFinding(err, server, role, "CREATE ROLE "+quoted(role)+" LOGIN"); ok {
		return []Finding{f}, nil
	}
	return nil, err
}

// checkVerifyLogin only connects: what it may read was looked at with the other login.
func (p *postgresReplica) checkVerifyLogin(ctx context.Context) ([]Finding, error) {
	v := p.replica.Postgres.Verify
	conn, err := connectPostgres(ctx, v.DSN, v.Password)
	if err != nil {
		return postgresLogin(err, "replica "+p.replica.Name+" (verify)", v.DSN)
	}
	closePostgres(ctx, conn)
	return nil, nil
}

func fromPostgresReplica(list []ledger.Finding) []Finding {
	out := make([]Finding, len(list))
	for i, f := range list {
		out[i] = Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: statement(f.FixSQL)}
	}
	return out
}

// setup makes the run role where it is missing, Lethe's own tables, and the grants on the mapped tables as far as the
// owner's login may give them.
func (p *postgresReplica) setup(ctx context.Context, ownerDSN, role string, o *SetupOptions, r *SetupReport) error {
	where := whereReplica + p.replica.Name
	if role == "" {
		role = postgresUser(p.replica.Postgres.DSN)
	}
	conn, err := p.connect(ctx, ownerDSN, config.Secret{})
	if err != nil {
		return err
	}
	defer closePostgres(ctx, conn)
	if missing, err := setupPostgresRole(ctx, conn, where, role, o.DryRun, r); err != nil || missing {
		return err
	}
	look := func() ([]ledger.Finding, error) { return sinkspg.Check(ctx, conn, p.checkOptions(role)) }
	findings, err := look()
	if err != nil {
		return err
	}
	if !o.DryRun {
		err := setupPostgresLedger(ctx, conn, sinkspg.SetupOptions{
			Name: p.replica.Name, Source: p.cfg.Name, Config: p.replica, Digest: p.replica.Digest(), RunRole: role, StatusRoles: o.StatusRoles,
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
	r.left(where, fromPostgresReplica(findings))
	return nil
}

// setupPostgresRole makes the run role. It reports missing only in a dry run: nothing more can be looked at then.
func setupPostgresRole(ctx context.Context, conn *pgx.Conn, where, role string, dryRun bool, r *SetupReport) (missing bool, err error) {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", role).Scan(&exists); err != nil {
		return false, fmt.Errorf("looking for role %s: %w", role, pii.DriverError(err))
	}
	if exists {
		return false, nil
	}
	sql := "CREATE ROLE " + quoted(role) + " LOGIN"
	if dryRun {
		r.left(where, []Finding{{
			Code: codeRoleMissing, Severity: SeverityError, Object: role, Message: "the login of `lethe run` does not exist", Fix: []string{sql},
		}})
		return true, nil
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		return false, fmt.Errorf("running %q (have an administrator make the role): %w", sql, pii.DriverError(err))
	}
	r.did(where, sql+" (give it a password with \\password)")
	return false, nil
}

// setupPostgresLedger makes Lethe's own tables and activates the mapping, and tells only what that changed.
func setupPostgresLedger(ctx context.Context, conn *pgx.Conn, o sinkspg.SetupOptions, where string, before []ledger.Finding, r *SetupReport) error {
	_, err := sinkspg.Setup(ctx, conn, o)
	if err != nil {
		return err
	}
	has := func(code string) bool {
		return slices.ContainsFunc(before, func(f ledger.Finding) bool { return f.Code == code })
	}
	r.activated(where, has(codeLedger), has(codeDigest))
	return nil
}

// grantMissing gives the run role what it lacks on mapped tables. An owner of Lethe's tables alone may not do that: then
// the findings stay.
func grantMissing(ctx context.Context, conn *pgx.Conn, where string, findings []ledger.Finding, r *SetupReport) (granted bool) {
	for _, f := range findings {
		if f.Code != codePrivilege || !strings.HasPrefix(f.FixSQL, "GRANT ") {
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

func (p *postgresReplica) uninstall() string { return sinkspg.UninstallSQL(p.replica) }

func (p *postgresReplica) dropLogin() string {
	return dropPostgresLogin(postgresUser(p.replica.Postgres.DSN))
}
