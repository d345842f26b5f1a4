package mysql

import (
	"errors"
	"strings"
)

// splitTable splits database.table as the config has it.
func splitTable(name string) (database, table string, err error) {
	database, table, ok := strings.Cut(name, ".")
	if !ok || database == "" || table == "" || strings.ContainsRune(name, 0) {
		return "", "", errors.New("is no database.table")
	}
	return database, table, nil
}

// quoteName quotes one identifier.
func quoteName(name string) string { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }

// quoteTable quotes database.table.
func quoteTable(name string) string {
	database, table, _ := strings.Cut(name, ".")
	return quoteName(database) + "." + quoteName(table)
}
