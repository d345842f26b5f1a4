package mysql

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/internal/testenv"
	"lethe/schema"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// benchRows is how many rows a scan reads: LETHE_BENCH_ROWS, or so many.
func benchRows() int {
	if n, err := strconv.Atoi(os.Getenv("LETHE_BENCH_ROWS")); err == nil {
		return n
	}
	return 200_000
}

// BenchmarkScan builds the index of match keys of a table, with an e-mail address and a phone number in each row, and has a plain
// client copy the same columns into another table with the largest INSERTs that pay. times is how much longer the index takes.
func BenchmarkScan(b *testing.B) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		b.Run(flavor, func(b *testing.B) {
			rows := benchRows()
			w := newBenchFindWorld(b, flavor, rows)
			w.exec(`CREATE TABLE copied (contact_id BIGINT PRIMARY KEY, email VARCHAR(100), phone VARCHAR(40)); GRANT INSERT ON copied TO ` + w.role + `@'%'`)
			var scan, plain, again time.Duration
			for b.Loop() {
				w.exec(`TRUNCATE lethe_row_key; TRUNCATE lethe_scan; TRUNCATE copied`)
				plain += w.copyColumns()
				runtime.GC()
				began := time.Now()
				w.scanAll()
				scan += time.Since(began)
				began = time.Now()
				w.rescan()
				again += time.Since(began)
			}
			w.want(`SELECT COUNT(DISTINCT pk) FROM lethe_row_key`, strconv.Itoa(rows))
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			b.ReportMetric(float64(rows*b.N)/scan.Seconds(), "rows/s")
			b.ReportMetric(float64(rows*b.N)/again.Seconds(), "again-rows/s")
			b.ReportMetric(float64(rows*b.N)/plain.Seconds(), "plain-rows/s")
			b.ReportMetric(scan.Seconds()/plain.Seconds(), "times")
			b.ReportMetric(float64(mem.HeapSys-mem.HeapReleased)/(1<<20), "heap-MB")
		})
	}
}

// BenchmarkConsentsByEmail applies consent changes of a thousand people a batch to a replica that finds them by e-mail and, in
// turns, to one that has the CRM key. cost is the one's time by the other's.
func BenchmarkConsentsByEmail(b *testing.B) {
	const people = 40_000
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		b.Run(flavor, func(b *testing.B) {
			found := newBenchFindWorld(b, flavor, people)
			found.scanAll()
			for first := 0; first < people; first += benchBatch {
				events := make([]*schema.Event, benchBatch)
				for i := range events {
					events[i] = found.event(first+i, &schema.ContactPoint{
						Contact: schema.ContactRef{1}, Kind: schema.ContactEmail, Keys: benchKeys().Email(fmt.Sprintf("jeanne.martin%d@exemple.fr", first+i)),
					})
				}
				found.apply(events...)
			}
			known := newBenchWorld(b, flavor)
			worlds, permitted, took := []*world{found, known}, map[*world][]bool{}, map[*world]time.Duration{}
			for _, w := range worlds {
				permitted[w] = make([]bool, people)
				for i := range people {
					permitted[w][i] = true
				}
			}
			var who []int
			batches := 0
			for b.Loop() {
				if len(who) < benchBatch {
					who = rand.Perm(people)
				}
				for _, w := range worlds {
					batch := w.benchBatch(who[:benchBatch], permitted[w])
					began := time.Now()
					out, err := w.r.Apply(w.ctx, batch)
					if err != nil {
						b.Fatal(err)
					}
					took[w] += time.Since(began)
					w.Move(out.Places...)
				}
				who = who[benchBatch:]
				batches++
			}
			found.want(`SELECT COUNT(*) > 0 FROM contact WHERE NOT newsletter`, "1")
			b.ReportMetric(float64(batches*benchBatch)/took[found].Seconds(), "by-email/s")
			b.ReportMetric(float64(batches*benchBatch)/took[known].Seconds(), "by-key/s")
			b.ReportMetric(took[found].Seconds()/took[known].Seconds(), "cost")
		})
	}
}

// benchKeys makes match keys as the program does.
func benchKeys() *matchkey.Maker {
	return matchkey.New([]keys.MatchKey{{ID: 1, PRF: sinktest.PRF("match")}}, []string{"FR", "BE", "CH"})
}

// copyColumns copies what a scan reads.
func (w *world) copyColumns() time.Duration {
	w.Helper()
	began := time.Now()
	rows, err := w.db.QueryContext(w.ctx, `SELECT contact_id, email, phone FROM contact`)
	if err != nil {
		w.Fatal(err)
	}
	defer rows.Close()
	flush := func(values []any) {
		err := w.r.inTx(w.ctx, "copying", func(ctx context.Context, tx *tx) error {
			_, err := tx.insert(ctx, `INSERT INTO copied (contact_id, email, phone) VALUES `, 3, values, "")
			return err
		})
		if err != nil {
			w.Fatal(err)
		}
	}
	var values []any
	for rows.Next() {
		var id int64
		var email, phone string
		if err := rows.Scan(&id, &email, &phone); err != nil {
			w.Fatal(err)
		}
		if values = append(values, id, email, phone); len(values) == 3*scanChunk {
			flush(values)
			values = values[:0]
		}
	}
	if rows.Err() != nil {
		w.Fatal(rows.Err())
	}
	flush(values)
	return time.Since(began)
}

// newBenchFindWorld is a marketing database without the CRM's key: people are found by e-mail and phone.
func newBenchFindWorld(b *testing.B, flavor string, people int) *world {
	b.Helper()
	server := testenv.NewMySQL(b, testenv.MySQLOptions{Flavor: flavor, Settings: map[string]string{
		"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1", "innodb_buffer_pool_size": "512M",
	}})
	s := newSiteOn(b, server, func(c *config.Replica) {
		c.Mode, c.Erase, c.Person.CRMKey = ledger.ModeSuppress, config.Erase{}, nil
		c.Find = &config.Find{Email: []string{"contact.email"}, Phone: []string{"contact.phone"}, Scan: time.Hour}
	})
	s.exec(`ALTER TABLE contact ADD phone VARCHAR(40), ADD lastname VARCHAR(60), MODIFY crm_id BIGINT NULL`)
	for from := 0; from < people; from += 10_000 {
		rows := make([]string, 0, 10_000)
		for i := from; i < min(from+10_000, people); i++ {
			rows = append(rows, fmt.Sprintf("('Jeanne', 'Martin%d', 'jeanne.martin%d@exemple.fr', '%s')", i, i, benchPhone(i)))
		}
		s.exec(`INSERT INTO contact (firstname, lastname, email, phone) VALUES ` + strings.Join(rows, ", "))
	}
	s.exec(`ANALYZE TABLE contact`)
	w := worldOn(b, s)
	w.r = w.replica(func(o *Options) {
		o.Logger = zerolog.Nop()
		o.Match = benchKeys()
	})
	w.assign()
	return w
}

// benchPhone is a French number in one of its spellings.
func benchPhone(i int) string {
	n := 10_000_000 + i%80_000_000
	if i%2 == 0 {
		return fmt.Sprintf("06 %02d %02d %02d %02d", n/1_000_000%100, n/10_000%100, n/100%100, n%100)
	}
	return fmt.Sprintf("+336%08d", n)
}
