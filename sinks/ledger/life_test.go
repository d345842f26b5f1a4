package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// book is a replica's ledger in memory, as much of it as the life of a consent needs.
type book struct {
	testing.TB
	core     *ledger.Core
	topic    *sinktest.Topic
	subjects map[ledger.Ref]*ledger.Subject
	blocks   map[string]ledger.Block
	findings []string
	notices  []*schema.ReconsentDue
	ids      map[schema.ReceiptID]bool
	outcomes []string
	now      time.Time
	gaps     bool
}

// coreOf is newCore for rapid's T too.
func newBook(tb testing.TB, core *ledger.Core) *book {
	topic := sinktest.NewTopic(1, func(*schema.Event) []byte { return nil })
	return &book{
		TB: tb, core: core, topic: topic, subjects: map[ledger.Ref]*ledger.Subject{}, blocks: map[string]ledger.Block{}, ids: map[schema.ReceiptID]bool{},
		now: time.Now().UTC(),
	}
}

// apply plays a batch as a dialect does.
func (b *book) apply(events ...*schema.Event) {
	records := make([]sinks.Record, len(events))
	for i, ev := range events {
		records[i] = sinks.Record{Offset: int64(len(b.outcomes) + i), Event: ev}
	}
	u, err := b.core.NewUnit(1, records)
	if err != nil {
		b.Fatal(err)
	}
	u.Now = b.now
	if b.gaps {
		u.Gaps["gap"] = true
	}
	b.load(u.Set)
	if wanted := u.Wanted(); len(wanted) > 0 {
		u.Meet(b.near(wanted))
	}
	u.Dispatch()
	for _, s := range u.Set.List {
		s.Effect.Matched = true
	}
	u.Settle()
	rows, err := u.Receipts()
	if err != nil {
		b.Fatal(err)
	}
	b.store(u, rows)
}

func (b *book) load(set *ledger.Set) {
	for _, s := range set.List {
		old := b.subjects[s.Ref]
		if old == nil {
			continue
		}
		s.Known, s.Sealed, s.State, s.ErasedOrder = true, []byte{}, old.State, old.ErasedOrder
		s.Facts, s.Stored = slices.Clone(old.Facts), make([]uint64, len(old.Facts))
		if set.NeedContacts {
			s.Contacts = nil
			for _, c := range old.Contacts {
				c.Stored, c.Dirty, c.Keys = true, false, slices.Clone(c.Keys)
				s.Contacts = append(s.Contacts, c)
			}
		}
	}
}

func (b *book) near(wanted [][32]byte) (blocks []ledger.Block, holders []ledger.Holder) {
	for _, x := range b.blocks {
		if slices.Contains(wanted, x.Value) {
			blocks = append(blocks, x)
		}
	}
	for _, s := range b.subjects {
		for _, c := range s.Contacts {
			for _, k := range c.Keys {
				if s.Erased() && !k.Revived && slices.Contains(wanted, k.Value) {
					holders = append(holders, ledger.Holder{Value: k.Value, Ref: s.Ref, ErasedOrder: s.ErasedOrder})
				}
			}
		}
	}
	return blocks, holders
}

func (b *book) store(u *ledger.Unit, rows []ledger.ReceiptRow) {
	for _, s := range u.Set.List {
		old := b.subjects[s.Ref]
		if old != nil && !u.Set.NeedContacts {
			s.Contacts = old.Contacts
		}
		for _, i := range s.Fresh { // the dialects count on it
			if old != nil && i < len(old.Facts) && old.Facts[i] == s.Facts[i] {
				b.Errorf("a fact is written that has not changed: %+v", s.Facts[i])
			}
		}
		s.Fresh, s.Touched, s.Dirty = nil, false, false
		b.subjects[s.Ref] = s
	}
	key := func(x ledger.Block) string { return fmt.Sprintf("%x %s %x", x.Value, x.Scope, x.Ref) }
	for _, x := range u.Life.Unblocks {
		delete(b.blocks, key(x))
	}
	for _, x := range u.Life.Blocks {
		b.blocks[key(x)] = x
	}
	for _, f := range u.Life.Findings {
		b.findings = append(b.findings, f.Kind+" "+f.Scope)
	}
	for _, r := range rows {
		if r.State != ledger.StateReconsent || b.ids[r.ID] {
			continue
		}
		b.ids[r.ID] = true
		d, err := schema.DecodeReconsentDue(r.Body)
		if err != nil {
			b.Fatal(err)
		}
		b.notices = append(b.notices, d)
	}
	for i := range u.Results {
		b.outcomes = append(b.outcomes, u.Results[i].Outcome)
	}
}

func (b *book) subject(key string) *ledger.Subject {
	return b.subjects[b.core.Ref(b.topic.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(key))))]
}

func (b *book) permitted(key string) bool {
	s := b.subject(key)
	return s != nil && sinks.Fold(s.Facts, s.Erased(), b.now).Permitted("newsletter", "sms")
}

// due is the answer for $reconsent_due.
func (b *book) due(key string) bool {
	s := b.subject(key)
	v := sinks.Fold(s.Facts, s.Erased(), b.now)
	due, _ := s.Answer(&v, &ledger.Question{
		Kind: ledger.KindReconsentDue, Purpose: "newsletter", Channel: "sms", FactScope: sinks.ConsentScope("newsletter", "sms"),
	}, b.now)
	return due
}

// script plays lines of "key what contact value @commit/row": the events of a small source.
//
//	1 phone P 0601 @1      contact point P has the number 0601
//	1 gone P @2            its row was deleted
//	1 given P @3           consent newsletter by sms, bound to P; also renewed, withdrawn, refused; - for no contact point
//	1 erased @4            and joined, with the key of the absorbed
func (b *book) event(line string) *schema.Event {
	words := strings.Fields(line)
	place := strings.TrimPrefix(words[len(words)-1], "@")
	pass := strings.HasPrefix(place, "pass:")
	place = strings.TrimPrefix(place, "pass:")
	var commit uint64
	var row uint32
	if _, err := fmt.Sscanf(place, "%d/%d", &commit, &row); err != nil {
		if _, err := fmt.Sscanf(place, "%d", &commit); err != nil {
			b.Fatalf("%q: %v", line, err)
		}
	}
	args := words[2 : len(words)-1]
	ev := b.topic.EventAt(words[0], commit*100+uint64(row), b.body(words[1], args))
	ev.Order = schema.NewOrder(0, 1, commit, row)
	ev.CommittedAt = epoch.Add(time.Duration(commit) * time.Minute)
	ev.DetectedAt = ev.CommittedAt
	if pass {
		ev.Kind = schema.KindSnapshot
		ev.DetectedAt = ev.CommittedAt.Add(30 * time.Second)
	}
	return ev
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func (b *book) body(what string, args []string) schema.Body {
	contact := func() (ref schema.ContactRef) {
		if args[0] != "-" {
			copy(ref[:], args[0])
		}
		return ref
	}
	switch what {
	case "phone", "past":
		c := &schema.ContactPoint{Contact: contact(), Kind: schema.ContactPhone, Past: what == "past"}
		for _, v := range args[1:] {
			c.Keys = append(c.Keys, phoneKey(v))
		}
		return c
	case "gone":
		return &schema.ContactPoint{Contact: contact(), Kind: schema.ContactPhone, Removed: true}
	case "erased":
		return &schema.SubjectErasure{Marker: true}
	case "objects":
		if len(args) > 0 {
			return &schema.Objection{Raised: true, Scope: "direct_marketing", Contact: contact()}
		}
		return &schema.Objection{Raised: true, Scope: "direct_marketing"}
	case "lifts":
		return &schema.Objection{Scope: "direct_marketing", Contact: contact()}
	case "joined":
		return &schema.SubjectMerged{Absorbed: []schema.SubjectRef{b.topic.IDs.SubjectRef(schema.CanonicalKey(nil, []byte(args[0])))}}
	}
	c := &schema.ConsentChange{Purpose: "newsletter", Channel: "sms", Contact: contact(), LegalBasis: "consent"}
	switch what {
	case "given":
		c.State = schema.ConsentGiven
	case "proven":
		c.State, c.Evidence = schema.ConsentGiven, []byte("form 7")
	case "renewed":
		c.State = schema.ConsentRenewedGiven
	case "withdrawn":
		c.State = schema.ConsentWithdrawn
	case "refused":
		c.State = schema.ConsentRefused
	case "invalidated":
		c.State = schema.ConsentInvalidated
	case "baseless":
		c.State, c.LegalBasis = schema.ConsentGiven, ""
	default:
		b.Fatalf("no event %q", what)
	}
	for _, arg := range args[1:] {
		var minutes int
		if _, err := fmt.Sscanf(arg, "until=%d", &minutes); err == nil {
			c.ValidUntil = epoch.Add(time.Duration(minutes) * time.Minute)
		}
		if _, err := fmt.Sscanf(arg, "as_of=%d", &minutes); err == nil {
			c.AsOf = epoch.Add(time.Duration(minutes) * time.Minute)
		}
	}
	return c
}

// phoneKey is the key of a number; a v in front of a # says under which key version: 0601, 2#0601, or both as 1+2#0601.
func phoneKey(v string) schema.MatchKey {
	k := schema.MatchKey{Type: "phone_e164", KeyID: 1, NormVersion: 1}
	if version, number, ok := strings.Cut(v, "#"); ok {
		k.KeyID, v = uint32(version[0]-'0'), number
	}
	copy(k.Value[:], fmt.Sprintf("%d %s", k.KeyID, v))
	return k
}

// The rules of the life of a consent, each by its golden name in docs/DESIGN.md.
func TestLifeOfAConsent(t *testing.T) {
	for _, c := range []struct {
		name      string
		log       string // a line an event
		permitted bool
		due       bool
		notices   int
		findings  string
		gaps      bool
	}{
		{name: "added-voids-nothing", log: "1 given P @1\n1 phone P 0601 @2", permitted: true},
		{name: "format-only", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0601 @3", permitted: true},
		{name: "replaced", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0602 @3", due: true, notices: 1},
		{name: "replaced-back", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0602 @3\n1 phone P 0601 @4", due: true, notices: 1},
		{name: "replaced-then-asked", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0602 @3\n1 given P @4", permitted: true, notices: 1},
		{name: "removed", log: "1 phone P 0601 @1\n1 given P @2\n1 gone P @3", due: true, notices: 1},
		{name: "removed-unseen", log: "1 given P @2\n1 gone P @3", due: true, notices: 1},
		{name: "granted-to-what-is-gone", log: "1 phone P 0601 @1\n1 gone P @3\n1 given P @4", due: true, notices: 1},
		{name: "placeholder", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P @3", due: true, notices: 1},
		{name: "list-shortened", log: "1 phone P 0601 0602 @1\n1 given P @2\n1 phone P 0602 @3", due: true, notices: 1},
		{name: "other-point", log: "1 phone P 0601 @1\n1 phone Q 0603 @1/1\n1 given Q @2\n1 phone P 0602 @3", permitted: true},
		{name: "expired-already", log: "1 phone P 0601 @1\n1 given P until=3 @2\n1 phone P 0602 @4", due: true},
		{name: "objecting", log: "1 phone P 0601 @1\n1 given P @2\n1 objects @3\n1 phone P 0602 @4"},
		{name: "withdrawal-stays-on-replaced", log: "1 phone P 0601 @1\n1 withdrawn P @2\n1 phone P 0602 @3"},
		{name: "withdrawal-follows-person", log: "1 phone P 0601 @1\n1 phone Q 0602 @1\n1 given Q @2\n1 withdrawn P @3\n1 gone P @4"},
		{name: "refusal-follows-person", log: "1 phone P 0601 @1\n1 phone Q 0602 @1\n1 given Q @2\n1 refused P @3\n1 gone P @4"},
		{name: "newer-permission-lifts", log: "1 phone P 0601 @1\n1 withdrawn P @2\n1 gone P @3\n1 phone Q 0602 @3/1\n1 given Q @4", permitted: true},
		{name: "withdrawn-after-gone", log: "1 phone P 0601 @1\n1 phone Q 0602 @1\n1 given Q @2\n1 gone P @3\n1 withdrawn P @4"},
		{name: "past-is-gone", log: "1 phone P 0601 @1\n1 given P @2\n1 past P 0601 @3", due: true, notices: 1},

		{name: "same-commit-contact-then-consent", log: "1 phone P 0601 @1\n1 phone P 0602 @2/1\n1 given P @2/2", permitted: true},
		{name: "same-commit-consent-then-contact", log: "1 phone P 0601 @1\n1 given P @2/1\n1 phone P 0602 @2/2", due: true, notices: 1},
		{name: "same-commit-touched", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0602 @3/1\n1 given P @3/2", due: true, notices: 1},
		{name: "same-commit-renewed", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0602 @3/1\n1 renewed P @3/2", permitted: true, notices: 1},
		{name: "same-commit-all-no-then-yes", log: "1 phone P 0601 @1\n1 given P @2\n1 withdrawn P @3/1\n1 given P @3/2", permitted: true},
		{name: "same-commit-yes-then-no", log: "1 phone P 0601 @1\n1 given P @3/1\n1 withdrawn P @3/2"},
		{name: "same-commit-consent-deleted-and-inserted", log: "1 phone P 0601 @1\n1 given P @2\n1 invalidated P @3/1\n1 given P @3/2", permitted: true},
		{name: "same-commit-contact-deleted-and-inserted", log: "1 phone P 0601 @1\n1 given P @2\n1 gone P @3/1 | 1 phone P 0601 @3/2", permitted: true},

		{name: "pass-repeats-what-fell", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0602 @3\n1 given P @pass:5", due: true, notices: 1},
		{name: "pass-repeats-what-was-given-anew", log: "1 phone P 0601 @1\n1 phone P 0602 @3\n1 given P @4\n1 given P @pass:5", permitted: true},
		{name: "pass-keeps-withdrawal", log: "1 phone P 0601 @1\n1 phone P 0602 @3\n1 withdrawn P @4\n1 given P @pass:5"},
		{name: "pass-shows-claimed-later", log: "1 phone P 0601 @1\n1 given P as_of=1 @2\n1 phone P 0602 @3\n1 given P as_of=4 @pass:5", permitted: true, notices: 1},
		{name: "pass-sees-replacement-first", log: "1 phone P 0601 @1\n1 phone P 0602 @pass:2\n1 given P @2/5\n1 phone P 0602 @3", due: true, notices: 1},
		{name: "claimed-before-replacement", log: "1 phone P 0601 @1\n1 phone P 0602 @3\n1 given P as_of=2 @4", due: true, notices: 1},

		{name: "rotation", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 0601 2#0601 @3\n1 phone P 2#0601 @4", permitted: true},
		{name: "rotation-replaced", log: "1 phone P 0601 2#0601 @1\n1 given P @2\n1 phone P 2#0602 @4", due: true, notices: 1},
		{name: "no-common-version-stream", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 2#0601 @3", due: true, notices: 1},
		{name: "no-common-version-pass", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 2#0601 @pass:3", permitted: true},
		{name: "no-common-version-pass-after-gap", log: "1 phone P 0601 @1\n1 given P @2\n1 phone P 2#0601 @pass:3", due: true, notices: 1, gaps: true},

		{name: "no-basis", log: "1 baseless - @1", findings: "no_basis consent:newsletter:sms"},
		{name: "grant-after-erasure", log: "1 erased @1\n1 given - @2", findings: "refused_grant consent:newsletter:sms"},
		{name: "revived-contact", log: "1 phone P 0601 @1\n1 erased @2\n1 phone Q 0602 @3", findings: "revived_contact "},
		{
			name: "new-record-without-evidence", log: "2 phone P 0601 @1\n2 erased @2\n1 phone Q 0601 @3/1\n1 given Q @3/2",
			findings: "erased_contact ,refused_grant consent:newsletter:sms",
		},
		{name: "new-record-with-evidence", log: "2 phone P 0601 @1\n2 erased @2\n1 phone Q 0601 @3/1\n1 proven Q @3/2", findings: "erased_contact ", permitted: true},
		{
			name: "new-record-consent-first", log: "2 phone P 0601 @1\n2 erased @2\n1 given Q @3/1\n1 phone Q 0601 @3/2",
			findings: "refused_grant consent:newsletter:sms,erased_contact ", due: true,
		},
		{name: "old-record-keeps-its-grants", log: "2 phone P 0601 @1\n1 phone Q 0601 @1\n1 given Q @1/1\n2 erased @2", permitted: true},

		{name: "withdrawal-stands-with-the-number", log: "2 phone P 0601 @1\n2 withdrawn P @2\n1 phone Q 0601 @3\n1 given R @1"},
		{name: "withdrawal-elsewhere-then-own-grant", log: "2 phone P 0601 @1\n2 withdrawn P @2\n1 phone Q 0601 @3\n1 given Q @4", permitted: true},
		{name: "withdrawal-elsewhere-lifted-there", log: "2 phone P 0601 @1\n2 withdrawn P @2\n2 given P @3\n1 given Q @2\n1 phone Q 0601 @4", permitted: true},
		{name: "withdrawal-elsewhere-beats-older-grant", log: "1 given Q @1\n2 phone P 0601 @1\n2 withdrawn P @2\n1 phone Q 0601 @3"},
		{name: "objection-stands-with-the-number", log: "1 given - @1\n2 phone P 0601 @1\n2 objects P @2\n1 phone Q 0601 @3"},
		{name: "objection-elsewhere-then-own-grant", log: "2 phone P 0601 @1\n2 objects P @2\n1 phone Q 0601 @3\n1 given Q @4", permitted: true},
		{name: "objection-elsewhere-lifted-there", log: "1 given - @1\n2 phone P 0601 @1\n2 objects P @2\n2 lifts P @3\n1 phone Q 0601 @4", permitted: true},
		{name: "objection-before-the-number-is-known", log: "1 given - @1\n2 objects P @1\n2 phone P 0601 @2\n1 phone Q 0601 @3"},
		{name: "objection-of-the-person-is-nobody-elses", log: "1 given - @1\n2 phone P 0601 @1\n2 objects @2\n1 phone Q 0601 @3", permitted: true},
		{name: "objection-of-one-number", log: "1 phone P 0601 @1\n1 phone Q 0602 @1\n1 given Q @1\n1 objects P @2\n1 lifts Q @3"},
		{name: "objection-follows-person", log: "1 phone P 0601 @1\n1 phone Q 0602 @1\n1 given Q @1\n1 objects P @2\n1 gone P @3\n1 given Q @4"},
		{name: "objection-lifted-later", log: "1 phone P 0601 @1\n1 given - @1\n1 objects P @2\n1 gone P @3\n1 lifts - @4", permitted: true},
		{name: "withdrawal-before-the-number-is-known", log: "2 withdrawn P @1\n2 phone P 0601 @2\n1 given Q @1\n1 phone Q 0601 @3"},
	} {
		for _, batch := range []string{"one by one", "together"} {
			t.Run(c.name+"/"+batch, func(t *testing.T) {
				b := newBook(t, newCore(t, &config.Replica{
					Mode: ledger.ModeErase, Consent: []config.ConsentAction{{Purpose: "newsletter", Channel: "sms"}, {Purpose: "newsletter", Channel: "email"}},
				}))
				b.now, b.gaps = epoch.Add(time.Hour), c.gaps
				var all []*schema.Event
				for _, group := range strings.Split(c.log, "\n") {
					var events []*schema.Event
					for _, line := range strings.Split(group, "|") {
						events = append(events, b.event(line))
					}
					all = append(all, events...)
					if batch == "one by one" {
						b.apply(events...)
					}
				}
				if batch == "together" && !strings.Contains(c.log, "2 ") { // other subjects' news comes with a later transaction
					b.apply(all...)
				} else if batch == "together" {
					for _, ev := range all {
						b.apply(ev)
					}
				}
				if got := b.permitted("1"); got != c.permitted {
					t.Errorf("permitted = %v, want %v: %+v", got, c.permitted, b.subject("1").Facts)
				}
				if got := b.due("1"); got != c.due {
					t.Errorf("reconsent due = %v, want %v: %+v", got, c.due, b.subject("1").Facts)
				}
				if len(b.notices) != c.notices {
					t.Errorf("%d notices, want %d", len(b.notices), c.notices)
				}
				if got := strings.Join(b.findings, ","); got != c.findings {
					t.Errorf("findings %q, want %q", got, c.findings)
				}
				notices := len(b.notices)
				facts := fmt.Sprint(b.subject("1").Facts)
				b.apply(all...) // delivered again
				if got := fmt.Sprint(b.subject("1").Facts); got != facts {
					t.Errorf("delivered again:\n got %s\nwant %s", got, facts)
				}
				if len(b.notices) != notices {
					t.Errorf("delivered again: %d notices, want %d", len(b.notices), notices)
				}
			})
		}
	}
}

// drawLife draws the log of one subject with two phones: a change of one, or what is said for one, in each commit.
func drawLife(t *rapid.T, b *book) []*schema.Event {
	lines := rapid.SliceOfN(rapid.SampledFrom([]string{
		"phone P 0601", "phone P 0602", "phone P 0601 2#0601", "phone P 0602 2#0602", "gone P", "phone Q 0603", "phone Q 0604", "gone Q",
		"given P", "given P", "given Q", "given Q", "renewed P", "withdrawn P", "withdrawn Q", "refused Q", "given -", "withdrawn -", "phone P", "objects P", "lifts P", "objects Q", "lifts -",
	}), 1, 25).Draw(t, "log")
	out := make([]*schema.Event, len(lines))
	for i, line := range lines {
		out[i] = b.event(fmt.Sprintf("1 %s @%d", line, i+1))
	}
	return out
}

// summary is what a subject's facts say, without the causes: a batch names the newest one.
func summary(s *ledger.Subject) string {
	lines := make([]string, 0, len(s.Facts))
	for _, f := range s.Facts {
		lines = append(lines, fmt.Sprint(f.Scope, f.Contact, f.State, f.Order))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// The facts do not depend on how the log is cut into batches, nor on how often parts of it are delivered again; a change of a
// contact point never takes a prohibition away; and no permission is older than the last change of its contact point, whatever the
// order in which events come.
func TestLifeProperties(t *testing.T) {
	core := ledger.NewCore(ledger.Core{
		Name: "marketing", Source: "crm", Config: &config.Replica{Mode: ledger.ModeErase}, Seal: sinktest.NewKeys(t), Pseudonym: sinktest.PRF("marketing"),
		Signer: noSigner{},
	})
	rapid.Check(t, func(rt *rapid.T) {
		once, again, mixed := newBook(t, core), newBook(t, core), newBook(t, core)
		log := drawLife(rt, once)
		for _, ev := range log {
			before := once.permitted("1")
			once.apply(ev)
			if _, ok := ev.Body.(*schema.ContactPoint); ok && !before && once.permitted("1") {
				rt.Fatalf("a contact point changed, and a prohibition was gone: %+v", once.subject("1").Facts)
			}
			checkPermissions(rt, once, log[:indexOf(log, ev)+1])
		}
		for at := 0; at < len(log); {
			back := rapid.IntRange(0, at).Draw(rt, "back")
			end := rapid.IntRange(at+1, len(log)).Draw(rt, "end")
			for from := at - back; from < end; {
				n := rapid.IntRange(1, end-from).Draw(rt, "batch")
				again.apply(log[from : from+n]...)
				from += n
			}
			at = end
		}
		if got, want := summary(again.subject("1")), summary(once.subject("1")); got != want {
			rt.Fatalf("delivered again:\n%s\nwant\n%s", got, want)
		}
		for _, ev := range rapid.Permutation(log).Draw(rt, "order") {
			mixed.apply(ev)
		}
		checkPermissions(rt, mixed, log)
		if t.Failed() {
			rt.FailNow()
		}
	})
}

type noSigner struct{}

func (noSigner) Sign([]byte) (uint32, []byte, error) { return 1, make([]byte, 64), nil }

func indexOf(log []*schema.Event, ev *schema.Event) int { return slices.Index(log, ev) }

// checkPermissions compares the permissions that are in force with the log: each must have been given behind the last change of the value
// of its contact point, which must be there.
func checkPermissions(t *rapid.T, b *book, log []*schema.Event) {
	changed := map[schema.ContactRef]schema.Order{}
	value := map[schema.ContactRef]string{}
	gone := map[schema.ContactRef]bool{}
	for _, ev := range log {
		c, ok := ev.Body.(*schema.ContactPoint)
		if !ok {
			continue
		}
		now := "-"
		if len(c.Keys) > 0 {
			now = strings.TrimRight(string(c.Keys[0].Value[2:]), "\x00")
		}
		was, known := value[c.Contact]
		if known && was != now || c.Removed || gone[c.Contact] {
			changed[c.Contact] = ev.Order
		}
		value[c.Contact], gone[c.Contact] = now, c.Removed
	}
	for _, f := range b.subject("1").Facts {
		if f.State.Strictness() != sinks.Permission || f.Contact.IsZero() || !strings.HasPrefix(f.Scope, "consent:") {
			continue
		}
		if gone[f.Contact] || f.Order.Compare(changed[f.Contact]) < 0 {
			t.Fatalf("a permission outlived its contact point: %+v, changed at %v, gone %v", f, changed[f.Contact], gone[f.Contact])
		}
	}
}
