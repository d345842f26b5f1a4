package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"lethe/internal/mysqlconn"
	"lethe/internal/pii"
)

// Preview says what Setup would mend, with the login of an owner, and changes nothing. Unlike Check it needs no login of
// Lethe's own to exist. Of o.Login it takes the user's name.
func Preview(ctx context.Context, owner mysqlconn.Login, o Options) ([]Finding, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return inspect(ctx, o, owner, true)
}

// Setup makes what Check asks for with the login of an owner, and is the only part of this package that changes the source:
// Lethe's login where it is missing (locked: it gets its password from a person), its privileges, the heartbeat's table.
// Settings of the server and tables of the application are left to a person. It returns the statements that it ran, in
// order, and what Check would still say; running it again when all is well runs nothing.
func Setup(ctx context.Context, owner mysqlconn.Login, o Options) (ran []string, left []Finding, err error) {
	if err := o.validate(); err != nil {
		return nil, nil, err
	}
	conn, closing, err := ownConnection(ctx, owner)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, closing()) }()
	before := &inspection{o: o, conn: conn, owner: true}
	if err := before.run(ctx); err != nil {
		return nil, nil, err
	}
	if before.mariadb {
		// Otherwise a GRANT to a login that somebody dropped meanwhile would make one that needs no password.
		if _, err := conn.ExecContext(ctx, "SET SESSION sql_mode = CONCAT(@@session.sql_mode, ',NO_AUTO_CREATE_USER')"); err != nil {
			return nil, nil, fmt.Errorf("preparing the owner's session: %w", pii.DriverError(err))
		}
	}
	for i := range before.findings {
		f := &before.findings[i]
		if f.byOwner {
			continue
		}
		for _, statement := range f.FixSQL {
			if _, err := conn.ExecContext(ctx, statement); err != nil {
				return ran, nil, fmt.Errorf("setting up %s (%s): running %q: %w", f.Object, f.Code, statement, pii.DriverError(err))
			}
			ran = append(ran, statement)
		}
	}
	after := &inspection{o: o, conn: conn, owner: true}
	if err := after.run(ctx); err != nil {
		return ran, nil, err
	}
	return ran, after.findings, nil
}

// UninstallSQL returns the statements that take away what Setup made, in order, for the owner to read and run. Lines that
// begin with -- are for reading only. The login itself is not among them: it may be used elsewhere.
func UninstallSQL(ctx context.Context, o Options) (list []string, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	conn, closing, err := ownConnection(ctx, o.Login)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closing()) }()
	if o.Heartbeat != "" {
		there := false
		err := eachRow(ctx, conn, "SELECT 1 FROM "+quoteTable(o.Heartbeat)+" WHERE 1 = 0", func([]sql.NullString) {})
		switch pii.MySQLNumber(err) {
		case 0:
			if err != nil {
				return nil, fmt.Errorf("reading the heartbeat table %s: %w", o.Heartbeat, err)
			}
			there = true
		case unknownTable, unknownDatabase, databaseDenied, tableDenied:
		default:
			return nil, fmt.Errorf("reading the heartbeat table %s: %w", o.Heartbeat, err)
		}
		if there {
			list = append(list, "DROP TABLE "+quoteTable(o.Heartbeat))
		}
	}
	return append(list, "-- the settings of the server and its binary log are left as they are: other readers may rely on them"), nil
}
