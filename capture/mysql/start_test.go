package mysql

import (
	"errors"
	"testing"
	"time"

	"lethe/capture"
	"lethe/internal/testenv"
)

// TestNothingExecutedYet: GTIDs were turned on just now, or the server was restored without its log. What is written between
// the first look at it and the first reading is not lost.
func TestNothingExecutedYet(t *testing.T) {
	t.Parallel()
	onPrivate(t, testenv.MySQLOptions{}, func(t *testing.T, e *env) {
		e.reset(t)
		if e.mariadb() {
			e.exec(t, "SET GLOBAL gtid_slave_pos = '0-9-100'") // restored from a server that stood there
		}
		id, err := e.plainSource(t).Identity(t.Context())
		if err != nil || id.Start == "" {
			t.Fatalf("%+v, %v", id, err)
		}
		e.start = id
		e.exec(t, "INSERT INTO a VALUES (1, 'x')", "INSERT INTO a VALUES (2, 'x')")
		txs, at := e.read(t, nil, 2)
		if txs[0].Rows[0].New["id"] != "1" {
			t.Errorf("read %+v", txs[0])
		}
		e.exec(t, "INSERT INTO a VALUES (3, 'x')")
		if again, _ := e.read(t, at, 1); again[0].Rows[0].New["id"] != "3" {
			t.Errorf("read %+v", again[0])
		}
		e.exec(t, "FLUSH BINARY LOGS", "INSERT INTO a VALUES (4, 'x')")
		testenv.Eventually(t, 30*time.Second, func() error {
			e.exec(t, "PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY")
			files, err := readFiles(t.Context(), e.conn)
			if err == nil && len(files) > 1 {
				err = errors.New("the first log is still there")
			}
			return err
		})
		r, _ := startKeeping(t, e.source(t), nil)
		wantGap(t, r, capture.GapPurged)
	})
}
