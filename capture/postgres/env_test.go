package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/capture/postgres"
	"lethe/internal/testenv"
)

var versions = []int{15, 18}

// onEach runs a test against the shared servers of all versions.
func onEach(t *testing.T, f func(t *testing.T, e *env)) {
	t.Helper()
	for _, v := range versions {
		t.Run(fmt.Sprintf("PostgreSQL %d", v), func(t *testing.T) { f(t, newEnv(t, testenv.SharedPostgres(t, v))) })
	}
}

// env is a database with a publication and a slot. Slot and publication have the database's name.
type env struct {
	pg    *testenv.Postgres
	db    string
	conn  *pgx.Conn
	needs map[string]postgres.TableNeeds
	// params are added to the DSN of Sources.
	params string
}

func newEnv(tb testing.TB, pg *testenv.Postgres) *env {
	tb.Helper()
	return envOn(tb, pg, pg.NewDatabase(tb))
}

func envOn(tb testing.TB, pg *testenv.Postgres, db string) *env {
	tb.Helper()
	return &env{pg: pg, db: db, conn: pg.Connect(tb, db), needs: map[string]postgres.TableNeeds{}}
}

func (e *env) exec(tb testing.TB, statements ...string) {
	tb.Helper()
	for _, sql := range statements {
		if _, err := e.conn.Exec(tb.Context(), sql); err != nil {
			tb.Fatalf("running %.200q: %v", sql, err)
		}
	}
}

func (e *env) query(tb testing.TB, sql string) (s string) {
	tb.Helper()
	if err := e.conn.QueryRow(tb.Context(), sql).Scan(&s); err != nil {
		tb.Fatalf("asking %.200q: %v", sql, err)
	}
	return s
}

func (e *env) tx(tb testing.TB, statements ...string) {
	tb.Helper()
	e.exec(tb, "BEGIN")
	e.exec(tb, statements...)
	e.exec(tb, "COMMIT")
}

// table makes a table that the Sources need, and gives it the columns.
func (e *env) need(table string, columns ...string) {
	e.needs[table] = postgres.TableNeeds{Columns: columns}
}

// publish makes a publication of the needed tables, and the slot.
func (e *env) publish(tb testing.TB) {
	tb.Helper()
	var tables []string
	for table := range e.needs {
		tables = append(tables, table)
	}
	e.exec(tb, fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (publish_via_partition_root)", e.db, strings.Join(tables, ", ")))
	e.createSlot(tb)
}

func (e *env) createSlot(tb testing.TB) {
	tb.Helper()
	e.exec(tb, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", e.db))
}

func (e *env) dropSlot(tb testing.TB) {
	tb.Helper()
	e.awaitInactive(tb)
	e.exec(tb, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", e.db))
}

// awaitInactive waits until the server has noticed that the last reader is gone.
func (e *env) awaitInactive(tb testing.TB) {
	tb.Helper()
	testenv.Eventually(tb, 30*time.Second, func() error {
		if e.query(tb, fmt.Sprintf("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '%s' AND active", e.db)) != "0" {
			return fmt.Errorf("slot %s is active", e.db)
		}
		return nil
	})
}

func (e *env) options(tb testing.TB) postgres.Options {
	tb.Helper()
	return postgres.Options{
		DSN: e.pg.DSN(e.db, "") + e.params, Slot: e.db, Publication: e.db, Needs: e.needs,
		Log: zerolog.New(zerolog.NewTestWriter(tb)),
	}
}

func (e *env) source(tb testing.TB) *postgres.Source {
	tb.Helper()
	return newSource(tb, e.options(tb))
}

func newSource(tb testing.TB, o postgres.Options) *postgres.Source {
	tb.Helper()
	src, err := postgres.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = src.Close(ctx) // the server may be gone by the test's intent
	})
	return src
}

func (e *env) confirmed(tb testing.TB) uint64 {
	tb.Helper()
	var lsn uint64
	err := e.conn.QueryRow(tb.Context(), "SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::int8 FROM pg_replication_slots WHERE slot_name = $1",
		e.db).Scan(&lsn)
	if err != nil {
		tb.Fatal(err)
	}
	return lsn
}

// conformance adapts env to the suite.
func (e *env) conformance() *capturetest.Env {
	src := (*postgres.Source)(nil)
	return &capturetest.Env{
		Exec: e.exec,
		Tx:   e.tx,
		Track: func(tb testing.TB, needs ...capturetest.Need) {
			for _, n := range needs {
				e.needs[n.Table] = postgres.TableNeeds{Columns: n.Columns, OldColumns: n.Old}
			}
			e.publish(tb)
		},
		Source: func(tb testing.TB) capture.Source {
			src = e.source(tb)
			return src
		},
		Mark: func(tb testing.TB) {
			if err := src.EmitHeartbeat(tb.Context()); err != nil {
				tb.Fatal(err)
			}
		},
		Confirmed: e.confirmed,
		Timeout: func(_ testing.TB, d time.Duration) {
			e.params = fmt.Sprintf("&wal_sender_timeout=%d", d.Milliseconds())
		},
		Interrupt: func(tb testing.TB) {
			e.exec(tb, fmt.Sprintf("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '%s'", e.db))
		},
	}
}

func TestConformance(t *testing.T) {
	for _, v := range versions {
		t.Run(fmt.Sprintf("PostgreSQL %d", v), func(t *testing.T) {
			d := capturetest.Dialect{Schema: "public", BigText: "text"}
			capturetest.Run(t, d, func(tb testing.TB) *capturetest.Env {
				return newEnv(tb, testenv.SharedPostgres(tb, v)).conformance()
			})
		})
	}
}
