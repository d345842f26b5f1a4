package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog" //nolint:depguard // the library takes no other logger
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
	"lethe/internal/testenv"
)

// counter is a Handler that counts, and ends a Run.
type counter struct{ rows, until int }

var errReached = errors.New("the end of the backlog")

func (c *counter) Begin(*capture.Transaction) error { return nil }
func (c *counter) Change(*capture.Change) error     { c.rows++; return nil }
func (c *counter) Commit(*capture.Transaction) error {
	if c.rows >= c.until {
		return errReached
	}
	return nil
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDrain reads transactions of one UPDATE and one INSERT, all of mapped tables or one in twenty, into a Handler that
// counts, and compares CPU and time with a bare loop of go-mysql that decodes every row. LETHE_BENCH_TRANSACTIONS is their number.
func BenchmarkDrain(b *testing.B) {
	n := 20_000
	if text := os.Getenv("LETHE_BENCH_TRANSACTIONS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	server := testenv.NewMySQL(b, testenv.MySQLOptions{Flavor: testenv.MySQLServer, Settings: map[string]string{"innodb_flush_log_at_trx_commit": "0"}})
	for _, share := range []int{1, 20} {
		b.Run("mapped_1_in_"+strconv.Itoa(share), func(b *testing.B) { benchmarkDrain(b, server, n, share) })
	}
}

func benchmarkDrain(b *testing.B, server *testenv.MySQL, n, share int) {
	b.Helper()
	e := newEnv(b, server)
	columns := `(id INT AUTO_INCREMENT PRIMARY KEY, customer_id INT, purpose_code VARCHAR(9), channel_code VARCHAR(9), status VARCHAR(9), legal_basis VARCHAR(9),
		last_name VARCHAR(190), birth_date DATE, changed_at TIMESTAMP(6) DEFAULT CURRENT_TIMESTAMP(6))`
	e.exec(b, "CREATE TABLE customer "+columns, "CREATE TABLE consent "+columns, "CREATE TABLE other "+columns,
		"CREATE PROCEDURE work(n INT, mapped INT) BEGIN DECLARE i INT DEFAULT 1; WHILE i <= n DO START TRANSACTION; IF i % mapped = 0 THEN "+work("customer", "consent")+
			" ELSE "+work("other", "other")+" END IF; COMMIT; SET i = i + 1; END WHILE; END",
		"INSERT INTO customer (last_name) VALUES ('x')", "INSERT INTO other (last_name) VALUES ('x')")
	e.need("customer", "id", "status")
	e.need("consent", "id", "customer_id", "purpose_code", "channel_code", "status", "legal_basis")
	e.track(b)
	e.exec(b, "CALL work("+strconv.Itoa(n)+", "+strconv.Itoa(share)+")")
	for b.Loop() {
		h := &counter{until: 2 * (n / share)}
		began, used := time.Now(), cpuTime(b)
		if err := e.source(b).Run(b.Context(), nil, h); !errors.Is(err, errReached) {
			b.Fatal(err)
		}
		took, cpu := time.Since(began), cpuTime(b)-used
		began, used = time.Now(), cpuTime(b)
		bareLoop(b, server, e.start.Start, 2*n)
		bare, bareCPU := time.Since(began), cpuTime(b)-used
		b.ReportMetric(float64(cpu.Nanoseconds())/float64(2*n), "ns-cpu/row")
		b.ReportMetric(float64(bareCPU.Nanoseconds())/float64(2*n), "ns-cpu/bare-row")
		b.ReportMetric(took.Seconds()/bare.Seconds(), "ratio")
	}
}

func work(update, insert string) string {
	return "UPDATE " + update + " SET status = i WHERE id = 1; INSERT INTO " + insert +
		" (customer_id, purpose_code, channel_code, status, legal_basis) VALUES (i, 'NL', 'E', 'Y', 'C');"
}

// bareLoop reads the log with go-mysql as it comes.
func bareLoop(b *testing.B, server *testenv.MySQL, from string, rows int) {
	b.Helper()
	host, portText, _ := strings.Cut(server.Addr(), ":")
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		b.Fatal(err)
	}
	position, err := gomysql.ParseMysqlGTIDSet(from)
	if err != nil {
		b.Fatal(err)
	}
	syncer := replication.NewBinlogSyncer(replication.BinlogSyncerConfig{
		ServerID: 4_000_000_000, Flavor: gomysql.MySQLFlavor, Host: host, Port: uint16(port), User: server.Root(), DisableRetrySync: true,
		Logger: slog.New(slog.DiscardHandler),
	})
	defer syncer.Close()
	stream, err := syncer.StartSyncGTID(position)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	for seen := 0; seen < rows; {
		event, err := stream.GetEvent(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if r, ok := event.Event.(*replication.RowsEvent); ok {
			if seen += len(r.Rows); r.Type() == replication.EnumRowsEventTypeUpdate {
				seen -= len(r.Rows) / 2
			}
		}
	}
}

// BenchmarkReadTable reads a table in the chunks of a pass, and beside that the same rows by a plain client with the same
// statements. LETHE_BENCH_ROWS is their number.
func BenchmarkReadTable(b *testing.B) {
	n := 100_000
	if text := os.Getenv("LETHE_BENCH_ROWS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	for _, flavor := range testFlavors {
		b.Run(flavor, func(b *testing.B) {
			e := newEnv(b, testenv.SharedMySQL(b, flavor))
			e.exec(b, `CREATE TABLE customer (customer_id INT AUTO_INCREMENT PRIMARY KEY, status VARCHAR(9), last_name VARCHAR(90), birth_date DATE, changed_at TIMESTAMP(6) NULL,
				no_marketing BOOLEAN NOT NULL DEFAULT FALSE)`, "INSERT INTO customer (status, last_name, birth_date, changed_at) VALUES ('A', 'Dupont', '1970-01-01', NOW())")
			for have := 1; have < n; have *= 2 {
				e.exec(b, fmt.Sprintf("INSERT INTO customer (status, last_name, birth_date, changed_at) SELECT status, last_name, birth_date, changed_at FROM customer LIMIT %d", n-have))
			}
			e.need("customer", "customer_id", "status", "last_name", "birth_date", "changed_at", "no_marketing")
			e.track(b)
			benchmarkReadTable(b, e, n)
		})
	}
}

func benchmarkReadTable(b *testing.B, e *env, n int) {
	b.Helper()
	src := e.plainSource(b)
	seen := capture.Position{GTID: e.start.Start}
	b.ReportAllocs()
	for b.Loop() {
		began, used := time.Now(), cpuTime(b)
		request, rows := capture.ChunkRequest{Table: e.db + ".customer", Limit: 1000, Seen: seen}, 0
		for done := false; !done; {
			var err error
			request.After, done, err = src.ReadChunk(b.Context(), request, func(*capture.Change) error { rows++; return nil })
			if err != nil {
				b.Fatal(err)
			}
		}
		took, cpu := time.Since(began), cpuTime(b)-used
		if rows < n {
			b.Fatalf("%d of %d rows", rows, n)
		}
		began = time.Now()
		plainClient(b, e, rows)
		b.ReportMetric(float64(cpu.Nanoseconds())/float64(rows), "ns-cpu/row")
		b.ReportMetric(time.Since(began).Seconds()/took.Seconds(), "of-plain-speed")
	}
}

// plainClient reads the same chunks.
func plainClient(b *testing.B, e *env, rows int) {
	b.Helper()
	statement, err := e.conn.PrepareContext(b.Context(),
		"SELECT customer_id, status, last_name, birth_date, changed_at, no_marketing FROM customer WHERE customer_id > ? ORDER BY customer_id LIMIT 1000")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = statement.Close() }()
	var id int
	var values [5]sql.RawBytes
	for seen := 0; seen < rows; {
		n, err := plainChunk(b, statement, &id, values[:])
		if err != nil {
			b.Fatal(err)
		}
		seen += n
	}
}

// plainChunk reads one chunk.
func plainChunk(b *testing.B, statement *sql.Stmt, id *int, values []sql.RawBytes) (n int, err error) {
	b.Helper()
	answer, err := statement.QueryContext(b.Context(), *id)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, answer.Close()) }()
	for answer.Next() {
		if err := answer.Scan(id, &values[0], &values[1], &values[2], &values[3], &values[4]); err != nil {
			return 0, err
		}
		n++
	}
	return n, answer.Err()
}
