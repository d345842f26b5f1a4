package simulation

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lethe/capture"
	capturekafka "lethe/capture/kafka"
	"lethe/schema"
)

// plan plays faults, drawn from the seed.
type plan struct {
	s   *simulation
	rng *rand.Rand

	undo   []func() // what mends the faults of the step at hand
	faults []*kfake.FaultHandle
}

// fault is one thing that goes wrong. It returns what mends it after a while; nil: nothing needs to be mended.
type fault struct {
	name string
	do   func(*plan) func()
	long bool // may last for hours
}

var faults = []fault{
	{name: "acks of produce requests are lost", do: (*plan).lostAcks},
	{name: "one partition fails", do: (*plan).partitionFails},
	{name: "capture reaches no broker", do: (*plan).captureCut, long: true},
	{name: "nobody reaches a broker", do: (*plan).kafkaAway, long: true},
	{name: "connections break in the middle of a message", do: (*plan).breaks},
	{name: "a black hole", do: (*plan).blackHole},
	{name: "leaders move", do: (*plan).leadersMove},
	{name: "coordinators move", do: (*plan).rehash},
	{name: "capture is killed", do: (*plan).killCapture},
	{name: "capture is killed at a step", do: (*plan).killCaptureAt},
	{name: "capture is restarted", do: (*plan).restartCapture},
	{name: "capture is frozen while another takes over", do: (*plan).zombieCapture},
	{name: "a worker is killed", do: (*plan).killWorker},
	{name: "a worker is killed at a step", do: (*plan).killWorkerAt},
	{name: "a worker is restarted", do: (*plan).restartWorker},
	{name: "a worker is frozen", do: (*plan).zombieWorker},
	{name: "a worker joins and leaves", do: (*plan).rebalance},
	{name: "a replica is down", do: (*plan).replicaDown, long: true},
	{name: "answers to commits are lost", do: (*plan).lostCommits},
	{name: "a replica lacks a column", do: (*plan).permanent},
	{name: "a replica refuses some events", do: (*plan).poisonous},
	{name: "a replica is restored from a backup", do: (*plan).restore},
	{name: "the source's server is killed", do: (*plan).sourceCrash},
	{name: "the connection to the source breaks while Kafka is away", do: (*plan).bothAway},
	{name: "somebody else writes into the topic", do: (*plan).foreign},
	{name: "an operator cancels an erasure", do: (*plan).cancel},
	{name: "workers are away longer than the cool-off while a cancel waits", do: (*plan).cancelWaits},
	{name: "checkpoints cannot be written", do: (*plan).checkpointsFail},
	{name: "the checkpoint topic is compacted", do: (*plan).compact},
	{name: "the group's requests fail", do: (*plan).groupFails},
	{name: "fetches fail", do: (*plan).fetchFails},
}

func newPlan(s *simulation, rng *rand.Rand) *plan {
	return &plan{s: s, rng: rng}
}

// start starts what an installation has.
func (p *plan) start() {
	p.s.startCapture()
	for _, r := range p.s.replicas {
		p.s.startWorker(r)
		if chance(p.rng, 30) {
			p.s.startWorker(r)
		}
	}
}

// play plays some steps, each of one to three faults at once.
func (p *plan) play() {
	p.wait(0, 10*time.Second)
	hours := p.s.hours
	for range 2 + p.rng.IntN(3) {
		long := false
		for range 1 + p.rng.IntN(3) {
			f := faults[p.rng.IntN(len(faults))]
			p.s.tracef("FAULT: %s", f.name)
			long = long || f.long
			if undo := f.do(p); undo != nil {
				p.undo = append(p.undo, undo)
			}
		}
		switch {
		case long && hours:
			hours = false
			p.s.calm.Store(true)
			p.wait(time.Hour, 2*time.Hour)
			p.s.calm.Store(false)
		case long && chance(p.rng, 20):
			p.wait(time.Minute, 4*time.Minute)
		default:
			p.wait(0, 20*time.Second)
		}
		p.mendStep()
		p.alive()
		p.fewer()
		if chance(p.rng, 50) {
			p.wait(0, 10*time.Second)
		}
	}
}

func (p *plan) wait(least, most time.Duration) {
	time.Sleep(least + time.Duration(p.rng.Int64N(int64(most-least))))
}

func (p *plan) mendStep() {
	if len(p.undo) > 0 {
		p.s.tracef("mended")
	}
	for _, f := range slices.Backward(p.undo) {
		f()
	}
	p.undo = nil
}

// mend takes everything away that is wrong, and starts what is missing.
func (p *plan) mend() {
	p.mendStep()
	for _, h := range p.faults {
		h.Remove()
	}
	for _, r := range p.s.replicas {
		r.db.change(func(d *database) { d.faults, d.plan = dbFaults{}, nil })
	}
	for _, pr := range p.s.living() {
		pr.killAfter("", 0)
		p.s.net.Mend(pr.name)
	}
	p.alive()
}

// alive starts what an init system would: a capture, and a worker for each replica.
func (p *plan) alive() {
	if len(p.captures()) == 0 {
		p.s.startCapture()
	}
	for _, r := range p.s.replicas {
		if len(p.workers(r)) == 0 {
			p.s.startWorker(r)
		}
	}
}

// fewer keeps an installation from growing: one capture, and two workers a replica.
func (p *plan) fewer() {
	for len(p.captures()) > 1 {
		p.capture().kill("as one too many")
	}
	for _, r := range p.s.replicas {
		for list := p.workers(r); len(list) > 2; list = list[1:] {
			if err := list[0].stop(); err != nil {
				p.s.check.fail("%s did not stop well: %v", list[0].name, err)
			}
		}
	}
}

func (p *plan) captures() (out []*process) {
	for _, pr := range p.s.living() {
		if pr.pipeline != nil && !pr.stops.Load() {
			out = append(out, pr)
		}
	}
	return out
}

func (p *plan) workers(r *site) (out []*process) {
	for _, pr := range p.s.living() {
		if pr.worker != nil && pr.site == r && !pr.stops.Load() {
			out = append(out, pr)
		}
	}
	return out
}

func (p *plan) capture() *process {
	p.alive()
	return pick(p.rng, p.captures()...)
}

func (p *plan) site() *site { return pick(p.rng, p.s.replicas...) }

func (p *plan) worker() *process {
	p.alive()
	return pick(p.rng, p.workers(p.site())...)
}

func (p *plan) anybody() *process {
	if chance(p.rng, 50) {
		return p.capture()
	}
	return p.worker()
}

func (p *plan) inject(f kfake.Fault) *kfake.FaultHandle {
	h := p.s.cluster.Fault(f)
	p.faults = append(p.faults, h)
	return h
}

func (p *plan) lostAcks() func() {
	p.inject(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Err: pick(p.rng, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend), Count: 1 + p.rng.IntN(8),
	})
	return nil
}

func (p *plan) partitionFails() func() {
	h := p.inject(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "lethe.events", Partitions: []int32{int32(p.rng.IntN(p.s.partitions))},
		Err: pick(p.rng, kerr.NotEnoughReplicas, kerr.RequestTimedOut, kerr.NotLeaderForPartition, kerr.KafkaStorageError), Count: -1,
	})
	return func() { h.Remove() }
}

func (p *plan) captureCut() func() {
	pr := p.capture()
	p.s.net.Cut(pr.name)
	return func() { p.mendNet(pr) }
}

func (p *plan) mendNet(pr *process) {
	if !pr.dead() {
		p.s.net.Mend(pr.name)
	}
}

func (p *plan) kafkaAway() func() {
	all := p.s.living()
	for _, pr := range all {
		p.s.net.Cut(pr.name)
	}
	return func() {
		for _, pr := range all {
			p.mendNet(pr)
		}
	}
}

func (p *plan) breaks() func() {
	for range 1 + p.rng.IntN(5) {
		p.s.net.BreakAfter(p.anybody().name, 1+p.rng.IntN(20_000))
		p.wait(0, 5*time.Second)
	}
	return nil
}

func (p *plan) blackHole() func() {
	pr := p.anybody()
	p.s.net.Swallow(pr.name)
	return func() { p.mendNet(pr) }
}

func (p *plan) leadersMove() func() {
	for range 1 + p.rng.IntN(3) {
		for i := range p.s.partitions {
			// kfake only says that there is no such partition or broker.
			_ = p.s.cluster.MoveTopicPartition("lethe.events", int32(i), int32(p.rng.IntN(p.s.brokers)))
		}
		p.wait(0, 5*time.Second)
	}
	return nil
}

func (p *plan) rehash() func() {
	p.s.cluster.RehashCoordinators()
	return nil
}

func (p *plan) killCapture() func() {
	p.capture().kill("")
	return nil
}

func (p *plan) killCaptureAt() func() {
	p.capture().killAfter(
		pick(p.rng, "change", "commit", "before_publish", "after_publish", "before_save", "after_save", "after_ack", "heart"), 1+p.rng.IntN(12))
	return nil
}

func (p *plan) restartCapture() func() {
	pr := p.capture()
	began := time.Now()
	if err := pr.stop(); err != nil {
		p.s.tracef("%s: stopped with %v", pr.name, err) // Kafka may be away
	}
	if took := time.Since(began); took > 30*time.Second {
		p.s.check.fail("%s took %v to stop", pr.name, took)
	}
	p.alive()
	return nil
}

// zombieCapture freezes capture until its connection to the source is given up and another capture has taken over; then it
// goes on where it was.
func (p *plan) zombieCapture() func() {
	pr := p.capture()
	p.freeze(pr, "change", "commit", "before_publish", "before_publish", "before_save", "before_save")
	p.wait(0, 20*time.Second)
	p.s.slot.interrupt(false)
	p.s.startCapture()
	p.wait(5*time.Second, 40*time.Second)
	return pr.thaw
}

// freeze freezes a process at one of the points, or wherever it is when it does not come by there.
func (p *plan) freeze(pr *process, points ...string) {
	pr.freezeAfter(pick(p.rng, points...), 1+p.rng.IntN(3))
	for range 100 {
		if pr.isFrozen() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	pr.killAfter("", 0)
	pr.freeze()
}

func (p *plan) killWorker() func() {
	p.worker().kill("")
	return nil
}

func (p *plan) killWorkerAt() func() {
	op := pick(p.rng, "assign", "apply", "apply", "apply", "due", "unsent", "sent", "park")
	p.worker().killAfter(pick(p.rng, "before_", "after_")+op, 1+p.rng.IntN(8))
	return nil
}

func (p *plan) restartWorker() func() {
	pr := p.worker()
	began := time.Now()
	if err := pr.stop(); err != nil {
		p.s.check.fail("%s did not stop well: %v", pr.name, err)
	}
	if took := time.Since(began); took > 40*time.Second {
		p.s.check.fail("%s took %v to stop", pr.name, took)
	}
	p.alive()
	return nil
}

// zombieWorker freezes a worker, mostly for longer than its group waits and another applies meanwhile; then it goes on
// where it was.
func (p *plan) zombieWorker() func() {
	pr := p.worker()
	p.freeze(pr, "before_apply", "before_apply", "after_apply", "before_due", "before_sent", "before_assign")
	p.s.startWorker(pr.site)
	p.wait(0, 40*time.Second)
	return pr.thaw
}

func (p *plan) rebalance() func() {
	at := p.site()
	var joined []*process
	for range 1 + p.rng.IntN(2) {
		joined = append(joined, p.s.startWorker(at))
		p.wait(0, 10*time.Second)
	}
	return func() {
		for _, pr := range joined {
			if chance(p.rng, 50) {
				if err := pr.stop(); err != nil {
					p.s.check.fail("%s did not stop well: %v", pr.name, err)
				}
			}
		}
	}
}

func (p *plan) replicaDown() func() {
	at := p.site()
	at.db.change(func(d *database) { d.faults.down = true })
	return func() { at.db.change(func(d *database) { d.faults.down = false }) }
}

func (p *plan) lostCommits() func() {
	at := p.site()
	at.db.change(func(d *database) {
		for range 1 + p.rng.IntN(10) {
			d.plan = append(d.plan, pick(p.rng, "before", "after", "after"))
		}
	})
	return nil
}

func (p *plan) permanent() func() {
	at := p.site()
	at.db.change(func(d *database) { d.faults.permanent = true })
	return func() { at.db.change(func(d *database) { d.faults.permanent = false }) }
}

// poisonous makes a replica refuse one event in some dozens, of one kind or of any; until the end.
func (p *plan) poisonous() func() {
	at := p.site()
	salt, every := byte(p.rng.Uint32()), 10+p.rng.IntN(60)
	at.db.change(func(d *database) {
		d.faults.poison = func(ev *schema.Event) bool {
			return !ev.SubjectRef.IsZero() && (int(ev.EventID[0]^salt)<<8|int(ev.EventID[1]))%every == 0
		}
	})
	return nil
}

// restore brings back an older state of a replica. Its workers are stopped meanwhile.
func (p *plan) restore() func() {
	at := p.site()
	if at.backup == nil {
		at.db.change(func(d *database) {
			backup := d.tables.clone()
			at.backup = &backup
		})
		p.s.tracef("%s: backup made", at.db.name)
		return nil
	}
	for _, pr := range p.workers(at) {
		pr.kill("for the restore")
	}
	at.db.change(func(d *database) { d.tables = at.backup.clone() })
	p.s.tracef("%s: RESTORED", at.db.name)
	at.backup = nil
	return nil
}

func (p *plan) sourceCrash() func() {
	p.s.slot.interrupt(true)
	return nil
}

// bothAway makes capture read again what it has read and not yet published.
func (p *plan) bothAway() func() {
	pr := p.capture()
	for range 1 + p.rng.IntN(3) {
		p.s.net.Cut(pr.name)
		p.wait(0, 8*time.Second)
		p.s.slot.interrupt(chance(p.rng, 50))
		p.mendNet(pr)
		p.wait(0, 3*time.Second)
	}
	return nil
}

// foreign is a producer that has no business here: its records can be read by nobody. Or an old log comes again.
func (p *plan) foreign() func() {
	refs := p.s.crm.someRefs(p.s, p.rng)
	for _, ref := range refs {
		all := make([]int, p.s.partitions)
		for i := range all {
			all[i] = i
		}
		partition := kafkago.Murmur2Balancer{Consistent: true}.Balance(kafkago.Message{Key: []byte(ref)}, all...)
		if chance(p.rng, 30) {
			p.s.produce(p.s.admin, "lethe.events", partition, []record{{key: []byte(ref), value: garbage}})
			continue
		}
		old := p.s.readTopic("lethe.events", partition)
		old = slices.DeleteFunc(old, func(r record) bool { return bytes.Equal(r.value, garbage) })
		if len(old) > 0 {
			from := p.rng.IntN(len(old))
			p.s.produce(p.s.admin, "lethe.events", partition, old[from:min(len(old), from+20)])
		}
	}
	return nil
}

// someRefs are the Kafka keys of a few people.
func (c *crm) someRefs(s *simulation, r *rand.Rand) (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 1 + r.IntN(2) {
		who := c.customers[r.IntN(len(c.customers))]
		out = append(out, s.ids.SubjectRef(schema.CanonicalKey(nil, []byte(who.key()))).String())
	}
	return out
}

// cancel is an operator who cancels some erasures.
func (p *plan) cancel() func() {
	var refs []schema.SubjectRef
	p.s.crm.mu.Lock()
	for _, c := range p.s.crm.customers {
		if c.erased && len(refs) < 2 && chance(p.rng, 50) {
			refs = append(refs, p.s.ids.SubjectRef(schema.CanonicalKey(nil, []byte(c.key()))))
		}
	}
	p.s.crm.mu.Unlock()
	for _, ref := range refs {
		p.decide(ref)
	}
	return nil
}

func (p *plan) decide(ref schema.SubjectRef) {
	s := p.s
	conn := s.connect("operator", "lethe")
	defer conn.Close()
	publisher, err := capturekafka.NewPublisher(capturekafka.Options{Conn: conn})
	if err != nil {
		s.t.Fatal(err)
	}
	now := s.crm.now()
	s.mu.Lock()
	s.cancelled[ref.String()] = true
	s.mu.Unlock()
	ev := &schema.Event{
		Header: schema.Header{
			EventID:    s.ids.EventID(schema.EventKey{Number: uint64(now.UnixNano()), PK: ref[:], Rule: "cancel"}),
			SubjectRef: ref, CaseID: s.ids.CaseID(ref), Source: sourceName, CommittedAt: now, DetectedAt: now, Rule: "cancel",
		},
		Body: &schema.CaseDecision{Decision: schema.DecisionCancel, Reason: "test", DecidedBy: "operator", DecidedAt: now},
	}
	ctx, stop := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer stop()
	if err := publisher.PublishDecision(ctx, schema.NewEncoder(seal{}), ev); err != nil {
		if capture.IsPermanent(err) {
			s.check.fail("the operator's decision was refused: %v", err)
		}
		s.tracef("operator: the decision could not be published: %v", err)
	}
	s.tracef("operator: cancels the case of %s…", ref.String()[:8])
}

// cancelWaits: whoever is late must see the decision first.
func (p *plan) cancelWaits() func() {
	at := p.site()
	for _, pr := range p.workers(at) {
		pr.kill("so that a decision waits")
	}
	p.cancel()
	time.Sleep(coolOff + 20*time.Second)
	return nil
}

func (p *plan) checkpointsFail() func() {
	h := p.inject(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "lethe.checkpoints", Count: -1,
		Err: pick(p.rng, kerr.NotEnoughReplicas, kerr.RequestTimedOut),
	})
	return func() { h.Remove() }
}

func (p *plan) compact() func() {
	p.s.compacted = true
	p.s.cluster.Compact()
	return nil
}

func (p *plan) groupFails() func() {
	p.inject(kfake.Fault{
		Keys:  []kmsg.Key{pick(p.rng, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat, kmsg.OffsetFetch, kmsg.OffsetCommit, kmsg.FindCoordinator)},
		Err:   pick(p.rng, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.RebalanceInProgress),
		Count: 1 + p.rng.IntN(10),
	})
	return nil
}

func (p *plan) fetchFails() func() {
	h := p.inject(kfake.Fault{
		Keys: []kmsg.Key{pick(p.rng, kmsg.Fetch, kmsg.ListOffsets, kmsg.Metadata)}, Count: -1,
		Err: pick(p.rng, kerr.NotLeaderForPartition, kerr.UnknownServerError, kerr.LeaderNotAvailable),
	})
	return func() { h.Remove() }
}
