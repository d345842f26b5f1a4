package mysql

import (
	"context"
	"strings"

	"lethe/internal/pii"
)

// account is a user as the server knows it. A MariaDB role has no host.
type account struct {
	user, host string
	role       bool
}

func (a account) sql() string {
	if a.role {
		return quote(a.user)
	}
	return quote(a.user) + "@" + quote(a.host)
}

// The numbers of the errors that say that a login may not do something, and that an account does not exist.
const (
	errDatabaseDenied = 1044
	errTableDenied    = 1142
	errColumnDenied   = 1143
	errNoGrant        = 1141
	errNoAccount      = 1133
	errCannotCreate   = 1410 // MySQL, where a GRANT names nobody
	errAdminDenied    = 1227
)

// denied reports whether an error says that the login lacks a privilege.
func denied(err error) bool {
	switch pii.MySQLNumber(err) {
	case errDatabaseDenied, errTableDenied, errColumnDenied, errAdminDenied:
		return true
	}
	return false
}

// accountsOf finds the accounts that a login's name means: user@host the one, a bare name each with it, whatever its host.
// A login that may not look gets the one that CREATE USER makes of a bare name.
func accountsOf(ctx context.Context, q querier, name string) ([]account, error) {
	if at := strings.LastIndex(name, "@"); at > 0 {
		return []account{{user: name[:at], host: name[at+1:]}}, nil
	}
	out, err := listAccounts(ctx, q, name)
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		out = []account{{user: name, host: "%"}}
	}
	return out, nil
}

// listAccounts reads the accounts of a user; none where the login may not.
func listAccounts(ctx context.Context, q querier, user string) ([]account, error) {
	s, err := readServer(ctx, q)
	if err != nil {
		return nil, err
	}
	query := "SELECT Host, 'N' FROM mysql.user WHERE User = ? ORDER BY Host"
	if s.mariadb {
		query = "SELECT Host, is_role FROM mysql.user WHERE User = ? ORDER BY Host"
	}
	rows, err := q.QueryContext(ctx, query, user)
	if denied(err) {
		return nil, nil
	}
	if err != nil {
		return nil, classify("looking for the login", err)
	}
	defer rows.Close()
	var out []account
	for rows.Next() {
		a := account{user: user}
		var role string
		if err := rows.Scan(&a.host, &role); err != nil {
			return nil, classify("looking for the login", err)
		}
		a.role = role == "Y"
		out = append(out, a)
	}
	return out, classify("looking for the login", rows.Err())
}
