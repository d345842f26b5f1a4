package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/internal/pii"
)

// readers are the ordinary connections that read tables: for passes, the gate and reading back. They are opened when
// somebody needs one and closed when nobody has for a while; how many there are at once is up to the callers.
type readers struct {
	o Options

	mu     sync.Mutex
	idle   []idleReader
	closed bool
}

type idleReader struct {
	conn  *pgx.Conn
	since time.Time
}

const (
	// idleReaders are kept at most.
	idleReaders = 4
	// readerIdle is after how long one is closed.
	readerIdle = 30 * time.Second
)

// readerSettings protect the primary: no question of ours may run for ever there. Nobody's commit depends on ours, so that
// ours need not wait for a synchronous standby.
const readerSettings = "SET statement_timeout = '60s'; SET lock_timeout = '5s'; SET synchronous_commit = 'local'"

// with lends a connection to f. One of which f's error leaves the state in doubt is closed.
func (r *readers) with(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	conn, err := r.take(ctx)
	if err != nil {
		return err
	}
	err = f(ctx, conn)
	r.giveBack(ctx, conn, err == nil)
	return err
}

// take returns an idle connection that the server has not closed meanwhile, or a new one.
func (r *readers) take(ctx context.Context) (*pgx.Conn, error) {
	for {
		var last idleReader
		r.mu.Lock()
		if n := len(r.idle); n > 0 {
			last = r.idle[n-1]
			r.idle = r.idle[:n-1]
		}
		r.mu.Unlock()
		if last.conn == nil {
			return r.open(ctx)
		}
		// The look is a round trip, and a chunk is not much more.
		if time.Since(last.since) < time.Second || last.conn.Ping(ctx) == nil {
			return last.conn, nil
		}
		closeConn(ctx, last.conn.PgConn())
	}
}

func (r *readers) open(ctx context.Context) (*pgx.Conn, error) {
	conn, err := connectSQL(ctx, r.o.DSN, r.o)
	if err != nil {
		return nil, err
	}
	if _, err := conn.PgConn().Exec(ctx, readerSettings).ReadAll(); err != nil {
		closeConn(ctx, conn.PgConn())
		return nil, fmt.Errorf("preparing a connection for reading: %w", pii.DriverError(err))
	}
	return conn, nil
}

func (r *readers) giveBack(ctx context.Context, conn *pgx.Conn, sound bool) {
	r.mu.Lock()
	if sound && !r.closed && !conn.IsClosed() && conn.PgConn().TxStatus() == 'I' && len(r.idle) < idleReaders {
		r.idle = append(r.idle, idleReader{conn, time.Now()})
		conn = nil
	}
	r.mu.Unlock()
	if conn != nil {
		closeConn(ctx, conn.PgConn())
	}
}

// tidy closes what nobody has needed for a while.
func (r *readers) tidy(ctx context.Context) {
	var old []*pgx.Conn
	r.mu.Lock()
	kept := r.idle[:0]
	for _, i := range r.idle {
		if time.Since(i.since) > readerIdle {
			old = append(old, i.conn)
			continue
		}
		kept = append(kept, i)
	}
	r.idle = kept
	r.mu.Unlock()
	for _, conn := range old {
		closeConn(ctx, conn.PgConn())
	}
}

func (r *readers) close(ctx context.Context) error {
	r.mu.Lock()
	idle := r.idle
	r.idle, r.closed = nil, true
	r.mu.Unlock()
	var errs []error
	for _, i := range idle {
		errs = append(errs, i.conn.Close(ctx))
	}
	return errors.Join(errs...)
}
