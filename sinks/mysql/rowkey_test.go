package mysql

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"lethe/config"
	"lethe/sinks/ledger"
	"lethe/sinks/sinktest"
)

// scanAll scans until there is nothing to do, and returns how many chunks were read.
func (w *world) scanAll() (chunks int) {
	w.Helper()
	m, err := w.r.compiled(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	for {
		next, _, err := w.r.scanOnce(w.ctx, m)
		if err != nil {
			w.Fatalf("scan: %v", err)
		}
		if next.After(time.Now()) {
			return chunks
		}
		chunks++
	}
}

// rescan makes every table due for a scan, and scans.
func (w *world) rescan() {
	w.Helper()
	w.exec(`UPDATE lethe_scan SET wanted = 1`)
	w.scanAll()
}

// wantKeys compares row_key with what a scan of an empty index would make of the tables now.
func (w *world) wantKeys() {
	w.Helper()
	const all = `SELECT tbl, HEX(pk), type, HEX(value), person FROM lethe_row_key ORDER BY 1, 2, 3, 4`
	have := w.lines(all)
	w.exec(`DELETE FROM lethe_row_key; UPDATE lethe_scan SET basis = ''`)
	w.scanAll()
	if want := w.lines(all); have != want {
		w.Errorf("row_key holds\n%s\nwant\n%s", have, want)
	}
}

// Keys of every type that a primary key can have: a scan sees each row once, whatever its order, and loses those that vanish.
func TestScanReadsEveryRow(t *testing.T) {
	keys := map[string]struct {
		columns, key string
		row          func(i int) string
	}{
		"composite":   {"a INT UNSIGNED NOT NULL, b VARCHAR(20) NOT NULL", "a, b", func(i int) string { return fmt.Sprintf("%d, 'k%d'", i/7, i) }},
		"text":        {"a VARCHAR(60) CHARACTER SET latin1 COLLATE latin1_swedish_ci NOT NULL", "a", func(i int) string { return fmt.Sprintf("'%s%d'", strings.Repeat("É", i%3), i) }},
		"decimal":     {"a DECIMAL(10,3) NOT NULL", "a", func(i int) string { return fmt.Sprintf("%d.%03d", 500-i, i%1000) }},
		"bytes":       {"a BINARY(8) NOT NULL", "a", func(i int) string { return fmt.Sprintf("UNHEX('%016x')", i*7919%65536) }},
		"time":        {"a DATETIME(3) NOT NULL", "a", func(i int) string { return fmt.Sprintf("'2026-01-01 00:%02d:%02d.500'", i/60%60, i%60) }},
		"double":      {"a DOUBLE NOT NULL", "a", func(i int) string { return fmt.Sprintf("%d / 3e0", i-100) }},
		"enum first":  {"a ENUM('z', 'b', 'q') NOT NULL, b INT NOT NULL", "a, b", func(i int) string { return fmt.Sprintf("'%c', %d", "zbq"[i%3], i) }},
		"three parts": {"a INT NOT NULL, b DATE NOT NULL, c CHAR(3) NOT NULL", "a, b, c", func(i int) string { return fmt.Sprintf("%d, '2026-02-%02d', 'x%d'", i/50, 1+i/10%5, i%10) }},
	}
	flavors(t, func(t *testing.T, flavor string) {
		for name, key := range keys {
			t.Run(name, func(t *testing.T) {
				w := newFindWorld(t, flavor, func(c *config.Replica) {
					c.Erase.Tables["address"] = &config.EraseTable{By: "contact_id", Delete: true}
					c.Find = &config.Find{Email: []string{"address.mail"}, Scan: time.Hour}
				}, `CREATE TABLE address (`+key.columns+`, contact_id BIGINT NOT NULL, mail VARCHAR(90), PRIMARY KEY (`+key.key+`), INDEX (contact_id))`)
				w.chunk(7)
				w.person(1, 2, 3)
				const rows = 160
				var values []string
				for i := range rows {
					values = append(values, fmt.Sprintf("(%s, %d, 'p%d@exemple.fr')", key.row(i), 1+i%3, i))
				}
				w.exec(`INSERT INTO address VALUES ` + strings.Join(values, ", "))
				w.exec(`UPDATE address SET contact_id = (SELECT MIN(contact_id) FROM contact) + contact_id - 1`)
				w.scanAll()
				w.want(`SELECT COUNT(*), COUNT(DISTINCT pk), COUNT(DISTINCT value), COUNT(DISTINCT person) FROM lethe_row_key`, fmt.Sprintf("%d|%[1]d|%[1]d|3", rows))
				w.exec(`DELETE FROM address WHERE mail LIKE '%3@%'; UPDATE address SET mail = CONCAT('x', mail) WHERE mail LIKE '%5@%'; UPDATE address SET mail = NULL WHERE mail LIKE '%7@%'`)
				w.rescan()
				w.want(`SELECT COUNT(*) FROM lethe_row_key`, "128")
				w.wantKeys()
			})
		}
	})
}

// newFindWorld is a world that finds persons; tables are made before setup, and the run role may read and lock them.
func newFindWorld(t *testing.T, flavor string, change func(*config.Replica), tables string) *world {
	t.Helper()
	s := newSite(t, flavor, func(c *config.Replica) {
		c.Find = &config.Find{Email: []string{"contact.email"}, Scan: time.Hour}
		change(c)
	})
	if tables != "" {
		s.exec(tables)
	}
	return worldOn(t, s)
}

// chunk makes a scan read so many rows at a time.
func (w *world) chunk(rows int) { w.r.chunk = rows }

var _ ledger.KeyMaker = sinktest.Maker{}

// With a column that grows only changed rows are read, and what has vanished is found by the next scan of the whole table. A
// scan that was cut off goes on where it was, in another process too.
func TestScanReadsWhatHasChanged(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newFindWorld(t, flavor, func(c *config.Replica) { c.Find.Changed = []string{"contact.changed_at"} }, ``)
		w.chunk(2)
		for id := range 9 {
			w.person(id + 1)
		}
		w.exec(`UPDATE contact SET changed_at = '2026-01-01 00:00:00' + INTERVAL crm_id DAY`)
		m, err := w.r.compiled(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // begins, and reads two chunks
			if _, _, err := w.r.scanOnce(w.ctx, m); err != nil {
				t.Fatal(err)
			}
		}
		w.want(`SELECT stage, seen, fresh_at IS NULL FROM lethe_scan`, "rows|4|1")
		w.r = w.replica()
		w.chunk(2)
		w.scanAll()
		w.want(`SELECT stage, seen, run, fresh_at = started_at, watermark FROM lethe_scan`, "idle|9|1|1|2026-01-10 00:00:00")
		w.wantKeys()
		w.exec(`UPDATE contact SET email = 'other@exemple.fr', changed_at = '2026-01-10 00:00:00' WHERE crm_id = 2;
			UPDATE contact SET email = 'silent@exemple.fr' WHERE crm_id = 3; DELETE FROM note; DELETE FROM contact WHERE crm_id = 1`)
		w.rescan()
		w.want(`SELECT seen FROM lethe_scan`, "2") // the last one was read before, and is read again
		w.want(`SELECT COUNT(*) FROM lethe_row_key`, "9")
		w.exec(`UPDATE lethe_scan SET full_at = full_at - INTERVAL 25 HOUR`)
		w.rescan()
		w.want(`SELECT COUNT(*) FROM lethe_row_key`, "8")
		w.wantKeys()
	})
}

// A scan waits for nobody's lock, and nobody for its.
func TestScanLocksNothing(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newFindWorld(t, flavor, func(*config.Replica) {}, ``)
		w.person(1, 2, 3)
		owner, err := w.db.BeginTx(w.ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = owner.Rollback() }()
		if _, err := owner.ExecContext(w.ctx, `UPDATE contact SET email = 'new@exemple.fr' WHERE crm_id = 2`); err != nil {
			t.Fatal(err)
		}
		w.scanAll()
		w.want(`SELECT COUNT(*) FROM lethe_row_key`, "3")
		m, err := w.r.compiled(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = w.r.inTx(w.ctx, opScan, func(ctx context.Context, tx *tx) error {
			if _, _, err := m.finds[0].read(ctx, tx, m, &scanState{stage: scanRows}, 10); err != nil {
				return err
			}
			_, err := w.db.ExecContext(ctx, `INSERT INTO contact (crm_id, email) VALUES (9, 'late@exemple.fr')`)
			return err
		})
		if err != nil {
			t.Errorf("the owner's insert beside a chunk: %v", err)
		}
	})
}

// Another match key, or another mapping, makes keys anew; until then nothing counts as seen.
func TestScanBeginsAnewUnderOtherKeys(t *testing.T) {
	flavors(t, func(t *testing.T, flavor string) {
		w := newFindWorld(t, flavor, func(*config.Replica) {}, ``)
		w.person(1, 2, 3)
		w.scanAll()
		before := w.lines(`SELECT HEX(value) FROM lethe_row_key ORDER BY 1`)
		w.r = w.replica(func(o *Options) { o.Match = sinktest.Maker{KeyIDs: []uint32{1, 2}} })
		w.scanAll()
		w.want(`SELECT COUNT(*) FROM lethe_row_key`, "6")
		w.want(`SELECT run FROM lethe_scan`, "2")
		w.r = w.replica()
		w.scanAll()
		w.want(`SELECT HEX(value) FROM lethe_row_key ORDER BY 1`, before)
	})
}
