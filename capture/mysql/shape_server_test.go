package mysql

import (
	"errors"
	"strings"
	"testing"

	"lethe/capture"
	"lethe/internal/testenv"
)

// onBoth runs a test on both servers.
func onBoth(t *testing.T, test func(t *testing.T, server *testenv.MySQL)) {
	t.Helper()
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) { test(t, testenv.SharedMySQL(t, flavor)) })
	}
}

// texts joins the values of a row image: NULL, - for one that is absent.
func texts(row []capture.Value) string {
	if row == nil {
		return ""
	}
	parts := make([]string, len(row))
	for i, v := range row {
		switch v.State {
		case capture.Present:
			parts[i] = string(v.Text)
		case capture.Null:
			parts[i] = "NULL"
		case capture.Absent, capture.Unchanged:
			parts[i] = "-"
		}
	}
	return strings.Join(parts, "|")
}

func expectRows(t *testing.T, changes []capture.Change, want ...string) {
	t.Helper()
	for i, c := range changes {
		if got := c.Op.String() + " " + texts(c.Old) + " > " + texts(c.New); i >= len(want) || got != want[i] {
			t.Errorf("change %d is %q", i, got)
		}
	}
	if len(changes) != len(want) {
		t.Errorf("%d changes, want %d", len(changes), len(want))
	}
}

func TestARowWithoutAMappedColumnStops(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		for statement, key := range map[string]string{
			"UPDATE customer SET name = 'x' WHERE id = 1": "PRIMARY KEY", "DELETE FROM customer WHERE id = 1": "PRIMARY KEY",
			"INSERT INTO customer (id) VALUES (2)": "PRIMARY KEY",
			// Without a key the old image is whole, and on MySQL the new one has what changed.
			"UPDATE customer SET note = 'x' WHERE id = 1": "",
		} {
			if key == "" && server.Flavor() == testenv.MariaDB {
				continue
			}
			db := server.NewDatabase(t)
			server.Exec(t, db, "CREATE TABLE customer (id INT "+key+", name VARCHAR(20) DEFAULT 'n', note TEXT)", "INSERT INTO customer VALUES (1, 'n', 'n')")
			log := startLog(t, server, db)
			server.Exec(t, db, "SET SESSION binlog_row_image = 'MINIMAL'; "+statement)
			_, err := log.decode(t, map[string]TableNeeds{db + ".customer": {Columns: []string{"id", "name"}}})
			var image *ImageError
			if !errors.As(err, &image) || image.Table != db+".customer" || len(image.Columns) == 0 || !capture.IsPermanent(err) {
				t.Errorf("%s: %v", statement, err)
				continue
			}
			if at := placed(err, "0-1-7").Error(); !strings.Contains(at, "0-1-7") || !strings.Contains(at, "SET GLOBAL binlog_row_image = 'FULL'") {
				t.Errorf("the operator reads %q", at)
			}
		}
	})
}

// The bits of a bitmap behind the last column mean nothing.
func TestColumnsArePresentOrNot(t *testing.T) {
	for columns, want := range map[int]int{10: 10, 16: 16, 9: 9} {
		if got := newImage([]byte{0xff, 0xff}, columns).count; got != want {
			t.Errorf("%d of %d columns are present", got, want)
		}
	}
}

// A session that leaves unchanged blobs out does no harm while none of them is mapped.
func TestARowWithoutAnUnmappedColumnIsRead(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		db := server.NewDatabase(t)
		server.Exec(t, db, "CREATE TABLE customer (note TEXT, id INT PRIMARY KEY, name VARCHAR(20), photo BLOB)", "INSERT INTO customer VALUES ('n', 1, NULL, 'p')")
		log := startLog(t, server, db)
		server.Exec(t, db, "SET SESSION binlog_row_image = 'NOBLOB'; UPDATE customer SET name = 'x'; DELETE FROM customer")
		changes := log.changes(t, map[string]TableNeeds{db + ".customer": {Columns: []string{"id", "name"}}}, 2)
		expectRows(t, changes, "update -|1|NULL|- > -|1|x|-", "delete -|1|x|- > ")
	})
}

func TestAnAlterStopsOnlyWhereAMappedColumnGoes(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		db := server.NewDatabase(t)
		server.Exec(t, db, "CREATE TABLE customer (id INT PRIMARY KEY, name VARCHAR(20), old INT)")
		log := startLog(t, server, db)
		server.Exec(t, db,
			"INSERT INTO customer VALUES (1, 'a', 7)", "FLUSH TABLES", "INSERT INTO customer VALUES (2, 'b', 7)",
			"ALTER TABLE customer ADD first_one VARBINARY(300) FIRST, DROP old", "INSERT INTO customer VALUES ('x', 3, 'c')",
			"ALTER TABLE customer MODIFY name MEDIUMTEXT CHARACTER SET latin1", "INSERT INTO customer VALUES ('x', 4, 'é')",
			"ALTER TABLE customer RENAME COLUMN name TO full_name", "INSERT INTO customer VALUES ('x', 5, 'e')")
		changes, err := log.decode(t, map[string]TableNeeds{db + ".customer": {Columns: []string{"id", "name"}}})
		expectRows(t, changes, "insert  > 1|a|-", "insert  > 2|b|-", "insert  > -|3|c", "insert  > -|4|é")
		var column *ColumnError
		if !errors.As(err, &column) || column.Column != "name" {
			t.Errorf("after the column was renamed: %v", err)
		}
		if len(changes) != 4 || changes[0].Table != changes[1].Table || changes[1].Table == changes[2].Table || changes[2].Table == changes[3].Table {
			t.Error("a Table is of one shape, and one shape is of one Table")
		}
		if !changes[0].Table.Columns[0].Key || changes[0].Table.Columns[1].Key {
			t.Errorf("the key is %+v", changes[0].Table.Columns)
		}
	})
}

func TestGeneratedAndInvisibleColumns(t *testing.T) {
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		db := server.NewDatabase(t)
		server.Exec(t, db, `CREATE TABLE customer (id INT PRIMARY KEY, v INT AS (id * 2) VIRTUAL, s VARCHAR(20) AS (CONCAT('n', id)) STORED,
			hidden INT INVISIBLE DEFAULT 5, place POINT, name VARCHAR(10))`)
		log := startLog(t, server, db)
		server.Exec(t, db, "INSERT INTO customer (id, place, name) VALUES (21, POINT(1, 2), 'a')", "UPDATE customer SET hidden = 6")
		mapped, want := []string{"id", "hidden", "name", "s"}, []string{"insert  > 21|-|n21|5|-|a", "update 21|-|n21|5|-|a > 21|-|n21|6|-|a"}
		if leavesOutGenerated(t, server) { // and check refuses the column
			mapped, want = mapped[:3], []string{"insert  > 21|-|-|5|-|a", "update 21|-|-|5|-|a > 21|-|-|6|-|a"}
		}
		expectRows(t, log.changes(t, map[string]TableNeeds{db + ".customer": {Columns: mapped}}, 2), want...)
	})
}

// What cannot be read is passed over by its length, and refused by its name where it is mapped.
func TestColumnsThatCannotBeRead(t *testing.T) {
	type odd struct{ ddl, value, name string }
	both := []odd{
		{"GEOMETRY", "ST_GeomFromText('LINESTRING(0 0, 1 1)')", "geometry"},
		{"VARCHAR(20) CHARACTER SET big5", "'a'", "big5"},
		{"VARCHAR(20) CHARACTER SET armscii8", "'a'", "armscii8"},
		{"ENUM('a','b') CHARACTER SET hp8", "'a'", "hp8"},
	}
	only := map[string][]odd{
		testenv.MySQLServer: {{"VECTOR(3)", "STRING_TO_VECTOR('[1,2,3]')", "vector"}},
		testenv.MariaDB:     {{"VARCHAR(200) COMPRESSED", "REPEAT('a', 200)", "compressed"}, {"BLOB COMPRESSED", "REPEAT('a', 200)", "compressed"}},
	}
	onBoth(t, func(t *testing.T, server *testenv.MySQL) {
		for _, o := range append(both, only[server.Flavor()]...) {
			db := server.NewDatabase(t)
			server.Exec(t, db, "CREATE TABLE customer (id INT PRIMARY KEY, latin VARCHAR(9) CHARACTER SET latin1, odd "+o.ddl+", name VARCHAR(10) CHARACTER SET ucs2)")
			log := startLog(t, server, db)
			server.Exec(t, db, "INSERT INTO customer VALUES (1, 'é', "+o.value+", 'ö')", "DELETE FROM customer")
			mapped := []string{"id", "latin", "name"}
			changes, err := log.decode(t, map[string]TableNeeds{db + ".customer": {Columns: mapped}})
			if err != nil {
				t.Errorf("%s unmapped: %v", o.ddl, err)
			}
			expectRows(t, changes, "insert  > 1|é|-|ö", "delete 1|é|-|ö > ")
			log = &logReader{server: server, db: db, events: log.events}
			_, err = decodeEvents(t, log, map[string]TableNeeds{db + ".customer": {Columns: append(mapped, "odd")}})
			var columnType *ColumnTypeError
			if !errors.As(err, &columnType) || columnType.Column != "odd" || !strings.Contains(err.Error(), o.name) {
				t.Errorf("%s mapped: %v", o.ddl, err)
			}
		}
	})
}

func TestPartialJSONIsRefusedOnAMappedColumn(t *testing.T) {
	server := testenv.SharedMySQL(t, testenv.MySQLServer)
	db := server.NewDatabase(t)
	server.Exec(t, db, "CREATE TABLE customer (id INT PRIMARY KEY, a JSON, b JSON, name VARCHAR(10))",
		`INSERT INTO customer VALUES (1, '{"x": "0123456789012345678901234567890123456789"}', '{"x": 1}', 'n')`)
	log := startLog(t, server, db)
	server.Exec(t, db, `SET SESSION binlog_row_value_options = 'PARTIAL_JSON'; UPDATE customer SET a = JSON_SET(a, '$.x', 'short'), name = 'm'`)
	changes, err := log.decode(t, map[string]TableNeeds{db + ".customer": {Columns: []string{"id", "b", "name"}}})
	if err != nil {
		t.Fatal(err)
	}
	expectRows(t, changes, `update 1|-|{"x": 1}|n > 1|-|{"x": 1}|m`)
	_, err = decodeEvents(t, log, map[string]TableNeeds{db + ".customer": {Columns: []string{"id", "a"}}})
	var columnType *ColumnTypeError
	if !errors.As(err, &columnType) || columnType.Column != "a" || !strings.Contains(err.Error(), "binlog_row_value_options") {
		t.Errorf("a mapped partial JSON: %v", err)
	}
}

func TestCompressedTransactionsAreRead(t *testing.T) {
	server := testenv.SharedMySQL(t, testenv.MySQLServer)
	checkValues(t, server, typeCases[:20], stored+", binlog_transaction_compression = ON")
}

// MariaDB's compressed row events, and the temporal types as they were before 5.6, which tables of that time still have.
func TestOldAndCompressedRowsOfMariaDB(t *testing.T) {
	server := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MariaDB, Settings: map[string]string{
		"log_bin_compress": "ON", "log_bin_compress_min_len": "10", "mysql56_temporal_format": "OFF",
	}})
	var cases []typeCase
	for _, c := range typeCases {
		// The old types with fractions of a second lie in the log without their number of digits.
		temporal := c.name == "time" || c.name == "datetime" || c.name == "timestamp"
		if !temporal || !strings.Contains(c.ddl, "(") {
			cases = append(cases, c)
		}
	}
	checkValues(t, server, cases, stored)
}
