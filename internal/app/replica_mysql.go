package app

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/internal/mysqlconn"
	"lethe/internal/pii"
	sinksmy "lethe/sinks/mysql"
)

// mysqlReplica is a replica on MySQL or MariaDB.
type mysqlReplica struct {
	cfg     *config.Config
	replica *config.Replica
}

func (m *mysqlReplica) open(_ context.Context, a *App, ring *keys.Ring) (_ replica, closeAll func(), err error) {
	cfg := m.replica
	pool, err := openMySQL(mysqlconn.Replica(cfg.MySQL))
	if err != nil {
		return nil, nil, err
	}
	verify, err := openMySQL(mysqlconn.Replica(cfg.MySQL.VerifyServer()))
	if err != nil {
		closeMySQL(pool)
		return nil, nil, err
	}
	closeAll = func() {
		closeMySQL(verify)
		closeMySQL(pool)
	}
	signer, proofErr := ring.Proof(cfg.Name)
	pseudonym, pseudonymErr := ring.Pseudonym(cfg.Name)
	if err := errors.Join(proofErr, pseudonymErr); err != nil {
		closeAll()
		return nil, nil, err
	}
	r, err := sinksmy.New(sinksmy.Options{
		Name: cfg.Name, Source: a.cfg.Name, Config: cfg, DB: pool, VerifyDB: verify, Seal: ring.Seal(), Pseudonym: pseudonym, Signer: signer,
		MappingDigest: cfg.Digest(), Version: a.options.Version, RecheckFirst: a.options.RecheckFirst, Logger: a.log, Registerer: a.registry,
		Match: matchkey.New(ring.Match(), a.cfg.Locale.Regions()),
	})
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return r, closeAll, nil
}

// openMySQL prepares a pool; it connects when it is used.
func openMySQL(login mysqlconn.Login) (*sql.DB, error) {
	c, err := login.Config()
	if err != nil {
		return nil, err
	}
	c.Params["wait_timeout"] = idleTimeout
	return sinksmy.Open(c, sinksmy.Session{})
}

// idleTimeout is the seconds after which a server ends a session that has gone quiet, and with it the locks that it may hold:
// a process that was stopped in the midst of a transaction must not keep another one from its rows for the hours of the
// server's default.
const idleTimeout = "30"

func closeMySQL(pool *sql.DB) { _ = pool.Close() } // the work is done, and nothing hangs on the goodbye

func (m *mysqlReplica) desk(context.Context) (desk, func(), error) {
	pool, err := openMySQL(mysqlconn.Replica(m.replica.MySQL))
	if err != nil {
		return nil, nil, err
	}
	return sinksmy.NewDesk(m.replica, pool), func() { closeMySQL(pool) }, nil
}

// checkOptions are those of the login itself; an owner names the run role.
func (m *mysqlReplica) checkOptions(role string) sinksmy.CheckOptions {
	r := m.replica
	o := sinksmy.CheckOptions{Name: r.Name, Source: m.cfg.Name, Config: r, Digest: r.Digest(), Role: role}
	if v := r.MySQL.Verify; v != nil {
		o.VerifyRole = mysqlconn.Login{DSN: v.DSN}.User()
	}
	return o
}

func (m *mysqlReplica) check(ctx context.Context) ([]Finding, error) {
	r := m.replica
	login := mysqlconn.Replica(r.MySQL)
	pool, err := openMySQL(login)
	if err != nil {
		return nil, err
	}
	defer closeMySQL(pool)
	if err := pool.PingContext(ctx); err != nil {
		list, err := mysqlLogin(pii.DriverError(err), "replica "+r.Name, login)
		for i := range list {
			if list[i].Code == codePrivilege {
				list[i].Fix = []string{m.firstGrant(login.User())}
			}
		}
		return list, err
	}
	o := m.checkOptions("")
	if r.MySQL.Verify == nil {
		findings, err := sinksmy.Check(ctx, pool, o)
		return fromMySQLReplica(findings), err
	}
	verify, refused, err := m.verifyLogin(ctx)
	if err != nil {
		return nil, err
	}
	if verify == nil {
		o.VerifyRole = "" // it cannot be looked at before it gets in
	} else {
		defer closeMySQL(verify)
		o.VerifyDB = verify
	}
	findings, err := sinksmy.Check(ctx, pool, o)
	return append(fromMySQLReplica(findings), refused...), err
}

// firstGrant lets a login into the database: it needs it anyhow, and the next check sees the rest.
func (m *mysqlReplica) firstGrant(user string) string {
	person := m.replica.Person
	columns := make([]string, 0, len(person.CRMKey)+1)
	for _, name := range append([]string{person.Key}, person.CRMKey...) {
		columns = append(columns, backquoted(name))
	}
	table := backquoted(config.MySQLDatabase(m.replica.MySQL.DSN)) + "." + backquoted(person.Table)
	if schema, name, found := strings.Cut(person.Table, "."); found {
		table = backquoted(schema) + "." + backquoted(name)
	}
	return "GRANT SELECT (" + strings.Join(columns, ", ") + ") ON " + table + " TO " + mysqlAccount(user)
}

// verifyLogin connects as the login of the read-back, to no database: it may have no grant in it yet, and the server shows
// everybody their own. A nil pool comes with what is found of a login that is refused.
func (m *mysqlReplica) verifyLogin(ctx context.Context) (*sql.DB, []Finding, error) {
	login := mysqlconn.Replica(m.replica.MySQL.VerifyServer())
	c, err := login.Config()
	if err != nil {
		return nil, nil, err
	}
	c.DBName = ""
	pool, err := sinksmy.Open(c, sinksmy.Session{})
	if err != nil {
		return nil, nil, err
	}
	if err := pool.PingContext(ctx); err != nil {
		closeMySQL(pool)
		refused, err := mysqlLogin(pii.DriverError(err), "replica "+m.replica.Name+" (verify)", login)
		return nil, refused, err
	}
	return pool, nil, nil
}

func fromMySQLReplica(list []sinksmy.Finding) []Finding {
	out := make([]Finding, len(list))
	for i, f := range list {
		out[i] = Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: statement(f.FixSQL)}
	}
	return out
}

// setup makes the run role where it is missing, Lethe's own tables, and the grants on the mapped tables as far as the
// owner's login may give them.
func (m *mysqlReplica) setup(ctx context.Context, ownerDSN, role string, o *SetupOptions, r *SetupReport) error {
	where := whereReplica + m.replica.Name
	if role == "" {
		role = mysqlconn.Replica(m.replica.MySQL).User()
	}
	pool, err := openMySQL(mysqlconn.Login{DSN: ownerDSN, CAFile: m.replica.MySQL.CAFile})
	if err != nil {
		return err
	}
	defer closeMySQL(pool)
	if err := pool.PingContext(ctx); err != nil {
		return fmt.Errorf("connecting: %w", pii.DriverError(err))
	}
	if missing, err := setupMySQLRole(ctx, pool, where, role, o.DryRun, r); err != nil || missing {
		return err
	}
	look := func() ([]sinksmy.Finding, error) { return sinksmy.Check(ctx, pool, m.checkOptions(role)) }
	findings, err := look()
	if err != nil {
		return err
	}
	if !o.DryRun {
		_, err := sinksmy.Setup(ctx, pool, sinksmy.SetupOptions{
			Name: m.replica.Name, Source: m.cfg.Name, Config: m.replica, Digest: m.replica.Digest(), RunRole: role, StatusRoles: o.StatusRoles,
		})
		if err != nil {
			return err
		}
		has := func(code string) bool {
			return slices.ContainsFunc(findings, func(f sinksmy.Finding) bool { return f.Code == code })
		}
		r.activated(where, has(codeLedger), has(codeDigest))
		if findings, err = look(); err != nil {
			return err
		}
		if grantMissingMySQL(ctx, pool, where, findings, r) {
			if findings, err = look(); err != nil {
				return err
			}
		}
	}
	r.left(where, fromMySQLReplica(findings))
	return nil
}

// setupMySQLRole makes the run role, locked until it is given a password. It reports missing only in a dry run: nothing
// more can be looked at then. An owner that may not look for logins is taken to have one.
func setupMySQLRole(ctx context.Context, pool *sql.DB, where, role string, dryRun bool, r *SetupReport) (missing bool, err error) {
	user, host, _ := strings.Cut(role, "@")
	var exists bool
	err = pool.QueryRowContext(ctx, "SELECT COUNT(*) > 0 FROM mysql.user WHERE User = ? AND ? IN ('', Host)", user, host).Scan(&exists)
	switch {
	case slices.Contains(mysqlPrivilege, fmt.Sprint(pii.MySQLNumber(err))):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking for login %s: %w", role, pii.DriverError(err))
	case exists:
		return false, nil
	}
	create := mysqlCreate(role)
	if dryRun {
		r.left(where, []Finding{{
			Code: codeRoleMissing, Severity: SeverityError, Object: role, Message: "the login of `lethe run` does not exist", Fix: []string{create},
		}})
		return true, nil
	}
	if _, err := pool.ExecContext(ctx, create); err != nil {
		return false, fmt.Errorf("running %q (have an administrator make the login): %w", create, pii.DriverError(err))
	}
	r.did(where, create+" (it has no password: ALTER USER … IDENTIFIED BY '…' ACCOUNT UNLOCK)")
	return false, nil
}

// grantMissingMySQL is grantMissing for MySQL.
func grantMissingMySQL(ctx context.Context, pool *sql.DB, where string, findings []sinksmy.Finding, r *SetupReport) (granted bool) {
	for _, f := range findings {
		if f.Code != codePrivilege || !strings.HasPrefix(f.FixSQL, "GRANT ") {
			continue
		}
		if _, err := pool.ExecContext(ctx, f.FixSQL); err != nil {
			continue // it stays among the findings, with its statement
		}
		granted = true
		r.did(where, strings.TrimSuffix(f.FixSQL, ";"))
	}
	return granted
}

// uninstall names the database first: in another one the statements would find nothing, and say nothing.
func (m *mysqlReplica) uninstall() string {
	return "USE " + backquoted(config.MySQLDatabase(m.replica.MySQL.DSN)) + ";\n" + sinksmy.UninstallSQL(m.replica)
}

func (m *mysqlReplica) dropLogin() string {
	drop := dropMySQLLogin(mysqlconn.Replica(m.replica.MySQL).User())
	if v := m.replica.MySQL.Verify; v != nil {
		drop += dropMySQLLogin(mysqlconn.Replica(m.replica.MySQL.VerifyServer()).User())
	}
	return drop
}
