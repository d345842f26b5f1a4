package mysql

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// wire makes the connections of the library below ours: reads have a deadline of their own, which begins when a read begins
// (the library's begins when the event before it was read, so that a Handler without room would look like a silent server),
// and abort ends whatever the library is doing.
type wire struct {
	network  string
	liveness time.Duration
	bytes    atomic.Uint64
	ctx      context.Context //nolint:containedctx // a net.Conn has no other way to learn that its owner is leaving
	cancel   context.CancelFunc

	mu    sync.Mutex
	conns []net.Conn
	done  bool
}

func newWire(ctx context.Context, liveness time.Duration) *wire {
	w := &wire{liveness: liveness}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

var errAborted = errors.New("the stream was ended")

// dial implements client.Dialer.
func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if w.ctx.Err() != nil {
		return nil, errAborted // the library wants to end its old connection by a new one: closing it is enough
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.ctx, cancel)() //nolint:contextcheck // the dial ends with either
	if w.network != "" {
		network = w.network
	}
	d := net.Dialer{Timeout: w.liveness, KeepAlive: 15 * time.Second}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil, errors.Join(errAborted, c.Close())
	}
	w.conns = append(w.conns, c)
	return &wireConn{Conn: c, w: w}, nil
}

// abort closes all connections; what is done with one returns at once.
func (w *wire) abort() {
	w.cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	for _, c := range w.conns {
		_ = c.Close() // nothing of ours is in it
	}
	w.conns = nil
}

type wireConn struct {
	net.Conn
	w *wire
}

func (c *wireConn) Read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.w.liveness)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.w.bytes.Add(uint64(n)) //nolint:gosec // never negative
	return n, err
}

func (c *wireConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.w.liveness)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// The library's own deadlines are not wanted.
func (c *wireConn) SetDeadline(time.Time) error      { return nil }
func (c *wireConn) SetReadDeadline(time.Time) error  { return nil }
func (c *wireConn) SetWriteDeadline(time.Time) error { return nil }
