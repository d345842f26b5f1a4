package mysql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"lethe/capture"
	"lethe/internal/pii"
)

const (
	// lockEvery is how often the connection of the lock is used, and so how soon a lost lock is noticed.
	lockEvery = 2 * time.Second
	// lockTimeout is after how much silence the server ends the connection that holds the lock, so that a standby can take
	// over from a machine that vanished.
	lockTimeout = "15"
	// maxLockName is MySQL's limit on the name of a lock.
	maxLockName = 64
)

// lockName names the lock of GET_LOCK, which is known to the whole server.
func (s *Source) lockName() string {
	name := "lethe:" + s.o.Name
	if len(name) <= maxLockName {
		return name
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	sum := hex.EncodeToString(h.Sum(nil))
	return name[:maxLockName-len(sum)-1] + "~" + sum
}

// lock is the named lock: one capture at a time. It is a convenience, as a server may lose it without our noticing at once;
// what makes two captures harmless is ids, order, and a checkpoint that never moves back.
type lock struct {
	name string
	db   *sql.DB
	conn *sql.Conn
}

// takeLock fails with capture.ErrSlotInUse where somebody else has it. It waits a second for one who is leaving.
func (s *Source) takeLock(ctx context.Context) (*lock, error) {
	db, err := s.openSQL(1, map[string]string{"wait_timeout": lockTimeout, "net_read_timeout": lockTimeout}, true)
	if err != nil {
		return nil, err
	}
	l := &lock{name: s.lockName(), db: db}
	if l.conn, err = db.Conn(ctx); err != nil {
		l.close(ctx)
		return nil, fmt.Errorf("connecting to the source: %w", pii.DriverError(err))
	}
	var got sql.NullInt64
	if err := l.conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, 1)", l.name).Scan(&got); err != nil {
		l.close(ctx)
		return nil, fmt.Errorf("taking the lock %s on the source: %w", l.name, pii.DriverError(err))
	}
	if got.Int64 != 1 {
		l.close(ctx)
		return nil, fmt.Errorf("taking the lock %s on the source: %w", l.name, capture.ErrSlotInUse)
	}
	return l, nil
}

// keep uses the lock's connection until ctx ends, and returns why the lock is lost.
func (l *lock) keep(ctx context.Context) error {
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var mine sql.NullBool
		err := l.conn.QueryRowContext(ctx, "SELECT IS_USED_LOCK(?) = CONNECTION_ID()", l.name).Scan(&mine)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return errors.Join(errLockLost, pii.DriverError(err))
		case !mine.Bool:
			return errLockLost
		}
	}
}

// close ends the connection, and with it the lock. The lock is given back first, as the server takes its time with the end
// of a connection, and the next Run would find it taken.
func (l *lock) close(ctx context.Context) {
	if l.conn != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = l.conn.ExecContext(ctx, "DO RELEASE_LOCK(?)", l.name) // it goes with the connection otherwise
		_ = l.conn.Close()                                           // the pool ends it either way
	}
	_ = l.db.Close() // nothing of ours is in it
}
