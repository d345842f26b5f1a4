package mysql

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"lethe/config"
	"lethe/internal/pii"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// SetupOptions are what Setup needs. All are required except the roles.
type SetupOptions struct {
	Name   string // of the replica
	Source string // the config's name
	Config *config.Replica
	Digest [32]byte // of the mapping that becomes the active one
	// RunRole gets the data privileges on the ledger tables: user, or user@host; empty: nobody.
	RunRole string
	// StatusRoles may read the status view, which holds nothing personal.
	StatusRoles []string
}

const opSetup = "setting up replica"

// setupPatience is how many seconds a setup waits for another one on the same tables.
const setupPatience = 10

// Setup makes or migrates the ledger tables and the witness tables, grants the run role what it needs on them, and
// activates the mapping. db is a login of the owner, whose database is the one of the replica's dsn. MySQL commits every
// DDL statement by itself: a setup that was cut off anywhere is run again, and run refuses the tables until one has come to
// its end. Doing it again changes nothing. Faults of the mapping come back as findings: then nothing has been changed.
func Setup(ctx context.Context, db *sql.DB, o SetupOptions) ([]Finding, error) {
	if o.Name == "" || o.Source == "" || o.Config == nil || o.Config.MySQL == nil {
		return nil, errors.New("setting up replica: name, source and config of a MySQL or MariaDB replica are required")
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, classify(opSetup, err)
	}
	defer func() { _ = conn.Close() }() // goes back to the pool, and nothing hangs on it
	s := &setup{o: o, conn: conn, ledger: tablesOf(o.Config)}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	release, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	m, findings, err := compile(ctx, conn, o.Config)
	if err != nil {
		return nil, err
	}
	if err := ledger.ErrorOf(o.Name, findings); err != nil {
		return findings, err
	}
	version, err := s.version(ctx)
	if err != nil {
		return findings, err
	}
	statements := s.statements(m, version)
	if m.server.mariadb {
		// A migration takes as long as the tables are large, and a GRANT must not make a login that is not there, without password.
		statements = append([]string{"SET SESSION max_statement_time = 0, sql_mode = CONCAT(@@sql_mode, ',NO_AUTO_CREATE_USER')"}, statements...)
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return findings, s.failed(err)
		}
	}
	return findings, nil
}

// failed tells what it means that a statement has failed.
func (s *setup) failed(err error) error {
	switch pii.MySQLNumber(err) {
	case errNoAccount, errCannotCreate:
		return &sinks.Error{
			Class: sinks.Permanent, Op: opSetup, Code: CodeLogin, Err: pii.DriverError(err),
			Hint: "the run role or one that may read the status does not exist: make the login first (CREATE USER)",
		}
	}
	return classify(opSetup, err)
}

type setup struct {
	o              SetupOptions
	conn           *sql.Conn
	ledger         ledgerTables
	database       string
	literal        bool // see literalDatabases
	fresh          bool // there are no tables yet, or a first setup was cut off
	runs, statuses []account
}

// prepare asks for what the statements name.
func (s *setup) prepare(ctx context.Context) (err error) {
	if s.database, err = databaseOf(ctx, s.conn); err != nil {
		return err
	}
	of, err := readServer(ctx, s.conn)
	if err != nil {
		return err
	}
	if s.literal, err = literalDatabases(ctx, s.conn, of); err != nil {
		return err
	}
	if s.o.RunRole != "" {
		if s.runs, err = accountsOf(ctx, s.conn, s.o.RunRole); err != nil {
			return err
		}
	}
	for _, role := range s.o.StatusRoles {
		list, err := accountsOf(ctx, s.conn, role)
		if err != nil {
			return err
		}
		s.statuses = append(s.statuses, list...)
	}
	return nil
}

// tablesOf names the ledger tables of a replica.
func tablesOf(cfg *config.Replica) ledgerTables { return ledgerTables{prefix: cfg.MySQL.Prefix} }

// databaseOf is the database of a connection.
func databaseOf(ctx context.Context, q querier) (string, error) {
	var name sql.NullString
	if err := q.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&name); err != nil {
		return "", classify("asking for the database", err)
	}
	if name.String == "" {
		return "", &sinks.Error{
			Class: sinks.Permanent, Op: "asking for the database", Code: "no_database", Hint: "the dsn has to name the database of the mapped tables",
		}
	}
	return name.String, nil
}

// lock keeps two setups on the same tables apart: there is no transaction around DDL that could.
func (s *setup) lock(ctx context.Context) (release func(), err error) {
	sum := sha256.Sum256([]byte(s.database + "\x00" + s.ledger.prefix))
	name := "lethe setup " + hex.EncodeToString(sum[:16]) // a lock's name has 64 characters at most
	var got sql.NullInt64
	if err := s.conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", name, setupPatience).Scan(&got); err != nil {
		return nil, classify(opSetup, err)
	}
	if got.Int64 != 1 {
		return nil, &sinks.Error{
			Class: sinks.Transient, Op: opSetup, Code: "setup_running", Hint: "another setup of this replica is under way: wait for its end",
		}
	}
	return func() {
		// Else the connection would keep it in the pool.
		_, _ = s.conn.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK(?)", name)
	}, nil
}

// version is the version of the tables that are there; 0 where some are missing, or a setup was cut off. Tables of somebody
// else, and newer ones, are refused before anything is changed.
func (s *setup) version(ctx context.Context) (int, error) {
	exists, err := s.ledger.hasMeta(ctx, s.conn)
	s.fresh = !exists
	if err != nil || !exists {
		return 0, err
	}
	meta, err := s.ledger.readMeta(ctx, s.conn)
	if err != nil {
		return 0, err
	}
	version := 0
	text, ok := meta[ledger.MetaSchemaVersion]
	s.fresh = !ok
	if ok {
		if version, err = strconv.Atoi(text); err != nil || version > ledger.SchemaVersion {
			return 0, &sinks.Error{
				Class: sinks.Permanent, Op: "migrating ledger tables", Code: "ledger_newer",
				Hint: "a newer Lethe has migrated these tables: set up with that version",
			}
		}
	}
	for _, m := range []struct{ key, want string }{{ledger.MetaReplica, s.o.Name}, {ledger.MetaSource, s.o.Source}} {
		if have, ok := meta[m.key]; ok && have != m.want {
			return 0, &sinks.Error{
				Class: sinks.Permanent, Op: "activating mapping", Code: "ledger_foreign",
				Hint: fmt.Sprintf("%s belong to %s %q: give this replica a prefix of its own", s.ledger.where(), m.key, have),
			}
		}
	}
	present, err := s.ledger.present(ctx, s.conn)
	if present < len(tableNames) {
		version = 0
	}
	return version, err
}

// statements are what is left to do from a version on. Each can be run again; the last one says that all have run.
func (s *setup) statements(m *Mapping, version int) []string {
	values := [][2]string{
		{ledger.MetaReplica, s.o.Name},
		{ledger.MetaSource, s.o.Source},
		{ledger.MetaWitness, "0"},
		{ledger.MetaFolded, ledger.FoldedUnder(s.o.Config, s.o.Digest)},
	}
	if s.fresh {
		values = append(values, [2]string{ledger.MetaNeedsPass, "setup"})
	}
	out := append(s.ledger.migrationsFrom(version), s.ledger.sql(`INSERT INTO {p}meta (k, v) VALUES `)+pairs(values)+` ON DUPLICATE KEY UPDATE k = VALUES(k)`)
	for _, name := range m.witnessTables() {
		out = append(out,
			`CREATE TABLE IF NOT EXISTS `+name+` (replica VARCHAR(191) NOT NULL PRIMARY KEY, n BIGINT NOT NULL) `+tableOptions,
			// A row that is there keeps its number: after a partial restore it is the evidence.
			`INSERT INTO `+name+` (replica, n) SELECT `+literal(s.o.Name)+`, CAST(v AS SIGNED) FROM `+s.table("meta")+
				` WHERE k = `+literal(ledger.MetaWitness)+` ON DUPLICATE KEY UPDATE replica = VALUES(replica)`)
	}
	out = append(out, s.grants(m)...)
	return append(out, s.ledger.sql(`INSERT INTO {p}meta (k, v) VALUES `)+pairs([][2]string{
		{ledger.MetaDigest, hex.EncodeToString(s.o.Digest[:])}, {ledger.MetaSchemaVersion, strconv.Itoa(ledger.SchemaVersion)},
	})+` ON DUPLICATE KEY UPDATE v = VALUES(v)`)
}

// migrationsFrom lists the statements of the migrations that a version lacks.
func (l ledgerTables) migrationsFrom(version int) []string {
	var out []string
	for _, migration := range migrations[version:] {
		for _, statement := range migration {
			out = append(out, strings.TrimSpace(strings.ReplaceAll(l.sql(statement), "{t}", tableOptions)))
		}
	}
	return out
}

// pairs are rows of meta.
func pairs(list [][2]string) string {
	rows := make([]string, len(list))
	for i, kv := range list {
		rows[i] = "(" + literal(kv[0]) + ", " + literal(kv[1]) + ")"
	}
	return strings.Join(rows, ", ")
}

// table is the quoted name of a ledger table with its database.
func (s *setup) table(name string) string {
	return quote(s.database) + "." + quote(s.ledger.prefix+name)
}

// schemas lists the databases of the mapped tables.
func (m *Mapping) schemas() []string {
	seen := map[string]bool{}
	for _, t := range m.tables {
		seen[t.schema] = true
	}
	return ledger.SortedKeys(seen)
}

// witnessTables lists the witness tables, one in each mapped database, quoted. Their rows are raised with meta at every
// phase 2; where they differ, a part of the databases comes from a backup.
func (m *Mapping) witnessTables() []string {
	var out []string
	for _, s := range m.schemas() {
		out = append(out, quote(s)+"."+quote(m.prefix+witnessTable))
	}
	return out
}

const witnessTable = "witness"

// runPrivileges are what the run role may do with each ledger table: a receipt may be marked as sent and nothing else, and
// what proves anything cannot be deleted.
var runPrivileges = [][2]string{
	{"meta", "SELECT, INSERT, UPDATE, DELETE"},
	{"partition", "SELECT, INSERT, UPDATE"},
	{"subject", "SELECT, INSERT, UPDATE"},
	{"due", "SELECT, INSERT, UPDATE, DELETE"},
	{"fact", "SELECT, INSERT, UPDATE, DELETE"},
	{"pending", "SELECT, INSERT, UPDATE, DELETE"},
	{"readback", "SELECT, INSERT, UPDATE, DELETE"},
	{"receipt", "SELECT, INSERT, UPDATE (sent_at)"},
	{"parked", "SELECT, INSERT, UPDATE"},
	{"decision", "SELECT, INSERT, UPDATE"},
	{"gap", "SELECT, INSERT, UPDATE"},
	{"pass", "SELECT, INSERT, UPDATE"},
	{"seen", "SELECT, INSERT, UPDATE, DELETE"},
	{"contact", "SELECT, INSERT, UPDATE, DELETE"},
	{"contact_key", "SELECT, INSERT, UPDATE, DELETE"},
	{"contact_block", "SELECT, INSERT, UPDATE, DELETE"},
	{"touch", "SELECT, INSERT, UPDATE, DELETE"},
	{"alias", "SELECT, INSERT, UPDATE, DELETE"},
	{"finding", "SELECT, INSERT, UPDATE, DELETE"},
	{"row_key", "SELECT, INSERT, UPDATE, DELETE"},
	{"scan", "SELECT, INSERT, UPDATE"},
	{"review", "SELECT, INSERT, UPDATE"},
	{"match_pair", "SELECT, INSERT"},
	{"source_report", "SELECT, INSERT, UPDATE, DELETE"},
	{"status", "SELECT"},
}

const witnessPrivileges = "SELECT, UPDATE"

// grants are the data privileges of the run role, never DDL, and the status view for who may read it. On the mapped
// databases the run role gets the privilege to see what there is, see grants.sees.
func (s *setup) grants(m *Mapping) []string {
	var out []string
	for _, a := range s.runs {
		for _, p := range runPrivileges {
			out = append(out, "GRANT "+p[1]+" ON "+s.table(p[0])+" TO "+a.sql())
		}
		for _, name := range m.witnessTables() {
			out = append(out, "GRANT "+witnessPrivileges+" ON "+name+" TO "+a.sql())
		}
		for _, database := range m.schemas() {
			out = append(out, a.seeing(database, s.literal))
		}
	}
	for _, a := range s.statuses {
		out = append(out, "GRANT SELECT ON "+s.table("status")+" TO "+a.sql())
	}
	return out
}

// UninstallSQL returns the statements that remove everything Setup made, for the owner to read and run in the database of
// the replica's dsn.
func UninstallSQL(cfg *config.Replica) string {
	l := tablesOf(cfg)
	var b strings.Builder
	b.WriteString("-- These tables are the proof that people were erased: export the receipts first.\n")
	b.WriteString("DROP VIEW IF EXISTS " + quote(l.prefix+"status") + ";\n")
	for _, name := range tableNames {
		b.WriteString("DROP TABLE IF EXISTS " + quote(l.prefix+name) + ";\n")
	}
	witnesses := map[string]bool{}
	for _, name := range ledger.TableNames(cfg) {
		witness := quote(l.prefix + witnessTable)
		if database, _, ok := strings.Cut(name, "."); ok {
			witness = quote(database) + "." + witness
		}
		witnesses[witness] = true
	}
	for _, name := range ledger.SortedKeys(witnesses) {
		b.WriteString("DROP TABLE IF EXISTS " + name + ";\n")
	}
	return b.String()
}
