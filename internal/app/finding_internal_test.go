package app

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"lethe/internal/pii"
)

// A wrong password is no missing role: making one that exists would fail, and mislead whoever reads it.
func TestRefusedLoginNamesWhatToLookAt(t *testing.T) {
	const create = `CREATE ROLE "lethe" LOGIN`
	for code, tc := range map[string]struct {
		finding, says string
		fixes         int
	}{
		"28P01": {CodeLoginRefused, "check password or password_file", 0},
		"28000": {CodeLoginRefused, "pg_hba.conf", 1},
		"3D000": {CodeDatabaseMissing, "correct the dsn", 0},
	} {
		f, ok := loginFinding(pii.DriverError(&pgconn.PgError{Code: code}), "the source", "lethe", create)
		if !ok || f.Code != tc.finding || !strings.Contains(f.Message, tc.says) || len(f.Fix) != tc.fixes {
			t.Errorf("%s: %+v, %t", code, f, ok)
		}
	}
	if _, ok := loginFinding(pii.DriverError(&pgconn.PgError{Code: "42501"}), "the source", "lethe", create); ok {
		t.Error("a missing privilege is called a refused login")
	}
}
