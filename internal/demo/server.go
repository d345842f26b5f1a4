package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"lethe/internal/testenv"
)

// server holds one of the publisher's databases.
type server interface {
	kind() string // Postgres, MySQL or MariaDB
	// prepare makes the database, its tables, and Lethe's login.
	prepare(ctx context.Context, database, schema string) error
	// grant gives Lethe's login what the owner grants, beside what setup does.
	grant(ctx context.Context, database string, write bool) error
	dsn(database string) string      // with Lethe's login
	ownerDSN(database string) string // with that of the owner
	// connect connects as the owner.
	connect(ctx context.Context, database string) (db DB, hangUp func(), err error)
	close() error
}

// loginName is that of Lethe in all databases.
const loginName = "lethe"

// startServer starts a server in a folder of the demo's.
func startServer(ctx context.Context, kind, dir string) (server, error) {
	if kind == Postgres {
		bin, version, err := findPostgres(ctx)
		if err != nil {
			return nil, err
		}
		p, err := testenv.StartPostgres(ctx, testenv.Options{
			BinDir: bin, Version: version, Dir: dir, Settings: map[string]string{"max_slot_wal_keep_size": "4GB"},
		})
		if err != nil {
			return nil, err
		}
		return postgresServer{p}, nil
	}
	m, err := testenv.StartMySQL(ctx, testenv.MySQLOptions{
		Flavor: map[string]string{MySQL: testenv.MySQLServer, MariaDB: testenv.MariaDB}[kind], Dir: dir,
	})
	if errors.Is(err, testenv.ErrMissing) {
		return nil, fmt.Errorf("no %s found: `make demo SOURCE=%s MARKETING=%s` installs one: %w", titles[kind], kind, kind, err)
	}
	if err != nil {
		return nil, err
	}
	return mysqlServer{m}, nil
}

type postgresServer struct{ *testenv.Postgres }

func (p postgresServer) kind() string                    { return Postgres }
func (p postgresServer) close() error                    { return p.Close() }
func (p postgresServer) dsn(database string) string      { return p.DSN(database, loginName) }
func (p postgresServer) ownerDSN(database string) string { return p.DSN(database, "") }

func (p postgresServer) prepare(ctx context.Context, database, schema string) error {
	for _, step := range []struct{ database, script string }{
		{"", "create role " + loginName + " login replication"}, {"", "create database " + database}, {database, schema},
	} {
		if err := postgresScript(ctx, p.ownerDSN(step.database), step.script); err != nil {
			return fmt.Errorf("preparing PostgreSQL for %s: %w", database, err)
		}
	}
	return nil
}

func (p postgresServer) grant(ctx context.Context, database string, write bool) error {
	rights := "select"
	if write {
		rights += ", insert, update, delete"
	}
	script := "grant usage on schema public to " + loginName + "; grant " + rights + " on all tables in schema public to " + loginName
	if err := postgresScript(ctx, p.ownerDSN(database), script); err != nil {
		return fmt.Errorf("granting on %s: %w", database, err)
	}
	return nil
}

func (p postgresServer) connect(ctx context.Context, database string) (DB, func(), error) {
	conn, err := pgx.Connect(ctx, p.ownerDSN(database))
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to %s: %w", database, err)
	}
	return OnPostgres(conn), func() { _ = conn.Close(context.WithoutCancel(ctx)) }, nil // the demo is over
}

type mysqlServer struct{ *testenv.MySQL }

func (m mysqlServer) close() error                    { return m.Close() }
func (m mysqlServer) dsn(database string) string      { return m.DSN(database, loginName) }
func (m mysqlServer) ownerDSN(database string) string { return m.DSN(database, "") }

func (m mysqlServer) kind() string {
	if m.Flavor() == testenv.MariaDB {
		return MariaDB
	}
	return MySQL
}

func (m mysqlServer) prepare(ctx context.Context, database, schema string) error {
	for _, step := range []struct{ database, script string }{
		{"", "create user " + loginName + "@'%'; create database " + database}, {database, schema},
	} {
		if err := mysqlScript(ctx, m.ownerDSN(step.database), step.script); err != nil {
			return fmt.Errorf("preparing %s for %s: %w", titles[m.kind()], database, err)
		}
	}
	return nil
}

// grant names each table: Lethe's own, which come later, are not the owner's to hand out.
func (m mysqlServer) grant(ctx context.Context, database string, write bool) error {
	db, hangUp, err := m.connect(ctx, database)
	if err != nil {
		return err
	}
	defer hangUp()
	var (
		table, rights = "", "select"
		statements    []string
	)
	if write {
		rights += ", insert, update, delete"
	} else {
		statements = append(statements, "grant replication slave, replication client on *.* to "+loginName+"@'%'")
	}
	const tables = "select table_name from information_schema.tables where table_schema = database()"
	err = db.query(ctx, tables, nil, []any{&table}, func() error {
		statements = append(statements, "grant "+rights+" on "+table+" to "+loginName+"@'%'")
		return nil
	})
	if err != nil {
		return fmt.Errorf("granting on %s: %w", database, err)
	}
	return execAll(ctx, db, "granting on "+database, statements...)
}

func (m mysqlServer) connect(ctx context.Context, database string) (DB, func(), error) {
	pool, err := openMySQL(m.ownerDSN(database), nil)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to %s: %w", database, err)
	}
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connecting to %s: %w", database, err), pool.Close())
	}
	return OnMySQL(conn), func() {
		_ = conn.Close() // the demo is over
		_ = pool.Close()
	}, nil
}

// serverFolder is where the server of a database lies, in the demo's folder; the data themselves are below it, in
// dataFolder.
func serverFolder(dir, database string) string { return filepath.Join(dir, "server-"+database) }

const dataFolder = "data"
