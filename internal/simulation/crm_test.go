package simulation

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"lethe/capture"
)

// cell is a value of a row; nil: NULL.
type cell = *string

func text(s string) cell { return &s }

func boolean(b bool) cell {
	if b {
		return text("t")
	}
	return text("f")
}

func instant(t time.Time) cell {
	if t.IsZero() {
		return nil
	}
	return text(t.UTC().Format("2006-01-02 15:04:05.999") + "+00")
}

func code(s string) cell {
	if s == "" {
		return nil
	}
	return text(s)
}

// shape is a table of the CRM. FULL tables carry old rows, the others nothing but their key.
type shape struct {
	columns string // name:type, the key with a star
	full    bool
}

var shapes = map[string]shape{
	"public.customer":   {"*customer_id:text status:text no_marketing:bool frozen:bool frozen_until:timestamptz email:text", true},
	"public.preference": {"*customer_id:text no_profiling:bool", false},
	"public.customer_note": {
		"*note_id:int8 customer_id:text code:text", false,
	},
	"public.consent": {
		"*consent_id:int8 customer_id:text purpose:text channel:text contact_id:text status:text basis:text valid_until:timestamptz note:text", true,
	},
	"public.consent_log": {"*log_id:int8 customer_id:text channel:text status:text basis:text as_of:timestamptz", true},
	"public.invoice":     {"*invoice_id:int8 customer_id:text amount:text", false},
}

const mapping = `source:
  postgres: {dsn: "postgres://lethe@localhost/crm"}
  subject: {table: public.customer, key: customer_id, on_delete: erasure}
  erased:
    when: 'status == "E"'
    marker: {table: public.customer_note, when: 'code == "GDPR_ERASURE"'}
  tables:
    public.customer:
      objection: {when: no_marketing, scope: direct_marketing}
      restricted: {when: frozen, until: frozen_until}
    public.preference:
      objection: {when: no_profiling, scope: profiling}
    public.email: {subject: customer_id, erase: row}
    public.phone: {subject: customer_id, erase: row}
    public.consent:
      consent:
        kind: current
        purpose: {column: purpose, map: {NL: newsletter, OF: offers}}
        channel: {column: channel, map: {E: email, S: sms, P: postal}}
        state: {column: status, map: {Y: given, N: withdrawn, R: refused, U: unknown}}
        legal_basis: {column: basis, map: {C: consent}}
        valid_until: valid_until
        bound_to: {column: contact_id, rows_of: {email: public.email, sms: public.phone}}
    public.consent_log:
      consent:
        kind: history
        as_of: as_of
        purpose: partners
        channel: {column: channel, map: {E: email, S: sms}}
        state: {column: status, map: {Y: given, N: withdrawn, R: refused}}
        legal_basis: {column: basis, map: {C: consent}}
`

var (
	purposes = map[string]string{"NL": "newsletter", "OF": "offers"}
	channels = map[string]string{"E": "email", "S": "sms", "P": "postal"}
	statuses = map[string]string{"Y": "given", "N": "withdrawn", "R": "refused", "U": "unknown"}
)

// tables makes the tables as one run of the source sees them: a new connection makes new ones.
func tables() map[string]*capture.Table {
	out := map[string]*capture.Table{}
	for name, s := range shapes {
		t := &capture.Table{Name: name, OldRow: capture.OldRowKey}
		if s.full {
			t.OldRow = capture.OldRowFull
		}
		for column := range strings.FieldsSeq(s.columns) {
			c, typ, _ := strings.Cut(column, ":")
			key := strings.HasPrefix(c, "*")
			t.Columns = append(t.Columns, capture.Column{Name: strings.TrimPrefix(c, "*"), Type: typ, Key: key || s.full})
		}
		out[name] = t
	}
	return out
}

// change is a row change as the CRM made it.
type change struct {
	op       capture.Op
	table    string
	old, new []cell
	message  string
}

// expected is an event that a change must give; optional ones may be left away.
type expected struct {
	ordinal  int
	rule     string
	customer int // -1: none, the event goes to every partition
	says     string
	optional bool
}

// transaction is a committed transaction of the CRM's log.
type transaction struct {
	capture.Transaction
	changes []change
	expect  []expected
}

// customer is a person in the CRM, with what the person wants.
type customer struct {
	id           int
	status       string
	noMarketing  bool
	frozen       bool
	frozenUntil  time.Time
	email        string
	deleted      bool
	preference   bool // has a row
	noProfiling  bool
	consents     []*consentRow
	history      []*historyRow
	claims       map[string]claim // of the history, by channel
	erased       bool
	markerIsOwed bool
	stateIsOwed  bool
}

func (c *customer) key() string { return fmt.Sprintf("%s-person-%d", canary, c.id) }

// canary marks what must never leave the CRM and the replicas.
const canary = "PII7CANARY"

func (c *customer) row() []cell {
	return []cell{
		text(c.key()), text(c.status), boolean(c.noMarketing), boolean(c.frozen), instant(c.frozenUntil), code(c.email),
	}
}

func (c *customer) preferenceRow() []cell { return []cell{text(c.key()), boolean(c.noProfiling)} }

// consentRow is the present state of a consent; at most one row per purpose, channel and contact point.
type consentRow struct {
	id                        int
	purpose, channel, contact string
	status, basis, note       string
	until                     time.Time
	owner                     *customer
}

func (r *consentRow) row() []cell {
	return []cell{
		text(fmt.Sprint(r.id)), text(r.owner.key()), text(r.purpose), text(r.channel), code(r.contact), text(r.status),
		code(r.basis), instant(r.until), code(r.note),
	}
}

// point is the contact point that the consent is bound to: postal ones are to none.
func (r *consentRow) point() string {
	if r.channel == "P" {
		return ""
	}
	return r.contact
}

func (r *consentRow) says() string {
	basis := ""
	if r.basis != "" {
		basis = "consent"
	}
	return consentSays(purposes[r.purpose], channels[r.channel], r.point(), statuses[r.status], basis, r.until)
}

func (r *consentRow) gone() string {
	return consentSays(purposes[r.purpose], channels[r.channel], r.point(), "invalidated", "", time.Time{})
}

func consentSays(purpose, channel, contact, state, basis string, until time.Time) string {
	s := fmt.Sprintf("%s by %s to [%s]: %s, basis [%s]", purpose, channel, contact, state, basis)
	if !until.IsZero() {
		s += ", until " + until.UTC().Format(time.RFC3339Nano)
	}
	return s
}

// historyRow is an entry of the history of consents.
type historyRow struct {
	id                     int
	channel, status, basis string
	asOf                   time.Time
	owner                  *customer
}

func (r *historyRow) row() []cell {
	return []cell{
		text(fmt.Sprint(r.id)), text(r.owner.key()), text(r.channel), text(r.status), code(r.basis), instant(r.asOf),
	}
}

func (r *historyRow) says() string {
	basis := ""
	if r.basis != "" {
		basis = "consent"
	}
	return consentSays("partners", channels[r.channel], "", statuses[r.status], basis, time.Time{})
}

// claim is the statement of a history that counts now.
type claim struct {
	asOf   time.Time
	permit bool
}

// claims notes a statement: the later claimed time wins, and at the same one the later commit.
func (c *customer) claimed(channel string, asOf time.Time, permit bool) {
	if old, known := c.claims[channel]; !known || !asOf.Before(old.asOf) {
		c.claims[channel] = claim{asOf, permit}
	}
}

// crm is the source's database: what is true, and the log of how it became so. Safe for concurrent use.
type crm struct {
	mu        sync.Mutex
	rng       *rand.Rand
	trace     func(format string, args ...any)
	customers []*customer
	log       []*transaction
	lsn       uint64
	xid       uint32
	epoch     uint32
	lastID    int
	grown     chan struct{} // closed when the log grows
}

func newCRM(rng *rand.Rand, trace func(string, ...any)) *crm {
	return &crm{rng: rng, trace: trace, lsn: 1 << 20, epoch: 1, grown: make(chan struct{})}
}

// writer builds a transaction; the crm's mu is held.
type writer struct {
	c  *crm
	tx *transaction
}

// write runs f as one transaction and commits it.
func (c *crm) write(what string, f func(*writer)) *transaction {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.xid++
	c.lsn += 100 + uint64(c.xid)*7919%5000 // heartbeats come between at their own time: they draw nothing
	tx := &transaction{Transaction: capture.Transaction{
		Position: capture.Position{Epoch: c.epoch, Commit: c.lsn, End: c.lsn + 48}, XID: c.xid, CommittedAt: c.now(),
	}}
	f(&writer{c: c, tx: tx})
	c.log = append(c.log, tx)
	c.lsn += 48
	close(c.grown)
	c.grown = make(chan struct{})
	c.trace("crm: commit %s: %s (%d changes, %d events)", tx.Position, what, len(tx.changes), len(tx.expect))
	return tx
}

// now is the time of the bubble as an event carries it.
func (c *crm) now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// at returns the transaction of an index and, where there is none yet, what tells of the next one.
func (c *crm) at(i int) (*transaction, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= 0 && i < len(c.log) {
		return c.log[i], nil
	}
	return nil, c.grown
}

// after returns the index of the first transaction that ends behind a position.
func (c *crm) after(end uint64) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := len(c.log)
	for i > 0 && c.log[i-1].Position.End > end {
		i--
	}
	return i
}

// isCommit reports whether a position is the end of a transaction.
func (c *crm) isCommit(p capture.Position) bool {
	i := c.after(p.End)
	tx, _ := c.at(i - 1)
	return tx != nil && tx.Position == p
}

func (c *crm) last() capture.Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.log) == 0 {
		return capture.Position{}
	}
	return c.log[len(c.log)-1].Position
}

// promote is a failover to a standby that has everything: the next timeline begins.
func (c *crm) promote() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.trace("crm: a standby is promoted, timeline %d", c.epoch)
}

// heartbeat writes what Options.Heart does.
func (c *crm) heartbeat() {
	c.write("heartbeat", func(w *writer) {
		n := w.add(change{op: capture.OpMessage, message: fmt.Sprint(time.Now().UnixMilli())})
		w.expect(n, "heartbeat", nil, "heartbeat")
	})
}

func (w *writer) add(ch change) int {
	w.tx.changes = append(w.tx.changes, ch)
	return len(w.tx.changes) - 1
}

func (w *writer) insert(table string, row []cell) int {
	return w.add(change{op: capture.OpInsert, table: table, new: row})
}

func (w *writer) update(table string, old, row []cell) int {
	if !shapes[table].full {
		old = nil
	}
	return w.add(change{op: capture.OpUpdate, table: table, old: old, new: row})
}

func (w *writer) delete(table string, old []cell) int {
	return w.add(change{op: capture.OpDelete, table: table, old: old})
}

func (w *writer) expect(ordinal int, rule string, c *customer, says string) {
	e := expected{ordinal: ordinal, rule: rule, customer: -1, says: says}
	if c != nil {
		e.customer = c.id
	}
	w.tx.expect = append(w.tx.expect, e)
}

func (w *writer) maybe(ordinal int, rule string, c *customer, says string) {
	w.expect(ordinal, rule, c, says)
	w.tx.expect[len(w.tx.expect)-1].optional = true
}

func (w *writer) id() int {
	w.c.lastID++
	return w.c.lastID
}

func chance(r *rand.Rand, percent int) bool { return r.IntN(100) < percent }

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }
