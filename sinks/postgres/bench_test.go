package postgres

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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
// client do the least that anybody must: per batch, in one transaction with synchronous commit, the same UPDATE and one
// upsert per event into a table of the fact's shape. ratio is Lethe's rate by the plain client's: first where every subject
// is new to both, then where both have a row of everyone.
func BenchmarkApplyConsents(b *testing.B) {
	w := newBenchWorld(b)
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
	for _, p := range out.Places {
		w.places[p.Partition] = p
	}
	began = time.Now()
	plain.apply(b, batch)
	return ours, time.Since(began)
}

func newBenchWorld(b *testing.B) *world {
	b.Helper()
	server := testenv.NewPostgres(b, testenv.Options{Settings: map[string]string{
		"fsync": "on", "synchronous_commit": "on", "shared_buffers": "512MB", "max_wal_size": "4GB", "wal_level": "replica",
	}})
	w := newWorldOn(b, server)
	w.r.log = zerolog.Nop()
	for _, table := range []string{"contact", "contact_plain"} {
		if table != "contact" {
			w.exec(`CREATE TABLE contact_plain (LIKE contact INCLUDING ALL); GRANT SELECT, UPDATE ON contact_plain TO ` + w.role)
		}
		w.exec(`INSERT INTO `+table+` (crm_id, firstname, email)
			SELECT n, 'Jeanne', 'p' || n || '@exemple.fr' FROM generate_series(0, $1::int - 1) n ORDER BY random()`, benchPeople)
		w.exec(`VACUUM ANALYZE ` + table)
	}
	return w
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
	out := &sinks.Batch{Records: make([]sinks.Record, 0, len(who))}
	for part := range w.parts {
		p := w.places[part]
		next := p.NextOffset
		for _, ev := range events {
			if w.partition(ev) == part {
				out.Records = append(out.Records, sinks.Record{Partition: part, Offset: next, Event: ev})
				next++
			}
		}
		out.From = append(out.From, p)
	}
	return out
}

// plainClient is what an engineer would write in an afternoon who need not prove anything.
type plainClient struct {
	conn *pgx.Conn
}

func newPlainClient(w *world) *plainClient {
	w.exec(`CREATE TABLE plain_fact (ref bytea NOT NULL, scope text NOT NULL, contact_ref bytea NOT NULL, ord bytea NOT NULL,
		as_of timestamptz, state text NOT NULL, valid_until timestamptz, event_id bytea NOT NULL,
		PRIMARY KEY (ref, scope, contact_ref)) WITH (fillfactor = 70); GRANT SELECT, INSERT, UPDATE ON plain_fact TO ` + w.role)
	conn, err := pgx.Connect(w.ctx, w.pg.DSN(w.db, w.role))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close(context.WithoutCancel(w.ctx)) })
	if _, err := conn.Exec(w.ctx, `SET plan_cache_mode = force_generic_plan`); err != nil {
		w.Fatal(err)
	}
	return &plainClient{conn: conn}
}

func (p *plainClient) apply(b *testing.B, batch *sinks.Batch) {
	n := len(batch.Records)
	keys, values := make([]string, n), make([]bool, n)
	refs, contacts, orders, events := make([][]byte, n), make([][]byte, n), make([][]byte, n), make([][]byte, n)
	scopes, states := make([]string, n), make([]string, n)
	times := make([]*time.Time, n)
	for i := range batch.Records {
		ev := batch.Records[i].Event
		parts, err := schema.SplitKey(ev.CRMKey)
		if err != nil {
			b.Fatal(err)
		}
		f, _, _ := sinks.FactOf(ev)
		keys[i], values[i] = parts[0], f.State == sinks.StateGiven
		refs[i], contacts[i], orders[i], events[i] = ev.SubjectRef[:], []byte{}, ev.Order[:], ev.EventID[:]
		scopes[i], states[i] = f.Scope, string(f.State)
	}
	q := &pgx.Batch{}
	q.Queue("BEGIN")
	q.Queue(`UPDATE contact_plain AS t SET newsletter = v.a, changed_at = now() FROM unnest($1::text[], $2::bool[]) AS v(k, a)
		WHERE t.crm_id = v.k::bigint AND t.newsletter IS DISTINCT FROM v.a`, keys, values)
	q.Queue(`INSERT INTO plain_fact SELECT * FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::bytea[], $5::timestamptz[],
		$6::text[], $7::timestamptz[], $8::bytea[]) ON CONFLICT (ref, scope, contact_ref) DO UPDATE SET ord = excluded.ord,
		as_of = excluded.as_of, state = excluded.state, valid_until = excluded.valid_until, event_id = excluded.event_id`,
		refs, scopes, contacts, orders, times, states, times, events)
	q.Queue("COMMIT")
	if err := p.conn.SendBatch(b.Context(), q).Close(); err != nil {
		b.Fatal(err)
	}
}
