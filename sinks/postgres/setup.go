package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// SetupOptions are what Setup needs. All are required except the roles.
type SetupOptions struct {
	Name   string // of the replica
	Source string // the config's name
	Config *config.Replica
	Digest [32]byte // of the mapping that becomes the active one
	// RunRole gets the data privileges on the ledger tables; empty: nobody.
	RunRole string
	// StatusRoles may read the status view, which holds nothing personal.
	StatusRoles []string
}

// witnessTable is the one table that Setup makes beside the mapped tables, one in each of their schemas. Its row is
// raised with lethe.meta at every phase 2; where they differ, a part of the database comes from a backup.
const witnessTable = "lethe_witness"

// Setup makes or migrates the ledger tables and the witness tables, grants the run role what it needs on them, and
// activates the mapping. conn is a login of the owner; everything happens in one transaction, and doing it again changes
// nothing. Faults of the mapping come back as findings: then nothing has been changed.
func Setup(ctx context.Context, conn *pgx.Conn, o SetupOptions) ([]ledger.Finding, error) {
	const op = "setting up replica"
	if o.Name == "" || o.Source == "" || o.Config == nil {
		return nil, errors.New("setting up replica: name, source and config are required")
	}
	l := ledgerTables{schema: ledgerSchema(o.Config)}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, classify(op, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	m, findings, err := compile(ctx, tx, o.Config)
	if err != nil {
		return nil, err
	}
	if err := ledger.ErrorOf(o.Name, findings); err != nil {
		return findings, err
	}
	if err := l.migrate(ctx, tx, o); err != nil {
		return findings, classify(op, err)
	}
	if err := l.witnesses(ctx, tx, m, o); err != nil {
		return findings, classify(op, err)
	}
	if err := l.grant(ctx, tx, o); err != nil {
		return findings, classify(op, err)
	}
	if err := l.activate(ctx, tx, o); err != nil {
		return findings, classify(op, err)
	}
	return findings, classify(op, tx.Commit(ctx))
}

// migrate runs the migrations that are missing. The lock keeps two setups apart.
func (l ledgerTables) migrate(ctx context.Context, tx pgx.Tx, o SetupOptions) error {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('lethe setup'), hashtext($1))`, l.schema); err != nil {
		return err
	}
	var present bool
	err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, pgx.Identifier{l.schema, "meta"}.Sanitize()).Scan(&present)
	if err != nil {
		return err
	}
	version := 0
	if present {
		text, _, err := l.readMeta(ctx, tx, ledger.MetaSchemaVersion)
		if err != nil {
			return err
		}
		if version, err = strconv.Atoi(text); err != nil || version > ledger.SchemaVersion {
			return &sinks.Error{
				Class: sinks.Permanent, Op: "migrating ledger tables", Code: "ledger_newer",
				Hint: "a newer Lethe has migrated these tables: set up with that version",
			}
		}
	}
	fresh := version == 0
	for ; version < ledger.SchemaVersion; version++ {
		// The simple protocol takes several statements at once.
		if _, err := tx.Conn().PgConn().Exec(ctx, l.sql(migrations[version])).ReadAll(); err != nil {
			return err
		}
	}
	values := [][2]string{
		{ledger.MetaSchemaVersion, strconv.Itoa(ledger.SchemaVersion)},
		{ledger.MetaReplica, o.Name},
		{ledger.MetaSource, o.Source},
		{ledger.MetaWitness, "0"},
		{ledger.MetaFolded, ledger.FoldedUnder(o.Config, o.Digest)},
	}
	if fresh {
		values = append(values, [2]string{ledger.MetaNeedsPass, "setup"})
	}
	for _, kv := range values {
		_, err := tx.Exec(ctx, l.sql(`INSERT INTO {s}.meta (k, v) VALUES ($1, $2) ON CONFLICT (k) DO NOTHING`), kv[0], kv[1])
		if err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, l.sql(`UPDATE {s}.meta SET v = $2 WHERE k = $1`), ledger.MetaSchemaVersion, strconv.Itoa(ledger.SchemaVersion))
	return err
}

// witnesses makes the witness tables and their rows. A row that is there keeps its number: after a partial restore it is
// the evidence.
func (l ledgerTables) witnesses(ctx context.Context, tx pgx.Tx, m *Mapping, o SetupOptions) error {
	for _, schema := range m.schemas() {
		name := pgx.Identifier{schema, witnessTable}.Sanitize()
		statements := []string{
			`CREATE TABLE IF NOT EXISTS ` + name + ` (replica text PRIMARY KEY, n bigint NOT NULL)`,
		}
		if o.RunRole != "" {
			statements = append(statements, `GRANT SELECT, UPDATE ON `+name+` TO `+quote(o.RunRole))
		}
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO `+name+` (replica, n) VALUES ($1,
			(SELECT v::bigint FROM `+quote(l.schema)+`.meta WHERE k = '`+ledger.MetaWitness+`')) ON CONFLICT DO NOTHING`, o.Name)
		if err != nil {
			return err
		}
	}
	return nil
}

// schemas lists the schemas of the mapped tables.
func (m *Mapping) schemas() []string {
	seen := map[string]bool{}
	for _, t := range m.tables {
		seen[t.schema] = true
	}
	return ledger.SortedKeys(seen)
}

// witnessTables lists the witness tables of all mapped schemas, quoted.
func (m *Mapping) witnessTables() []string {
	var out []string
	for _, s := range m.schemas() {
		out = append(out, pgx.Identifier{s, witnessTable}.Sanitize())
	}
	return out
}

// runPrivileges are what the run role may do with each ledger table: a receipt may be marked as sent and nothing else, and
// what proves anything cannot be deleted. deploy/postgres-replica.sql says the same.
var runPrivileges = [][2]string{
	{"meta", "SELECT, INSERT, UPDATE, DELETE"},
	{"partition", "SELECT, INSERT, UPDATE"},
	{"subject", "SELECT, INSERT, UPDATE"},
	{"fact", "SELECT, INSERT, UPDATE, DELETE"},
	{"pending", "SELECT, INSERT, UPDATE, DELETE"},
	{"readback", "SELECT, INSERT, UPDATE, DELETE"},
	{"receipt", "SELECT, INSERT, UPDATE (sent_at)"},
	{"parked", "SELECT, INSERT, UPDATE"},
	{"decision", "SELECT, INSERT, UPDATE"},
	{"gap", "SELECT, INSERT, UPDATE"},
	{"pass", "SELECT, INSERT, UPDATE"},
	{"seen", "SELECT, INSERT, DELETE"},
	{"contact", "SELECT, INSERT, UPDATE, DELETE"},
	{"contact_key", "SELECT, INSERT, UPDATE, DELETE"},
	{"contact_block", "SELECT, INSERT, UPDATE, DELETE"},
	{"touch", "SELECT, INSERT, UPDATE, DELETE"},
	{"alias", "SELECT, INSERT, UPDATE, DELETE"},
	{"finding", "SELECT, INSERT, UPDATE, DELETE"},
	{"row_key", "SELECT, INSERT, DELETE"},
	{"scan", "SELECT, INSERT, UPDATE"},
	{"review", "SELECT, INSERT, UPDATE"},
	{"match_pair", "SELECT, INSERT"},
	{"source_report", "SELECT, INSERT, UPDATE, DELETE"},
	{"status", "SELECT"},
}

// grant gives the run role data privileges, never DDL.
func (l ledgerTables) grant(ctx context.Context, tx pgx.Tx, o SetupOptions) error {
	var statements []string
	if o.RunRole != "" {
		role := quote(o.RunRole)
		statements = append(statements, `GRANT USAGE ON SCHEMA {s} TO `+role)
		for _, p := range runPrivileges {
			statements = append(statements, `GRANT `+p[1]+` ON {s}.`+quote(p[0])+` TO `+role)
		}
	}
	for _, name := range o.StatusRoles {
		role := quote(name)
		statements = append(statements, `GRANT USAGE ON SCHEMA {s} TO `+role, `GRANT SELECT ON {s}.status TO `+role)
	}
	for _, s := range statements {
		if _, err := tx.Exec(ctx, l.sql(s)); err != nil {
			return err
		}
	}
	return nil
}

// activate makes the mapping the active one. Workers of another mapping stop at their next batch.
func (l ledgerTables) activate(ctx context.Context, tx pgx.Tx, o SetupOptions) error {
	for _, m := range []struct{ key, want string }{{ledger.MetaReplica, o.Name}, {ledger.MetaSource, o.Source}} {
		have, _, err := l.readMeta(ctx, tx, m.key)
		if err != nil {
			return err
		}
		if have != m.want {
			return &sinks.Error{
				Class: sinks.Permanent, Op: "activating mapping", Code: "ledger_foreign",
				Hint: fmt.Sprintf("schema %s belongs to %s %q: give this replica a schema of its own", l.schema, m.key, have),
			}
		}
	}
	_, err := tx.Exec(ctx, l.sql(`
		INSERT INTO {s}.meta (k, v) VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v`),
		ledger.MetaDigest, hex.EncodeToString(o.Digest[:]))
	return err
}

// UninstallSQL returns the statements that remove everything Setup made, for the owner to read and run.
func UninstallSQL(cfg *config.Replica) string {
	l := ledgerTables{schema: ledgerSchema(cfg)}
	var b strings.Builder
	b.WriteString("-- These tables are the proof that people were erased: export the receipts first.\n")
	b.WriteString(l.sql("DROP SCHEMA {s} CASCADE;\n"))
	schemas := map[string]bool{}
	for _, name := range ledger.TableNames(cfg) {
		schema := "public"
		if s, _, ok := strings.Cut(name, "."); ok {
			schema = s
		}
		schemas[schema] = true
	}
	for _, s := range ledger.SortedKeys(schemas) {
		b.WriteString("DROP TABLE IF EXISTS " + pgx.Identifier{s, witnessTable}.Sanitize() + ";\n")
	}
	return b.String()
}
