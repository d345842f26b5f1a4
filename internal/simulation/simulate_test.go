package simulation

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/testenv/memnet"
	"lethe/schema"
)

var (
	seeds = flag.Int("seeds", 100, "how many seeds to simulate")
	only  = flag.Int64("seed", -1, "simulate this seed alone, with its whole trace")
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // kafka-go takes a page of 64 KiB for every batch that it reads
	goleak.VerifyTestMain(m)
}

// TestSimulate runs seeds; see the package's documentation.
func TestSimulate(t *testing.T) {
	from, to := int64(0), int64(*seeds)
	if testing.Short() {
		to = min(to, 10)
	}
	if *only >= 0 {
		from, to = *only, *only+1
	}
	for seed := from; seed < to; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { simulate(t, uint64(seed)) })
		})
	}
}

// simulation is one run.
type simulation struct {
	t     *testing.T
	seed  uint64
	began time.Time

	rngMu sync.Mutex
	rng   *rand.Rand // of everything whose order the seed does not fix

	traceMu sync.Mutex
	trace   []string

	// Drawn from the seed.
	partitions int
	brokers    int
	unitBytes  int
	maxBatch   int
	maxBuffer  int
	heartbeat  time.Duration
	hours      bool        // one of the outages lasts for hours
	calm       atomic.Bool // little happens in the CRM

	net     *memnet.Network
	cluster *kfake.Cluster
	admin   *kafkaconn.Conn
	source  *config.Source
	ids     *schema.Identifiers
	logs    logSink
	logger  zerolog.Logger

	crm      *crm
	slot     slot
	check    *checker
	replicas []*site

	mu        sync.Mutex
	started   int
	processes []*process

	// For the checks after the run.
	log       [][]record
	contacts  map[schema.ContactRef]string
	cancelled map[string]bool // Kafka keys
	culprits  map[string]bool // Kafka keys whose events a failure wants to show
	compacted bool
}

// site is a replica with its workers.
type site struct {
	db       *database
	monitors []monitor
	members  map[string]time.Time // of its group, when each was first seen
	backup   *ledger
}

const sourceFile = `version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: ["localhost:9092"]}
replicas:
  copy:
    recipient: {name: Copy, role: processor}
    mode: observe
    postgres: {dsn: "postgres://lethe@localhost/copy"}
    person: {table: person, key: id, crm_key: customer_id}
` + mapping

func simulate(t *testing.T, seed uint64) {
	s := newSimulation(t, seed)
	defer s.report()
	watching, stopWatching := context.WithCancel(context.Background())
	working, stopWorking := context.WithCancel(context.Background())
	var watch, work sync.WaitGroup
	watch.Go(func() { s.watch(watching) })
	plan := newPlan(s, rand.New(rand.NewPCG(seed, 2)))
	plan.start()
	work.Go(func() { s.work(working) })
	plan.play()
	stopWorking()
	work.Wait()
	plan.mend()
	settled := s.settle()
	stopWatching()
	watch.Wait()
	s.stopAll()
	if settled {
		s.verify()
		s.permuted(rand.New(rand.NewPCG(seed, 3)))
	}
	s.admin.Close()
	s.net.Close()
	s.cluster.Close()
	synctest.Wait()
}

func newSimulation(t *testing.T, seed uint64) *simulation {
	r := rand.New(rand.NewPCG(seed, 0))
	s := &simulation{
		t: t, seed: seed, began: time.Now(), rng: rand.New(rand.NewPCG(seed, 4)),
		partitions: 1 + r.IntN(5), brokers: 1 + r.IntN(3), unitBytes: pick(r, 8<<10, 32<<10, 256<<10),
		maxBatch: pick(r, 5, 50, 1000), maxBuffer: pick(r, 256<<10, 16<<20), heartbeat: 5 * time.Second,
		net: memnet.New(), cancelled: map[string]bool{}, culprits: map[string]bool{},
		ids: schema.NewIdentifiers(prf{}, sourceName),
	}
	if s.hours = chance(r, 3); s.hours {
		s.heartbeat = 30 * time.Second
	}
	s.net.Brittle = groupRequest
	s.net.Latency = time.Duration(r.IntN(4)) * time.Millisecond
	s.logger = zerolog.New(&s.logs).Level(zerolog.DebugLevel)
	s.check = &checker{s: s, dues: map[due]bool{}}
	cfg, err := config.Parse([]byte(sourceFile), "simulation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s.source = &cfg.Source
	s.cluster, err = kfake.NewCluster(kfake.NumBrokers(s.brokers), kfake.ListenFn(s.net.Listen),
		kfake.SeedTopics(int32(s.partitions), "lethe.events", "lethe.receipts", "permuted.events", "permuted.receipts"),
		kfake.SeedTopics(1, "lethe.checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	s.admin = s.connect("admin", "lethe")
	s.tracef("seed %d: %d brokers, %d partitions, units of %d bytes, batches of %d, buffer of %d",
		seed, s.brokers, s.partitions, s.unitBytes, s.maxBatch, s.maxBuffer)
	s.crm = newCRM(rand.New(rand.NewPCG(seed, 1)), s.tracef)
	s.crm.write("the first customers", func(w *writer) {
		for range 5 + w.c.rng.IntN(20) {
			w.addCustomer()
		}
	})
	for i := range 1 + r.IntN(2) {
		name := []string{"marketing", "reporting"}[i]
		s.replicas = append(s.replicas, &site{
			db:       &database{s: s, name: name, topic: "lethe.events", tables: newLedger()},
			monitors: make([]monitor, s.partitions),
		})
	}
	return s
}

// groupRequest reports whether a message is a request of a consumer group: kafka-go sends heartbeats and offsets over one
// connection, each waiting for the other.
func groupRequest(message []byte) bool {
	if len(message) < 6 {
		return false
	}
	switch kmsg.Key(binary.BigEndian.Uint16(message[4:])) {
	case kmsg.OffsetCommit, kmsg.OffsetFetch, kmsg.JoinGroup, kmsg.Heartbeat, kmsg.LeaveGroup, kmsg.SyncGroup:
		return true
	}
	return false
}

// work is the CRM's day. While Kafka is away for hours less happens, or nothing would end.
func (s *simulation) work(ctx context.Context) {
	r := rand.New(rand.NewPCG(s.seed, 6)) // the CRM's own is its writers'
	for ctx.Err() == nil {
		gap := time.Duration(r.IntN(2500)) * time.Millisecond
		if chance(r, 40) {
			gap = 0
		}
		if s.calm.Load() {
			gap *= 60
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(gap):
		}
		switch n := r.IntN(200); {
		case n < 3:
			s.crm.write("a huge transaction", func(w *writer) { w.bulk(30 + w.c.rng.IntN(70)) })
		case n < 4:
			s.crm.write("truncate", func(w *writer) { w.truncate() })
		case n < 5:
			s.crm.promote()
		default:
			s.crm.write("work", func(w *writer) { w.bulk(1 + w.c.rng.IntN(4)) })
		}
	}
}

// watch looks at the processes as an operator's monitoring does.
func (s *simulation) watch(ctx context.Context) {
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
			s.check.watch(ctx)
			if n%3 == 0 {
				s.expire(ctx)
			}
		}
	}
}

// settleWithin is how long everything may take to be applied once nothing is wrong any more.
const settleWithin = 5 * time.Minute

// settle waits until everything has followed, an operator has looked after what is parked, and nothing is due any more.
func (s *simulation) settle() bool {
	s.tracef("nothing is wrong any more: everything has to follow")
	last := s.crm.last()
	if !s.eventually(settleWithin, "the source's log is acknowledged", func() bool {
		s.slot.mu.Lock()
		defer s.slot.mu.Unlock()
		return s.slot.confirmed.End >= last.End
	}) {
		return false
	}
	if !s.eventually(settleWithin, "the replicas have applied the topic", s.applied()) {
		return false
	}
	for _, r := range s.replicas {
		r.db.replay()
	}
	time.Sleep(coolOff)
	return s.eventually(settleWithin, "phase 2 is done and the receipts are sent", func() bool {
		done := true
		for _, r := range s.replicas {
			r.db.change(func(d *database) {
				for _, sub := range d.tables.subjects {
					done = done && sub.kase.state != "suppressed"
				}
				for _, rc := range d.tables.receipts {
					done = done && rc.sent
				}
			})
		}
		return done
	})
}

// applied gives a condition: the replicas have everything that is in the topic now.
func (s *simulation) applied() func() bool {
	ends := s.endList("lethe.events")
	return func() bool {
		for _, r := range s.replicas {
			for i := range ends {
				if r.db.place(int32(i)) < ends[i] {
					return false
				}
			}
		}
		return true
	}
}

func (s *simulation) eventually(within time.Duration, what string, cond func() bool) bool {
	for until := time.Now().Add(within); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(until) {
			s.check.fail("not within %v: %s", within, what)
			for _, p := range s.living() {
				if p.pipeline != nil {
					s.tracef("%s: %+v", p.name, p.pipeline.Status())
				} else {
					s.tracef("%s: %+v", p.name, p.worker.Status())
				}
			}
			return false
		}
	}
	return true
}

// stopAll is SIGTERM to everything; a graceful stop leaves nothing behind and says nothing.
func (s *simulation) stopAll() {
	for _, p := range s.living() {
		began := time.Now()
		if err := p.stop(); err != nil {
			s.check.fail("%s did not stop well: %v", p.name, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			s.check.fail("%s took %v to stop", p.name, took)
		}
	}
	s.mu.Lock()
	all := s.processes
	s.mu.Unlock()
	for _, p := range all {
		<-p.ended
	}
}

// verify compares everything with the oracle.
func (s *simulation) verify() {
	s.contactRefs()
	s.check.topics()
	s.check.memory()
	s.check.logs()
	now := time.Now()
	for _, r := range s.replicas {
		s.check.replica(r.db, now)
	}
}

// permuted plays the log once more to a new replica, each event once or several times and in any order: what it says
// afterwards may not depend on that.
func (s *simulation) permuted(r *rand.Rand) {
	conn := s.connect("permuted", "permuted")
	for i := range s.log {
		var recs []record
		for _, rec := range s.log[i] {
			if rec.event == nil || rec.event.Body.Type() == schema.TypeCaseDecision || rec.event.Body.Type() == schema.TypeHeartbeat {
				continue
			}
			for range 1 + r.IntN(2) {
				recs = append(recs, rec)
			}
		}
		r.Shuffle(len(recs), func(i, j int) { recs[i], recs[j] = recs[j], recs[i] })
		s.produce(conn, "permuted.events", i, recs)
	}
	db := &database{s: s, name: "permuted", topic: "permuted.events", tables: newLedger()}
	p := s.newProcess("permuted")
	p.conn.Close()
	p.conn = conn
	s.runWorker(p, db)
	s.eventually(settleWithin, "the permuted log is applied", func() bool {
		for i, end := range s.endList(db.topic) {
			if db.place(int32(i)) < end {
				return false
			}
		}
		return true
	})
	if err := p.stop(); err != nil {
		s.check.fail("%s did not stop well: %v", p.name, err)
	}
	now := time.Now()
	refs := s.refs()
	for _, c := range s.crm.customers {
		if got, want := db.verdict(refs[c.id], now), c.wanted(c.erased, now); got != want {
			s.check.fail("permuted: customer %d: the replica says %s; the CRM says %s", c.id, got, want)
			s.culprits[refs[c.id]] = true
		}
	}
}

// tracef notes what happened, with the time of the bubble.
func (s *simulation) tracef(format string, args ...any) {
	line := fmt.Sprintf("%12v  %s", time.Since(s.began).Round(time.Millisecond), fmt.Sprintf(format, args...))
	s.traceMu.Lock()
	defer s.traceMu.Unlock()
	s.trace = append(s.trace, line)
	if *only >= 0 && testing.Verbose() {
		fmt.Fprintln(os.Stderr, line) // a run that hangs shows where
	}
}

// traceEnd is how much of a trace is shown without -seed.
const traceEnd = 150

// report fails the test with everything that was found.
func (s *simulation) report() {
	if !s.check.failed() {
		return
	}
	s.t.Errorf("seed %d broke %d invariants; repeat it with: go test ./internal/simulation -run Simulate -count=5 -seed %d\n%s",
		s.seed, len(s.check.failures), s.seed, strings.Join(s.check.failures, "\n"))
	lines := s.trace
	if *only < 0 && len(lines) > traceEnd {
		lines = append([]string{lines[0], fmt.Sprintf("… %d lines, shown with -seed %d …", len(lines)-traceEnd, s.seed)}, lines[len(lines)-traceEnd:]...)
	}
	s.t.Logf("trace:\n%s", strings.Join(lines, "\n"))
	s.t.Logf("events of whom it concerns:\n%s", strings.Join(s.story(), "\n"))
}

// story tells every record of the subjects that something is wrong about.
func (s *simulation) story() (lines []string) {
	for i := range s.log {
		for _, r := range s.log[i] {
			if s.culprits[string(r.key)] && r.event != nil {
				lines = append(lines, fmt.Sprintf("%s…  %d/%d  %s  %s as of %v", r.key[:8], i, r.offset, r.event.Order,
					describe(r.event, s.contacts), asOf(r.event)))
			}
		}
	}
	return lines
}

func asOf(ev *schema.Event) time.Time {
	if c, ok := ev.Body.(*schema.ConsentChange); ok {
		return c.AsOf
	}
	return time.Time{}
}

// toss is a coin whose order of throws the seed does not fix.
func (s *simulation) toss(percent int) bool {
	s.rngMu.Lock()
	defer s.rngMu.Unlock()
	return chance(s.rng, percent)
}

func (s *simulation) between(least, most time.Duration) time.Duration {
	s.rngMu.Lock()
	defer s.rngMu.Unlock()
	return least + time.Duration(s.rng.Int64N(int64(most-least)))
}

func (s *simulation) fork() *rand.Rand {
	s.rngMu.Lock()
	defer s.rngMu.Unlock()
	return rand.New(rand.NewPCG(s.rng.Uint64(), 5))
}

// living are the processes that are neither dead nor ended.
func (s *simulation) living() (out []*process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.processes {
		select {
		case <-p.ended:
		default:
			if !p.dead() {
				out = append(out, p)
			}
		}
	}
	return out
}
