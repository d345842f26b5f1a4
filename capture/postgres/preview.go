package postgres

import (
	"context"

	"lethe/config"
)

// Preview says what Setup would mend, with the login of an owner, and changes nothing. Unlike Check it needs no role of
// Lethe's own to exist.
func Preview(ctx context.Context, ownerDSN string, ownerPassword config.Secret, o Options) ([]Finding, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	role, err := roleOf(o.DSN)
	if err != nil {
		return nil, err
	}
	owner := o
	owner.Password = ownerPassword
	conn, err := connectSQL(ctx, ownerDSN, owner)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn.PgConn())
	in := &inspection{o: o, conn: conn, role: role}
	if err := in.run(ctx); err != nil {
		return nil, err
	}
	return in.findings, nil
}
