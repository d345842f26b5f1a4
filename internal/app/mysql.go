package app

import (
	"fmt"
	"strings"

	"lethe/internal/mysqlconn"
	"lethe/internal/pii"
)

// backquoted quotes a name of MySQL or MariaDB.
func backquoted(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// mysqlAccount is a login as a statement names it: user@host, or a user on every host.
func mysqlAccount(role string) string {
	user, host, found := strings.Cut(role, "@")
	if !found {
		host = "%"
	}
	return backquoted(user) + "@" + backquoted(host)
}

// mysqlCreate makes a login. Unlike one of PostgreSQL, one without a password lets everybody in: it is locked.
func mysqlCreate(role string) string { return "CREATE USER " + mysqlAccount(role) + " ACCOUNT LOCK" }

// dropMySQLLogin takes a login of Lethe's away with what it was granted.
func dropMySQLLogin(user string) string {
	if user == "" {
		return ""
	}
	return "DROP USER IF EXISTS " + mysqlAccount(user) + ";\n"
}

// mysqlLogin makes a finding of a refused login.
func mysqlLogin(err error, server string, login mysqlconn.Login) ([]Finding, error) {
	user := login.User()
	f := Finding{Severity: SeverityError, Object: user}
	switch pii.MySQLNumber(err) {
	case 1045, 1698:
		// The server says the same of a login that does not exist, so as not to tell who does.
		f.Code, f.Message = CodeLoginRefused, fmt.Sprintf("%s refuses the password of the login %s: check password or password_file against the login's"+
			" password, and the host from which it may connect; only if the login does not exist, have an administrator run %s and give it a password",
			server, user, mysqlCreate(user))
	case 1044:
		f.Code, f.Message = codePrivilege, fmt.Sprintf("%s does not let the login %s into the database of the dsn: correct the dsn, or grant it what it needs there", server, user)
	case 1130, 3118, 4151, 3159:
		f.Code, f.Message = CodeLoginRefused, fmt.Sprintf("%s refuses the login %s: it is locked, not for this host, or wants TLS (%s)", server, user, pii.Code(err))
	case 1049:
		f.Code, f.Object, f.Message = CodeDatabaseMissing, "database", "the database of the dsn does not exist on "+server+": correct the dsn"
	default:
		return nil, err
	}
	return []Finding{f}, nil
}
