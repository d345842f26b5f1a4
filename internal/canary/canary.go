// Package canary looks for marked personal values where none may be: in topics, logs, metrics, Lethe's own tables and
// files. A run that fills a CRM with marked people and then greps everything it left behind shows promise P4.
package canary

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Scanner finds a set of markers in any of the forms in which software leaks bytes: as they are, in any letter case, as
// hexadecimal and as base64. It is safe for concurrent use.
type Scanner struct {
	markers []string
	needles [][]byte // lower case
	owner   []int    // needle → marker
}

// minMarker keeps a marker from being so short that random bytes hold it.
const minMarker = 7

// New returns a Scanner for the markers: ASCII strings of at least seven characters that occur nowhere by chance.
func New(markers ...string) (*Scanner, error) {
	s := &Scanner{markers: markers}
	for i, m := range markers {
		if len(m) < minMarker {
			return nil, fmt.Errorf("canary marker %d has %d characters, want at least %d", i, len(m), minMarker)
		}
		s.add(i, strings.ToLower(m))
		s.add(i, hex.EncodeToString([]byte(m)))
		for shift := range 3 {
			s.add(i, strings.ToLower(base64Core(m, shift)))
		}
	}
	return s, nil
}

func (s *Scanner) add(marker int, needle string) {
	s.needles = append(s.needles, []byte(needle))
	s.owner = append(s.owner, marker)
}

// base64Core returns the characters that every base64 text has which holds m behind shift other bytes.
func base64Core(m string, shift int) string {
	padded := strings.Repeat("\x00", shift) + m
	text := base64.RawStdEncoding.EncodeToString([]byte(padded))
	first := (shift*8 + 5) / 6
	last := len(padded) * 8 / 6
	return text[first:last]
}

// Hit is a marker found at a place.
type Hit struct {
	Marker string
	Place  string // a file's path or a table's name
	Offset int64
}

func (h Hit) String() string { return fmt.Sprintf("%q in %s at %d", h.Marker, h.Place, h.Offset) }

const chunk = 1 << 20

// Reader scans r to its end.
func (s *Scanner) Reader(place string, r io.Reader) ([]Hit, error) {
	overlap := 0
	for _, n := range s.needles {
		overlap = max(overlap, len(n)-1)
	}
	var hits []Hit
	buf := make([]byte, 0, chunk+overlap)
	base := int64(0)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		fresh := len(buf)
		buf = buf[:len(buf)+n]
		hits = s.find(hits, place, buf, base, fresh)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return hits, nil
		}
		if err != nil {
			return hits, fmt.Errorf("scanning %s: %w", place, err)
		}
		keep := min(overlap, len(buf))
		base += int64(len(buf) - keep)
		copy(buf, buf[len(buf)-keep:])
		buf = buf[:keep]
	}
}

// find adds the hits of window that end in its fresh part.
func (s *Scanner) find(hits []Hit, place string, window []byte, base int64, fresh int) []Hit {
	lower := asciiLower(window)
	for i, needle := range s.needles {
		for from := 0; ; {
			at := bytes.Index(lower[from:], needle)
			if at < 0 {
				break
			}
			at += from
			if at+len(needle) > fresh && (len(needle) >= shortNeedle || !byChance(lower, at, at+len(needle))) {
				hits = append(hits, Hit{Marker: s.markers[s.owner[i]], Place: place, Offset: base + int64(at)})
			}
			from = at + 1
		}
	}
	return hits
}

// shortNeedle is the length below which digits come up by chance in the tables of a busy replica.
const shortNeedle = 12

// longHex is from how many hexadecimal digits on a run of them is taken for the text form of a key or an id.
const longHex = 32

// byChance reports whether a needle of digits stands within the hexadecimal form of random bytes, where seven digits in a row
// come up once in some hundred megabytes. A text that leaks in hexadecimal has a needle of its own.
func byChance(lower []byte, from, to int) bool {
	for _, c := range lower[from:to] {
		if c < '0' || c > '9' {
			return false
		}
	}
	hexadecimal := func(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }
	for from > 0 && hexadecimal(lower[from-1]) {
		from--
	}
	for to < len(lower) && hexadecimal(lower[to]) {
		to++
	}
	return to-from >= longHex && bytes.ContainsAny(lower[from:to], "abcdef")
}

// asciiLower folds without changing the length, which bytes.ToLower does on bytes that are no UTF-8.
func asciiLower(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

// Tree scans every regular file below root but those for which skip returns true.
func (s *Scanner) Tree(root string, skip func(path string) bool) ([]Hit, error) {
	var hits []Hit
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if skip != nil && skip(path) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path) //nolint:gosec // the caller names the tree
		if err != nil {
			return fmt.Errorf("scanning for canaries: %w", err)
		}
		found, err := s.Reader(path, f)
		hits = append(hits, found...)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		return err
	})
	return hits, err
}
