package mysql

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log/slog" //nolint:depguard // the library takes no other logger
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
	"lethe/internal/testenv"
)

var updateEvents = flag.Bool("update", false, "rewrite the recorded row events in testdata")

// The ways in which a server is asked for the text that a value should have.
const (
	asText    = "CONVERT(%s USING utf8mb4)"
	asChar    = "CAST(%s AS CHAR)"
	asNumber  = "CAST(%s + 0 AS CHAR)"
	asHex     = `CONCAT('\\x', LOWER(HEX(%s)))`
	asInstant = "IF(%[1]s = 0, CAST(%[1]s AS CHAR), CONCAT(CAST(%[1]s AS CHAR), '+00'))"
)

// typeCase is a column type with values to write, as SQL.
type typeCase struct {
	ddl    string
	shown  string
	values []string
	name   string // Column.Type
}

var typeCases = []typeCase{
	{"TINYINT", asNumber, []string{"-128", "0", "127", "NULL"}, "tinyint"},
	{"TINYINT UNSIGNED", asNumber, []string{"255", "0", "200"}, "tinyint unsigned"},
	{"BOOLEAN", asNumber, []string{"TRUE", "FALSE", "NULL"}, "tinyint"},
	{"SMALLINT", asNumber, []string{"-32768", "32767", "-1"}, "smallint"},
	{"SMALLINT(6) UNSIGNED ZEROFILL", asNumber, []string{"65535", "7"}, "smallint unsigned"},
	{"MEDIUMINT", asNumber, []string{"-8388608", "8388607", "-1", "1"}, "mediumint"},
	{"MEDIUMINT UNSIGNED", asNumber, []string{"16777215", "8388608"}, "mediumint unsigned"},
	{"INT", asNumber, []string{"-2147483648", "2147483647", "42"}, "int"},
	{"INT(10) UNSIGNED ZEROFILL", asNumber, []string{"4294967295", "42"}, "int unsigned"},
	{"BIGINT", asNumber, []string{"-9223372036854775808", "9223372036854775807", "0"}, "bigint"},
	{"BIGINT UNSIGNED", asNumber, []string{"18446744073709551615", "9223372036854775808", "1"}, "bigint unsigned"},
	{"DECIMAL(10,2)", asChar, []string{"-12345678.90", "0", "0.01", "-0.01", "99999999.99", "100"}, "decimal"},
	{"DECIMAL(65,30)", asChar, []string{
		"12345678901234567890123456789012345.123456789012345678901234567890", "-0.000000000000000000000000000001", "0",
		"-99999999999999999999999999999999999.999999999999999999999999999999", "1000000000.000000001",
	}, "decimal"},
	{"DECIMAL(9,0) UNSIGNED", asChar, []string{"123456789", "0", "1"}, "decimal unsigned"},
	{"DECIMAL(5,5)", asChar, []string{"0.12345", "-0.00001", "0"}, "decimal"},
	{"DECIMAL(20,0)", asChar, []string{"12345678901234567890", "-1", "1000000000"}, "decimal"},
	{"FLOAT", "CAST(%s AS DOUBLE)", []string{"1.5", "-0.1", "16777216", "3.4e38", "1e-10", "0"}, "float"},
	{"DOUBLE", asChar, []string{"0.1", "-1e300", "123456789012345", "1e15", "1e-15", "1.5e-16", "0", "1e20"}, "double"},
	{"BIT(1)", asNumber, []string{"b'1'", "b'0'", "NULL"}, "bit unsigned"},
	{"BIT(10)", asNumber, []string{"b'1111111111'", "b'1'", "b'1000000000'"}, "bit unsigned"},
	{"BIT(64)", asNumber, []string{"0xffffffffffffffff", "0x8000000000000000", "1"}, "bit unsigned"},
	{"YEAR", asChar, []string{"2024", "1901", "2155", "0"}, "year"},
	{"DATE", asChar, []string{"'2024-02-29'", "'0000-00-00'", "'9999-12-31'", "'1000-01-01'", "'2024-00-00'", "'2024-02-30'"}, "date"},
	{"TIME", asChar, []string{"'838:59:59'", "'-838:59:59'", "'00:00:00'", "'12:34:56'"}, "time"},
	{"TIME(3)", asChar, []string{"'-00:00:00.001'", "'12:34:56.789'", "'-12:34:56.7'", "'-00:00:01'", "'00:00:00'"}, "time"},
	{"TIME(2)", asChar, []string{"'-00:00:00.01'", "'-00:00:00.99'", "'-00:00:01.10'", "'11:59:59.5'"}, "time"},
	{"TIME(6)", asChar, []string{"'-837:59:59.999999'", "'00:00:00.000001'", "'-00:00:00.000001'"}, "time"},
	{"DATETIME", asChar, []string{"'2024-02-29 23:59:59'", "'0000-00-00 00:00:00'", "'9999-12-31 23:59:59'", "'2024-02-30 01:02:03'"}, "datetime"},
	{"DATETIME(1)", asChar, []string{"'2024-02-29 23:59:58.9'", "'0000-00-00 00:00:00.0'"}, "datetime"},
	{"DATETIME(4)", asChar, []string{"'2024-02-29 23:59:58.0001'", "'1000-01-01 00:00:00.9999'"}, "datetime"},
	{"DATETIME(6)", asChar, []string{"'2024-02-29 23:59:58.000001'", "'9999-12-31 23:59:59.999999'", "'0000-00-00 00:00:00'"}, "datetime"},
	{"TIMESTAMP NULL", asInstant, []string{"'2024-02-29 23:59:59'", "'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "'0000-00-00 00:00:00'", "NULL"}, "timestamp"},
	{"TIMESTAMP(3) NULL", asInstant, []string{"'2024-02-29 23:59:59.123'", "'0000-00-00 00:00:00'"}, "timestamp"},
	{"TIMESTAMP(6) NULL", asInstant, []string{"'2024-02-29 23:59:59.000001'", "'2038-01-19 03:14:06.999999'"}, "timestamp"},
	{"CHAR(10) CHARACTER SET latin1", asText, []string{"_latin1 x'636166E9'", "'ab  '", "''", "_latin1 x'808D9D9F'"}, "char"},
	{"CHAR(255) CHARACTER SET utf8mb4", asText, []string{"REPEAT('ж', 255)", "'x'", "'naïve 😀 '"}, "char"},
	{"VARCHAR(20) CHARACTER SET latin1", asText, []string{"_latin1 x'4DFC6C6C6572'", "'plain  '", "''"}, "varchar"},
	{"VARCHAR(300) CHARACTER SET utf8mb3", asText, []string{"'Zoë'", "REPEAT('é', 300)", "''", "NULL"}, "varchar"},
	{"VARCHAR(80) CHARACTER SET utf8mb4", asText, []string{"'Åsa 😀'", "'a'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET ucs2", asText, []string{"'Ümit'", "''", "'漢字'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET utf16", asText, []string{"'Ümit 😀'", "'漢字'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET utf16le", asText, []string{"'Ümit 😀'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET utf32", asText, []string{"'Ümit 😀'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET ascii", asText, []string{"'abc'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET latin2", asText, []string{"'Łódź'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET cp1251", asText, []string{"'Жанна'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET sjis", asText, []string{"'漢字カナ'"}, "varchar"},
	{"VARCHAR(20) CHARACTER SET gbk", asText, []string{"'汉字'"}, "varchar"},
	{"TINYTEXT CHARACTER SET latin1", asText, []string{"_latin1 x'E9'", "''"}, "tinytext"},
	{"TEXT CHARACTER SET utf8mb4", asText, []string{"REPEAT('ß', 1000)", "''"}, "text"},
	{"MEDIUMTEXT CHARACTER SET latin1", asText, []string{"REPEAT(_latin1 x'FC', 500)"}, "mediumtext"},
	{"LONGTEXT", asText, []string{"'long'"}, "longtext"},
	{"BINARY(5)", asHex, []string{"x'0001FF'", "x'0102030400'", "''"}, "binary"},
	{"VARBINARY(300)", asHex, []string{"x'0001FF00'", "''"}, "varbinary"},
	{"TINYBLOB", asHex, []string{"x'00FF'"}, "tinyblob"},
	{"BLOB", asHex, []string{"x'0001'", "''", "REPEAT(x'AB', 300)"}, "blob"},
	{"LONGBLOB", asHex, []string{"x'FE'"}, "longblob"},
	{"ENUM('a','b,c','Größe') CHARACTER SET latin1", asText, []string{"'a'", "'b,c'", "'Größe'", "''", "NULL"}, "enum"},
	{"SET('x','y','Größe') CHARACTER SET utf8mb4", asText, []string{"'x,Größe'", "''", "'y'", "'x,y,Größe'"}, "set"},
	{"JSON", asText, []string{
		`'{"b": 1, "a": [true, null, "x\\"y", 1.5, -7, 1e30, {"k": "ü"}]}'`, `'[]'`, `'{}'`, `'"text"'`, `'12'`, "NULL",
		`CONCAT('[', REPEAT('"0123456789abcdef", ', 5000), '4000000000, 70000, -70000, 18446744073709551615, -9223372036854775808]')`,
		`'1.0'`, `'-0.5'`, `'1e-7'`, `'["\\u0001\\t\\n", "\\u00e9"]'`,
	}, "json"},
}

// onlyMySQL are written with functions that MariaDB's JSON, a text, would print differently.
var onlyMySQL = []typeCase{
	{"JSON", asChar, []string{
		`JSON_ARRAY(CAST(-12.30 AS DECIMAL(10,2)), CAST('2024-02-29' AS DATE), CAST('2024-02-29 01:02:03.5' AS DATETIME(6)), CAST('-11:22:33.000001' AS TIME(6)))`,
		`JSON_ARRAY(CAST(x'00FF' AS BINARY), b'101', CAST('00:00:00' AS TIME), POINT(1, 2), CAST(1 AS YEAR), 0.1e0, 100e0)`,
		`JSON_OBJECT('d', 123456789012345678901234567890.5, 'u', 18446744073709551615)`,
	}, "json"},
}

// stored are the settings under which anything may be stored.
const stored = "SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'"

func TestValuesAreReadAsTheServerPrintsThem(t *testing.T) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) {
			server := testenv.SharedMySQL(t, flavor)
			cases := slices.Clone(typeCases)
			if flavor == testenv.MySQLServer {
				cases = append(cases, onlyMySQL...)
			}
			checkValues(t, server, cases, stored)
		})
	}
}

// checkValues writes, changes and deletes rows and compares what the log says with what the server prints.
func checkValues(t *testing.T, server *testenv.MySQL, cases []typeCase, session string) {
	t.Helper()
	db := server.NewDatabase(t)
	columns, rows := make([]string, len(cases)), 0
	for i, c := range cases {
		columns[i] = fmt.Sprintf("c%d %s", i, c.ddl)
		rows = max(rows, len(c.values))
	}
	server.Exec(t, db, "CREATE TABLE every (id INT PRIMARY KEY, note INT NOT NULL DEFAULT 0, "+strings.Join(columns, ", ")+")")
	log := startLog(t, server, db)
	statements := []string{session}
	for r := range rows {
		values := make([]string, len(cases))
		for i, c := range cases {
			values[i] = c.values[r%len(c.values)]
		}
		statements = append(statements, fmt.Sprintf("INSERT INTO every VALUES (%d, 0, %s)", r, strings.Join(values, ", ")))
	}
	server.Exec(t, db, append(statements, "UPDATE every SET note = note + 1")...)
	want := printed(t, server, db, cases, session)
	server.Exec(t, db, session+"; DELETE FROM every")
	needs := TableNeeds{Columns: []string{"id"}}
	for i := range cases {
		needs.Columns = append(needs.Columns, fmt.Sprintf("c%d", i))
	}
	changes := log.changes(t, map[string]TableNeeds{db + ".every": needs}, 3*rows)
	for n, c := range changes {
		wantOp := []capture.Op{capture.OpInsert, capture.OpUpdate, capture.OpDelete}[n/rows]
		if c.Op != wantOp {
			t.Fatalf("change %d is %v, want %v", n, c.Op, wantOp)
		}
		for _, image := range [][]capture.Value{c.Old, c.New} {
			if image != nil {
				comparePrinted(t, c.Table, image, cases, want)
			}
		}
	}
}

// comparePrinted compares one row image. Its columns are id, note, c0, c1 and so on.
func comparePrinted(t *testing.T, table *capture.Table, image []capture.Value, cases []typeCase, want map[string][]sql.NullString) {
	t.Helper()
	if image[1].State != capture.Absent {
		t.Errorf("a column that is not mapped has state %d", image[1].State)
	}
	id := string(image[0].Text)
	for i, c := range cases {
		got, want := image[i+2], want[id][i]
		same := string(got.Text) == want.String
		if strings.HasPrefix(c.ddl, "FLOAT") {
			a, _ := strconv.ParseFloat(string(got.Text), 32)
			b, _ := strconv.ParseFloat(want.String, 64)
			same = float32(a) == float32(b)
		}
		if want.Valid != (got.State == capture.Present) || !same {
			t.Errorf("row %s, %s: got state %d %.300q, the server prints %.300q", id, c.ddl, got.State, got.Text, want.String)
		}
		name := table.Columns[i+2].Type
		if c.name != name && (c.name != "json" || name != "longtext") {
			t.Errorf("%s has type %q, want %q", c.ddl, name, c.name)
		}
	}
}

// printed returns by id what the server prints of each column.
func printed(t *testing.T, server *testenv.MySQL, db string, cases []typeCase, session string) map[string][]sql.NullString {
	t.Helper()
	ctx := context.Background()
	conn, err := server.Open(t, db).Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, session); err != nil {
		t.Fatal(err)
	}
	shown := []string{"CAST(id AS CHAR)"}
	for i, c := range cases {
		shown = append(shown, fmt.Sprintf(c.shown, fmt.Sprintf("c%d", i)))
	}
	rows, err := conn.QueryContext(ctx, "SELECT "+strings.Join(shown, ", ")+" FROM every")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string][]sql.NullString{}
	for rows.Next() {
		texts := make([]sql.NullString, len(shown))
		into := make([]any, len(shown))
		for i := range texts {
			into[i] = &texts[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		all[texts[0].String] = texts[1:]
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// logReader reads a server's log from where it stood when it was made.
type logReader struct {
	server *testenv.MySQL
	db     string
	from   gomysql.Position
	events []recordedEvent
}

type recordedEvent struct {
	kind replication.EventType
	body []byte
}

func startLog(t *testing.T, server *testenv.MySQL, db string) *logReader {
	t.Helper()
	pool := server.Open(t, db)
	query := "SHOW MASTER STATUS"
	if server.Flavor() == testenv.MySQLServer {
		query = "SHOW BINARY LOG STATUS"
	}
	rows, err := pool.QueryContext(context.Background(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil || !rows.Next() {
		t.Fatalf("the server has no binary log: %v", err)
	}
	var file string
	var offset uint32
	into := []any{&file, &offset}
	for range names[2:] {
		into = append(into, new(sql.RawBytes))
	}
	if err := errors.Join(rows.Scan(into...), rows.Err()); err != nil {
		t.Fatal(err)
	}
	return &logReader{server: server, db: db, from: gomysql.Position{Name: file, Pos: offset}}
}

// read gathers the table maps and row events of the log reader's database until the table named end is met.
func (l *logReader) read(t *testing.T, end string) {
	t.Helper()
	host, portText, _ := strings.Cut(l.server.Addr(), ":")
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	flavor := gomysql.MySQLFlavor
	if l.server.Flavor() == testenv.MariaDB {
		flavor = gomysql.MariaDBFlavor
	}
	syncer := replication.NewBinlogSyncer(replication.BinlogSyncerConfig{
		ServerID: uint32(os.Getpid())<<8 | 1<<30, Flavor: flavor, Host: host, Port: uint16(port), User: l.server.Root(),
		DisableRetrySync: true, Logger: slog.New(slog.DiscardHandler),
		RowsEventDecodeFunc: func(e *replication.RowsEvent, b []byte) error { _, err := e.DecodeHeader(b); return err },
	})
	defer syncer.Close()
	stream, err := syncer.StartSync(l.from)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	checksum := 0
	for {
		event, err := stream.GetEvent(ctx)
		if err != nil {
			t.Fatalf("reading the log: %v", err)
		}
		if format, ok := event.Event.(*replication.FormatDescriptionEvent); ok && format.ChecksumAlgorithm == replication.BINLOG_CHECKSUM_ALG_CRC32 {
			checksum = replication.BinlogChecksumLength
		}
		table := l.record(event, checksum)
		if table == end {
			return
		}
	}
}

// record keeps an event of our database and returns the table that a map describes.
func (l *logReader) record(event *replication.BinlogEvent, checksum int) string {
	body := event.RawData[replication.EventHeaderSize : len(event.RawData)-checksum]
	switch e := event.Event.(type) {
	case *replication.TransactionPayloadEvent:
		table := ""
		for _, inner := range e.Events {
			if name := l.record(inner, 0); name != "" {
				table = name
			}
		}
		return table
	case *replication.TableMapEvent:
		if string(e.Schema) == l.db {
			l.events = append(l.events, recordedEvent{event.Header.EventType, body})
			return string(e.Table)
		}
	case *replication.RowsEvent:
		if string(e.Table.Schema) == l.db {
			l.events = append(l.events, recordedEvent{event.Header.EventType, body})
		}
	}
	return ""
}

// changes reads the log to its present end and decodes it.
func (l *logReader) changes(t *testing.T, needs map[string]TableNeeds, want int) []capture.Change {
	t.Helper()
	all, err := l.decode(t, needs)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != want {
		t.Fatalf("%d changes, want %d", len(all), want)
	}
	if *updateEvents {
		l.save(t)
	}
	return all
}

// decode is changes for a log that may not be decodable.
func (l *logReader) decode(t *testing.T, needs map[string]TableNeeds) (all []capture.Change, err error) {
	t.Helper()
	l.server.Exec(t, l.db, "CREATE TABLE the_end (id INT)", "INSERT INTO the_end VALUES (1)")
	l.read(t, "the_end")
	return decodeEvents(t, l, needs)
}

// decodeEvents decodes what was read.
func decodeEvents(t *testing.T, l *logReader, needs map[string]TableNeeds) (all []capture.Change, err error) {
	t.Helper()
	charsets, err := readCharsets(context.Background(), l.server.Open(t, l.db))
	if err != nil {
		t.Fatal(err)
	}
	mariadb := l.server.Flavor() == testenv.MariaDB
	d := newRowDecoder(rowOptions{Needs: needs, Charsets: charsets, MariaDB: mariadb})
	var lastMap []byte
	for _, e := range l.events {
		if e.kind == replication.TABLE_MAP_EVENT {
			lastMap = e.body
			if err := d.tableMap(e.body); err != nil {
				return all, err
			}
			continue
		}
		err := d.rows(e.kind, e.body, func(c *capture.Change) error {
			all = append(all, capture.Change{Op: c.Op, Table: c.Table, Old: cloneRow(c.Old), New: cloneRow(c.New)})
			return nil
		})
		if err != nil {
			return all, err
		}
		decodeBoth(t, charsets, mariadb, lastMap, e.kind, e.body)
	}
	return all, nil
}

// save writes the events down for the tests that need no server.
func (l *logReader) save(t *testing.T) {
	t.Helper()
	var b strings.Builder
	for _, e := range l.events {
		if len(e.body) > 8<<10 {
			continue
		}
		fmt.Fprintf(&b, "%d %x\n", e.kind, e.body)
	}
	name := strings.ReplaceAll(strings.TrimPrefix(t.Name(), "Test"), "/", "_") + ".events"
	if err := os.MkdirAll(filepath.Join("testdata", "events"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", "events", name), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}
