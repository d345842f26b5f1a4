package sinktest

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// Setup is how the suite wants a replica configured.
type Setup struct {
	Mode     string        // observe | suppress | erase
	CoolOff  time.Duration // of phase 2
	NewCases int           // breaker: cases within Window that need no release; 0: as many as there are
	Window   time.Duration
	Gated    bool // phase 2 waits for the gate
}

// Person is a person's row in the replica, reduced to what the suite asks about.
type Person struct {
	Found      bool
	Personal   bool // name or address is still readable
	Usable     bool // false: suppress actions are in force
	Newsletter bool // consent newsletter by email, set to $permitted
	Objects    bool // objection direct_marketing, set to $objected
	Frozen     bool // restriction, set to $restricted
}

// Harness makes replicas. Their mapping has a table of persons with the columns that Person names, found by a CRM key of one
// column; suppress makes a person not usable, erase destroys what is personal. Subjects without a row are looked up again
// after at most a second.
type Harness interface {
	// New returns a replica on an empty database.
	New(t *testing.T, s Setup) Instance
}

// Instance is one replica under test.
type Instance interface {
	// Open returns the replica as another worker process would see it: a new value each time, over the same database.
	Open() sinks.Replica
	// InsertPerson puts a usable, personal row with newsletter, objects and frozen all false.
	InsertPerson(crmKey string)
	ReadPerson(crmKey string) Person
	// Refuse makes the database refuse every change of a person's row, or accept it again.
	Refuse(crmKey string, refuse bool)
	// Absent is how many subjects are listed that the last whole pass did not show.
	Absent() int
	// Encode returns the event as the topic carries it.
	Encode(ev *schema.Event) []byte
}

// Run runs the suite: what every sinks.Replica must do, whatever database it is.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name  string
		setup Setup
		test  func(*driver)
	}{
		{"consent follows the fold", erasing(time.Hour), consentFollows},
		{"objection and restriction follow", erasing(time.Hour), objectionFollows},
		{"redelivery has one effect", erasing(time.Hour), redelivery},
		{"a worker that lost its partition is fenced", erasing(time.Hour), fencing},
		{"older events change nothing", erasing(time.Hour), factsGuard},
		{"any order gives the same row", erasing(time.Hour), anyOrder},
		{"a row that comes later gets the fold", erasing(time.Hour), unmatched},
		{"erasure: suppress, cool off, erase, verify", erasing(coolOff), erasure},
		{"erasure without cool-off", erasing(0), erasureAtOnce},
		{"erasure of a person who comes later", erasing(0), erasureUnmatched},
		{"cancel before phase 2", erasing(coolOff), cancel},
		{"hold and release", erasing(coolOff), hold},
		{"phase 2 on decision", erasing(0), onDecision},
		{"the breaker holds a burst", Setup{Mode: "erase", NewCases: 2, Window: time.Hour}, breaker},
		{"a poison event parks its subject", erasing(time.Hour), parking},
		{"mode observe writes nothing", Setup{Mode: "observe"}, observe},
		{"mode suppress never erases", Setup{Mode: "suppress"}, suppress},
		{"receipts leave in order and once marked not again", erasing(0), outbox},
		{"nothing is verified while a gap is open", erasing(0), gap},
		{"a gap closes with its last partition", erasing(0), gapCloses},
		{"a pass that says what is known writes nothing", erasing(time.Hour), passKnown},
		{"a pass makes good for what the log lacks", erasing(time.Hour), passDiffers},
		{"a row dated later than now wins nothing in a pass", erasing(time.Hour), passDatedLater},
		{"a pass for other replicas is passed over", erasing(time.Hour), passElsewhere},
		{"erasures of a pass have one release", erasing(0), passErasures},
		{"a pass waits behind a parked event", erasing(time.Hour), passBlocked},
		{"nothing is verified before the first pass has ended", erasing(0), incomplete},
		{"a pass that leaves a table completes nothing", erasing(0), partial},
		{"whom a whole pass does not show is listed", erasing(time.Hour), absence},
		{"a pass anywhere in the log changes nothing", erasing(time.Hour), passAnywhere},
		{"a consent that runs out ends by itself", erasing(time.Hour), runsOut},
		{"a replaced contact point takes its consents along", erasing(time.Hour), contactReplaced},
		{"what was forbidden follows the person", erasing(time.Hour), contactRemoved},
		{"a withdrawal holds wherever the address stands", erasing(time.Hour), withdrawalElsewhere},
		{"an objection about an address holds wherever it stands", erasing(time.Hour), objectionElsewhere},
		{"who gets a known address hears of its withdrawal", erasing(time.Hour), withdrawalKnownBefore},
		{"a new record of an erased person needs evidence", erasing(0), newRecordOfTheErased},
		{"phase 2 waits for the gate", gated(erasing(0)), gateHolds},
		{"the gate is asked anew about a new case", gated(erasing(0)), gateOfNewCase},
		{"the gate decides nothing for a person", gated(erasing(0)), gateOnDecision},
		{"the gate holds joined records too", gated(erasing(0)), gateOfJoined},
		{"the gate only observes elsewhere", erasing(0), gateElsewhere},
		{"what the source says shows", erasing(time.Hour), sourceStates},
		{"joined records are one person", erasing(0), joinedRecords},
		{"a cancel covers joined records", erasing(time.Hour), joinedAndCancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(newDriver(t, h, c.setup))
		})
	}
}

func newDriver(t *testing.T, h Harness, s Setup) *driver {
	in := h.New(t, s)
	d := &driver{T: t, in: in, Topic: NewTopic(suitePartitions, in.Encode), again: func() *driver { return newDriver(t, h, s) }}
	d.r = d.in.Open()
	d.assign()
	return d
}

// coolOff is long enough to look before it ends, and short enough to wait for.
const coolOff = 1500 * time.Millisecond

func erasing(coolOff time.Duration) Setup { return Setup{Mode: "erase", CoolOff: coolOff} }

// suitePartitions is how many partitions the suite's log has.
const suitePartitions = 2

// driver plays a log to a replica.
type driver struct {
	*testing.T
	*Topic
	in      Instance
	r       sinks.Replica
	sent    []*schema.Receipt
	notices []*schema.ReconsentDue
	// again makes a driver of another replica.
	again func() *driver
}

func (d *driver) assign() {
	d.Helper()
	places, err := d.r.Assign(d.Context(), d.Partitions())
	if err != nil {
		d.Fatalf("Assign: %v", err)
	}
	d.Move(places...)
	if len(places) != suitePartitions {
		d.Fatalf("Assign gave %d places", len(places))
	}
}

// apply commits one batch and moves the places.
func (d *driver) apply(events ...*schema.Event) sinks.Outcome {
	d.Helper()
	out, err := d.r.Apply(d.Context(), d.Batch(events...))
	if err != nil {
		d.Fatalf("Apply: %v", err)
	}
	d.Move(out.Places...)
	if got := out.Applied + out.Reconciled + out.Unchanged + out.Stale + out.NoMatch + out.Refused + out.Parked; got != len(events) {
		d.Errorf("outcome counts %d of %d events: %+v", got, len(events), out)
	}
	return out
}

// due runs the chores once.
func (d *driver) due() {
	d.Helper()
	if _, err := d.r.RunDue(d.Context(), d.All()); err != nil {
		d.Fatalf("RunDue: %v", err)
	}
}

// within runs the chores until cond holds.
func (d *driver) within(limit time.Duration, what string, cond func() bool) {
	d.Helper()
	ctx, stop := context.WithTimeout(d.Context(), limit)
	defer stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		d.due()
		if cond() {
			return
		}
		select {
		case <-ctx.Done():
			d.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}

// idle runs the chores for a while, in which nothing must happen.
func (d *driver) idle(long time.Duration) {
	d.Helper()
	end := time.Now().Add(long)
	d.within(2*long, "waiting", func() bool { return time.Now().After(end) })
}

// receipts takes what is in the outbox, in the order in which it leaves, and returns everything taken so far.
func (d *driver) receipts() []*schema.Receipt {
	d.Helper()
	for {
		rs, err := d.r.Unsent(d.Context(), d.Partitions(), 100)
		if err != nil {
			d.Fatalf("Unsent: %v", err)
		}
		if len(rs) == 0 {
			return d.sent
		}
		ids := make([]schema.ReceiptID, len(rs))
		for i, o := range rs {
			ids[i] = o.ID
			if notice, err := schema.DecodeReconsentDue(o.Body); err == nil {
				d.notices = append(d.notices, notice)
				continue
			}
			signed, err := schema.DecodeSignedReceipt(o.Body)
			if err != nil {
				d.Fatalf("receipt: %v", err)
			}
			r, err := schema.DecodeReceipt(signed.Body)
			if err != nil {
				d.Fatalf("receipt: %v", err)
			}
			if r.ReceiptID != o.ID {
				d.Errorf("receipt %v left under the id %v", r.ReceiptID, o.ID)
			}
			d.sent = append(d.sent, r)
		}
		if err := d.r.MarkSent(d.Context(), ids); err != nil {
			d.Fatalf("MarkSent: %v", err)
		}
	}
}

// states returns the states of the receipts of one event, in order.
func (d *driver) states(ev *schema.Event) []schema.ReceiptState {
	d.Helper()
	var out []schema.ReceiptState
	for _, r := range d.receipts() {
		if r.EventID == ev.EventID {
			out = append(out, r.State)
		}
	}
	return out
}

func (d *driver) wantStates(ev *schema.Event, want ...schema.ReceiptState) {
	d.Helper()
	if got := d.states(ev); !slices.Equal(got, want) {
		d.Errorf("receipts of the event: %v, want %v", got, want)
	}
}

func (d *driver) wantPerson(crmKey string, want Person) {
	d.Helper()
	want.Found = true
	if got := d.in.ReadPerson(crmKey); got != want {
		d.Errorf("person %s: %+v, want %+v", crmKey, got, want)
	}
}

// live is a person about whom nothing is known.
var live = Person{Personal: true, Usable: true}

func consent(state schema.ConsentState) *schema.ConsentChange {
	return &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: state, LegalBasis: "consent"}
}

func decision(d schema.Decision) *schema.CaseDecision {
	return &schema.CaseDecision{Decision: d, DecidedBy: "operator", DecidedAt: time.Now().UTC().Truncate(time.Millisecond)}
}

func keyOf(i int) string { return strconv.Itoa(1000 + i) }
