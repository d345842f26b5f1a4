package simulation

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/checkpoint"
	capturekafka "lethe/capture/kafka"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/schema"
	"lethe/sinks"
	sinkskafka "lethe/sinks/kafka"
)

// errDead is what everything outside a process says to it once it is killed: nothing that it still does has any effect.
var errDead = errors.New("the process is dead")

// process is one operating-system process of Lethe. Goroutines cannot be killed, so a kill cuts every way out first.
type process struct {
	s      *simulation
	name   string // also the client on the network
	conn   *kafkaconn.Conn
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{} // Run has returned
	err    error         // of Run
	gone   atomic.Bool
	killed atomic.Int64 // when, in nanoseconds since 1970; 0: it was not
	stops  atomic.Bool

	mu       sync.Mutex
	killAt   string // the point of a planned kill or freeze
	killIn   int
	freezes  bool          // instead of being killed
	frozen   chan struct{} // SIGSTOP: closed by SIGCONT
	pipeline *capture.Pipeline
	worker   *sinks.Worker
	site     *site // of a worker
	monitor  monitor
}

func (s *simulation) newProcess(name string) *process {
	s.mu.Lock()
	s.started++
	p := &process{s: s, name: fmt.Sprintf("%s#%d", name, s.started), ended: make(chan struct{})}
	s.mu.Unlock()
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.conn = s.connect(p.name, "lethe")
	return p
}

func (s *simulation) connect(client, prefix string) *kafkaconn.Conn {
	conn, err := kafkaconn.New(config.Kafka{
		Brokers: s.cluster.ListenAddrs(), TopicPrefix: prefix, Partitions: s.partitions, ReplicationFactor: 1,
	}, kafkaconn.Options{Dial: s.net.Dial(client), ClientID: client})
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// run works in the background until the process is killed or stopped.
func (p *process) run(f func(context.Context) error) {
	p.s.tracef("%s: starts", p.name)
	p.s.mu.Lock()
	p.s.processes = append(p.s.processes, p)
	p.s.mu.Unlock()
	go func() {
		defer close(p.ended)
		p.err = f(p.ctx)
		p.conn.Close()
		p.s.tracef("%s: ended", p.name)
	}()
}

func (p *process) dead() bool { return p.gone.Load() }

// kill is SIGKILL.
func (p *process) kill(why string) {
	if p.gone.Swap(true) {
		return
	}
	p.killed.Store(time.Now().UnixNano())
	p.s.tracef("%s: KILLED %s", p.name, why)
	p.s.net.Cut(p.name)
	p.s.slot.release(p, p.s.between(0, 30*time.Second))
	p.thaw()
	p.cancel()
}

// stop is SIGTERM; it waits for the end.
func (p *process) stop() error {
	p.stops.Store(true)
	p.thaw()
	p.cancel()
	<-p.ended
	if p.dead() {
		return nil
	}
	return p.err
}

// killAfter plans a kill at the n-th pass of a point, freezeAfter a freeze.
func (p *process) killAfter(point string, n int) { p.plan(point, n, false) }

func (p *process) freezeAfter(point string, n int) { p.plan(point, n, true) }

func (p *process) plan(point string, n int, freezes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killAt, p.killIn, p.freezes = point, n, freezes
}

// hit passes a point: a planned kill happens there, and a frozen process stays there.
func (p *process) hit(point string) {
	p.mu.Lock()
	due := false
	if p.killAt == point {
		p.killIn--
		if due = p.killIn <= 0; due {
			p.killAt = ""
		}
	}
	freezes := p.freezes
	p.mu.Unlock()
	if due && freezes {
		p.freeze()
	}
	p.mu.Lock()
	frozen := p.frozen
	p.mu.Unlock()
	if due && !freezes {
		// Not from here: the caller may hold locks of the slot.
		go p.kill("at " + point)
		<-p.ctx.Done()
	}
	if frozen != nil {
		select {
		case <-frozen:
		case <-p.ctx.Done(): // killed before it froze
		}
	}
}

// freeze is SIGSTOP as far as the outside can tell: nothing goes out and nothing comes in.
func (p *process) freeze() {
	p.mu.Lock()
	if p.frozen == nil {
		p.frozen = make(chan struct{})
	}
	p.mu.Unlock()
	p.s.net.Swallow(p.name)
	p.s.tracef("%s: frozen", p.name)
}

func (p *process) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
		if !p.dead() {
			p.s.net.Mend(p.name)
			p.s.tracef("%s: goes on", p.name)
		}
	}
}

func (p *process) isFrozen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frozen != nil
}

// startCapture starts a capture process.
func (s *simulation) startCapture() *process {
	p := s.newProcess("capture")
	engine, err := rules.New(s.source, rules.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	publisher, err := capturekafka.NewPublisher(capturekafka.Options{Conn: p.conn, UnitBytes: s.unitBytes, BatchBytes: s.unitBytes})
	if err != nil {
		s.t.Fatal(err)
	}
	src := &source{s: s, p: p}
	p.pipeline, err = capture.NewPipeline(capture.Options{
		Name: sourceName, ConfigDigest: [32]byte{1}, Source: src, Rules: engine, IDs: s.ids, Encoder: schema.NewEncoder(seal{}),
		Publisher:   &tappedPublisher{Publisher: publisher, p: p},
		Log:         &capturekafka.EventLog{Conn: p.conn, Decoder: schema.NewDecoder(seal{})},
		Checkpoints: &tappedCheckpoints{Checkpoints: checkpoint.New(checkpoint.Options{Conn: p.conn, Source: sourceName}), p: p},
		Heart: func(context.Context) error {
			if p.hit("heart"); p.dead() {
				return errDead
			}
			s.crm.heartbeat()
			return nil
		},
		Heartbeat: s.heartbeat, Logger: s.logger,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	p.run(p.pipeline.Run)
	return p
}

// tappedPublisher is the real Publisher with places to be killed at.
type tappedPublisher struct {
	capture.Publisher
	p *process
}

func (t *tappedPublisher) Publish(ctx context.Context, u capture.Unit) error {
	if t.p.hit("before_publish"); t.p.dead() {
		return errDead
	}
	t.p.s.check.publishing(u)
	err := t.Publisher.Publish(ctx, u)
	if err != nil {
		t.p.s.tracef("%s: publishing failed: %s", t.p.name, kafkaconn.Reason(err))
		return err
	}
	if t.p.hit("after_publish"); t.p.dead() {
		return errDead
	}
	t.p.s.check.published()
	return nil
}

// tappedCheckpoints is the real checkpoint store with places to be killed at.
type tappedCheckpoints struct {
	capture.Checkpoints
	p *process
}

func (t *tappedCheckpoints) Save(ctx context.Context, c *capture.Checkpoint) error {
	if t.p.hit("before_save"); t.p.dead() {
		return errDead
	}
	t.p.s.check.saving(c)
	err := t.Checkpoints.Save(ctx, c)
	if err != nil {
		t.p.s.tracef("%s: checkpoint %s failed: %s", t.p.name, c.Position, kafkaconn.Reason(err))
		return err
	}
	if t.p.hit("after_save"); t.p.dead() {
		return errDead
	}
	return nil
}

// startWorker starts a sink process for a replica.
func (s *simulation) startWorker(at *site) *process {
	p := s.newProcess("sink-" + at.db.name)
	p.site = at
	s.runWorker(p, at.db)
	return p
}

func (s *simulation) runWorker(p *process, db *database) {
	feed, err := sinkskafka.NewFeed(sinkskafka.FeedOptions{
		Conn: p.conn, Group: sinkskafka.GroupName("lethe", db.name), Decoder: schema.NewDecoder(seal{}), Log: s.logger, MaxBuffer: s.maxBuffer,
		MaxWait: 2 * time.Second, // saves requests; records end the wait
	})
	if err != nil {
		s.t.Fatal(err)
	}
	receipts := sinkskafka.NewReceipts(p.conn)
	r := &replica{db: db, p: p}
	worker, err := sinks.NewWorker(sinks.WorkerOptions{
		Name: db.name, Replica: r, Feed: tappedFeed{feed, r}, Sender: receipts, Log: s.logger, MaxBatch: s.maxBatch,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	p.worker = worker
	p.run(func(ctx context.Context) error {
		return errors.Join(worker.Run(ctx), receipts.Close())
	})
}

// tappedFeed is the real Feed; it tells the replica where a generation begins.
type tappedFeed struct {
	*sinkskafka.Feed
	r *replica
}

func (t tappedFeed) Run(ctx context.Context, h sinks.FeedHandler) error {
	return t.Feed.Run(ctx, tappedHandler{h, t.r})
}

type tappedHandler struct {
	sinks.FeedHandler
	r *replica
}

func (t tappedHandler) Serve(ctx context.Context, g sinks.Generation) {
	t.r.generation()
	t.FeedHandler.Serve(ctx, g)
}

// sourceName is the source's name in the config, and so in every id.
const sourceName = "crm"

// prf is the subject key.
type prf struct{}

func (prf) Compute(dst *[32]byte, data []byte) {
	h := hmac.New(sha256.New, []byte("simulation"))
	h.Write(data)
	h.Sum(dst[:0])
}

// seal is the seal key.
type seal struct{}

var (
	gcm = func() cipher.AEAD {
		block, err := aes.NewCipher(make([]byte, 32))
		if err != nil {
			panic(err)
		}
		g, err := cipher.NewGCM(block)
		if err != nil {
			panic(err)
		}
		return g
	}()
	nonces atomic.Uint64
)

func (seal) AppendSeal(dst, plaintext, aad []byte) ([]byte, error) {
	at := len(dst)
	dst = append(dst, make([]byte, 12)...)
	binary.BigEndian.PutUint64(dst[at:], nonces.Add(1))
	return gcm.Seal(dst, dst[at:at+12], plaintext, aad), nil
}

func (seal) Open(ciphertext, aad []byte) ([]byte, error) {
	if len(ciphertext) < 12 {
		return nil, errors.New("too short")
	}
	return gcm.Open(nil, ciphertext[:12], ciphertext[12:], aad)
}

var _ zerolog.LevelWriter = (*logSink)(nil)

// logSink keeps what the processes log, to be searched for what must not be in it.
type logSink struct {
	mu   sync.Mutex
	text []byte
}

func (l *logSink) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func (l *logSink) WriteLevel(_ zerolog.Level, b []byte) (int, error) { return l.Write(b) }
