package postgres

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"lethe/config"
	"lethe/internal/testenv"
)

// Keys of every type that a primary key can have: a scan sees each row once, whatever its order, and loses those that vanish.
func TestScanReadsEveryRow(t *testing.T) {
	for name, key := range map[string]struct {
		columns, key string
		row          func(i int) string
	}{
		"composite": {"a int NOT NULL, b text NOT NULL", "a, b", func(i int) string { return fmt.Sprintf("%d, 'k%d'", i/7, i) }},
		"text":      {`a text COLLATE "en-x-icu" NOT NULL`, "a", func(i int) string { return fmt.Sprintf("'%s%d'", strings.Repeat("É", i%3), i) }},
		"uuid":      {"a uuid NOT NULL", "a", func(i int) string { return fmt.Sprintf("md5('%d')::uuid", i) }},
		"numeric":   {"a numeric(10,3) NOT NULL", "a", func(i int) string { return fmt.Sprintf("%d.%03d", 500-i, i%1000) }},
		"time":      {"a timestamptz NOT NULL", "a", func(i int) string { return fmt.Sprintf("'2026-01-01 00:%02d:%02d.5+02'", i/60%60, i%60) }},
		"bytes":     {"a bytea NOT NULL", "a", func(i int) string { return fmt.Sprintf(`'\x%04x'`, i*7919%65536) }},
		"three":     {"a int NOT NULL, b date NOT NULL, c char(3) NOT NULL", "a, b, c", func(i int) string { return fmt.Sprintf("%d, '2026-02-%02d', 'x%d'", i/50, 1+i/10%5, i%10) }},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := leadMapping()
			cfg.Erase.Tables["address"] = &config.EraseTable{By: "lead_id", Delete: true}
			cfg.Find = &config.Find{Email: []string{"address.mail"}, Scan: time.Hour}
			w := newWorldOf(t, testenv.SharedPostgres(t, 15), cfg, leads+`
				CREATE TABLE address (`+key.columns+`, lead_id bigint NOT NULL, mail text, PRIMARY KEY (`+key.key+`)); CREATE INDEX ON address (lead_id);`,
				`GRANT SELECT, UPDATE ON lead TO {role}; GRANT SELECT, DELETE, UPDATE ON lead_email, address TO {role}; GRANT SELECT, INSERT, DELETE ON do_not_contact TO {role}`)
			w.r.scanChunk = 7
			const rows = 160
			var values []string
			for i := range rows {
				values = append(values, fmt.Sprintf("(%s, %d, 'p%d@exemple.fr')", key.row(i), 1+i%3, i))
			}
			w.exec(`INSERT INTO address VALUES ` + strings.Join(values, ", "))
			w.scanOn()
			w.want(`SELECT count(*), count(DISTINCT pk), count(DISTINCT value), count(DISTINCT person) FROM lethe.row_key`, fmt.Sprintf("%d|%[1]d|%[1]d|3", rows))
			w.exec(`DELETE FROM address WHERE mail LIKE '%3@%'`)
			w.exec(`UPDATE address SET mail = 'x' || mail WHERE mail LIKE '%5@%'`)
			w.exec(`UPDATE address SET mail = NULL WHERE mail LIKE '%7@%'`)
			w.exec(`UPDATE address SET lead_id = 9 WHERE mail LIKE '%9@%'`)
			w.scan()
			w.want(`SELECT count(*), count(*) FILTER (WHERE person = '9') FROM lethe.row_key`, "128|16")
			w.wantKeys()
		})
	}
}

// wantKeys compares row_key with what a scan of an empty index would make of the tables now.
func (w *world) wantKeys() {
	w.Helper()
	const all = `SELECT count(*), md5(string_agg(x, ',' ORDER BY x)) FROM (SELECT row_key::text AS x FROM lethe.row_key) x`
	have := w.one(all)
	w.exec(`DELETE FROM lethe.row_key`)
	w.exec(`UPDATE lethe.scan SET basis = ''`)
	w.scanOn()
	if want := w.one(all); have != want {
		w.Errorf("row_key holds %s, want %s", have, want)
	}
}

// With a column that grows only changed rows are read, and what has vanished is found by the next scan of the whole table. A
// scan that was cut off goes on where it was, in another process too.
func TestScanReadsWhatHasChanged(t *testing.T) {
	w := newLeads(t, func(c *config.Replica) {
		c.Find = &config.Find{Email: []string{"lead.email"}, Changed: []string{"lead.updated_at"}, Scan: time.Hour}
	})
	w.r.scanChunk = 2
	for id := range 9 {
		w.lead(id+1, fmt.Sprintf("email=p%d@exemple.fr", id+1))
	}
	m, err := w.r.compiled(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := w.r.scanOnce(w.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	w.want(`SELECT stage, seen FROM lethe.scan`, "rows|4")
	w.r = w.replica()
	w.r.scanChunk = 2
	w.scanOn()
	w.want(`SELECT stage, run, seen, full_at = fresh_at FROM lethe.scan`, "idle|1|9|true")
	w.exec(`UPDATE lead SET updated_at = now() - interval '1 day' WHERE id < 9`)
	w.scan()
	w.want(`SELECT run, seen FROM lethe.scan`, "2|1") // the newest change, once more
	w.exec(`UPDATE lead SET email = 'new@exemple.fr', updated_at = now() WHERE id = 3`)
	w.exec(`DELETE FROM lead WHERE id = 4`)
	w.scan()
	w.want(`SELECT run, seen FROM lethe.scan`, "3|2")
	w.want(`SELECT count(*) FROM lethe.row_key`, "9")
	w.exec(`UPDATE lethe.scan SET full_at = now() - interval '2 days'`)
	w.scan()
	w.want(`SELECT count(*) FROM lethe.row_key`, "8")
	w.wantKeys()
}

// Phase 2 waits for a scan that began after the case was suppressed; the scan is asked for at once.
func TestPhase2WaitsForAScan(t *testing.T) {
	w := newLeads(t)
	w.lead(1, "email=jean@exemple.fr")
	w.scanOn()
	w.apply(w.mail(1, "jean@exemple.fr"))
	w.apply(w.erased(1))
	if _, err := w.r.runPhase2(w.ctx, w.allPlaces()); err != nil {
		t.Fatal(err)
	}
	w.want(leadRows, "1"+hidden)
	w.want(`SELECT wanted FROM lethe.scan ORDER BY tbl`, "true\ntrue")
	w.scanOn()
	w.want(`SELECT wanted FROM lethe.scan ORDER BY tbl`, "false\nfalse")
	if _, err := w.r.runPhase2(w.ctx, w.allPlaces()); err != nil {
		t.Fatal(err)
	}
	w.want(leadRows, "1"+gone)
}

// A person would be found again by a column that phase 2 leaves as it is.
func TestFindColumnsAreErased(t *testing.T) {
	cfg := leadMapping()
	delete(cfg.Erase.Tables["lead"].Set, "mobile")
	server := testenv.SharedPostgres(t, 15)
	db := server.NewDatabase(t)
	conn := server.Connect(t, db)
	if _, err := conn.Exec(t.Context(), leads); err != nil {
		t.Fatal(err)
	}
	_, findings, err := compile(t.Context(), conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range findings {
		got = append(got, string(f.Severity)+" "+f.Code+" "+f.Object)
	}
	if want := "error found_again public.lead.mobile"; strings.Join(got, "\n") != want {
		t.Errorf("findings: %s\nwant: %s", strings.Join(got, "\n"), want)
	}
}
