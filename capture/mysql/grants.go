package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"lethe/internal/pii"
)

// Errors of the servers that say that a login may not.
const (
	databaseDenied  = 1044 // ER_DBACCESS_DENIED_ERROR
	tableDenied     = 1142 // ER_TABLEACCESS_DENIED_ERROR
	columnDenied    = 1143 // ER_COLUMNACCESS_DENIED_ERROR
	privilegeDenied = 1227 // ER_SPECIFIC_ACCESS_DENIED_ERROR
)

// Errors of the servers that say that something is not there.
const (
	unknownDatabase = 1049 // ER_BAD_DB_ERROR
	unknownTable    = 1146 // ER_NO_SUCH_TABLE
)

// grant is one line of SHOW GRANTS.
type grant struct {
	privileges map[string][]string // columns by privilege; nil: all of them
	database   string              // pattern; empty: all
	table      string              // empty: all
}

type grants []grant

var grantLine = regexp.MustCompile("^GRANT (.+) ON (?:TABLE )?(\\*|`(?:[^`]|``)+`)\\.(\\*|`(?:[^`]|``)+`) TO ")

// parseGrant reads a line of SHOW GRANTS. It returns false for one that grants a role, or something on another object.
func parseGrant(line string) (grant, bool) {
	m := grantLine.FindStringSubmatch(line)
	if m == nil {
		return grant{}, false
	}
	g := grant{privileges: map[string][]string{}, database: unquoteName(m[2]), table: unquoteName(m[3])}
	for rest := m[1]; rest != ""; {
		var name string
		var columns []string
		end := strings.IndexAny(rest, ",(")
		switch {
		case end < 0:
			name, rest = rest, ""
		case rest[end] == '(':
			name = rest[:end]
			inside, after, _ := strings.Cut(rest[end+1:], ")")
			for column := range strings.SplitSeq(inside, ",") {
				columns = append(columns, unquoteName(strings.TrimSpace(column)))
			}
			rest = strings.TrimPrefix(after, ",")
		default:
			name, rest = rest[:end], rest[end+1:]
		}
		g.privileges[strings.TrimSpace(name)] = columns
	}
	return g, true
}

// unquoteName is the inverse of quoteName; * is the empty string.
func unquoteName(name string) string {
	if name == "*" {
		return ""
	}
	return strings.ReplaceAll(strings.Trim(name, "`"), "``", "`")
}

// global reports whether a privilege on everything is given, under any of its names.
func (gs grants) global(names ...string) bool {
	for _, g := range gs {
		if g.database != "" || g.table != "" {
			continue
		}
		if _, all := g.privileges["ALL PRIVILEGES"]; all {
			return true
		}
		for _, name := range names {
			if _, ok := g.privileges[name]; ok {
				return true
			}
		}
	}
	return false
}

// lacks returns those of the columns that a privilege on a table does not cover; all of them, or the table itself as one
// empty name, where there is nothing of it.
func (gs grants) lacks(privilege, database, table string, columns ...string) []string {
	left := slices.Clone(columns)
	if len(left) == 0 {
		left = []string{""}
	}
	for _, g := range gs {
		if g.database != "" && !likeName(g.database, database, g.table == "") || g.table != "" && g.table != table {
			continue
		}
		if _, all := g.privileges["ALL PRIVILEGES"]; all {
			return nil
		}
		granted, ok := g.privileges[privilege]
		switch {
		case !ok:
		case granted == nil:
			return nil
		default:
			left = slices.DeleteFunc(left, func(c string) bool { return slices.Contains(granted, c) })
		}
	}
	return left
}

// likeName compares a database with a granted name, which is a pattern where the grant is one on a whole database.
func likeName(pattern, name string, wild bool) bool {
	if !wild {
		return pattern == name
	}
	var expression strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\' && i+1 < len(pattern):
			i++
			expression.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
		case c == '%':
			expression.WriteString(".*")
		case c == '_':
			expression.WriteString(".")
		default:
			expression.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
		}
	}
	matched, err := regexp.MatchString("^(?s:"+expression.String()+")$", name)
	return err == nil && matched
}

// account quotes a login as 'user'@'host' is written.
func account(user, host string) string { return quoteName(user) + "@" + quoteName(host) }

// login reads what Lethe's login may do, and says what it lacks.
func (in *inspection) login(ctx context.Context) error {
	exists, err := in.readGrants(ctx)
	if err != nil {
		return fmt.Errorf("reading the privileges of Lethe's login: %w", err)
	}
	if !exists {
		in.add(SeverityError, CodeAccountMissing, in.o.Login.User(), "the login of Lethe does not exist; it is made locked: give it a password, best with "+
			"REQUIRE SSL, and unlock it (ALTER USER … IDENTIFIED BY '…' REQUIRE SSL ACCOUNT UNLOCK)",
			"CREATE USER IF NOT EXISTS "+in.account+" ACCOUNT LOCK")
	}
	if !in.grants.global("REPLICATION SLAVE", "REPLICATION REPLICA") {
		in.add(SeverityError, CodeAccountPrivilege, in.account, "the login may not read the log", "GRANT REPLICATION SLAVE ON *.* TO "+in.account)
	}
	monitor := "REPLICATION CLIENT"
	if in.mariadb {
		monitor = "BINLOG MONITOR"
	}
	if !in.grants.global("REPLICATION CLIENT", "BINLOG MONITOR") {
		in.add(SeverityError, CodeAccountPrivilege, in.account, "the login may not ask where the log stands", "GRANT "+monitor+" ON *.* TO "+in.account)
	}
	return nil
}

// readGrants fills account and grants.
func (in *inspection) readGrants(ctx context.Context) (exists bool, err error) {
	if !in.owner {
		var current string
		if err := in.each(ctx, "SELECT CURRENT_USER()", func(row []sql.NullString) { current = row[0].String }); err != nil {
			return false, err
		}
		at := max(0, strings.LastIndexByte(current, '@'))
		in.account = account(current[:at], strings.TrimPrefix(current[at:], "@"))
		_, err := in.addGrants(ctx, "SHOW GRANTS")
		return true, err
	}
	user := in.o.Login.User()
	in.account = account(user, "%")
	var hosts []string
	err = in.each(ctx, "SELECT Host FROM mysql.user WHERE User = ? ORDER BY Host DESC", func(row []sql.NullString) {
		hosts = append(hosts, row[0].String)
	}, user)
	if err != nil || len(hosts) == 0 {
		return false, err
	}
	if !slices.Contains(hosts, "%") {
		in.account = account(user, hosts[0])
	}
	roles, err := in.addGrants(ctx, "SHOW GRANTS FOR "+in.account)
	if err != nil || len(roles) == 0 {
		return true, err
	}
	if !in.mariadb {
		_, err = in.addGrants(ctx, "SHOW GRANTS FOR "+in.account+" USING "+strings.Join(roles, ", "))
		return true, err
	}
	seen := map[string]bool{}
	for len(roles) > 0 {
		role := roles[0]
		roles = roles[1:]
		if seen[role] {
			continue
		}
		seen[role] = true
		more, err := in.addGrants(ctx, "SHOW GRANTS FOR "+role)
		if err != nil {
			return true, err
		}
		roles = append(roles, more...)
	}
	return true, nil
}

var roleLine = regexp.MustCompile("^GRANT (`[^ ]+`(?:,`[^ ]+`)*) TO ")

// addGrants adds what a SHOW GRANTS shows, and returns the roles in it.
func (in *inspection) addGrants(ctx context.Context, show string) (roles []string, err error) {
	err = in.each(ctx, show, func(row []sql.NullString) {
		if g, ok := parseGrant(row[0].String); ok {
			in.grants = append(in.grants, g)
		} else if m := roleLine.FindStringSubmatch(row[0].String); m != nil {
			roles = append(roles, strings.Split(m[1], ",")...)
		}
	})
	return roles, err
}

// heartbeat looks for the one table that Lethe writes.
func (in *inspection) heartbeat(ctx context.Context) error {
	name := in.o.Heartbeat
	if name == "" {
		return nil
	}
	database, table, err := splitTable(name)
	if err != nil {
		return err
	}
	rows := 0
	err = in.each(ctx, "SELECT id FROM "+quoteTable(name)+" WHERE id = 1", func([]sql.NullString) { rows++ })
	statements := heartbeatSQL(name)
	switch pii.MySQLNumber(err) {
	case 0:
		if err != nil {
			return fmt.Errorf("reading the heartbeat table %s: %w", name, err)
		}
		if rows == 0 {
			in.add(SeverityError, CodeHeartbeatMissing, name, "the heartbeat table has no row", statements[1])
		}
	case unknownTable, unknownDatabase:
		in.add(SeverityError, CodeHeartbeatMissing, name, "the heartbeat table does not exist", statements...)
	case databaseDenied, tableDenied, columnDenied:
		in.add(SeverityError, CodeHeartbeatMissing, name, "the heartbeat table is not there, or not to be seen by the login", statements...)
	default:
		return fmt.Errorf("reading the heartbeat table %s: %w", name, err)
	}
	if in.grants.lacks("UPDATE", database, table) != nil || in.grants.lacks("SELECT", database, table) != nil {
		in.add(SeverityError, CodeHeartbeatDenied, name, "the login may not write heartbeats",
			"GRANT SELECT, UPDATE ON "+quoteTable(name)+" TO "+in.account)
	}
	return nil
}

// tables returns the mapped tables in order.
func (o *Options) tables() []string { return slices.Sorted(maps.Keys(o.Needs)) }
