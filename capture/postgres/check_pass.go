package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"lethe/internal/pii"
)

// passStates looks whether passes, and what else reads the present state, can read each table. Capture runs without.
func (in *inspection) passStates(ctx context.Context, t *catalogTable) error {
	needs := in.o.Needs[t.full()]
	if !needs.ReadsRows && len(needs.Mapped) == 0 {
		return nil
	}
	columns := append(slices.Clone(needs.Columns), needs.Mapped...)
	if needs.ReadsRows {
		key, err := walkKey(ctx, in.conn, t)
		if err != nil {
			return err
		}
		if key == nil {
			in.add(SeverityWarning, CodeTableKeyless, t.full(), "no pass can read the table: it has neither a primary key nor a unique index over "+
				"columns that are NOT NULL; what the log lacks of it (a gap, an edited publication) is not made good, and no gap can be closed")
		}
		for _, k := range key {
			columns = append(columns, k.name)
		}
		if t.identity != "f" {
			columns = append(columns, t.identityColumns()...)
		}
	}
	slices.Sort(columns)
	columns = presentColumns(t, slices.Compact(columns))
	return in.selectState(ctx, t, columns)
}

// selectState looks whether Lethe's login may read columns, and all rows.
func (in *inspection) selectState(ctx context.Context, t *catalogTable, columns []string) error {
	var exists, schema, all, rows bool
	err := in.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_and(has_schema_privilege(r.oid, c.relnamespace, 'USAGE')), false),
			coalesce(bool_and((SELECT bool_and(has_column_privilege(r.oid, c.oid, a, 'SELECT')) FROM unnest($3::text[]) a)), false),
			coalesce(bool_or(c.relrowsecurity AND NOT r.rolbypassrls AND NOT r.rolsuper
				AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'))), false)
		FROM pg_catalog.pg_roles r, pg_catalog.pg_class c WHERE r.rolname = $2 AND c.oid = $1`, t.oid, in.role, columns).
		Scan(&exists, &schema, &all, &rows)
	if err != nil {
		return fmt.Errorf("reading the privileges of role %s: %w", in.role, pii.DriverError(err))
	}
	role := quoteIdentifier(in.role)
	if !exists || !schema || !all {
		in.add(SeverityWarning, CodeSelectDenied, t.full(),
			"the login may not read the table ("+strings.Join(columns, ", ")+"): passes over the present state leave it out, and what should be gone is not read back",
			t.grants(columns, role)...)
	}
	if rows {
		in.add(SeverityWarning, CodeRowSecurity, t.full(), "row level security hides rows of the table from the login: passes leave it out",
			"ALTER ROLE "+role+" BYPASSRLS").byOwner = true
	}
	return nil
}
