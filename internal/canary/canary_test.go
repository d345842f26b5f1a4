package canary

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindsEveryForm(t *testing.T) {
	const marker = "zqcanary-mail"
	s, err := New(marker)
	if err != nil {
		t.Fatal(err)
	}
	text := "name=Dupont " + marker + "@exemple.fr"
	for name, body := range map[string]string{
		"clear":        text,
		"upper":        strings.ToUpper(text),
		"hex":          hex.EncodeToString([]byte(text)),
		"base64":       base64.StdEncoding.EncodeToString([]byte(text)),
		"base64 +1":    base64.StdEncoding.EncodeToString([]byte("x" + text)),
		"base64 +2":    base64.RawStdEncoding.EncodeToString([]byte("xy" + text)),
		"split chunks": strings.Repeat("-", chunk-5) + text,
		"not utf-8":    "\xff\xfe\x80" + text + "\xff",
	} {
		hits, err := s.Reader(name, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if len(hits) != 1 {
			t.Errorf("%s: %d hits, want 1: %v", name, len(hits), hits)
		}
	}
	hits, err := s.Reader("clean", strings.NewReader(strings.Repeat("zqcanar mail ", 200_000)))
	if err != nil || len(hits) != 0 {
		t.Errorf("clean text: hits %v, error %v", hits, err)
	}
}

func TestDigitsWithinAnIDAreChance(t *testing.T) {
	s, err := New("0699980")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{
		`\x4f0a06999801c2d3e4f5061728394a5b6`:                            0,
		`phone 0699980001`:                                               1,
		`phone 0699980001 of a0b1c2d3`:                                   1,
		`06999800010699980002069998000306999800040`:                      4, // a list of numbers
		hex.EncodeToString([]byte("0699980001 and more than 32 digits")): 1,
	} {
		hits, err := s.Reader("text", strings.NewReader(text))
		if err != nil || len(hits) != want {
			t.Errorf("%s: hits %v, error %v, want %d", text, hits, err, want)
		}
	}
}

func TestTreeSkips(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a/log", "skip/log"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("zqcanary-name"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New("zqcanary-name")
	if err != nil {
		t.Fatal(err)
	}
	hits, err := s.Tree(dir, func(p string) bool { return filepath.Base(p) == "skip" })
	if err != nil || len(hits) != 1 || filepath.Base(filepath.Dir(hits[0].Place)) != "a" {
		t.Errorf("hits %v, error %v", hits, err)
	}
}

func TestShortMarkerRefused(t *testing.T) {
	if _, err := New("abc"); err == nil {
		t.Error("a marker of three characters was accepted")
	}
}
