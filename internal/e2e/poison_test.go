package e2e

import (
	"testing"
	"time"

	capturekafka "lethe/capture/kafka"
	"lethe/internal/testenv"
	"lethe/schema"
)

// inject writes bytes of our own under a key into the events topic.
func (w *world) inject(key, value []byte) {
	w.t.Helper()
	p, err := capturekafka.NewPublisher(capturekafka.Options{Conn: w.conn})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.Open(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	u := p.NewUnit()
	if err := u.Append(key, value); err != nil {
		w.t.Fatal(err)
	}
	if err := p.Publish(w.ctx, u); err != nil {
		w.t.Fatal(err)
	}
}

// factsKnown waits until what the CRM was filled with has arrived in both replicas.
func (w *world) factsKnown() {
	w.t.Helper()
	all := w.query(&w.crm, "select count(*) from consent")
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, "select count(*) from lethe.fact where scope like 'consent:%'", all)
	}
}

// parked counts what is parked and not done, by code.
const parked = "select coalesce(string_agg(error_code || ' ' || n, ', ' order by error_code), '') from (select error_code, count(*) n from lethe.parked where done_at is null group by 1) p"

// Bytes that nobody can decode, under the key of a subject, block that subject and nobody else: prohibitions of the blocked
// subject pass, permissions wait until the bytes are discarded.
func TestUndecodableBytesBlockTheirSubject(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	lethe := w.start()
	lethe.waitReady(soon)
	w.factsKnown()
	w.passed("") // what it says of the subject would wait behind the bytes too
	w.inject(w.refOf(5).AppendText(nil), []byte{0xc3, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, parked, "undecodable 1")
	}
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = 5 and purpose_code = 'NL'")
	w.exec(&w.crm, "insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis) values (5, 'OFF', 'S', 5, 'Y', 'C'), (6, 'OFF', 'S', 6, 'Y', 'C')")
	w.want(&w.marketing, soon, "select newsletter_optin, offers_sms from contact where crm_id = 5", "false|false")
	w.want(&w.marketing, soon, "select offers_sms from contact where crm_id = 6", "true")
	w.want(&w.marketing, soon, parked, "subject_blocked 1, undecodable 1")
	w.exec(&w.crm, "update customer set no_marketing = true, ok_for_promo = false where customer_id = 5")
	w.want(&w.marketing, soon, "select offers_email from contact where crm_id = 5", "false")
	w.exec(&w.crm, "update customer set no_marketing = false where customer_id = 5")
	lethe.waitReady(soon)

	// What waited behind the bytes follows by itself.
	for _, name := range replicaNames {
		w.settleParked(name, "undecodable", true)
	}
	w.want(&w.marketing, soon, "select newsletter_optin, offers_sms, offers_email from contact where crm_id = 5", "false|true|true")
	for _, name := range replicaNames {
		w.want(w.replica(name), soon, parked, "")
		w.want(w.replica(name), soon, "select count(*) from lethe.subject where blocked is not null", "0")
	}
	p := w.player()
	p.erase(5)
	p.finish()
	w.followed(within)
}

// A constraint of the replica rejects one person's update: the event is parked, everybody else goes on, the person's
// withdrawal and erasure pass, and once the constraint is gone a replay applies what waited.
func TestConstraintRejectsAnUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{marketingSQL: "alter table contact add constraint capped check (not offers_sms or crm_id not in (5, 9))"})
	lethe := w.start()
	lethe.waitReady(soon)
	w.passed("") // what it says of the subjects would wait behind their parked events too
	w.factsKnown()
	w.exec(&w.crm, `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis)
		select id, 'OFF', 'S', id, 'Y', 'C' from unnest(array[1, 2, 5, 6, 9, 10]) id`)
	w.want(&w.marketing, soon, "select string_agg(crm_id::text, ' ' order by crm_id) from contact where offers_sms and crm_id <= 10", "1 2 4 6 8 10")
	w.want(&w.marketing, soon, parked, "23514 2")
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = 5 and purpose_code = 'NL'")
	w.want(&w.marketing, soon, "select newsletter_optin from contact where crm_id = 5", "false")
	p := w.player()
	p.erase(9)
	testenv.Eventually(t, soon, w.unproven)
	lethe.waitReady(soon)
	if got := w.query(&w.reporting, parked); got != "" {
		t.Errorf("reporting has parked %s", got)
	}
	w.exec(&w.marketing, "alter table contact drop constraint capped")
	w.settleParked("marketing", "23514", false)
	w.want(&w.marketing, soon, parked, "")
	p.finish()
	w.followed(within)
}

// A constraint rejects the erasure itself: after three attempts the case has failed, loudly, and stays suppressed; the
// others are erased. Once the constraint is gone, a release does it.
func TestConstraintRejectsAnErasure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.exec(&w.reporting, "alter table dim_customer add constraint named check (customer_nk <> 5 or full_name is not null)")
	lethe := w.start()
	lethe.waitReady(soon)
	p := w.player()
	for id := int64(3); id <= 8; id++ {
		if id != 7 {
			p.erase(id)
		}
	}
	w.want(&w.reporting, soon, "select count(*) from lethe.pending where state = 'verified'", "4")
	w.want(&w.reporting, soon, "select state, attempts, error_code from lethe.pending where state <> 'verified'", "suppressed|3|23514")
	w.want(&w.reporting, soon, "select usable from dim_customer where customer_nk = 5", "false")
	if got := w.caseStates("reporting", 5); got != "suppressed failed" {
		t.Errorf("the case has %s", got)
	}
	w.exec(&w.reporting, "alter table dim_customer drop constraint named")
	w.decide(5, schema.DecisionRelease)
	p.finish()
	w.followed(within)
}

// A mapped column of a replica is renamed: that sink stops loudly, the other one goes on, and nothing is lost.
func TestReplicaSchemaDrift(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	lethe := w.start()
	lethe.waitReady(soon)
	w.want(&w.marketing, soon, "select count(*) > 0 from lethe.fact", "true")
	w.exec(&w.marketing, "alter table contact rename column newsletter_optin to newsletter")
	w.exec(&w.crm, "update consent set status = 'N' where customer_id = 5")
	lethe.waitRole(soon, roleMarketing, false, "halted")
	w.want(&w.reporting, soon, "select contactable from dim_customer where customer_nk = 5", "false")
	lethe.waitRole(soon, roleReporting, true)
	w.exec(&w.marketing, "alter table contact rename column newsletter to newsletter_optin")
	lethe.terminate(10 * time.Second)
	w.start().waitReady(soon)
	w.player().finish()
	w.followed(within)
}
