package mysql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"lethe/config"
	"lethe/internal/pii"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// CheckOptions are what Check compares the replica with.
type CheckOptions struct {
	Name   string // of the replica
	Source string // the config's name
	Config *config.Replica
	Digest [32]byte // of the mapping
	// Role is whose privileges are looked at, user or user@host; empty: the login's own.
	Role string
	// VerifyRole is the login of the read-back where it is another one.
	VerifyRole string
	// VerifyDB are connections of that login, which sees what itself is allowed, as few others do; nil: the login of the check
	// looks. They need no database.
	VerifyDB *sql.DB
}

// Check compares a replica with what the mapping, the ledger tables and the run role need, and changes nothing. db is a pool
// of Open whose database is the replica's. Findings are in the order in which their statements depend on each other. The error
// is one of reading the server.
func Check(ctx context.Context, db *sql.DB, o CheckOptions) ([]Finding, error) {
	c := &checker{db: db, o: o, ledger: tablesOf(o.Config)}
	var err error
	if c.database, err = databaseOf(ctx, db); err != nil {
		return nil, err
	}
	if err := c.server(ctx); err != nil {
		return nil, err
	}
	if err := c.logins(ctx); err != nil {
		return nil, err
	}
	if !c.visible(ctx) {
		return c.findings, nil // what the login does not see cannot be looked at
	}
	m, findings, err := compile(ctx, db, o.Config)
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
	db       *sql.DB
	o        CheckOptions
	ledger   ledgerTables
	database string
	literal  bool      // see literalDatabases
	own      bool      // the login is the run role
	runs     []grantee // the accounts of the run role; none where they cannot be looked at
	verifies []grantee
	findings []Finding
}

func (c *checker) add(severity ledger.Severity, code, object, message, fix string) {
	c.findings = append(c.findings, Finding{Code: code, Severity: severity, Object: object, Message: message, FixSQL: fix})
}

func (c *checker) fault(code, object, message, fix string) {
	c.add(ledger.SeverityError, code, object, message, fix)
}

// The first versions with JSON_TABLE, window functions and checks of columns.
var (
	oldestMySQL   = [3]int{8, 0, 16}
	oldestMariaDB = [3]int{10, 6, 0}
)

func (c *checker) server(ctx context.Context) error {
	s, err := readServer(ctx, c.db)
	if err != nil {
		return err
	}
	if c.literal, err = literalDatabases(ctx, c.db, s); err != nil {
		return err
	}
	oldest := oldestMySQL
	if s.mariadb {
		oldest = oldestMariaDB
	}
	if !s.since(oldest[0], oldest[1], oldest[2]) {
		c.fault(CodeServerVersion, "version", fmt.Sprintf("%s is too old for a replica: %s or later is needed", s, server{mariadb: s.mariadb, version: oldest}), "")
	}
	var readOnly bool
	if err := c.db.QueryRowContext(ctx, "SELECT @@read_only OR @@innodb_read_only").Scan(&readOnly); err != nil {
		return classify("reading the server's settings", err)
	}
	if readOnly {
		c.fault(CodeStandby, "read_only", "the server takes no writes: the dsn has to lead to the primary", "")
	}
	return nil
}

// logins finds out what the accounts of the run role, and of the read-back, may do.
func (c *checker) logins(ctx context.Context) error {
	current, err := currentAccount(ctx, c.db)
	if err != nil {
		return err
	}
	c.own = c.o.Role == "" || c.o.Role == current.user || c.o.Role == current.label()
	if c.own {
		g, err := ownGrants(ctx, c.db)
		if err != nil {
			return err
		}
		c.runs = []grantee{{current, g}}
	} else if c.runs, err = c.grantees(ctx, c.o.Role); err != nil {
		return err
	}
	switch v := c.o.VerifyRole; {
	case v == "" || v == c.o.Role || v == current.user:
	case c.o.VerifyDB != nil:
		account, err := currentAccount(ctx, c.o.VerifyDB)
		if err != nil {
			return err
		}
		g, err := ownGrants(ctx, c.o.VerifyDB)
		if err != nil {
			return err
		}
		c.verifies = []grantee{{account, g}}
	default:
		c.verifies, err = c.grantees(ctx, v)
	}
	return err
}

// grantees are the accounts of a login's name. Where the login of the check may not look at them it says so.
func (c *checker) grantees(ctx context.Context, name string) ([]grantee, error) {
	list, err := accountsOf(ctx, c.db, name)
	if err != nil {
		return nil, err
	}
	var out []grantee
	for _, a := range list {
		g, err := grantsOf(ctx, c.db, a)
		switch {
		case errors.Is(err, errUnreadable):
			c.add(ledger.SeverityWarning, CodeUnreadable, a.label(), "this login may not see what that one is allowed: `lethe check` looks with its own login", "")
		case errors.Is(err, errNoLogin):
			c.fault(CodeLogin, a.label(), "the login does not exist: make it, then give it a password with ALTER USER … IDENTIFIED BY … ACCOUNT UNLOCK",
				"CREATE USER "+a.sql()+" ACCOUNT LOCK;")
		case err != nil:
			return nil, err
		default:
			out = append(out, grantee{a, g})
		}
	}
	return out, nil
}

// visible looks for databases of mapped tables in which the role does not see every table. It returns false where the
// login itself does not.
func (c *checker) visible(context.Context) bool {
	sees := true
	for _, database := range mappedDatabases(c.o.Config, c.database) {
		for i := range c.runs {
			if g := &c.runs[i]; !g.grants.sees(database) {
				c.fault(ledger.CodePrivilege, database, invisible(g.label())+"; run the check again after the grant", g.seeing(database, c.literal)+";")
				sees = sees && !c.own
			}
		}
	}
	return sees
}

func invisible(login string) string {
	return "login " + login + " does not see the columns and foreign keys of every table: what the mapping forgot would not seem to exist"
}

// seeing is the grant with which an account sees every table of a database, and can neither read nor change one.
func (a account) seeing(database string, literalNames bool) string {
	return "GRANT REFERENCES ON " + databasePattern(database, literalNames) + ".* TO " + a.sql()
}

// mappedDatabases lists the databases that a mapping names, sorted; tables without one lie in the connection's.
func mappedDatabases(cfg *config.Replica, own string) []string {
	seen := map[string]bool{}
	for _, name := range ledger.TableNames(cfg) {
		if database, _, ok := strings.Cut(name, "."); ok {
			seen[database] = true
		} else {
			seen[own] = true
		}
	}
	return ledger.SortedKeys(seen)
}

// mapped looks at the mapped tables.
func (c *checker) mapped(ctx context.Context, m *Mapping) error {
	needs := m.privileges(c.o.Config.Mode)
	if err := c.audienceNeeds(ctx, m, needs); err != nil {
		return err
	}
	for i := range c.runs {
		c.compare(needs, &c.runs[i], false)
	}
	for i := range c.verifies {
		c.compare(needs, &c.verifies[i], true)
	}
	seen := map[*table]bool{}
	for _, name := range ledger.SortedKeys(m.tables) {
		t := m.tables[name]
		if len(t.triggers) > 0 && !seen[t] {
			c.add(ledger.SeverityInfo, ledger.CodeTrigger, t.label(), "triggers fire on what Lethe writes ("+strings.Join(t.triggers, ", ")+
				"): see that they keep no copy of the old row", "")
		}
		seen[t] = true
	}
	for _, column := range m.Unmapped {
		c.add(ledger.SeverityWarning, ledger.CodeUnmapped, column,
			"the column looks personal and nothing erases it: no erasure is called verified until erase.tables says what becomes of it", "")
	}
	return nil
}

var word = regexp.MustCompile("[\\pL_$][\\pL\\pN_$]*|`(?:[^`]|``)+`")

// audienceNeeds plans the audience query, and adds the columns that it names to what the logins have to read.
func (c *checker) audienceNeeds(ctx context.Context, m *Mapping, needs tablePrivileges) error {
	if m.audience == "" {
		return nil
	}
	named := map[string]bool{}
	for _, w := range word.FindAllString(m.audience, -1) {
		named[strings.ToLower(strings.ReplaceAll(strings.Trim(w, "`"), "``", "`"))] = true
	}
	schemas := []any{c.database}
	for w := range named {
		schemas = append(schemas, w)
	}
	whole := strings.Contains(m.audience, "*")
	err := each(ctx, c.db, `SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM information_schema.COLUMNS
		WHERE TABLE_SCHEMA IN (?`+strings.Repeat(", ?", len(schemas)-1)+`) AND TABLE_SCHEMA NOT IN ('information_schema', 'mysql', 'performance_schema', 'sys')`,
		func(scan func(...any) error) error {
			t := &table{}
			var column string
			if err := scan(&t.schema, &t.name, &column); err != nil {
				return err
			}
			if named[strings.ToLower(t.name)] && (whole || named[strings.ToLower(column)]) {
				needs.of(t).read[column] = true
			}
			return nil
		}, schemas...)
	if err != nil {
		return err
	}
	tx, err := c.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return classify("planning the audience query", err)
	}
	defer func() { _ = tx.Rollback() }()                                    // nothing was written
	_, err = tx.ExecContext(ctx, "EXPLAIN SELECT a.k FROM "+m.audienceOf()) //nolint:gosec // the operator's own query, out of the config
	switch reduced := pii.DriverError(err); {
	case err == nil, denied(err): // a privilege: said by compare
		return nil
	case pii.MySQLNumber(err) == 0:
		return classify("planning the audience query", err)
	default:
		c.fault(ledger.CodeAudience, c.o.Name+".audience", fmt.Sprintf(
			"the query does not run (%v): it has to be one SELECT that returns person.key", reduced), "")
		return nil
	}
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
	err := c.ledger.verifyTables(ctx, c.db, c.o.Name, c.o.Source, hex.EncodeToString(c.o.Digest[:]))
	var known *sinks.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sinks.ErrDigest):
		c.fault(CodeDigest, c.ledger.where(), "another mapping is the active one here: run `lethe setup` to activate this one, "+
			"or run the statements; erased people then go through phase 2 again under it", fix)
	case errors.As(err, &known) && known.Err == nil:
		if known.Code == "ledger_newer" || known.Code == "ledger_foreign" {
			fix = ""
		}
		c.fault(ledger.CodeLedger, c.ledger.where(), known.Op+" ("+known.Code+"): "+known.Hint, fix)
	default:
		return err
	}
	return nil
}

// onlyPrivileges reports whether the errors so far are missing privileges, which do not change what Setup would make.
func (c *checker) onlyPrivileges() bool {
	return !slices.ContainsFunc(c.findings, func(f Finding) bool {
		return f.Severity == ledger.SeverityError && f.Code != ledger.CodePrivilege && f.Code != CodeLogin
	})
}

// ledgerGrants compares the run role's privileges on the ledger and witness tables that exist. It returns false where the
// login itself cannot read meta, so that nothing more can be said.
func (c *checker) ledgerGrants(ctx context.Context, m *Mapping, usable bool) (readable bool, err error) {
	type wanted struct{ schema, table, privileges string }
	var list []wanted
	for _, p := range runPrivileges {
		list = append(list, wanted{c.database, c.ledger.prefix + p[0], p[1]})
	}
	if usable {
		for _, schema := range m.schemas() {
			list = append(list, wanted{schema, c.ledger.prefix + witnessTable, witnessPrivileges})
		}
	}
	readable = true
	for _, w := range list {
		var exists bool
		err := c.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?`, w.schema, w.table).Scan(&exists)
		if err != nil {
			return false, classify(opGrants, err)
		}
		for i := range c.runs {
			g := &c.runs[i]
			missing := slices.DeleteFunc(strings.Split(w.privileges, ", "), func(p string) bool {
				kind, column, _ := strings.Cut(strings.TrimSuffix(p, ")"), " (")
				return !exists || g.grants.may(kind, w.schema, w.table, column) // verifyTables says what does not exist
			})
			if len(missing) == 0 {
				continue
			}
			object := quote(w.schema) + "." + quote(w.table)
			c.fault(ledger.CodePrivilege, w.schema+"."+w.table, fmt.Sprintf("login %s lacks %s on one of Lethe's own tables", g.label(), strings.Join(missing, ", ")),
				"GRANT "+strings.Join(missing, ", ")+" ON "+object+" TO "+g.sql()+";")
			if c.own && w.table == c.ledger.prefix+"meta" && slices.Contains(missing, "SELECT") {
				readable = false
			}
		}
	}
	return readable, nil
}

// setupScript is what Setup does, as statements for the command-line client.
func (c *checker) setupScript(m *Mapping) string {
	s := &setup{
		o:      SetupOptions{Name: c.o.Name, Source: c.o.Source, Config: c.o.Config, Digest: c.o.Digest},
		ledger: c.ledger, database: c.database, literal: c.literal,
	}
	for _, g := range c.runs {
		s.runs = append(s.runs, g.account)
	}
	return "USE " + quote(c.database) + ";\n" + strings.Join(s.statements(m, 0), ";\n") + ";"
}
