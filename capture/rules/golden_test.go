package rules

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the drafts of the golden cases")

// TestGolden plays the cases of testdata: the source section of a config, changes, and what the rules make of them.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden cases found: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string]*txtar.File{}
			for i := range archive.Files {
				parts[archive.Files[i].Name] = &archive.Files[i]
			}
			cfg, err := parseSource(string(parts["config.yaml"].Data))
			if err != nil {
				t.Fatal(err)
			}
			got, err := play(cfg, strings.Split(string(parts["changes"].Data), "\n"))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				parts["drafts"].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(parts["drafts"].Data), got); diff != "" {
				t.Errorf("drafts differ (-want +got):\n%s", diff)
			}
		})
	}
}
