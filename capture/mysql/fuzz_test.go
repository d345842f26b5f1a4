package mysql

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
)

// recorded reads the row events that TestValuesAreReadAsTheServerPrintsThem and its like wrote down, one pair of a table
// map and a row event after the other.
func recorded(tb testing.TB, fn func(mariadb bool, tableMap []byte, kind replication.EventType, rows []byte)) {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "events", "*.events"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no recorded events: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		var tableMap []byte
		for line := range strings.Lines(string(text)) {
			var kind int
			var body string
			if _, err := fmt.Sscanf(line, "%d %s", &kind, &body); err != nil {
				tb.Fatalf("%s: %v", file, err)
			}
			b, err := hex.DecodeString(body)
			if err != nil {
				tb.Fatalf("%s: %v", file, err)
			}
			if kind == int(replication.TABLE_MAP_EVENT) {
				tableMap = b
				continue
			}
			fn(strings.Contains(file, "mariadb"), tableMap, replication.EventType(kind), b)
		}
	}
}

func TestRecordedEventsAreReadAsGoMySQLReadsThem(t *testing.T) {
	n := 0
	recorded(t, func(mariadb bool, tableMap []byte, kind replication.EventType, rows []byte) {
		n += decodeBoth(t, testCharsets, mariadb, tableMap, kind, rows)
	})
	if n < 80 {
		t.Fatalf("%d row images compared", n)
	}
}

// FuzzRows reads whatever bytes as a table map and a row event of it: the decoder never panics, and agrees with go-mysql
// wherever both can read.
func FuzzRows(f *testing.F) {
	recorded(f, func(mariadb bool, tableMap []byte, kind replication.EventType, rows []byte) {
		if len(tableMap)+len(rows) < 20_000 {
			f.Add(mariadb, tableMap, byte(kind), rows)
		}
	})
	f.Fuzz(func(t *testing.T, mariadb bool, tableMap []byte, kind byte, rows []byte) {
		decodeBoth(t, testCharsets, mariadb, tableMap, replication.EventType(kind), rows)
	})
}

// FuzzJSON reads whatever bytes as a binary JSON document: never a panic, never a text that is no JSON, and none out of
// proportion to the document.
func FuzzJSON(f *testing.F) {
	recorded(f, func(mariadb bool, tableMap []byte, kind replication.EventType, rows []byte) {
		if mariadb {
			return
		}
		d := newRowDecoder(rowOptions{Needs: allNeeds(tableMap, false), Charsets: testCharsets})
		if d.tableMap(tableMap) != nil {
			return
		}
		for i := range rows { // whatever the place, a part of them are documents
			if i%7 == 0 && len(rows)-i < 200 {
				f.Add(rows[i:])
			}
		}
	})
	for _, doc := range []string{"", "0401", "0000000400", "000200150012000100130001000507000507006162", "0f0a080000000000b21a00"} {
		b, err := hex.DecodeString(doc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		text, err := appendJSON(nil, doc)
		if err != nil {
			return
		}
		if !json.Valid(text) {
			t.Fatalf("%q is no JSON", text)
		}
	})
}

// A document may name the same part of itself again and again; its text must not grow without bound.
func TestJSONThatRepeatsItselfIsRefused(t *testing.T) {
	// A large array whose elements are each the array one level further in, 60 levels deep, two elements each.
	const levels, size = 60, 8 + 2*5
	doc := []byte{jsonLargeArray}
	for i := range levels {
		next := uint32(size)
		if i == levels-1 {
			next = 0
		}
		level := []byte{2, 0, 0, 0, 0, 0, 0, 0}
		total := uint32((levels - i) * size)
		level[4], level[5], level[6], level[7] = byte(total), byte(total>>8), byte(total>>16), byte(total>>24)
		for range 2 {
			if next == 0 {
				level = append(level, jsonLiteral, 1, 0, 0, 0)
			} else {
				level = append(level, jsonLargeArray, byte(next), 0, 0, 0)
			}
		}
		doc = append(doc, level...)
	}
	text, err := appendJSON(nil, doc)
	if err == nil {
		t.Fatalf("read as a text of %d bytes", len(text))
	}
	if len(text) > 100*len(doc) {
		t.Fatalf("%d bytes of text from %d", len(text), len(doc))
	}
}

func TestAnUnmappedTableIsNotDecoded(t *testing.T) {
	recorded(t, func(mariadb bool, tableMap []byte, kind replication.EventType, rows []byte) {
		d := newRowDecoder(rowOptions{Needs: map[string]TableNeeds{"crm.customer": {}}, Charsets: testCharsets, MariaDB: mariadb})
		if err := d.tableMap(tableMap); err != nil {
			t.Fatal(err)
		}
		cut := bytes.Clone(rows[:8]) // what follows would not even be looked at
		err := d.rows(kind, cut, func(*capture.Change) error { t.Fatal("a change of an unmapped table"); return nil })
		if err != nil || d.skipped != 1 {
			t.Fatalf("%v, %d skipped", err, d.skipped)
		}
	})
}
