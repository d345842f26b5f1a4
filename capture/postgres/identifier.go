package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// maxIdentifier is NAMEDATALEN-1: the server cuts longer names off silently.
const maxIdentifier = 63

func validIdentifier(name string) error {
	switch {
	case name == "":
		return errors.New("a name is missing")
	case len(name) > maxIdentifier:
		return fmt.Errorf("name %q is longer than %d bytes", name, maxIdentifier)
	case strings.ContainsRune(name, 0):
		return errors.New("a name has a zero byte in it")
	}
	return nil
}

// quoteIdentifier quotes one identifier; it is never split at dots.
func quoteIdentifier(name string) string { return pgx.Identifier{name}.Sanitize() }

// splitTable splits schema.table at the first dot. A name without one is taken to be in public.
func splitTable(table string) (schema, name string) {
	schema, name, ok := strings.Cut(table, ".")
	if !ok {
		return "public", table
	}
	return schema, name
}

func quoteTable(table string) string {
	schema, name := splitTable(table)
	return pgx.Identifier{schema, name}.Sanitize()
}
