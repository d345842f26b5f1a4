package postgres_test

import (
	"os"
	"testing"
)

// writeFile makes an empty file that the server's uid can read and remove with its folder.
func writeFile(tb testing.TB, path string) {
	tb.Helper()
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		tb.Fatal(err)
	}
}
