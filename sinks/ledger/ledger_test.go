package ledger_test

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"lethe/config"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

func newCore(t *testing.T, cfg *config.Replica) *ledger.Core {
	t.Helper()
	keys := sinktest.NewKeys(t)
	return ledger.NewCore(ledger.Core{
		Name: "marketing", Source: "crm", Config: cfg, Seal: keys, Pseudonym: sinktest.PRF("marketing"), Signer: keys,
		RecheckFirst: time.Minute, RecheckLater: time.Hour,
	})
}

func TestStepsFollowForeignKeys(t *testing.T) {
	steps := []ledger.Step{
		{Table: "person", Direct: true, Delete: true}, {Table: "orders", Delete: true}, {Table: "lines", Delete: true}, {Table: "notes"},
	}
	order, circle := ledger.Order(steps, []ledger.Key{
		{Child: "orders", Parent: "person"}, {Child: "lines", Parent: "orders"}, {Child: "orders", Parent: "orders"},
	})
	if want := []int{2, 1, 3, 0}; !slices.Equal(order, want) || circle != -1 {
		t.Errorf("order %v, circle %d, want %v and none", order, circle, want)
	}
	order, circle = ledger.Order(steps, []ledger.Key{{Child: "orders", Parent: "lines"}, {Child: "lines", Parent: "orders"}})
	if circle < 0 || len(order) != len(steps) || order[0] != 3 {
		t.Errorf("order %v, circle %d: two tables refer to each other", order, circle)
	}
}

func TestMetaIsCompared(t *testing.T) {
	good := map[string]string{
		ledger.MetaSchemaVersion: strconv.Itoa(ledger.SchemaVersion), ledger.MetaReplica: "marketing", ledger.MetaSource: "crm", ledger.MetaDigest: "aa",
	}
	if err := ledger.CheckMeta(good, "marketing", "crm", "aa", "schema lethe"); err != nil {
		t.Error(err)
	}
	for key, want := range map[string]string{
		ledger.MetaSchemaVersion + "=": "ledger_old", ledger.MetaSchemaVersion + "=99": "ledger_newer", ledger.MetaReplica + "=other": "ledger_foreign",
		ledger.MetaSource + "=other": "ledger_foreign", ledger.MetaDigest + "=bb": "mapping_digest",
	} {
		meta := map[string]string{}
		for k, v := range good {
			meta[k] = v
		}
		k, v, _ := strings.Cut(key, "=")
		meta[k] = v
		err := ledger.CheckMeta(meta, "marketing", "crm", "aa", "schema lethe")
		if sinks.CodeOf(err) != want || sinks.Classify(err) != sinks.Permanent {
			t.Errorf("%s: %v, want %s", key, err, want)
		}
		if errors.Is(err, sinks.ErrDigest) != (k == ledger.MetaDigest) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A sealed key tells nothing by its length, and opens for its own subject only.
func TestKeysAreSealedToTheirSubject(t *testing.T) {
	c := newCore(t, &config.Replica{})
	key := func(text string) []byte { return schema.CanonicalKey(nil, []byte(text)) }
	short, err := c.SealKey([]byte("ref"), key("1"))
	if err != nil {
		t.Fatal(err)
	}
	long, err := c.SealKey([]byte("ref"), key("anna.schmidt@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if len(short) != len(long) {
		t.Errorf("sealed keys of %d and %d bytes", len(short), len(long))
	}
	if parts, err := c.OpenKey([]byte("ref"), long); err != nil || !slices.Equal(parts, []string{"anna.schmidt@example.org"}) {
		t.Errorf("opened to %d parts: %v", len(parts), err)
	}
	if _, err := c.OpenKey([]byte("another"), long); sinks.CodeOf(err) != "seal_key" || sinks.Classify(err) != sinks.Permanent {
		t.Errorf("opened for another subject: %v", err)
	}
}

func TestRecheckGetsRarerAndEnds(t *testing.T) {
	c := newCore(t, &config.Replica{Recheck: config.Period{Days: 2}})
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for age, want := range map[time.Duration]time.Duration{0: time.Minute, 59 * time.Minute: time.Minute, 2 * time.Hour: time.Hour} {
		if got := c.RecheckAgain(&ledger.Subject{UnmatchedSince: now.Add(-age)}, now); !got.Equal(now.Add(want)) {
			t.Errorf("after %s: again at %s, want %s later", age, got, want)
		}
	}
	if got := c.RecheckAgain(&ledger.Subject{UnmatchedSince: now.Add(-48 * time.Hour)}, now); !got.IsZero() {
		t.Errorf("after two days: again at %s", got)
	}
	if got := c.RecheckAgain(&ledger.Subject{}, now); !got.Equal(now.Add(time.Minute)) {
		t.Errorf("without a time: %s", got)
	}
}

// What forbids passes a block; what permits waits behind the parked event, and so does what would take a prohibition's place.
func TestBlockedSubject(t *testing.T) {
	c := newCore(t, &config.Replica{Mode: ledger.ModeErase})
	keys := sinktest.NewKeys(t)
	topic := sinktest.NewTopic(1, func(ev *schema.Event) []byte { return keys.Encode(t, ev) })
	say := func(state schema.ConsentState) *schema.Event {
		return topic.Event("1", &schema.ConsentChange{Purpose: "newsletter", Channel: "email", State: state, LegalBasis: "consent"})
	}
	b := topic.Batch(say(schema.ConsentGiven), say(schema.ConsentWithdrawn), say(schema.ConsentExpired), say(schema.ConsentGiven))
	u, err := c.NewUnit(1, b.Records)
	if err != nil {
		t.Fatal(err)
	}
	u.Set.List[0].Blocked, u.Set.List[0].Known = "22001", true
	u.Dispatch()
	u.Settle()
	var got []string
	for i := range u.Results {
		got = append(got, u.Results[i].Outcome)
	}
	if want := []string{"parked", "no_match", "parked", "parked"}; !slices.Equal(got, want) {
		t.Errorf("outcomes %v, want %v", got, want)
	}
	parked := 0
	u.Singles(func(ledger.ParkedRow) { parked++ }, func(ledger.DecisionRow) {}, func(ledger.GapRow) {})
	if out := u.Outcome(nil, time.Now()); parked != 3 || out.Parked != 3 || out.NoMatch != 1 {
		t.Errorf("%d rows for parked, %+v", parked, out)
	}
	if places := ledger.PlacesAfter(b); places[0].NextOffset != 4 || places[0].LastOrder != b.Records[3].Event.Order {
		t.Errorf("places %+v", places)
	}
	receipts, err := u.Receipts()
	if err != nil || len(receipts) != 1 {
		t.Fatalf("%d receipts: %v", len(receipts), err)
	}
}

func TestKeyOfAnotherShapeIsPoison(t *testing.T) {
	c := newCore(t, &config.Replica{})
	keys := sinktest.NewKeys(t)
	topic := sinktest.NewTopic(1, func(ev *schema.Event) []byte { return keys.Encode(t, ev) })
	b := topic.Batch(topic.Event("1", &schema.SubjectErasure{}))
	if _, err := c.NewUnit(2, b.Records); sinks.Classify(err) != sinks.Poison || sinks.CodeOf(err) != ledger.CodeKeyParts {
		t.Errorf("a key of one part for two columns: %v", err)
	}
	b.Records[0].Event = nil
	if _, err := c.NewUnit(1, b.Records); sinks.Classify(err) != sinks.Poison || sinks.CodeOf(err) != ledger.CodeUndecodable {
		t.Errorf("bytes that are no event: %v", err)
	}
}
