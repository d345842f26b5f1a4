package mysql

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"

	"lethe/internal/pii"
)

// grants are what an account may do, as SHOW GRANTS says it.
type grants struct {
	global    map[string]bool
	databases []databaseGrant
	revoked   []databaseGrant // MySQL's partial revokes: taken out of global
	tables    map[[2]string]*tableGrant
	roles     []account // granted to the account; what they may do is in the grants where they are active
	// literal says that _ and % in a database's name stand for themselves (MySQL with partial_revokes).
	literal bool
}

type databaseGrant struct {
	pattern    string
	privileges map[string]bool
}

type tableGrant struct {
	whole   map[string]bool
	columns map[string]map[string]bool // by privilege
}

// may reports whether the account has a privilege on a column, on the whole table for an empty column, or on the whole
// database for an empty table. Capitals do not matter: whether they do in a server's names depends on its file system.
func (g *grants) may(privilege, database, table, column string) bool {
	database = strings.ToLower(database)
	revoked := slices.ContainsFunc(g.revoked, func(d databaseGrant) bool { return d.pattern == database && d.privileges[privilege] })
	if has(g.global, privilege) && !revoked {
		return true
	}
	for _, d := range g.databases {
		if has(d.privileges, privilege) && (d.pattern == database || !g.literal && like(d.pattern, database)) {
			return true
		}
	}
	t := g.tables[[2]string{database, strings.ToLower(table)}]
	if t == nil || table == "" {
		return false
	}
	return has(t.whole, privilege) || column != "" && t.columns[privilege][strings.ToLower(column)]
}

// mayAny reports whether the account has a privilege on the table or one of its columns.
func (g *grants) mayAny(privilege, database, table string) bool {
	t := g.tables[[2]string{strings.ToLower(database), strings.ToLower(table)}]
	return g.may(privilege, database, table, "") || t != nil && len(t.columns[privilege]) > 0
}

// sees reports whether the account sees every table of a database in the catalog, with its columns and foreign keys. Without
// that a table that the mapping forgot does not seem to exist.
func (g *grants) sees(database string) bool {
	return g.may("REFERENCES", database, "", "") || g.may("INSERT", database, "", "") || g.may("UPDATE", database, "", "")
}

func has(set map[string]bool, privilege string) bool { return set[privilege] || set["ALL PRIVILEGES"] }

// like matches a name with a pattern of SQL.
func like(pattern, name string) bool {
	for pattern != "" {
		switch c := pattern[0]; {
		case c == '%':
			for i := range len(name) + 1 {
				if like(pattern[1:], name[i:]) {
					return true
				}
			}
			return false
		case name == "":
			return false
		case c == '_':
			pattern = pattern[1:]
		case c == '\\' && len(pattern) > 1:
			pattern = pattern[1:]
			fallthrough
		default:
			if pattern[0] != name[0] {
				return false
			}
			pattern = pattern[1:]
		}
		name = name[1:]
	}
	return name == ""
}

// parseGrants reads the lines of SHOW GRANTS. What it does not understand (a PROXY, routines) grants nothing that Lethe
// needs. MariaDB puts the hash of a password behind some lines: nothing of a line is ever told.
func parseGrants(lines []string, literalNames bool) *grants {
	g := &grants{global: map[string]bool{}, tables: map[[2]string]*tableGrant{}, literal: literalNames}
	for _, line := range lines {
		s := &grantScanner{rest: line}
		verb := s.word()
		if verb != "GRANT" && verb != "REVOKE" {
			continue
		}
		if s.role(g) {
			continue
		}
		list, ok := s.privileges()
		if !ok {
			continue
		}
		database, table, ok := s.object()
		if !ok {
			continue
		}
		database, table = strings.ToLower(database), strings.ToLower(table)
		whole := map[string]bool{}
		for _, p := range list {
			if len(p.columns) == 0 {
				whole[p.name] = true
			}
		}
		switch {
		case verb == "REVOKE":
			g.revoked = append(g.revoked, databaseGrant{database, whole})
		case database == "*":
			for p := range whole {
				g.global[p] = true
			}
		case table == "*":
			g.databases = append(g.databases, databaseGrant{database, whole})
		default:
			g.addTable([2]string{database, table}, list, whole)
		}
	}
	return g
}

func (g *grants) addTable(key [2]string, list []privilegeList, whole map[string]bool) {
	t := g.tables[key]
	if t == nil {
		t = &tableGrant{whole: map[string]bool{}, columns: map[string]map[string]bool{}}
		g.tables[key] = t
	}
	for p := range whole {
		t.whole[p] = true
	}
	for _, p := range list {
		for _, c := range p.columns {
			if t.columns[p.name] == nil {
				t.columns[p.name] = map[string]bool{}
			}
			t.columns[p.name][strings.ToLower(c)] = true
		}
	}
}

// privilegeList is a privilege with the columns that it is limited to.
type privilegeList struct {
	name    string
	columns []string
}

// grantScanner reads one line.
type grantScanner struct{ rest string }

// word reads up to the next space.
func (s *grantScanner) word() string {
	word, rest, _ := strings.Cut(strings.TrimLeft(s.rest, " "), " ")
	s.rest = rest
	return word
}

// name reads an identifier, quoted or not.
func (s *grantScanner) name() (string, bool) {
	s.rest = strings.TrimLeft(s.rest, " ")
	if !strings.HasPrefix(s.rest, "`") {
		end := strings.IndexAny(s.rest, " .,()@`")
		if end < 0 {
			end = len(s.rest)
		}
		name := s.rest[:end]
		s.rest = s.rest[end:]
		return name, name != ""
	}
	var name strings.Builder
	for i := 1; i < len(s.rest); i++ {
		if s.rest[i] == '`' {
			if i+1 >= len(s.rest) || s.rest[i+1] != '`' {
				s.rest = s.rest[i+1:]
				return name.String(), true
			}
			i++
		}
		name.WriteByte(s.rest[i])
	}
	return "", false
}

// role reads `GRANT role[@host][, …] TO …`, which names no object.
func (s *grantScanner) role(g *grants) bool {
	if !strings.HasPrefix(s.rest, "`") {
		return false
	}
	for {
		a := account{role: true}
		var ok bool
		if a.user, ok = s.name(); !ok {
			return true
		}
		if strings.HasPrefix(s.rest, "@") {
			s.rest = s.rest[1:]
			a.host, _ = s.name()
			a.role = false
		}
		g.roles = append(g.roles, a)
		if !strings.HasPrefix(s.rest, ",") {
			return true
		}
		s.rest = strings.TrimLeft(s.rest[1:], " ")
	}
}

// privileges reads `SELECT (a, b), INSERT ON `.
func (s *grantScanner) privileges() (out []privilegeList, ok bool) {
	for {
		end := strings.IndexAny(s.rest, ",(")
		if on := strings.Index(s.rest, " ON "); on >= 0 && (end < 0 || on < end) {
			out = append(out, privilegeList{name: strings.TrimSpace(s.rest[:on])})
			s.rest = s.rest[on+len(" ON "):]
			return out, true
		}
		if end < 0 {
			return nil, false
		}
		p := privilegeList{name: strings.TrimSpace(s.rest[:end])}
		opened := s.rest[end] == '('
		s.rest = s.rest[end+1:]
		for opened {
			column, ok := s.name()
			if !ok || s.rest == "" {
				return nil, false
			}
			p.columns = append(p.columns, column)
			opened = s.rest[0] == ','
			s.rest = s.rest[1:]
		}
		out = append(out, p)
		if len(p.columns) == 0 {
			continue
		}
		if after, found := strings.CutPrefix(s.rest, " ON "); found {
			s.rest = after
			return out, true
		}
		s.rest = strings.TrimPrefix(s.rest, ",")
	}
}

// object reads `db`.`table`, `db`.* or *.*.
func (s *grantScanner) object() (database, table string, ok bool) {
	if strings.HasPrefix(s.rest, "*.*") {
		return "*", "*", true
	}
	s.rest = strings.TrimPrefix(s.rest, "TABLE ")
	if database, ok = s.name(); !ok || !strings.HasPrefix(s.rest, ".") {
		return "", "", false
	}
	s.rest = s.rest[1:]
	if strings.HasPrefix(s.rest, "*") {
		return database, "*", true
	}
	table, ok = s.name()
	return database, table, ok
}

const opGrants = "reading privileges"

// errUnreadable says that the login may not see what another account is allowed.
var errUnreadable = errors.New("the grants of another account are not to be seen")

// errNoLogin says that there is no such account.
var errNoLogin = errors.New("no such account")

// ownGrants are what the login of the connection may do, with its active roles.
func ownGrants(ctx context.Context, q querier) (*grants, error) {
	s, err := readServer(ctx, q)
	if err != nil {
		return nil, err
	}
	lines, err := showGrants(ctx, q, "")
	if err != nil {
		return nil, err
	}
	wild, err := literalDatabases(ctx, q, s)
	return parseGrants(lines, wild), err
}

// grantsOf are what an account may do, with the roles that are active when it logs in.
func grantsOf(ctx context.Context, q querier, a account) (*grants, error) {
	s, err := readServer(ctx, q)
	if err != nil {
		return nil, err
	}
	wild, err := literalDatabases(ctx, q, s)
	if err != nil {
		return nil, err
	}
	lines, err := showGrants(ctx, q, " FOR "+a.sql())
	if err != nil {
		return nil, err
	}
	var more []string
	if s.mariadb {
		var role sql.NullString
		err := q.QueryRowContext(ctx, "SELECT default_role FROM mysql.user WHERE User = ? AND Host = ?", a.user, a.host).Scan(&role)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, unreadable(err)
		}
		if role.String != "" && !a.role {
			more, err = showGrants(ctx, q, " FOR "+quote(role.String))
		}
		return parseGrants(append(lines, more...), wild), err
	}
	active, err := defaultRoles(ctx, q, a, parseGrants(lines, wild).roles)
	if err != nil || len(active) == 0 {
		return parseGrants(lines, wild), err
	}
	names := make([]string, len(active))
	for i, r := range active {
		names[i] = r.sql()
	}
	more, err = showGrants(ctx, q, " FOR "+a.sql()+" USING "+strings.Join(names, ", "))
	return parseGrants(more, wild), err
}

// defaultRoles are those of an account's roles that are active when it logs in to MySQL.
func defaultRoles(ctx context.Context, q querier, a account, granted []account) ([]account, error) {
	var all bool
	if err := q.QueryRowContext(ctx, "SELECT @@activate_all_roles_on_login").Scan(&all); err != nil {
		return nil, classify(opGrants, err)
	}
	if all {
		return granted, nil
	}
	var out []account
	rows, err := q.QueryContext(ctx, "SELECT DEFAULT_ROLE_USER, DEFAULT_ROLE_HOST FROM mysql.default_roles WHERE USER = ? AND HOST = ?", a.user, a.host)
	if err != nil {
		return nil, unreadable(err)
	}
	defer rows.Close()
	for rows.Next() {
		var r account
		if err := rows.Scan(&r.user, &r.host); err != nil {
			return nil, classify(opGrants, err)
		}
		out = append(out, r)
	}
	return out, classify(opGrants, rows.Err())
}

func unreadable(err error) error {
	switch {
	case denied(err):
		return errUnreadable
	case pii.MySQLNumber(err) == errNoGrant, pii.MySQLNumber(err) == errNoAccount:
		return errNoLogin
	}
	return classify(opGrants, err)
}

func showGrants(ctx context.Context, q querier, suffix string) ([]string, error) {
	rows, err := q.QueryContext(ctx, "SHOW GRANTS"+suffix)
	if err != nil {
		return nil, unreadable(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return nil, classify(opGrants, err)
		}
		out = append(out, line)
	}
	if err := rows.Err(); err != nil { // MariaDB says only here that there is no such account
		return nil, unreadable(err)
	}
	return out, nil
}

// literalDatabases reports whether _ and % in the database of a GRANT stand for themselves.
func literalDatabases(ctx context.Context, q querier, s server) (bool, error) {
	if s.mariadb || !s.since(8, 0, 16) {
		return false, nil
	}
	var on bool
	err := q.QueryRowContext(ctx, "SELECT @@partial_revokes").Scan(&on)
	return on, classify(opGrants, err)
}

// currentAccount is the account that the server has taken the login for.
func currentAccount(ctx context.Context, q querier) (account, error) {
	var name sql.NullString
	if err := q.QueryRowContext(ctx, "SELECT CURRENT_USER()").Scan(&name); err != nil {
		return account{}, classify("asking who the login is", err)
	}
	at := max(strings.LastIndex(name.String, "@"), 0)
	return account{user: name.String[:at], host: strings.TrimPrefix(name.String[at:], "@")}, nil
}

// databasePattern is a database as a GRANT on all its tables names it.
func databasePattern(database string, literalNames bool) string {
	if !literalNames {
		database = strings.NewReplacer(`\`, `\\`, "_", `\_`, "%", `\%`).Replace(database)
	}
	return quote(database)
}
