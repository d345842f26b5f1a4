package mysql

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between a Source and its server.
type proxy struct {
	listener net.Listener
	server   string

	mu    sync.Mutex
	cut   int          // after so many bytes from the server a connection is cut; 0: never
	alter func([]byte) // what is done to bytes from the server; nil: nothing
	conns []net.Conn
	wg    sync.WaitGroup
}

func newProxy(tb testing.TB, server string) *proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{listener: l, server: server}
	p.wg.Go(p.accept)
	tb.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) set(cut int, alter func([]byte)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.alter = cut, alter
}

// lead makes new connections go to another server; those that there are stay.
func (p *proxy) lead(server string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = server
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		to := p.server
		p.mu.Unlock()
		server, err := net.Dial("tcp", to)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.wg.Go(func() {
			_, _ = io.Copy(server, client)
			_ = server.Close()
		})
		p.wg.Go(func() {
			p.forward(client, server)
			_ = client.Close()
			_ = server.Close()
		})
	}
}

func (p *proxy) forward(client, server net.Conn) {
	b := make([]byte, 4096)
	sent := 0
	for {
		n, err := server.Read(b)
		p.mu.Lock()
		cut, alter := p.cut, p.alter
		p.mu.Unlock()
		if alter != nil {
			alter(b[:n])
		}
		if cut > 0 && sent+n >= cut {
			_, _ = client.Write(b[:max(cut-sent, 0)])
			return
		}
		sent += n
		if _, werr := client.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}
