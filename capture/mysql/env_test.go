package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/mysqlconn"
	"lethe/internal/testenv"
)

var testFlavors = []string{testenv.MariaDB, testenv.MySQLServer}

// onEach runs a test against the shared servers of both flavors.
func onEach(t *testing.T, f func(t *testing.T, e *env)) {
	t.Helper()
	for _, flavor := range testFlavors {
		t.Run(flavor, func(t *testing.T) { f(t, newEnv(t, testenv.SharedMySQL(t, flavor))) })
	}
}

// env is a database with a heartbeat table. The place from which Sources read is where the log stood at track.
type env struct {
	server *testenv.MySQL
	db     string
	pool   *sql.DB
	conn   *sql.Conn
	needs  map[string]TableNeeds
	start  capture.Identity
	change func(*Options)
}

func newEnv(tb testing.TB, server *testenv.MySQL) *env {
	tb.Helper()
	return envOn(tb, server, server.NewDatabase(tb))
}

func envOn(tb testing.TB, server *testenv.MySQL, db string) *env {
	tb.Helper()
	e := &env{server: server, db: db, pool: server.Open(tb, db), needs: map[string]TableNeeds{}}
	conn, err := e.pool.Conn(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	e.conn = conn
	return e
}

func (e *env) exec(tb testing.TB, statements ...string) {
	tb.Helper()
	for _, s := range statements {
		if _, err := e.conn.ExecContext(tb.Context(), s); err != nil {
			tb.Fatalf("running %.200q: %v", s, err)
		}
	}
}

func (e *env) tx(tb testing.TB, statements ...string) {
	tb.Helper()
	e.exec(tb, "BEGIN")
	e.exec(tb, statements...)
	e.exec(tb, "COMMIT")
}

func (e *env) query(tb testing.TB, q string) (s string) {
	tb.Helper()
	if err := e.conn.QueryRowContext(tb.Context(), q).Scan(&s); err != nil {
		tb.Fatalf("asking %.200q: %v", q, err)
	}
	return s
}

func (e *env) need(table string, columns ...string) {
	e.needs[e.db+"."+table] = TableNeeds{Columns: columns}
}

// track makes the heartbeat's table, and remembers where the log stands.
func (e *env) track(tb testing.TB) {
	tb.Helper()
	e.exec(tb, heartbeatSQL(e.db+".lethe_heartbeat")...)
	id, err := e.plainSource(tb).Identity(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	e.start = id
}

func (e *env) options(tb testing.TB) Options {
	tb.Helper()
	o := Options{
		Name: e.db, Login: mysqlconn.Login{DSN: e.server.DSN(e.db, e.server.Root())}, Heartbeat: e.db + ".lethe_heartbeat",
		Needs: e.needs, RequireGTID: true, Log: zerolog.New(zerolog.NewTestWriter(tb)),
	}
	if e.change != nil {
		e.change(&o)
	}
	return o
}

func (e *env) plainSource(tb testing.TB) *Source {
	tb.Helper()
	src, err := New(e.options(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = src.Close(context.Background()) })
	src.settleWithin = time.Second
	return src
}

// fromStart is a Source that begins at the remembered place where it is given no checkpoint.
type fromStart struct {
	*Source
	start capture.Identity
}

func (s fromStart) Run(ctx context.Context, from *capture.Checkpoint, h capture.Handler) error {
	if from == nil {
		from = &capture.Checkpoint{Identity: s.start}
	}
	return s.Source.Run(ctx, from, h)
}

func (e *env) source(tb testing.TB) fromStart {
	tb.Helper()
	return fromStart{e.plainSource(tb), e.start}
}

// interrupt ends the connections that read the log.
func (e *env) interrupt(tb testing.TB) {
	tb.Helper()
	rows, err := e.pool.QueryContext(tb.Context(), "SELECT ID FROM information_schema.processlist WHERE COMMAND LIKE 'Binlog Dump%'")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	n := 0
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			tb.Fatal(err)
		}
		e.exec(tb, fmt.Sprintf("KILL %d", id))
		n++
	}
	if err := rows.Err(); err != nil || n == 0 {
		tb.Fatalf("%d connections read the log: %v", n, err)
	}
}

// conformance adapts env to the suite.
func (e *env) conformance() *capturetest.Env {
	src := (*Source)(nil)
	return &capturetest.Env{
		Schema: e.db,
		Exec:   e.exec,
		Tx:     e.tx,
		Track: func(tb testing.TB, needs ...capturetest.Need) {
			for _, n := range needs {
				e.needs[n.Table] = TableNeeds{Columns: n.Columns, OldColumns: n.Old}
			}
			e.track(tb)
		},
		Source: func(tb testing.TB) capture.Source {
			s := e.source(tb)
			src = s.Source
			return s
		},
		Mark: func(tb testing.TB) {
			if err := src.EmitHeartbeat(tb.Context()); err != nil {
				tb.Fatal(err)
			}
		},
		Confirmed: func(testing.TB) uint64 { return 0 },
		Timeout: func(tb testing.TB, d time.Duration) {
			was := e.query(tb, "SELECT @@global.net_write_timeout")
			e.exec(tb, fmt.Sprintf("SET GLOBAL net_write_timeout = %d", int(d.Seconds())))
			tb.Cleanup(func() { e.server.Exec(tb, "", "SET GLOBAL net_write_timeout = "+was) })
		},
		Interrupt: e.interrupt,
	}
}

func TestConformance(t *testing.T) {
	for _, flavor := range testFlavors {
		t.Run(flavor, func(t *testing.T) {
			d := capturetest.Dialect{BigText: "longtext", MappedOnly: true, Garbage: 20 << 20, Server: `mysql: {dsn: "lethe@tcp(db)/crm"}`}
			capturetest.Run(t, d, func(tb testing.TB) *capturetest.Env {
				return newEnv(tb, testenv.SharedMySQL(tb, flavor)).conformance()
			})
		})
	}
}
