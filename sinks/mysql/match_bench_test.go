package mysql

import (
	"database/sql"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/internal/testenv"
	"lethe/sinks/sinktest"
)

// benchRows is how many rows a scan reads: LETHE_BENCH_ROWS, or so many.
func benchRows() int {
	if n, err := strconv.Atoi(os.Getenv("LETHE_BENCH_ROWS")); err == nil {
		return n
	}
	return 200_000
}

// BenchmarkScan builds the index of match keys of a table, with an e-mail address and a phone number in each row, and reads the
// same columns plainly. times is how much longer the index takes.
func BenchmarkScan(b *testing.B) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		b.Run(flavor, func(b *testing.B) {
			w := newBenchFindWorld(b, flavor, benchRows())
			for b.Loop() {
				b.StopTimer()
				w.exec(`TRUNCATE lethe_row_key; TRUNCATE lethe_scan`)
				plain := w.readPlainly()
				b.StartTimer()
				began := time.Now()
				w.scanAll()
				took := time.Since(began)
				b.ReportMetric(float64(benchRows())/took.Seconds(), "rows/s")
				b.ReportMetric(float64(benchRows())/plain.Seconds(), "plain-rows/s")
				b.ReportMetric(took.Seconds()/plain.Seconds(), "times")
				began = time.Now()
				w.rescan()
				b.ReportMetric(float64(benchRows())/time.Since(began).Seconds(), "rescan-rows/s")
			}
		})
	}
}

// readPlainly reads the columns of a scan with one statement.
func (w *world) readPlainly() time.Duration {
	w.Helper()
	began := time.Now()
	rows, err := w.db.QueryContext(w.ctx, `SELECT contact_id, email, phone FROM contact`)
	if err != nil {
		w.Fatal(err)
	}
	defer rows.Close()
	var id, email, phone sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&id, &email, &phone); err != nil {
			w.Fatal(err)
		}
	}
	if rows.Err() != nil {
		w.Fatal(rows.Err())
	}
	return time.Since(began)
}

// newBenchFindWorld is a marketing database without the CRM's key: people are found by e-mail and phone.
func newBenchFindWorld(b *testing.B, flavor string, people int) *world {
	b.Helper()
	server := testenv.NewMySQL(b, testenv.MySQLOptions{Flavor: flavor, Settings: map[string]string{
		"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1", "innodb_buffer_pool_size": "512M",
	}})
	s := newSiteOn(b, server, func(c *config.Replica) {
		c.Person.CRMKey = nil
		c.Find = &config.Find{Email: []string{"contact.email"}, Phone: []string{"contact.phone"}, Name: []string{"contact.firstname", "contact.lastname"}, Scan: time.Hour}
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
		o.Match = matchkey.New([]keys.MatchKey{{ID: 1, PRF: sinktest.PRF("match")}}, []string{"FR", "BE", "CH"})
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
