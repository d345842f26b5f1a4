// Package memnet is a network in memory for tests inside a testing/synctest bubble, where a real socket would keep virtual
// time from passing. It can be cut, broken in the middle of a message, and made to swallow everything (a black hole), for
// each client apart.
package memnet

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// Network connects clients with listeners. Safe for concurrent use.
type Network struct {
	// Latency is how long each message to a client takes, in virtual time; set it before the first use.
	Latency time.Duration
	// Brittle reports whether a connection that carries this message has no latency, and ends where others fall silent; nil:
	// none has. A client that lets several requests share one connection waits for a sync.Mutex while an answer is on its
	// way, and in a bubble no time passes then.
	Brittle func(message []byte) bool

	mu        sync.Mutex
	listeners map[string]*listener
	clients   map[string]*client
}

// client is what is wrong between one client and everybody else.
type client struct {
	conns  map[*conn]bool
	down   bool
	budget int           // bytes until its next break; 0: none is planned
	hole   chan struct{} // not nil: nothing passes until it is closed
}

// New returns a network on which everything works.
func New() *Network {
	return &Network{listeners: map[string]*listener{}, clients: map[string]*client{}}
}

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

type listener struct {
	addr   addr
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen has the shape that kfake.ListenFn wants. Port 0 takes a free one.
func (n *Network) Listen(_, address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listening in memory: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == "0" {
		port = fmt.Sprint(9000 + len(n.listeners))
	}
	if host == "" {
		host = "127.0.0.1"
	}
	l := &listener{addr: addr(net.JoinHostPort(host, port)), queue: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[l.addr.String()] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// Dial returns the dial function of a client. Its failures wrap ECONNREFUSED: kafka-go does not try again after others.
func (n *Network) Dial(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		n.mu.Lock()
		c := n.client(name)
		l, down, hole := n.listeners[address], c.down, c.hole
		n.mu.Unlock()
		refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		if l == nil || down {
			return nil, refused
		}
		if hole != nil {
			select {
			case <-hole:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		near, far := net.Pipe()
		co := &conn{n: n, owner: c, near: near, far: far, remote: l.addr, gone: make(chan struct{})}
		select {
		case l.queue <- brokerSide{co}:
		case <-l.closed:
			return nil, refused
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if c.down {
			co.end()
			return nil, refused
		}
		c.conns[co] = true
		return clientSide{co}, nil
	}
}

// client returns what is known of a client; the caller holds mu.
func (n *Network) client(name string) *client {
	c := n.clients[name]
	if c == nil {
		c = &client{conns: map[*conn]bool{}}
		n.clients[name] = c
	}
	return c
}

// Cut ends the connections of a client and refuses it new ones until Mend.
func (n *Network) Cut(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.client(name)
	c.down = true
	c.breakAll()
}

// Mend undoes Cut, and lets go what a black hole holds.
func (n *Network) Mend(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.client(name)
	c.down, c.budget = false, 0
	if c.hole != nil {
		close(c.hole)
		c.hole = nil
	}
}

// BreakAfter ends that connection of a client which carries the given number of bytes from now on, in the middle of
// whatever it carries.
func (n *Network) BreakAfter(name string, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.client(name).budget = bytes
}

// Swallow lets nothing pass between a client and the brokers, without an error, until Mend.
func (n *Network) Swallow(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.client(name)
	if c.hole == nil {
		c.hole = make(chan struct{})
	}
	for co := range c.conns {
		if co.brittle {
			co.end()
			delete(c.conns, co)
		}
	}
}

// Close ends every connection.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.clients {
		c.breakAll()
	}
}

func (c *client) breakAll() {
	for co := range c.conns {
		co.end()
	}
	clear(c.conns)
}

// conn is one connection with its two ends.
type conn struct {
	n         *Network
	owner     *client
	near, far net.Conn
	remote    addr
	brittle   bool // guarded by n.mu
	gone      chan struct{}
	once      sync.Once
}

func (c *conn) end() {
	c.once.Do(func() { close(c.gone) })
	_ = c.near.Close()
	_ = c.far.Close()
}

// allow returns how many of want bytes may pass, and whether the connection breaks after them.
func (c *conn) allow(want int) (n int, breaks bool) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.owner.budget == 0 {
		return want, false
	}
	if want < c.owner.budget {
		c.owner.budget -= want
		return want, false
	}
	n, c.owner.budget = c.owner.budget, 0
	return n, true
}

// fails looks whether a message makes the connection brittle, and whether it meets a black hole then.
func (c *conn) fails(message []byte) bool {
	if c.n.Brittle == nil {
		return false
	}
	brittle := c.n.Brittle(message)
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.brittle = c.brittle || brittle
	return c.brittle && c.owner.hole != nil
}

// passes waits for the end of a black hole, and for d on top; false: the connection ended meanwhile.
func (c *conn) passes(d time.Duration) bool {
	c.n.mu.Lock()
	hole := c.owner.hole
	if c.brittle {
		hole, d = nil, 0
	}
	c.n.mu.Unlock()
	if hole != nil {
		select {
		case <-hole:
		case <-c.gone:
			return false
		}
	}
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.gone:
		return false
	}
}

// clientSide is the end of the client.
type clientSide struct{ *conn }

func (c clientSide) Write(b []byte) (int, error) {
	if c.fails(b) {
		c.end()
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET}
	}
	n, breaks := c.allow(len(b))
	n, err := c.near.Write(b[:n])
	if breaks {
		c.end()
		return n, &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return n, err
}

func (c clientSide) Read(b []byte) (int, error) {
	n, err := c.near.Read(b)
	if n, breaks := c.allow(n); breaks {
		c.end()
		return n, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return n, err
}

func (c clientSide) Close() error {
	c.n.mu.Lock()
	delete(c.owner.conns, c.conn)
	c.n.mu.Unlock()
	c.end()
	return nil
}

func (c clientSide) LocalAddr() net.Addr                { return addr("127.0.0.1:1") }
func (c clientSide) RemoteAddr() net.Addr               { return c.remote }
func (c clientSide) SetDeadline(t time.Time) error      { return c.near.SetDeadline(t) }
func (c clientSide) SetReadDeadline(t time.Time) error  { return c.near.SetReadDeadline(t) }
func (c clientSide) SetWriteDeadline(t time.Time) error { return c.near.SetWriteDeadline(t) }

// brokerSide is the end of the listener. Black holes and latency are here, so that the client's deadlines work.
type brokerSide struct{ *conn }

func (c brokerSide) Write(b []byte) (int, error) {
	if !c.passes(c.n.Latency) {
		return 0, net.ErrClosed
	}
	return c.far.Write(b)
}

func (c brokerSide) Read(b []byte) (int, error) {
	if !c.passes(0) {
		return 0, net.ErrClosed
	}
	return c.far.Read(b)
}

func (c brokerSide) Close() error {
	c.end()
	return nil
}

func (c brokerSide) LocalAddr() net.Addr                { return c.remote }
func (c brokerSide) RemoteAddr() net.Addr               { return addr("127.0.0.1:1") }
func (c brokerSide) SetDeadline(t time.Time) error      { return c.far.SetDeadline(t) }
func (c brokerSide) SetReadDeadline(t time.Time) error  { return c.far.SetReadDeadline(t) }
func (c brokerSide) SetWriteDeadline(t time.Time) error { return c.far.SetWriteDeadline(t) }
