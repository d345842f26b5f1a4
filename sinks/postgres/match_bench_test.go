package postgres

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
)

func benchServer(b *testing.B) *testenv.Postgres {
	b.Helper()
	return testenv.NewPostgres(b, testenv.Options{Settings: map[string]string{
		"fsync": "on", "synchronous_commit": "on", "shared_buffers": "512MB", "max_wal_size": "4GB", "wal_level": "replica",
	}})
}

// BenchmarkConsentsByEmail applies consent changes of a thousand people a batch to a replica that finds them by e-mail and, in
// turns, to one that has the CRM key. cost is the one's time by the other's.
func BenchmarkConsentsByEmail(b *testing.B) {
	const people = 40_000
	server := benchServer(b)
	cfg := leadMapping()
	cfg.Find.Phone, cfg.Find.Name, cfg.Find.BirthDate, cfg.Find.Postal = nil, nil, "", nil
	cfg.Find.Email = []string{"lead.email"}
	cfg.Mode = "suppress"
	found := newWorldOf(b, server, cfg, leads, `GRANT SELECT, UPDATE ON lead TO {role}; GRANT SELECT, UPDATE, DELETE ON lead_email TO {role};
		GRANT SELECT, INSERT, DELETE ON do_not_contact TO {role}`)
	known := newWorldOn(b, server)
	for _, w := range []*world{found, known} {
		w.r.log = zerolog.Nop()
	}
	found.exec(`INSERT INTO lead (id, email) SELECT n, 'p' || n || '@exemple.fr' FROM generate_series(0, $1::int - 1) n ORDER BY random()`, people)
	known.exec(`INSERT INTO contact (crm_id, email) SELECT n, 'p' || n || '@exemple.fr' FROM generate_series(0, $1::int - 1) n ORDER BY random()`, people)
	found.scanOn()
	for first := 0; first < people; first += benchBatch {
		events := make([]*schema.Event, benchBatch)
		for i := range events {
			events[i] = found.mail(first+i, fmt.Sprintf("p%d@exemple.fr", first+i))
		}
		found.apply(events...)
	}
	for _, w := range []*world{found, known} {
		w.exec(`VACUUM ANALYZE`)
	}
	permitted := map[*world][]bool{}
	for _, w := range []*world{found, known} {
		permitted[w] = make([]bool, people)
		for i := range people {
			permitted[w][i] = true
		}
	}
	took := map[*world]time.Duration{}
	who := rand.Perm(people)
	turn := func(w *world) {
		batch := w.benchBatch(who[:benchBatch], permitted[w])
		began := time.Now()
		out, err := w.r.Apply(w.ctx, batch)
		if err != nil {
			b.Fatal(err)
		}
		took[w] += time.Since(began)
		for _, p := range out.Places {
			w.places[p.Partition] = p
		}
	}
	batches := 0
	for b.Loop() {
		if len(who) < 2*benchBatch {
			who = rand.Perm(people)
		}
		turn(found)
		turn(known)
		who = who[benchBatch:]
		batches++
	}
	found.want(`SELECT count(*) > 0 FROM lead WHERE NOT newsletter`, "true")
	b.ReportMetric(float64(batches*benchBatch)/took[found].Seconds(), "by-email/s")
	b.ReportMetric(float64(batches*benchBatch)/took[known].Seconds(), "by-key/s")
	b.ReportMetric(took[found].Seconds()/took[known].Seconds(), "cost")
}

// BenchmarkScan builds the index of a table, by default of a fiftieth of what is asked for: LETHE_BENCH_ROWS=1000000. ratio is its time by
// that of COPY of the same columns from one table into another, through a client; heap is the most that the process held.
func BenchmarkScan(b *testing.B) {
	rows := 20_000
	if text := os.Getenv("LETHE_BENCH_ROWS"); text != "" {
		var err error
		if rows, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	cfg := leadMapping()
	cfg.Find = &config.Find{Email: []string{"lead.email"}, Phone: []string{"lead.mobile"}, Scan: time.Hour}
	w := newWorldOf(b, benchServer(b), cfg, leads, `GRANT SELECT, UPDATE ON lead TO {role}; GRANT SELECT, UPDATE, DELETE ON lead_email TO {role};
		GRANT SELECT, INSERT, DELETE ON do_not_contact TO {role}`)
	w.r.log = zerolog.Nop()
	w.exec(`INSERT INTO lead (id, email, mobile)
		SELECT n, 'person.' || n || '@exemple.fr', '06 ' || lpad((n % 100000000)::text, 8, '0') FROM generate_series(1, $1::int) n`, rows)
	w.exec(`VACUUM ANALYZE lead`)
	w.exec(`CREATE TABLE copied (id bigint PRIMARY KEY, email text, mobile text)`)
	var scan, plain time.Duration
	for b.Loop() {
		w.exec(`TRUNCATE copied; TRUNCATE lethe.row_key, lethe.scan`)
		plain += w.copyColumns(b)
		runtime.GC()
		began := time.Now()
		w.scanOn()
		scan += time.Since(began)
	}
	w.want(`SELECT count(DISTINCT pk) FROM lethe.row_key`, strconv.Itoa(rows))
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	b.ReportMetric(float64(b.N*rows)/scan.Seconds(), "rows/s")
	b.ReportMetric(scan.Seconds()/plain.Seconds(), "ratio")
	b.ReportMetric(float64(mem.HeapSys)/(1<<20), "heapMB")
}

// copyColumns copies the columns by which persons are found into another table, as a plain client would.
func (w *world) copyColumns(b *testing.B) time.Duration {
	b.Helper()
	const columns = `id, email, mobile`
	began := time.Now()
	r, to, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	second := w.pg.Connect(b, w.db)
	failed := make(chan error, 1)
	go func() {
		_, err := w.admin.PgConn().CopyTo(w.ctx, to, `COPY lead (`+columns+`) TO STDOUT`)
		_ = to.Close()
		failed <- err
	}()
	if _, err := second.PgConn().CopyFrom(w.ctx, r, `COPY copied (`+columns+`) FROM STDIN`); err != nil {
		b.Fatal(err)
	}
	if err := <-failed; err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}
