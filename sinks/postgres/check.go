package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/internal/pii"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// More codes of findings, which only Check reports.
const (
	CodeServerVersion = "server_version"    // the server is too old
	CodeStandby       = "server_is_standby" // the login leads to a server that takes no writes
	CodeRowSecurity   = "row_security"      // policies hide rows from the login: read-back would not see them
	CodeDigest        = "mapping_digest"    // another mapping is the active one
)

// oldestServer is the first version with gen_random_uuid of its own, as server_version_num.
const oldestServer = 130000

// CheckOptions are what Check compares the replica with.
type CheckOptions struct {
	Name   string // of the replica
	Source string // the config's name
	Config *config.Replica
	Digest [32]byte // of the mapping
	// Role is whose privileges are looked at; empty: the login's own.
	Role string
	// VerifyRole is the login of the read-back where it is another one.
	VerifyRole string
}

// Check compares a replica with what the mapping, the ledger tables and the run role need, and changes nothing. Findings
// are in the order in which their statements depend on each other. The error is one of reading the server.
func Check(ctx context.Context, conn *pgx.Conn, o CheckOptions) ([]ledger.Finding, error) {
	c := &checker{conn: conn, o: o, ledger: ledgerTables{schema: ledgerSchema(o.Config)}}
	if c.o.Role == "" {
		if err := conn.QueryRow(ctx, "SELECT current_user").Scan(&c.o.Role); err != nil {
			return nil, classify("asking who the login is", err)
		}
	}
	if err := c.server(ctx); err != nil {
		return nil, err
	}
	if err := c.schemas(ctx); err != nil || len(c.findings) > 0 {
		return c.findings, err // what is in a schema that the login may not use cannot be looked at
	}
	m, findings, err := compile(ctx, conn, o.Config)
	if err != nil {
		return nil, err
	}
	c.findings = append(c.findings, findings...)
	if ledger.ErrorOf(o.Name, findings) == nil {
		err = c.mapped(ctx, m)
	}
	if err == nil {
		err = c.ledgerState(ctx, m)
	}
	return c.findings, err
}

type checker struct {
	conn     *pgx.Conn
	o        CheckOptions
	ledger   ledgerTables
	findings []ledger.Finding
}

func (c *checker) add(severity ledger.Severity, code, object, message, fix string) {
	c.findings = append(c.findings, ledger.Finding{Code: code, Severity: severity, Object: object, Message: message, FixSQL: fix})
}

func (c *checker) server(ctx context.Context) error {
	var version int
	var standby bool
	err := c.conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, pg_is_in_recovery()").Scan(&version, &standby)
	if err != nil {
		return classify("reading the server's version", err)
	}
	if version < oldestServer {
		c.add(ledger.SeverityError, CodeServerVersion, "server_version", fmt.Sprintf("PostgreSQL %d is too old for a replica: %d or later is needed",
			version/10000, oldestServer/10000), "")
	}
	if standby {
		c.add(ledger.SeverityError, CodeStandby, "server", "the server is a standby and takes no writes: the dsn has to lead to the primary", "")
	}
	return nil
}

// schemas looks for schemas of mapped tables that the role may not use: their tables look as if they did not exist.
func (c *checker) schemas(ctx context.Context) error {
	var names, schemas []string
	for _, name := range ledger.TableNames(c.o.Config) {
		if s, _, ok := strings.Cut(name, "."); ok {
			schemas = append(schemas, s)
		} else {
			names = append(names, name)
		}
	}
	rows, err := c.conn.Query(ctx, `
		SELECT DISTINCT n.nspname::text FROM pg_catalog.pg_namespace n
		WHERE NOT has_schema_privilege($1, n.oid, 'USAGE') AND n.nspname !~ '^pg_' AND (n.nspname = ANY ($2) OR EXISTS (
			SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'f') AND c.relname = ANY ($3)
				AND to_regclass(quote_ident(c.relname)) IS NULL))
		ORDER BY 1`, c.o.Role, schemas, names)
	if err != nil {
		return classify("reading the privileges on schemas", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, s := range missing {
		c.add(ledger.SeverityError, ledger.CodePrivilege, s, fmt.Sprintf("login %s may not use the schema; run the check again after the grant", c.o.Role),
			"GRANT USAGE ON SCHEMA "+quote(s)+" TO "+quote(c.o.Role)+";")
	}
	return classify("reading the privileges on schemas", err)
}

// mapped looks at the mapped tables.
func (c *checker) mapped(ctx context.Context, m *Mapping) error {
	needs := m.privileges(c.o.Config.Mode)
	if err := c.audienceNeeds(ctx, m, needs); err != nil {
		return err
	}
	if err := c.grants(ctx, needs, c.o.Role, false); err != nil {
		return err
	}
	if v := c.o.VerifyRole; v != "" && v != c.o.Role {
		if err := c.grants(ctx, needs, v, true); err != nil {
			return err
		}
	}
	if err := c.rowSecurity(ctx, m); err != nil {
		return err
	}
	for _, name := range ledger.SortedKeys(m.tables) {
		if t := m.tables[name]; len(t.triggers) > 0 {
			c.add(ledger.SeverityInfo, ledger.CodeTrigger, t.label(), "triggers fire on what Lethe writes ("+strings.Join(t.triggers, ", ")+
				"): see that they keep no copy of the old row", "")
		}
	}
	unmapped, err := unmappedColumns(ctx, c.conn, m, c.ledger.schema)
	if err != nil {
		return err
	}
	for _, column := range unmapped {
		c.add(ledger.SeverityWarning, ledger.CodeUnmapped, column,
			"the column looks personal and nothing erases it: no erasure is called verified until erase.tables says what becomes of it", "")
	}
	return nil
}

var word = regexp.MustCompile(`[\pL_][\pL\pN_$]*|"[^"]+"`)

// audienceNeeds plans the audience query, and adds the columns that it names to what the logins have to read.
func (c *checker) audienceNeeds(ctx context.Context, m *Mapping, needs map[uint32]*privileges) error {
	if m.audience == "" {
		return nil
	}
	var words []string
	for _, w := range word.FindAllString(m.audience, -1) {
		if strings.HasPrefix(w, `"`) {
			words = append(words, strings.Trim(w, `"`))
		} else {
			words = append(words, strings.ToLower(w))
		}
	}
	rows, err := c.conn.Query(ctx, `
		SELECT c.oid, n.nspname::text, c.relname::text, a.attname::text
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (a.attname = ANY ($1) OR $2)
		WHERE c.relname = ANY ($1) AND c.relkind IN ('r', 'p', 'f', 'v', 'm') AND (pg_table_is_visible(c.oid) OR n.nspname = ANY ($1))
			AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'`, words, strings.Contains(m.audience, "*"))
	if err != nil {
		return classify("reading the tables of the audience query", err)
	}
	var t table
	var column string
	_, err = pgx.ForEachRow(rows, []any{&t.oid, &t.schema, &t.name, &column}, func() error {
		of := t
		needsOf(needs, &of).read[column] = true
		return nil
	})
	if err != nil {
		return classify("reading the tables of the audience query", err)
	}
	_, err = c.conn.Exec(ctx, "EXPLAIN SELECT a.k::text FROM ("+m.audience+") AS a(k)")
	switch code := pii.Code(pii.DriverError(err)); {
	case err == nil, code == "42501": // a privilege: said by grants
		return nil
	case len(code) != 5 || strings.HasPrefix(code, "08") || strings.HasPrefix(code, "57"):
		return classify("planning the audience query", err)
	default:
		c.add(ledger.SeverityError, ledger.CodeAudience, c.o.Name+".audience", fmt.Sprintf(
			"the query does not run (%v): it has to be one SELECT that returns person.key", pii.DriverError(err)), "")
		return nil
	}
}

// rowSecurity refuses policies that may hide rows: what the login does not see it can neither erase nor read back.
func (c *checker) rowSecurity(ctx context.Context, m *Mapping) error {
	for _, role := range slices.Compact([]string{c.o.Role, c.o.VerifyRole}) {
		if role == "" {
			continue
		}
		for _, name := range ledger.SortedKeys(m.tables) {
			t := m.tables[name]
			var hidden bool
			err := c.conn.QueryRow(ctx, `
				SELECT c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls AND (c.relforcerowsecurity OR c.relowner <> r.oid)
				FROM pg_catalog.pg_class c, pg_catalog.pg_roles r WHERE c.oid = $1 AND r.rolname = $2`, t.oid, role).Scan(&hidden)
			if errors.Is(err, pgx.ErrNoRows) {
				continue // a login of another name than its role
			}
			if err != nil {
				return classify("reading row security", err)
			}
			if hidden {
				c.add(ledger.SeverityError, CodeRowSecurity, t.label(), fmt.Sprintf(
					"row security hides rows from %s: what it does not see it can neither erase nor prove to be gone", role),
					"ALTER ROLE "+quote(role)+" BYPASSRLS;")
			}
		}
	}
	return nil
}

// ledgerState looks at Lethe's own tables. Its fix is all that Setup does, as one script. m is nil, or must not be used,
// where the mapping has faults: then only their presence is looked at.
func (c *checker) ledgerState(ctx context.Context, m *Mapping) error {
	usable := m != nil && c.onlyPrivileges()
	fix := ""
	if usable {
		fix = c.setupScript(m)
	}
	if granted, err := c.ledgerGrants(ctx, m, usable); err != nil || !granted {
		return err
	}
	err := c.ledger.verifyTables(ctx, c.conn, c.o.Name, c.o.Source, hex.EncodeToString(c.o.Digest[:]))
	var known *sinks.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sinks.ErrDigest):
		c.add(ledger.SeverityError, CodeDigest, c.ledger.schema, "another mapping is the active one here: run `lethe setup` to activate this one, "+
			"or run the statements; erased people then go through phase 2 again under it", fix)
	case errors.As(err, &known) && known.Err == nil:
		if known.Code == "ledger_newer" || known.Code == "ledger_foreign" {
			fix = ""
		}
		c.add(ledger.SeverityError, ledger.CodeLedger, c.ledger.schema, known.Op+" ("+known.Code+"): "+known.Hint, fix)
	default:
		return err
	}
	return nil
}

// onlyPrivileges reports whether the errors so far are missing privileges, which do not change what Setup would make.
func (c *checker) onlyPrivileges() bool {
	return !slices.ContainsFunc(c.findings, func(f ledger.Finding) bool {
		return f.Severity == ledger.SeverityError && f.Code != ledger.CodePrivilege && f.Code != CodeRowSecurity
	})
}

// ledgerGrants compares the run role's privileges on the ledger and witness tables that exist. It returns false where the
// login itself cannot read lethe.meta, so that nothing more can be said.
func (c *checker) ledgerGrants(ctx context.Context, m *Mapping, usable bool) (readable bool, err error) {
	const op = "reading the privileges on Lethe's tables"
	var exists, usage, own bool
	err = c.conn.QueryRow(ctx, `SELECT true, has_schema_privilege($2, oid, 'USAGE'), has_schema_privilege(oid, 'USAGE')
		FROM pg_catalog.pg_namespace WHERE nspname = $1`, c.ledger.schema, c.o.Role).Scan(&exists, &usage, &own)
	if errors.Is(err, pgx.ErrNoRows) {
		return true, nil // verifyTables says so
	}
	if err != nil {
		return false, classify(op, err)
	}
	if !usage {
		c.add(ledger.SeverityError, ledger.CodePrivilege, c.ledger.schema, fmt.Sprintf("login %s may not use the schema of Lethe's own tables", c.o.Role),
			c.ledger.sql("GRANT USAGE ON SCHEMA {s} TO "+quote(c.o.Role)+";"))
	}
	type wanted struct{ table, privileges string }
	var list []wanted
	for _, p := range runPrivileges {
		list = append(list, wanted{c.ledger.sql("{s}." + quote(p[0])), p[1]})
	}
	if usable {
		for _, name := range m.witnessTables() {
			list = append(list, wanted{name, "SELECT, UPDATE"})
		}
	}
	readable = own
	for _, w := range list {
		missing, canRead, err := c.missingOn(ctx, w.table, w.privileges)
		if err != nil {
			return false, classify(op, err)
		}
		if missing != "" {
			c.add(ledger.SeverityError, ledger.CodePrivilege, w.table, fmt.Sprintf("login %s lacks %s on one of Lethe's own tables", c.o.Role, missing),
				"GRANT "+missing+" ON "+w.table+" TO "+quote(c.o.Role)+";")
		}
		if strings.HasSuffix(w.table, `."meta"`) {
			readable = readable && canRead
		}
	}
	return readable, nil
}

// missingOn returns which of some privileges the role lacks on a table that exists, and whether the login may read it.
func (c *checker) missingOn(ctx context.Context, table, privileges string) (missing string, canRead bool, err error) {
	var lacking []string
	canRead = true
	for _, p := range strings.Split(privileges, ", ") {
		kind, column, _ := strings.Cut(strings.TrimSuffix(p, ")"), " (")
		var has, reads bool
		// Through the catalog: the name alone would be refused where USAGE on the schema is missing.
		err := c.conn.QueryRow(ctx, `
			SELECT CASE WHEN $4 = '' THEN has_table_privilege($2, c.oid, $3) ELSE has_column_privilege($2, c.oid, $4, $3) END,
				has_table_privilege(c.oid, 'SELECT')
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE '"' || replace(n.nspname, '"', '""') || '"."' || replace(c.relname, '"', '""') || '"' = $1`,
			table, c.o.Role, kind, column).Scan(&has, &reads)
		if errors.Is(err, pgx.ErrNoRows) {
			return "", true, nil // verifyTables says so
		}
		if err != nil {
			return "", false, err
		}
		canRead = canRead && reads
		if !has {
			lacking = append(lacking, p)
		}
	}
	return strings.Join(lacking, ", "), canRead, nil
}

// setupScript is what Setup does as statements for psql.
func (c *checker) setupScript(m *Mapping) string {
	var b strings.Builder
	b.WriteString("BEGIN;\nDO $lethe$ BEGIN IF to_regclass(" + literal(pgx.Identifier{c.ledger.schema, "meta"}.Sanitize()) + ") IS NULL THEN\n")
	for _, script := range migrations {
		b.WriteString(strings.TrimSpace(c.ledger.sql(script)) + "\n")
	}
	b.WriteString("END IF; END $lethe$;\n")
	fmt.Fprintf(&b, "INSERT INTO %s.meta (k, v) VALUES (%s, '%d'), (%s, %s), (%s, %s), (%s, '0'), (%s, %s) ON CONFLICT (k) DO NOTHING;\n", quote(c.ledger.schema),
		literal(ledger.MetaSchemaVersion), ledger.SchemaVersion, literal(ledger.MetaReplica), literal(c.o.Name), literal(ledger.MetaSource), literal(c.o.Source), literal(ledger.MetaWitness),
		literal(ledger.MetaFolded), literal(ledger.FoldedUnder(c.o.Config, c.o.Digest)))
	for _, name := range m.witnessTables() {
		fmt.Fprintf(&b, "CREATE TABLE IF NOT EXISTS %s (replica text PRIMARY KEY, n bigint NOT NULL);\n", name)
		fmt.Fprintf(&b, "INSERT INTO %s (replica, n) VALUES (%s, (SELECT v::bigint FROM %s.meta WHERE k = %s)) ON CONFLICT DO NOTHING;\n",
			name, literal(c.o.Name), quote(c.ledger.schema), literal(ledger.MetaWitness))
		fmt.Fprintf(&b, "GRANT SELECT, UPDATE ON %s TO %s;\n", name, quote(c.o.Role))
	}
	fmt.Fprintf(&b, "GRANT USAGE ON SCHEMA %s TO %s;\n", quote(c.ledger.schema), quote(c.o.Role))
	for _, p := range runPrivileges {
		fmt.Fprintf(&b, "GRANT %s ON %s.%s TO %s;\n", p[1], quote(c.ledger.schema), quote(p[0]), quote(c.o.Role))
	}
	fmt.Fprintf(&b, "INSERT INTO %s.meta (k, v) VALUES (%s, '%s') ON CONFLICT (k) DO UPDATE SET v = excluded.v;\nCOMMIT;",
		quote(c.ledger.schema), literal(ledger.MetaDigest), hex.EncodeToString(c.o.Digest[:]))
	return b.String()
}
