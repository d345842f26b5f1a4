package testenv

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// NewDatabase makes an empty database for one test and returns its name. At
// the test's end it is dropped, with the connections and replication slots
// that are still there.
func (p *Postgres) NewDatabase(tb testing.TB) string {
	tb.Helper()
	name := UniqueName("t")
	p.Exec(tb, "", "CREATE DATABASE "+name)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := p.dropDatabase(ctx, name); err != nil {
			tb.Errorf("dropping database %s: %v", name, err)
		}
	})
	return name
}

// dropDatabase drops a database of this package. A slot is in the way until
// its walsender has noticed that it was terminated.
func (p *Postgres) dropDatabase(ctx context.Context, name string) error {
	if p.down() {
		return nil // a private server that the test left stopped
	}
	conn, err := pgx.Connect(ctx, p.DSN("", ""))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return poll(ctx, func() error {
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
			WHERE database = $1 AND active_pid IS NOT NULL`, name); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
			WHERE database = $1`, name); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
		return err
	})
}

// Connect opens a connection as superuser that is closed at the test's end.
func (p *Postgres) Connect(tb testing.TB, db string) *pgx.Conn {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.DSN(db, ""))
	if err != nil {
		tb.Fatalf("connecting to test database: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may be gone by the test's intent
	})
	return conn
}

// Exec runs statements as superuser on a connection of its own. Each string
// may hold several statements, which then are one transaction.
func (p *Postgres) Exec(tb testing.TB, db string, statements ...string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := p.exec(ctx, db, statements); err != nil {
		tb.Fatal(err)
	}
}

func (p *Postgres) exec(ctx context.Context, db string, statements []string) error {
	conn, err := pgx.Connect(ctx, p.DSN(db, ""))
	if err != nil {
		return fmt.Errorf("connecting to test database: %w", err)
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("running test statement %q: %w", statement, err)
		}
	}
	return nil
}
