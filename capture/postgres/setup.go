package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"lethe/config"
	"lethe/internal/pii"
)

// Setup makes what Check asks for with the login of an owner, and is the only part of this package that changes the source:
// Lethe's role where it is missing, replica identities, the publication, the slot. Settings of the server, and slots that
// would be made again, are left to a person. It returns the statements that it ran, in order, and what Check would still
// say; running it again when all is well runs nothing. It may wait for open transactions of the application, as
// CREATE INDEX CONCURRENTLY and the making of a slot do; ctx bounds that.
func Setup(ctx context.Context, ownerDSN string, ownerPassword config.Secret, o Options) (ran []string, left []Finding, err error) {
	if err := o.validate(); err != nil {
		return nil, nil, err
	}
	role, err := roleOf(o.DSN)
	if err != nil {
		return nil, nil, err
	}
	owner := o
	owner.Password = ownerPassword
	conn, err := connectSQL(ctx, ownerDSN, owner)
	if err != nil {
		return nil, nil, err
	}
	defer closeConn(ctx, conn.PgConn())
	before := &inspection{o: o, conn: conn, role: role}
	if err := before.run(ctx); err != nil {
		return nil, nil, err
	}
	for i := range before.findings {
		f := &before.findings[i]
		if f.byOwner {
			continue
		}
		done, err := execute(ctx, conn, f.FixSQL)
		ran = append(ran, done...)
		if err != nil {
			return ran, nil, fmt.Errorf("setting up %s (%s): %w", f.Object, f.Code, err)
		}
	}
	after := &inspection{o: o, conn: conn, role: role}
	if err := after.run(ctx); err != nil {
		return ran, nil, err
	}
	return ran, after.findings, nil
}

// patience bounds how long a statement of Setup waits for a lock on a table of the application: while it waits, whoever
// comes after it waits as well, readers included.
const patience = "5s"

// execute runs statements one by one: some of them cannot run inside of a transaction, others bring their own.
func execute(ctx context.Context, conn *pgx.Conn, statements []string) (done []string, err error) {
	for _, sql := range statements {
		// What waits for old transactions without standing in anybody's way may wait for long.
		wait := patience
		if strings.Contains(sql, " CONCURRENTLY ") || strings.HasPrefix(sql, "SELECT ") {
			wait = "0"
		}
		_, err := conn.Exec(ctx, "SET lock_timeout = '"+wait+"'")
		if err == nil {
			_, err = conn.Exec(ctx, sql)
		}
		if err != nil {
			if slices.Contains(statements, "BEGIN") {
				// After the end of ctx the connection, and with it the transaction, is gone anyway.
				_, _ = conn.Exec(ctx, "ROLLBACK")
			}
			return done, fmt.Errorf("running %q: %w%s", sql, pii.DriverError(err), lockHint(err))
		}
		done = append(done, sql)
	}
	return done, nil
}

// lockHint tells what to do about lock_not_available.
func lockHint(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55P03" {
		return " (another session holds the table for longer than " + patience + "; run setup again when it has ended)"
	}
	return ""
}

// UninstallSQL returns the statements that take away what Setup made, in order, for the owner to read and run. Lines that
// begin with -- are for reading only.
func UninstallSQL(ctx context.Context, o Options) ([]string, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	conn, err := connectSQL(ctx, o.DSN, o)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn.PgConn())
	in := &inspection{o: o, conn: conn, role: conn.Config().User}
	if err := in.run(ctx); err != nil {
		return nil, err
	}
	var list []string
	slot, err := readSlot(ctx, conn.PgConn(), o.Slot)
	if err != nil {
		return nil, err
	}
	if slot != nil {
		list = append(list, "SELECT pg_drop_replication_slot('"+o.Slot+"')")
	}
	if in.pub != nil {
		list = append(list, "DROP PUBLICATION "+quoteIdentifier(o.Publication))
	}
	for _, name := range slices.Sorted(maps.Keys(in.tables)) {
		root := in.tables[name]
		for _, t := range append([]*catalogTable{root}, root.leaves...) {
			list = append(list, t.uninstall()...)
		}
	}
	return list, nil
}

// uninstall gives a table its ordinary identity back where the index is Setup's own.
func (t *catalogTable) uninstall() []string {
	alter := "ALTER TABLE " + t.quoted() + " REPLICA IDENTITY DEFAULT"
	for _, i := range t.indexes {
		if i.identity && strings.HasSuffix(i.name, identitySuffix) {
			return []string{alter, "DROP INDEX CONCURRENTLY " + quoteIdentifier(t.schema) + "." + quoteIdentifier(i.name)}
		}
	}
	if t.identity == "f" {
		return []string{"-- " + t.full() + " has REPLICA IDENTITY FULL; if `lethe setup` did that: " + alter}
	}
	return nil
}
