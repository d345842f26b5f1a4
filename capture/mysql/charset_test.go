package mysql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"lethe/internal/testenv"
)

// pairs are the charsets of which pairs of bytes are compared too.
var pairs = map[string]bool{
	"gbk": true, "gb2312": true, "sjis": true, "cp932": true, "ujis": true, "eucjpms": true, "euckr": true,
	"ucs2": true, "utf16": true, "utf16le": true,
}

// Every byte, and every pair of bytes, that the server takes for a character has to become the same character.
func TestCharsetsAreThoseOfTheServers(t *testing.T) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) {
			db := testenv.SharedMySQL(t, flavor).Open(t, "")
			known, err := readCharsets(context.Background(), db)
			if err != nil {
				t.Fatal(err)
			}
			have := slices.Collect(maps.Values(known))
			for _, charset := range slices.Sorted(maps.Keys(transcoders)) {
				if transcoders[charset] == nil || charset == "utf32" {
					continue
				}
				if !slices.Contains(have, charset) {
					t.Errorf("the server has no charset %s", charset)
					continue
				}
				compareCharset(t, db, charset)
			}
		})
	}
}

func compareCharset(t *testing.T, db *sql.DB, charset string) {
	t.Helper()
	wide := charset == "ucs2" || strings.HasPrefix(charset, "utf16")
	different, compared := 0, 0
	compare := func(code []byte, want string) {
		if want == "" || want == "?" && string(code) != "?" || utf8.RuneCountInString(want) > 1 {
			return // no character to the server, or two
		}
		compared++
		if got := string(transcoders[charset](nil, code)); got != want {
			if different++; different < 6 {
				t.Errorf("%s %x is %q, the server says %q", charset, code, got, want)
			}
		}
	}
	if !wide {
		for n, want := range serverTexts(t, db, charset, 2) {
			compare([]byte{byte(n)}, want)
		}
	}
	if pairs[charset] {
		for n, want := range serverTexts(t, db, charset, 4) {
			if wide || n >= 0x8000 {
				compare([]byte{byte(n >> 8), byte(n)}, want)
			}
		}
	}
	if different > 0 || compared < 128 {
		t.Errorf("%s: %d of %d differ", charset, different, compared)
	}
}

// serverTexts asks the server for the UTF-8 of all codes of so many hexadecimal digits.
func serverTexts(t *testing.T, db *sql.DB, charset string, digits int) []string {
	t.Helper()
	var from, value []string
	for i := range digits {
		from = append(from, fmt.Sprintf("hex d%d", i))
		value = append(value, fmt.Sprintf("d%d.h", i))
	}
	query := fmt.Sprintf(`WITH hex AS (SELECT SUBSTR('0123456789ABCDEF', n, 1) h FROM (SELECT 1 n UNION SELECT 2 UNION SELECT 3 UNION SELECT 4
		UNION SELECT 5 UNION SELECT 6 UNION SELECT 7 UNION SELECT 8 UNION SELECT 9 UNION SELECT 10 UNION SELECT 11 UNION SELECT 12
		UNION SELECT 13 UNION SELECT 14 UNION SELECT 15 UNION SELECT 16) numbers),
		codes AS (SELECT CONCAT(%s) code FROM %s)
		SELECT CONV(code, 16, 10), COALESCE(HEX(CONVERT(CONVERT(UNHEX(code) USING %s) USING utf8mb4)), '') FROM codes`,
		strings.Join(value, ", "), strings.Join(from, ", "), charset)
	rows, err := db.QueryContext(context.Background(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	texts := make([]string, 1<<(4*digits))
	for rows.Next() {
		var n int
		var text string
		if err := rows.Scan(&n, &text); err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		texts[n] = string(b)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return texts
}
