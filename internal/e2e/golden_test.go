package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/keys"
	"lethe/internal/testenv"
	"lethe/schema"
)

var update = flag.Bool("update", false, "rewrite the golden files of testdata")

// The files of a golden case. Its comment says in words what it shows.
const (
	fileConfig   = "config.yaml"   // ${…} are the places that the test fills in
	fileCRM      = "crm.sql"       // the CRM before
	fileCopy     = "copy.sql"      // the replica before
	fileChange   = "change.sql"    // what happens, step by step; see change
	fileEvents   = "events.json"   // what is in the topic then
	fileReplica  = "replica.sql"   // a query in the replica …
	fileRows     = "rows.txt"      // … and what it returns
	fileReceipts = "receipts.json" // what the replica's receipts say
	fileReviews  = "reviews.txt"   // what a person has to decide, where people are found by what rows say: kind, row, evidence
)

// engine is a database server of a golden case: PostgreSQL of a version, or a flavor of MySQL.
type engine struct {
	version int
	flavor  string
}

func (e engine) String() string {
	if e.flavor != "" {
		return e.flavor
	}
	return fmt.Sprintf("postgres%d", e.version)
}

// mixes are the engines of source and replica that the n-th case is played on: PostgreSQL and MySQL in all four mixes, each
// time another version or flavor of both.
func mixes(n int) [][2]engine {
	pg := []engine{{version: 15}, {version: 18}}
	my := []engine{{flavor: testenv.MySQLServer}, {flavor: testenv.MariaDB}}
	i, j := n%2, (n+1)%2
	return [][2]engine{{pg[i], pg[j]}, {pg[j], my[i]}, {my[i], pg[i]}, {my[j], my[i]}}
}

// Each case of testdata/golden shows one change in the CRM, the events that it became, the copy afterwards, and the receipts:
// the same whatever databases they are.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for i, file := range files {
		for _, mix := range mixes(i) {
			name := fmt.Sprintf("%s/%s-%s", strings.TrimSuffix(filepath.Base(file), ".txtar"), mix[0], mix[1])
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				archive, err := txtar.ParseFile(file)
				if err != nil {
					t.Fatal(err)
				}
				c := &goldenCase{t: t, archive: archive}
				c.play(mix[0], mix[1])
				if !*update || mix[0].flavor != "" || mix[1].flavor != "" {
					return
				}
				if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

type goldenCase struct {
	t       *testing.T
	archive *txtar.Archive
	w       *world
	names   map[schema.EventID]string
}

func (c *goldenCase) file(name string) string {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

// golden compares a file with what came out, or writes it.
func (c *goldenCase) golden(name, have string) {
	c.t.Helper()
	if *update {
		for i := range c.archive.Files {
			if c.archive.Files[i].Name == name {
				c.archive.Files[i].Data = []byte(have)
				return
			}
		}
		c.archive.Files = append(c.archive.Files, txtar.File{Name: name, Data: []byte(have)})
		return
	}
	if want := c.file(name); have != want {
		c.t.Errorf("%s is\n%s\nwant\n%s", name, have, want)
	}
}

func (c *goldenCase) play(crm, replica engine) {
	c.w = goldenWorld(c.t, c.file(fileConfig), crm, replica, c.file(fileCRM), c.file(fileCopy))
	lethe := c.w.start()
	lethe.waitReady(soon)
	c.w.passed("")
	c.w.holds(&c.w.marketing, "select count(*) >= 2 from lethe.pass where ended_at is not null") // in both partitions
	c.change()
	c.settle()
	c.golden(fileEvents, c.events())
	c.golden(fileRows, c.rows())
	c.golden(fileReceipts, c.receipts())
	if c.w.cfg.Replicas["marketing"].Find != nil {
		c.golden(fileReviews, c.reviews())
	}
}

func (c *goldenCase) reviews() string {
	c.t.Helper()
	list, err := app.Reviews(c.w.ctx, c.w.cfg, "marketing", false, 100)
	if err != nil {
		c.t.Fatal(err)
	}
	lines := make([]string, len(list))
	for i, r := range list {
		lines[i] = r.Kind + " " + r.Person + ": " + r.Evidence + "\n"
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// change plays the steps of change.sql. A step is one transaction in the CRM; a line that begins with "--" opens the next
// one: "-- commit" another transaction, "-- replica" a statement in the replica, "-- wait" a condition of the replica that
// is waited for, "-- decide cancel 1" an operator's decision on the case of customer 1, "-- snapshot" a pass.
func (c *goldenCase) change() {
	c.t.Helper()
	step, sql := "commit", ""
	do := func() {
		verb, rest, _ := strings.Cut(step, " ")
		switch {
		case verb == "decide":
			c.decide(strings.Fields(rest))
		case verb == "snapshot":
			c.snapshot()
		case strings.TrimSpace(sql) == "":
		case verb == "commit":
			c.w.crm.commit(c.t, sql)
		case verb == "replica":
			c.w.marketing.commit(c.t, sql)
		case verb == "wait":
			c.w.holds(&c.w.marketing, sql)
		default:
			c.t.Fatalf("change.sql has a step %q", verb)
		}
	}
	for line := range strings.Lines(c.file(fileChange)) {
		if next, ok := strings.CutPrefix(line, "-- "); ok {
			do()
			step, sql = strings.TrimSpace(next), ""
			continue
		}
		sql += line
	}
	do()
}

// snapshot asks for a pass, as `lethe snapshot` does, and waits for its end.
func (c *goldenCase) snapshot() {
	c.t.Helper()
	desk, err := app.OpenPasses(c.w.ctx, c.w.cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	defer desk.Close()
	id, err := desk.Ask(c.w.ctx, nil, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	c.w.passed(id)
}

func (c *goldenCase) decide(args []string) {
	c.t.Helper()
	d, err := schema.ParseDecision(args[0])
	if err != nil {
		c.t.Fatal(err)
	}
	key := make([][]byte, len(args)-1)
	for i, part := range args[1:] {
		key[i] = []byte(part)
	}
	id := c.w.ids.CaseID(c.w.ids.SubjectRef(schema.CanonicalKey(nil, key...)))
	if _, err := app.Decide(c.w.ctx, c.w.cfg, app.DecideOptions{Cases: []string{id.String()}, Decision: d, By: "dpo", Reason: "golden"}); err != nil {
		c.t.Fatal(err)
	}
}

// settle waits until everything that the CRM has committed is in the topic, everything in the topic is applied, and
// nothing in the replica waits for its turn any more.
func (c *goldenCase) settle() {
	c.t.Helper()
	last, err := c.w.crm.logNumber(c.w.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	dec := schema.NewDecoder(c.w.ring.Seal())
	ends := map[int]int64{}
	testenv.Eventually(c.t, soon, func() error {
		passed := false
		for _, r := range c.w.topic("events") {
			ev, err := dec.Decode(r.value)
			if err != nil {
				return err
			}
			if ev.Body.Type() != schema.TypeHeartbeat {
				ends[r.partition] = max(ends[r.partition], r.offset+1)
			} else if ev.Order.Number() > last {
				passed = true
			}
		}
		if !passed {
			return errors.New("capture has not come to the end of the log")
		}
		return nil
	})
	for _, part := range slices.Sorted(maps.Keys(ends)) {
		c.w.holds(&c.w.marketing, "select coalesce((select next_offset from lethe.partition where part = $1), 0) >= $2", part, ends[part])
	}
	c.w.want(&c.w.marketing, soon, "select count(*) from lethe.touch where reason <> 'again'", "0")
	c.w.want(&c.w.marketing, soon, "select count(*) from lethe.readback where due_at < 'infinity'", "0")
	c.w.want(&c.w.marketing, soon, "select count(*) from lethe.decision where done_at is null", "0")
	if c.w.cfg.Replicas["marketing"].Mode == "erase" {
		c.w.want(&c.w.marketing, soon, `select count(*) from lethe.pending
			where state <> 'verified' and matched and not held and wait in ('none', 'cool_off') and due_at < 'infinity'
				and coalesce(error_code, '') <> 'ambiguous'`, "0")
	}
}

// rows asks the replica. Databases write JSON with and without spaces, in an order of their own.
func (c *goldenCase) rows() string {
	c.t.Helper()
	var out strings.Builder
	for line := range strings.Lines(c.w.query(&c.w.marketing, strings.TrimRight(c.file(fileReplica), "\n")) + "\n") {
		cells := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		for i, cell := range cells {
			var v any
			if strings.HasPrefix(cell, "{") && json.Unmarshal([]byte(cell), &v) == nil {
				text, err := json.Marshal(v)
				if err != nil {
					c.t.Fatal(err)
				}
				cells[i] = string(text)
			}
		}
		out.WriteString(strings.Join(cells, "|") + "\n")
	}
	return out.String()
}

// goldenEvent is an event without what differs from run to run: ids, times, orders.
type goldenEvent struct {
	Event   string `json:"event"`
	Type    string `json:"type"`
	Subject string `json:"subject,omitempty"`
	Rule    string `json:"rule"`
	Case    bool   `json:"case,omitempty"`
	Contact string `json:"contact,omitempty"`
	Body    any    `json:"body"`
}

func (c *goldenCase) events() string {
	c.t.Helper()
	byID := c.w.events()
	list := slices.SortedFunc(maps.Values(byID), func(a, b *schema.Event) int {
		// Decisions do not come out of the log and have no place in it; several rules may speak of one change.
		return cmp.Or(cmp.Compare(decision(a), decision(b)), bytes.Compare(a.Order[:], b.Order[:]), cmp.Compare(a.Rule, b.Rule))
	})
	c.names = map[schema.EventID]string{}
	out := []goldenEvent{}
	for _, ev := range list {
		switch ev.Body.Type() {
		case schema.TypeHeartbeat, schema.TypePassMarker:
			continue
		case schema.TypeSourceReport: // how often the source is asked is chance
			c.names[ev.EventID] = "the source"
			continue
		}
		if ev.Kind == schema.KindSnapshot { // how often a row is read is chance; what it says is in rows.txt
			c.names[ev.EventID] = "the pass"
			continue
		}
		name := fmt.Sprintf("%s %d", strings.ToLower(ev.Body.Type().String()), len(out)+1)
		c.names[ev.EventID] = name
		g := goldenEvent{Event: name, Type: ev.Body.Type().String(), Rule: ev.Rule, Case: !ev.CaseID.IsZero()}
		if !ev.SubjectRef.IsZero() {
			parts, err := schema.SplitKey(ev.CRMKey)
			if err != nil {
				c.t.Fatal(err)
			}
			g.Subject = strings.Join(parts, "/")
		}
		g.Body = goldenBody(ev.Body)
		out = append(out, g)
	}
	return encode(c.t, out)
}

func decision(ev *schema.Event) int {
	if ev.Body.Type() == schema.TypeCaseDecision {
		return 1
	}
	return 0
}

// goldenBody shows what an event says, names for numbers, dates for times.
func goldenBody(body schema.Body) map[string]any {
	out := map[string]any{}
	put := func(name string, value any, there bool) {
		if there {
			out[name] = value
		}
	}
	date := func(t time.Time) string { return t.Format(time.DateOnly) }
	switch b := body.(type) {
	case *schema.SubjectErasure:
		put("marker", true, b.Marker)
	case *schema.CaseDecision:
		put("decision", b.Decision.String(), true)
		put("decided_by", b.DecidedBy, true)
	case *schema.ConsentChange:
		put("purpose", b.Purpose, true)
		put("channel", b.Channel, true)
		put("state", b.State.String(), true)
		put("legal_basis", b.LegalBasis, b.LegalBasis != "")
		put("valid_until", date(b.ValidUntil), !b.ValidUntil.IsZero())
		put("bound_to_a_contact_point", true, !b.Contact.IsZero())
		put("sealed_evidence", true, len(b.Evidence) > 0)
	case *schema.Objection:
		put("raised", b.Raised, true)
		put("scope", b.Scope, true)
	case *schema.ProcessingRestriction:
		put("imposed", b.Imposed, true)
		put("until", date(b.Until), !b.Until.IsZero())
	case *schema.ContactPoint:
		put("kind", b.Kind.String(), true)
		put("past", true, b.Past)
		put("removed", true, b.Removed)
		var types []string
		for _, k := range b.Keys {
			types = append(types, k.Type)
		}
		// Of a point that is gone those are told that it had, where the log tells the old value: MySQL's does.
		put("keys", strings.Join(types, " "), len(types) > 0 && !b.Removed)
	case *schema.SubjectMerged:
		put("absorbed", len(b.Absorbed), true)
	case *schema.Gap:
		put("cause", b.Cause, true)
		put("opened", b.Opened, true)
	}
	return out
}

// goldenReceipt is a receipt without what differs from run to run. Which consents (and further markers) share a
// transaction of the sink, and so a receipt, is chance: each of them is listed by itself, and whether columns had to change
// for it is left to rows.txt.
type goldenReceipt struct {
	Of           string   `json:"of"`
	State        string   `json:"state"`
	Reason       string   `json:"reason,omitempty"`
	Attempt      uint32   `json:"attempt,omitempty"`
	Evidence     string   `json:"evidence,omitempty"`
	Rows         []string `json:"rows,omitempty"`
	Verification string   `json:"verification,omitempty"`
	Residuals    []string `json:"residuals,omitempty"`
	Outcomes     []string `json:"outcomes,omitempty"`
}

func (c *goldenCase) receipts() string {
	c.t.Helper()
	out := []goldenReceipt{}
	var consents []string
	for _, r := range c.w.receipts("marketing") {
		if r.EventType == schema.TypeConsentChange {
			for _, e := range r.Events {
				if n := c.names[e.EventID]; n == "the pass" || n == "the source" {
					continue
				}
				outcome := e.Outcome
				if outcome == "applied" || outcome == "unchanged" {
					outcome = "taken"
				}
				consents = append(consents, c.names[e.EventID]+": "+outcome)
			}
			continue
		}
		g := goldenReceipt{
			Of: c.names[r.EventID], State: r.State.String(), Reason: r.Reason, Attempt: r.Attempt, Evidence: r.Evidence.String(),
		}
		for _, row := range r.Rows {
			g.Rows = append(g.Rows, fmt.Sprintf("%s %s %d", c.table(row.Table), row.Action, row.Changed))
		}
		if v := r.Verification; v != nil {
			g.Verification = fmt.Sprintf("%s: %d left", v.Method, v.Remaining)
		}
		for _, x := range r.Residuals {
			g.Residuals = append(g.Residuals, c.table(x.Kind))
		}
		slices.Sort(g.Rows)
		out = append(out, g)
	}
	slices.SortStableFunc(out, func(a, b goldenReceipt) int { return cmp.Compare(a.Of, b.Of) })
	if len(consents) > 0 {
		slices.Sort(consents)
		out = append(out, goldenReceipt{Of: "the others", State: "applied", Outcomes: slices.Compact(consents)})
	}
	return encode(c.t, out)
}

// table names a table as on PostgreSQL: a schema of MySQL is a database, which is another one at each run.
func (c *goldenCase) table(name string) string {
	return strings.Replace(name, c.w.marketing.name+".", "public.", 1)
}

func encode(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// goldenWorld is a world with one replica and tables of its own, set up as `lethe setup` does with an administrator's login.
func goldenWorld(t *testing.T, yaml string, crm, replica engine, crmSQL, copySQL string) *world {
	t.Helper()
	w := &world{
		t: t, ctx: t.Context(), name: testenv.UniqueName("lethe"), dir: t.TempDir(), program: childProgram(t), erased: map[int64]time.Time{},
		kafka: testenv.SharedKafka(t),
	}
	t.Cleanup(w.close)
	w.crm, w.marketing = crm.database(t, w.name, crmSQL), replica.database(t, w.name+"_m", copySQL)
	text := os.Expand(w.dialect(yaml), func(name string) string {
		switch name {
		case "KEYS":
			return filepath.Join(w.dir, "keys")
		case "BROKER":
			return w.kafka.Brokers()[0]
		case "PREFIX", "SLOT":
			return w.name
		case "CRM":
			return w.crm.login(w.crm.run)
		case "COPY":
			return w.marketing.login(w.marketing.run)
		}
		return "$" + name
	})
	w.file = filepath.Join(w.dir, "lethe.yaml")
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.cfg, err = config.Load(w.file); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Init(w.cfg.Keys.Dir, []string{"marketing"}); err != nil {
		t.Fatal(err)
	}
	w.openKeys()
	report, err := app.Setup(w.ctx, w.cfg, app.SetupOptions{
		Kafka: true, SourceDSN: w.crm.login(""), ReplicaDSN: map[string]string{"marketing": w.marketing.login("")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Left {
		if f.Severity == app.SeverityError {
			t.Errorf("after setup: %s %s: %s", f.Where, f.Code, f.Message)
		}
	}
	return w
}

// database makes a database with tables on a shared server of this engine.
func (e engine) database(t *testing.T, login, tables string) database {
	t.Helper()
	if e.flavor != "" {
		return mysqlDatabase(t, testenv.SharedMySQL(t, e.flavor), login, tables)
	}
	server := postgres(t, e.version)
	d := database{Postgres: server, name: server.NewDatabase(t), run: login, verify: login}
	server.Exec(t, d.name, tables)
	d.conn = server.Connect(t, d.name)
	return d
}

var (
	postgresSource = regexp.MustCompile(`postgres: \{dsn: "\$\{CRM\}".*\}|postgres:\n\s+dsn: "\$\{CRM\}"\n(\s+(slot|publication|max_retained_wal): .*\n)+`)
	publicSchema   = regexp.MustCompile(`\bpublic\.`)
)

// dialect turns a config into one for the databases of this world.
func (w *world) dialect(yaml string) string {
	if w.crm.mysql != nil {
		yaml = postgresSource.ReplaceAllString(yaml, `mysql: {dsn: "$${CRM}"}`+"\n")
		yaml = publicSchema.ReplaceAllString(yaml, w.crm.name+".")
		yaml = strings.Replace(yaml, "name: crm", "name: "+w.name, 1) // the named lock is the server's
	}
	for _, r := range []struct {
		db    *database
		names []string
	}{{&w.marketing, []string{"COPY", "MARKETING"}}, {&w.reporting, []string{"REPORTING"}}} {
		for _, name := range r.names {
			if r.db.mysql != nil {
				yaml = strings.ReplaceAll(yaml, `postgres: {dsn: "${`+name+`}"`, `mysql: {dsn: "${`+name+`}"`)
			}
		}
	}
	return yaml
}
