package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/internal/demo"
	"lethe/internal/testenv"
	"lethe/schema"
)

// player plays the publisher's day on connections of its own until it is stopped.
type player struct {
	*demo.Player
	w     *world
	stop  context.CancelFunc
	ended chan struct{}
	err   error
}

// player returns a player at rest.
func (w *world) player() *player {
	w.t.Helper()
	return &player{w: w, Player: w.publisher.Play(w.connections(), w.wasErased)}
}

func (w *world) wasErased(id int64, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.erased[id] = at
}

// remaining reports whether more than half of the customers are still there.
func (w *world) remaining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return 2*len(w.erased) < w.customers
}

// reconnect gives the player new connections, after a server was down.
func (p *player) reconnect() {
	p.w.t.Helper()
	p.Reconnect(p.w.connections())
}

// erase runs the CRM's procedure on a customer.
func (p *player) erase(id int64) {
	p.w.t.Helper()
	if err := p.Erase(p.w.ctx, id); err != nil {
		p.w.t.Fatal(err)
	}
}

// finish brings everybody into the replicas, as the ETL of the evening does.
func (p *player) finish() {
	p.w.t.Helper()
	if err := p.FinishETL(p.w.ctx); err != nil {
		p.w.t.Fatal(err)
	}
}

// caseStates lists the states of the receipts of a customer's case in the order of their making.
func (w *world) caseStates(replica string, id int64) string {
	var out []string
	for _, r := range w.receipts(replica) {
		if r.CaseID == w.caseOf(id) {
			out = append(out, r.State.String())
		}
	}
	return strings.Join(out, " ")
}

// steps plays so many steps.
func (p *player) steps(n int) {
	p.w.t.Helper()
	for range n {
		if err := p.Step(p.w.ctx); err != nil {
			p.w.t.Fatal(err)
		}
	}
}

// begin plays in the background: one step every so often, and after every tenth an erasure beside those of the day.
func (p *player) begin(every time.Duration) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.w.ctx))
	p.stop, p.ended = cancel, make(chan struct{})
	go func() {
		defer close(p.ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !p.w.remaining() {
				continue // a test that takes this long would run out of customers
			}
			// A step that has begun is finished: the oracle asks the CRM, which must not be told half of it.
			err := p.Step(context.WithoutCancel(ctx))
			if err == nil && n%10 == 0 {
				err = p.Erase(context.WithoutCancel(ctx), p.Someone())
			}
			if err != nil {
				p.err = err
				return
			}
		}
	}()
	p.w.t.Cleanup(p.rest)
}

// rest stops playing; it may be called again.
func (p *player) rest() {
	p.stop()
	<-p.ended
	if p.err != nil {
		p.w.t.Errorf("playing: %v", p.err)
		p.err = nil
	}
}

// caseOf returns the case of a customer's erasure.
func (w *world) caseOf(id int64) schema.CaseID { return w.ids.CaseID(w.refOf(id)) }

func (w *world) refOf(id int64) schema.SubjectRef { return w.ids.SubjectRef(keyOf(id)) }

func keyOf(id int64) []byte { return schema.CanonicalKey(nil, []byte(fmt.Sprint(id))) }

// followed waits until both replicas are what the oracle asks for and every erasure is verified in both, and then checks
// what must hold at rest.
func (w *world) followed(within time.Duration) {
	w.t.Helper()
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.explain()
		}
	})
	testenv.Eventually(w.t, within, func() error {
		diff, err := demo.Differences(w.ctx, w.databases())
		if err == nil && len(diff) > 0 {
			err = fmt.Errorf("%d differences: %s", len(diff), strings.Join(diff[:min(len(diff), 10)], "; "))
		}
		return errors.Join(err, w.unproven())
	})
	w.settled()
}

var customerID = regexp.MustCompile(`customer (\d+)`)

// explain logs what was published of the first customers in whom a replica differs, and what each replica says became of it.
func (w *world) explain() {
	w.ctx = context.WithoutCancel(w.ctx) // that of a test has ended when it is cleaned up
	diff, err := demo.Differences(w.ctx, w.databases())
	if err != nil {
		w.t.Logf("explaining: %v", err)
		return
	}
	outcomes := map[schema.EventID][]string{}
	for _, name := range replicaNames {
		for _, r := range w.receipts(name) {
			outcomes[r.EventID] = append(outcomes[r.EventID], name+" "+r.State.String())
			for _, e := range r.Events {
				outcomes[e.EventID] = append(outcomes[e.EventID], name+" "+e.Outcome)
			}
		}
	}
	events := slices.SortedFunc(maps.Values(w.events()), func(a, b *schema.Event) int { return bytes.Compare(a.Order[:], b.Order[:]) })
	told := map[string]bool{}
	for _, line := range diff {
		m := customerID.FindStringSubmatch(line)
		if m == nil || told[m[1]] || len(told) == 3 {
			continue
		}
		told[m[1]] = true
		w.t.Logf("of customer %s was published:", m[1])
		for _, ev := range events {
			if ev.SubjectRef == w.ids.SubjectRef(schema.CanonicalKey(nil, []byte(m[1]))) {
				w.t.Logf("  %x %s %+v: %s", ev.Order, ev.Body.Type(), ev.Body, strings.Join(outcomes[ev.EventID], ", "))
			}
		}
	}
}

// unproven says how many erasures are not verified.
func (w *world) unproven() error {
	w.mu.Lock()
	want := len(w.erased)
	w.mu.Unlock()
	var errs []error
	for _, name := range replicaNames {
		have := 0
		text, err := w.replica(name).text(w.ctx, `select count(distinct case_id) from lethe.receipt r where state = 'verified'
			and exists (select from lethe.pending p where p.case_id = r.case_id and p.state = 'verified')`)
		if err == nil {
			have, err = strconv.Atoi(text)
		}
		if err == nil && have < want {
			err = fmt.Errorf("%s: %d of %d erasures are verified", name, have, want)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// receipt is a stored receipt, verified and decoded.
type receipt = schema.Receipt

// receipts returns all of a replica's receipts; each must carry a good signature of that replica.
func (w *world) receipts(replica string) []*receipt {
	w.t.Helper()
	bodies, err := w.replica(replica).bodies(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []*receipt
	for _, body := range bodies {
		if _, err := schema.DecodeReconsentDue(body); err == nil {
			continue // it permits nothing, and is not signed
		}
		signed, err := schema.DecodeSignedReceipt(body)
		if err != nil {
			w.t.Fatal(err)
		}
		r, err := schema.VerifyReceipt(w.ring.Verifier(), signed)
		if err != nil {
			w.t.Fatalf("a receipt of %s: %v", replica, err)
		}
		if r.Replica != replica {
			w.t.Fatalf("a receipt of %s lies in %s", r.Replica, replica)
		}
		out = append(out, r)
	}
	return out
}

// bodies returns the stored receipts in the order of their making.
func (d *database) bodies(ctx context.Context) (list [][]byte, err error) {
	const query = "select body from lethe.receipt order by made_at, receipt_id"
	if d.mysql == nil {
		rows, err := d.conn.Query(ctx, query)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[[]byte])
	}
	rows, err := d.pool.QueryContext(ctx, mysqlOf(query))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		list = append(list, body)
	}
	return list, rows.Err()
}

// settled checks the invariants that hold once everything has followed: each erasure has exactly one effective receipt in
// each replica, and it says verified; each event of the topic has exactly one effect (I2), of which a receipt tells (I4).
func (w *world) settled() {
	w.t.Helper()
	w.mu.Lock()
	erased := maps.Clone(w.erased)
	w.mu.Unlock()
	events := w.events()
	for _, name := range replicaNames {
		list := w.receipts(name)
		w.checkErasures(name, list, erased)
		w.checkEffects(name, list, events)
	}
}

func (w *world) checkErasures(replica string, list []*receipt, erased map[int64]time.Time) {
	w.t.Helper()
	byCase := map[schema.CaseID][]*receipt{}
	for _, r := range list {
		if !r.CaseID.IsZero() {
			byCase[r.CaseID] = append(byCase[r.CaseID], r)
		}
	}
	for id := range erased {
		rs := byCase[w.caseOf(id)]
		delete(byCase, w.caseOf(id))
		var effective []*receipt
		events := map[schema.EventID]bool{}
		for _, r := range rs {
			events[r.EventID] = true
			if r.State == schema.ReceiptVerified {
				effective = append(effective, r)
			}
		}
		// A second erasure of the same case leaves another receipt: the later attempt is the effective one.
		if n := len(effective); w.again && n > 1 {
			effective = effective[n-1:]
		}
		if len(effective) != 1 || len(events) != 1 {
			w.t.Errorf("%s: customer %d has %d verified receipts of %d events, want one of one: %v", replica, id, len(effective), len(events), statesOf(rs))
			continue
		}
		if e := effective[0]; e.Verification == nil || e.Verification.Remaining != 0 || len(e.Gaps) > 0 {
			w.t.Errorf("%s: customer %d is called verified with %+v and gaps %v", replica, id, e.Verification, e.Gaps)
		}
	}
	if len(byCase) > 0 {
		w.t.Errorf("%s: %d cases of customers whom nobody erased", replica, len(byCase))
	}
}

func statesOf(rs []*receipt) (out []string) {
	for _, r := range rs {
		out = append(out, fmt.Sprintf("%s/%d", r.State, r.Attempt))
	}
	return out
}

// checkEffects wants every consent, objection and restriction that was published to have come to exactly one end, however
// often it was delivered. What is told again because a row appeared is a second statement, not a second effect.
func (w *world) checkEffects(replica string, list []*receipt, events map[schema.EventID]*schema.Event) {
	w.t.Helper()
	ends := map[schema.EventID][]string{}
	for _, r := range list {
		if r.Reason == "row_found" {
			continue
		}
		for _, e := range r.Events {
			if e.Outcome != "stale" {
				ends[e.EventID] = append(ends[e.EventID], e.Outcome)
			}
		}
	}
	told := map[schema.EventID]bool{}
	for _, r := range list {
		told[r.EventID] = true
		for _, e := range r.Events {
			told[e.EventID] = true
		}
	}
	for id, e := range events {
		if e.Kind == schema.KindSnapshot {
			continue // what a pass shows and the replica has already is told nowhere
		}
		switch e.Body.Type() {
		case schema.TypeConsentChange, schema.TypeObjection, schema.TypeProcessingRestriction:
		default:
			continue // what became of erasures and decisions is checked by case
		}
		if !told[id] {
			w.t.Errorf("%s: no receipt tells of event %v", replica, e)
		}
		if got := slices.DeleteFunc(slices.Clone(ends[id]), func(o string) bool { return o == "refused" || o == "parked" }); len(got) > 1 {
			w.t.Errorf("%s: event %v has taken effect %d times: %v", replica, e, len(got), got)
		}
	}
	for id := range ends {
		if events[id] == nil {
			w.t.Errorf("%s: a receipt tells of event %s that is not in the topic", replica, id)
		}
	}
}

// together runs functions at the same time and waits for all of them.
func together(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}
