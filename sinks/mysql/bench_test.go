package mysql

import (
	"database/sql"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks"
)

const (
	benchPeople = 100_000
	benchBatch  = 1000
)

// BenchmarkApplyConsents applies consent changes of a thousand people a batch and, in turns in the same run, has a plain
// client do the least that anybody must: per batch, in one transaction with every log written through at its commit, the
// same UPDATE and one upsert per event into a table of the fact's shape. ratio is Lethe's rate by the plain client's: first
// where every subject is new to both, then where both have a row of everyone.
func BenchmarkApplyConsents(b *testing.B) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		b.Run(flavor, func(b *testing.B) { benchFlavor(b, flavor) })
	}
}

func benchFlavor(b *testing.B, flavor string) {
	w := newBenchWorld(b, flavor)
	plain := newPlainClient(w)
	permitted := make([]bool, benchPeople) // what each one's rows say
	for i := range permitted {
		permitted[i] = true
	}
	people := rand.Perm(benchPeople)
	for _, phase := range []string{"new", "known"} {
		b.Run(phase, func(b *testing.B) {
			var ours, theirs time.Duration
			batches := 0
			if phase == "known" {
				for len(people) > 0 { // those whom the first phase had no time for
					w.benchTurn(b, plain, &people, permitted)
				}
			}
			for b.Loop() {
				if len(people) == 0 {
					people = rand.Perm(benchPeople)
				}
				took, plainTook := w.benchTurn(b, plain, &people, permitted)
				ours, theirs = ours+took, theirs+plainTook
				batches++
			}
			b.ReportMetric(float64(batches*benchBatch)/ours.Seconds(), "events/s")
			b.ReportMetric(float64(batches*benchBatch)/theirs.Seconds(), "plain/s")
			b.ReportMetric(theirs.Seconds()/ours.Seconds(), "ratio")
		})
	}
}

// benchTurn has both apply a batch that changes the rows of the next people.
func (w *world) benchTurn(b *testing.B, plain *plainClient, people *[]int, permitted []bool) (ours, theirs time.Duration) {
	b.Helper()
	batch := w.benchBatch((*people)[:benchBatch], permitted)
	*people = (*people)[benchBatch:]
	began := time.Now()
	out, err := w.r.Apply(w.ctx, batch)
	if err != nil {
		b.Fatal(err)
	}
	ours = time.Since(began)
	w.Move(out.Places...)
	began = time.Now()
	plain.apply(b, batch)
	return ours, time.Since(began)
}

// benchBatch makes the records of one batch; keys and ids are made outside the measured time, as decoding is.
func (w *world) benchBatch(who []int, permitted []bool) *sinks.Batch {
	events := make([]*schema.Event, len(who))
	for i, id := range who {
		state := schema.ConsentGiven
		if permitted[id] {
			state = schema.ConsentWithdrawn
		}
		permitted[id] = !permitted[id]
		events[i] = w.event(id, consent("newsletter", state))
	}
	return w.Batch(events...)
}

func newBenchWorld(b *testing.B, flavor string) *world {
	b.Helper()
	server := testenv.NewMySQL(b, testenv.MySQLOptions{Flavor: flavor, Settings: map[string]string{
		"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1", "innodb_buffer_pool_size": "512M",
	}})
	w := newWorldOn(b, server)
	w.r.log = zerolog.Nop()
	w.exec("CREATE TABLE contact_plain LIKE contact")
	w.grant("SELECT, UPDATE", "contact_plain")
	for _, table := range []string{"contact", "contact_plain"} {
		order := rand.Perm(benchPeople) // the order of the rows is not that of the keys
		for len(order) > 0 {
			rows := make([]string, min(len(order), 5000))
			for i, id := range order[:len(rows)] {
				n := strconv.Itoa(id)
				rows[i] = "(" + n + ", 'Jeanne', 'p" + n + "@exemple.fr')"
			}
			w.exec("INSERT INTO " + table + " (crm_id, firstname, email) VALUES " + strings.Join(rows, ", "))
			order = order[len(rows):]
		}
		w.exec("ANALYZE TABLE " + table)
	}
	return w
}

// plainClient is what an engineer would write in an afternoon who need not prove anything.
type plainClient struct {
	update, upsert *sql.Stmt
	db             *sql.DB
}

func newPlainClient(w *world) *plainClient {
	w.exec(`CREATE TABLE plain_fact (ref VARBINARY(32) NOT NULL, scope VARCHAR(191) NOT NULL, contact_ref VARBINARY(32) NOT NULL,
		ord VARBINARY(64) NOT NULL, as_of DATETIME(6), state VARCHAR(32) NOT NULL, valid_until DATETIME(6), event_id VARBINARY(32) NOT NULL,
		PRIMARY KEY (ref, scope, contact_ref)) ` + tableOptions)
	w.grant("SELECT, INSERT, UPDATE", "plain_fact")
	p := &plainClient{db: w.loginAs(w.role)}
	prepare := func(query string) *sql.Stmt {
		s, err := p.db.PrepareContext(w.ctx, query)
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { _ = s.Close() })
		return s
	}
	p.update = prepare(`UPDATE JSON_TABLE(?, '$[*]' COLUMNS (k BIGINT PATH '$[0]', a TINYINT PATH '$[1]')) AS v STRAIGHT_JOIN contact_plain t
		SET t.newsletter = v.a, t.changed_at = UTC_TIMESTAMP(6) WHERE t.crm_id = v.k AND NOT (t.newsletter <=> v.a)`)
	row := "(?, ?, ?, ?, ?, ?, ?, ?)"
	p.upsert = prepare("INSERT INTO plain_fact VALUES " + row + strings.Repeat(", "+row, benchBatch-1) + ` ON DUPLICATE KEY UPDATE ord = VALUES(ord),
		as_of = VALUES(as_of), state = VALUES(state), valid_until = VALUES(valid_until), event_id = VALUES(event_id)`)
	return p
}

func (p *plainClient) apply(b *testing.B, batch *sinks.Batch) {
	var doc strings.Builder
	facts := make([]any, 0, 8*len(batch.Records))
	for i := range batch.Records {
		ev := batch.Records[i].Event
		parts, err := schema.SplitKey(ev.CRMKey)
		if err != nil {
			b.Fatal(err)
		}
		f, _, _ := sinks.FactOf(ev)
		doc.WriteString(separator(i) + "[" + parts[0] + "," + strconv.Itoa(map[bool]int{true: 1}[f.State == sinks.StateGiven]) + "]")
		facts = append(facts, ev.SubjectRef[:], f.Scope, []byte{}, ev.Order[:], nil, string(f.State), nil, ev.EventID[:])
	}
	doc.WriteString("]")
	tx, err := p.db.BeginTx(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := tx.StmtContext(b.Context(), p.update).ExecContext(b.Context(), doc.String()); err != nil { //nolint:sqlclosecheck // with the transaction
		b.Fatal(err)
	}
	if _, err := tx.StmtContext(b.Context(), p.upsert).ExecContext(b.Context(), facts...); err != nil { //nolint:sqlclosecheck // with the transaction
		b.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
}
