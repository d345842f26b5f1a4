package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/sinktest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// network is an in-memory network that can be cut.
type network struct {
	mu        sync.Mutex
	listeners map[string]*listener
	conns     map[net.Conn]string // by client
	down      map[string]bool     // clients that reach nobody
}

func newNetwork() *network {
	return &network{listeners: map[string]*listener{}, conns: map[net.Conn]string{}, down: map[string]bool{}}
}

type listener struct {
	addr   addr
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// tcpConn gives a pipe addresses: kfake wants to split them.
type tcpConn struct {
	net.Conn
	local, remote addr
}

func (c tcpConn) LocalAddr() net.Addr  { return c.local }
func (c tcpConn) RemoteAddr() net.Addr { return c.remote }

func (n *network) listen(_, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	host, port, _ := net.SplitHostPort(address)
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

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

func (n *network) dial(client string) kafkaconn.DialFunc {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		n.mu.Lock()
		l, down := n.listeners[address], n.down[client]
		n.mu.Unlock()
		if l == nil || down {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		near, far := net.Pipe()
		select {
		case l.queue <- tcpConn{far, l.addr, "127.0.0.1:1"}:
		case <-l.closed:
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		n.mu.Lock()
		n.conns[near] = client
		n.mu.Unlock()
		return tcpConn{near, "127.0.0.1:1", l.addr}, nil
	}
}

// cut ends the connections of a client and refuses new ones until mend.
func (n *network) cut(client string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down[client] = true
	for c, owner := range n.conns {
		if owner == client {
			_ = c.Close()
			delete(n.conns, c)
		}
	}
}

func (n *network) mend(client string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.down, client)
}

const partitions = 3

// world is a broker, a replica and what a test does to them.
type world struct {
	t       *testing.T
	net     *network
	cluster *kfake.Cluster
	model   *sinktest.Model
	admin   *kafkaconn.Conn
	buffer  int // of the feeds; 0: the default
	next    [partitions]int64
}

// inWorld runs a test in a synctest bubble: an hour costs nothing.
func inWorld(t *testing.T, brokers int, test func(*testing.T, *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: newNetwork(), model: sinktest.NewModel()}
		var err error
		w.cluster, err = kfake.NewCluster(kfake.NumBrokers(brokers), kfake.ListenFn(w.net.listen),
			kfake.SeedTopics(partitions, "lethe.events", "lethe.receipts"))
		if err != nil {
			t.Fatal(err)
		}
		w.admin = w.conn("admin")
		test(t, w)
		if err := w.model.Check(); err != nil {
			t.Error(err)
		}
		w.admin.Close()
		w.cluster.Close()
		synctest.Wait()
	})
}

func (w *world) conn(client string) *kafkaconn.Conn {
	c, err := kafkaconn.New(config.Kafka{
		Brokers: w.cluster.ListenAddrs(), TopicPrefix: "lethe", Partitions: partitions, ReplicationFactor: 1,
	}, kafkaconn.Options{Dial: w.net.dial(client), ClientID: client})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// member is a running worker.
type member struct {
	w      *world
	worker *sinks.Worker
	conn   *kafkaconn.Conn
	stop   context.CancelFunc
	done   chan error
}

// start runs a worker over the world's replica.
func (w *world) start(name string, change ...func(*sinks.WorkerOptions)) *member {
	conn := w.conn(name)
	feed, err := NewFeed(FeedOptions{
		Conn: conn, Group: GroupName("lethe", "marketing"), Decoder: plainCodec{}, Log: testLog(w.t), MaxBuffer: w.buffer,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	receipts := NewReceipts(conn)
	o := sinks.WorkerOptions{Name: "marketing", Replica: w.model, Feed: feed, Sender: receipts, Log: testLog(w.t)}
	for _, f := range change {
		f(&o)
	}
	worker, err := sinks.NewWorker(o)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	m := &member{w: w, worker: worker, conn: conn, stop: cancel, done: make(chan error, 1)}
	go func() {
		err := worker.Run(ctx)
		err = errors.Join(err, receipts.Close())
		conn.Close()
		m.done <- err
	}()
	return m
}

// end stops a worker and returns how long it took.
func (m *member) end() time.Duration {
	m.w.t.Helper()
	began := time.Now()
	m.stop()
	select {
	case err := <-m.done:
		if err != nil {
			m.w.t.Errorf("worker: %v", err)
		}
	case <-time.After(time.Minute):
		m.w.t.Error("the worker does not stop")
	}
	return time.Since(began)
}

func testLog(t *testing.T) zerolog.Logger {
	if testing.Verbose() {
		return zerolog.New(zerolog.NewTestWriter(t)).With().Timestamp().Logger()
	}
	return zerolog.Nop()
}

// eventually waits until cond holds, in virtual time.
func (w *world) eventually(within time.Duration, what string, cond func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > within {
			w.t.Fatalf("not within %v: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

func (w *world) produce(partition int32, recs ...kafkago.Record) {
	w.t.Helper()
	client := w.admin.Client()
	res, err := client.Produce(w.t.Context(), &kafkago.ProduceRequest{
		Addr: client.Addr, Topic: "lethe.events", Partition: int(partition), RequiredAcks: kafkago.RequireAll,
		Records: kafkago.NewRecordReader(recs...),
	})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		w.t.Fatalf("producing: %v", err)
	}
	w.next[partition] += int64(len(recs))
}

// event makes the n-th event of a subject.
func (w *world) event(subject byte, n uint64, body schema.Body) kafkago.Record {
	ref := schema.SubjectRef{subject}
	ev := &schema.Event{
		Header: schema.Header{
			Order: schema.NewOrder(1, 1, n, 0), SubjectRef: ref, CommittedAt: time.Now(),
		},
		Body: body,
	}
	binary.BigEndian.PutUint64(ev.EventID[1:], n)
	ev.EventID[0] = subject
	r := kafkago.Record{Value: kafkago.NewBytes(plainCodec{}.encode(ev))}
	if body.Type() != schema.TypeHeartbeat {
		r.Key = kafkago.NewBytes([]byte(ref.String()))
	}
	return r
}

func given() schema.Body {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentGiven, LegalBasis: "consent"}
}

func withdrawn() schema.Body {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: schema.ConsentWithdrawn}
}

// applied reports whether everything produced is in the replica.
func (w *world) applied() bool {
	for i, n := range w.next {
		if w.model.Place(int32(i)).NextOffset != n {
			return false
		}
	}
	return true
}

// plainCodec stands in for the schema's codec, which has tests of its own.
type plainCodec struct{}

const plainSize = 16 + 20 + 8 + 2

func (plainCodec) encode(ev *schema.Event) []byte {
	b := append([]byte(nil), ev.EventID[:]...)
	b = append(b, ev.Order[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(ev.CommittedAt.UnixMilli()))
	state := schema.ConsentState(0)
	if c, ok := ev.Body.(*schema.ConsentChange); ok {
		state = c.State
	}
	b = append(b, byte(ev.Body.Type()), byte(state))
	if !ev.SubjectRef.IsZero() {
		b = ev.SubjectRef.AppendText(b)
	}
	return b
}

var errPlain = errors.New("not an event")

func (plainCodec) Decode(b []byte) (*schema.Event, error) {
	if len(b) < plainSize {
		return nil, errPlain
	}
	ev := &schema.Event{}
	copy(ev.EventID[:], b)
	copy(ev.Order[:], b[16:])
	ev.CommittedAt = time.UnixMilli(int64(binary.BigEndian.Uint64(b[36:])))
	ev.SubjectRef, _ = schema.ParseSubjectRef(string(b[plainSize:]))
	switch schema.Type(b[44]) {
	case schema.TypeConsentChange:
		c := given().(*schema.ConsentChange)
		c.State = schema.ConsentState(b[45])
		ev.Body = c
	case schema.TypeSubjectErasure:
		ev.Body = &schema.SubjectErasure{}
	case schema.TypeHeartbeat:
		ev.Body = &schema.Heartbeat{}
	default:
		return nil, errPlain
	}
	return ev, nil
}

// pass lets time pass in the bubble.
func pass(d time.Duration) { <-time.After(d) }
