package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"lethe/internal/pii"
)

// unknownColumn is the servers' error number ER_BAD_FIELD_ERROR.
const unknownColumn = 1054

// readCharsets reads which charset each collation is of. The ids are the server's own: MySQL and MariaDB give the same id
// to different collations.
func readCharsets(ctx context.Context, db *sql.DB) (charsets, error) {
	// MariaDB since 10.10 has collations that are shared by charsets, and their ids here only.
	known, err := collationIDs(ctx, db, "SELECT id, character_set_name FROM information_schema.collation_character_set_applicability WHERE id IS NOT NULL")
	if pii.MySQLNumber(err) == unknownColumn {
		known, err = collationIDs(ctx, db, "SELECT id, character_set_name FROM information_schema.collations WHERE id IS NOT NULL")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the server's collations: %w", pii.DriverError(err))
	}
	return known, nil
}

func collationIDs(ctx context.Context, db *sql.DB, query string) (known charsets, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	known = charsets{}
	for rows.Next() {
		var id uint64
		var charset sql.NullString
		if err := rows.Scan(&id, &charset); err != nil {
			return nil, err
		}
		known[id] = charset.String
	}
	return known, rows.Err()
}
