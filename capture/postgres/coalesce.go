package postgres

import (
	"context"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	// readBuffer holds what one read of the socket may bring. It bounds how much was taken from the server and not yet
	// handed over.
	readBuffer = 256 << 10
	// plenty is what a read has to bring for the next one to follow at once. The kernel wakes nobody before so much is
	// there, as long as the coalescer is not waiting for the first byte.
	plenty = 64 << 10
	// readPause is how long a read waits after one that did not bring plenty. It bounds what coalescing adds to the latency
	// of a commit (the runtime rounds it up to a millisecond).
	readPause = 500 * time.Microsecond
)

// coalescer gathers socket reads. The walsender flushes every message by itself, so a client that reads as soon as
// something is there spends three quarters of its time in system calls (a read and an epoll event for each message), and
// the server wakes it up each time. Here a read that brought little is followed by a short pause, in which the kernel's
// buffer fills. Not reading is not enough for that: the socket stays registered with the runtime's poller, edge-triggered,
// and each arriving message would end the poller's wait. So during the pause the socket's low-water mark is raised
// (SO_RCVLOWAT), below which the kernel keeps quiet.
//
// At a trickle a message still arrives at once, only one that comes right after it waits for the pause. In a backlog all
// messages of a millisecond come with one read.
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

	raw   syscall.RawConn       // nil: the socket cannot be looked at without waiting
	take  func(fd uintptr) bool // reads once and never waits; sets took and failed
	mark  func(fd uintptr)      // sets the low-water mark to lowAt
	took  int
	fault error
	lowAt int

	flowing bool // the last read brought something
	little  bool // but not plenty
}

// start begins to coalesce. ctx ends the pause, not the read: that takes a deadline.
func (c *coalescer) start(ctx context.Context) {
	c.ctx = ctx
	c.buf = make([]byte, readBuffer)
	c.pause = time.NewTimer(readPause)
	c.lowAt = 1
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return // it can be read from in the ordinary way
	}
	c.raw = raw
	c.take = func(fd uintptr) bool {
		c.took, c.fault = readFD(fd, c.buf)
		return true
	}
	c.mark = func(fd uintptr) { setLowWater(fd, c.lowAt) }
}

// stop releases the timer.
func (c *coalescer) stop() {
	if c.pause != nil {
		c.pause.Stop()
	}
}

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
	if c.flowing && c.raw != nil {
		if c.little {
			c.lowWater(plenty)
			c.wait()
		}
		n, err := c.look()
		if n != 0 || err != nil {
			c.filled(n)
			return err
		}
		c.flowing = false
	}
	c.lowWater(1)
	n, err := c.Conn.Read(c.buf)
	if n == 0 {
		return err
	}
	c.filled(n) // an error that came with bytes comes again without them
	return nil
}

func (c *coalescer) filled(n int) {
	c.r, c.w = 0, n
	c.flowing, c.little = n > 0, n < plenty
	if n > 0 {
		c.fills++
		c.bytes += uint64(n)
	}
}

// look reads what is there. Nothing and no error: there is nothing yet.
func (c *coalescer) look() (int, error) {
	c.took, c.fault = 0, nil
	if err := c.raw.Read(c.take); err != nil {
		return 0, err // the deadline, too
	}
	return c.took, c.fault
}

func (c *coalescer) wait() {
	c.pause.Reset(readPause)
	select {
	case <-c.pause.C:
	case <-c.ctx.Done():
	}
}

func (c *coalescer) lowWater(n int) {
	if c.raw == nil || n == c.lowAt {
		return
	}
	c.lowAt = n
	_ = c.raw.Control(c.mark) // without it there are more wake-ups, nothing else
}

// readFD reads once from a non-blocking socket.
func readFD(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0, nil
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// setLowWater sets SO_RCVLOWAT. An error changes nothing but speed.
func setLowWater(fd uintptr, n int) {
	_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n)
}
