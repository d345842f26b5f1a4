package app_test

import (
	"context"
	"strings"

	"lethe/config"
)

// uninstall runs what is printed, server by server, and wants nothing left.
func uninstall(w *world, script func(context.Context, *config.Config) (string, error)) {
	w.Helper()
	sql, err := script(w.Context(), w.load())
	if err != nil {
		w.Fatal(err)
	}
	db := ""
	for line := range strings.Lines(sql) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "-- source"):
			db = "crm"
		case strings.HasPrefix(line, "-- replica "):
			db = strings.TrimSuffix(strings.Fields(line)[2], ":")
		case line == "" || strings.HasPrefix(line, "--"):
		case strings.HasPrefix(line, "DROP ROLE"): // the three databases of this test share one server
		case strings.HasPrefix(line, "DO "):
			w.pg.Exec(w.TB, db, "CREATE TABLE precious ()", "ALTER TABLE precious OWNER TO lethe")
			if _, err := w.pg.Connect(w.TB, db).Exec(w.Context(), line); err == nil {
				w.Errorf("what the login owns in %s is dropped", db)
			}
			w.pg.Exec(w.TB, db, "DROP TABLE precious", line)
		default:
			w.pg.Exec(w.TB, db, line)
		}
	}
	w.pg.Exec(w.TB, "", "DROP ROLE lethe")
	for db, query := range map[string]string{
		"crm":       "SELECT count(*) FROM (SELECT 1 FROM pg_publication UNION ALL SELECT 1 FROM pg_replication_slots UNION ALL SELECT 1 FROM pg_class WHERE relname LIKE '%lethe%') x",
		"marketing": "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'lethe' OR c.relname LIKE 'lethe%'",
	} {
		if got := w.text(db, query); got != "0" {
			w.Errorf("%s things of Lethe's are left in %s after\n%s", got, db, sql)
		}
	}
}
