package mysql

import (
	"testing"

	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// flavors runs a test on both servers at once: most of its time it waits for them.
func flavors(t *testing.T, f func(t *testing.T, flavor string)) {
	t.Helper()
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			f(t, flavor)
		})
	}
}
