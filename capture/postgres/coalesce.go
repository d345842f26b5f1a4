package postgres

import (
	"context"
	"net"
	"time"
)

const (
	// readBuffer holds what one read of the socket may bring. It bounds how much was taken from the server and not yet
	// handed over.
	readBuffer = 256 << 10
	// littleRead is the size below which a read brought too little to be worth a system call.
	littleRead = 4 << 10
	// readPause is how long the next read waits after one that brought little. It bounds what coalescing adds to the
	// latency of a commit.
	readPause = 500 * time.Microsecond
)

// coalescer gathers socket reads. The walsender flushes every message by itself, so a client that reads as soon as
// something is there spends three quarters of its time in system calls (read and epoll for each message). Here a read that
// brought little is followed by a short pause, in which the kernel's buffer fills: at a trickle a message still arrives at
// once, only the one right after it waits, half a millisecond at most; in a backlog the server outruns the pause, reads
// come full and nobody waits.
//
// It lies below TLS, where a record is as small as a flush. Until start it reads through.
type coalescer struct {
	net.Conn
	ctx   context.Context //nolint:containedctx // a net.Conn has no other way to learn that its owner is leaving
	buf   []byte          // nil before start
	r, w  int
	fills uint64 // reads of the socket that brought something
	bytes uint64
	pause *time.Timer
	last  time.Time // end of the last read, where it brought little
}

// start begins to coalesce. ctx ends the pause, not the read: that takes a deadline.
func (c *coalescer) start(ctx context.Context) {
	c.ctx = ctx
	c.buf = make([]byte, readBuffer)
	c.pause = time.NewTimer(readPause)
}

// stop releases the timer.
func (c *coalescer) stop() { c.pause.Stop() }

// Read takes from the buffer, and fills it first where it is empty.
func (c *coalescer) Read(p []byte) (int, error) {
	if c.buf == nil {
		return c.Conn.Read(p)
	}
	if c.r == c.w {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}

func (c *coalescer) fill() error {
	if !c.last.IsZero() {
		if wait := readPause - time.Since(c.last); wait > 0 {
			c.pause.Reset(wait)
			select {
			case <-c.pause.C:
			case <-c.ctx.Done():
			}
		}
		c.last = time.Time{}
	}
	n, err := c.Conn.Read(c.buf)
	c.r, c.w = 0, n
	if n == 0 {
		return err
	}
	// An error that came with bytes comes again without them.
	c.fills++
	c.bytes += uint64(n) //nolint:gosec // a read's size
	if n < littleRead {
		c.last = time.Now()
	}
	return nil
}
