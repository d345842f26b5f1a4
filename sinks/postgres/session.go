package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// HideLedger takes the schema of Lethe's own tables out of a session's search_path. A role of the schema's name, as in the starter file, finds it
// there by "$user", before all others and from the moment it exists: what the mapping or the audience calls contact would be Lethe's own table of that name.
func HideLedger(ctx context.Context, conn *pgx.Conn, schema string) error {
	_, err := conn.Exec(ctx, `SELECT pg_catalog.set_config('search_path', pg_catalog.array_to_string(ARRAY(
			SELECT pg_catalog.quote_ident(s) FROM unnest(pg_catalog.current_schemas(false)) s WHERE s <> $1), ', '), false)`, pgx.QueryExecModeExec, schema)
	return classify("preparing the session", err)
}
