package mysql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/capturetest"
	"lethe/internal/pii"
	"lethe/internal/testenv"
)

// passesBy reports an error that the next Run may not meet.
func passesBy(err error) bool {
	return err != nil && !capture.IsPermanent(err) && !errors.As(err, new(*capture.GapError)) && !errors.Is(err, context.Canceled)
}

// TestCutAnywhere: a connection that is cut after so many bytes, in the middle of a transaction as a rule, loses no row and
// gives none another id.
func TestCutAnywhere(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(300))")
		e.need("a", "id", "v")
		e.track(t)
		const count = 30
		for i := range count {
			var rows []string
			for j := range 12 {
				rows = append(rows, fmt.Sprintf("(%d, '%s')", 100*i+j, strings.Repeat("x", 200)))
			}
			e.tx(t, "INSERT INTO a VALUES "+strings.Join(rows, ","), fmt.Sprintf("UPDATE a SET v = 'y' WHERE id BETWEEN %d AND %d", 100*i, 100*i+9))
		}
		want, _ := e.read(t, nil, count)

		p := newProxy(t, e.server.Addr())
		e.change = func(o *Options) {
			o.Login.DSN = strings.Replace(o.Login.DSN, e.server.Addr(), p.listener.Addr().String(), 1)
		}
		src := e.source(t)
		var got []*capturetest.Tx
		at := &capture.Checkpoint{Identity: e.start}
		cuts := 0
		for i := 0; len(got) < count; i++ {
			p.set(11_000+i%7*1777, nil)
			k := &keeper{Recorder: &capturetest.Recorder{}, epochs: at.Epochs}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			enough := count - len(got)
			k.OnCommit = func(*capturetest.Tx) error {
				if enough--; enough == 0 {
					return errEnough
				}
				return nil
			}
			err := src.Run(ctx, at, k)
			cancel()
			if errors.Is(err, errEnough) {
				got = append(got, k.All()...)
				break
			}
			if !passesBy(err) {
				t.Fatalf("Run ended with %v", err)
			}
			cuts++
			txs := k.All()
			got = append(got, txs...)
			if n := len(txs); n > 0 {
				p.set(0, nil)
				at = k.checkpoint(t, src, txs[n-1])
			}
			if i > 20*count {
				t.Fatalf("%d of %d transactions after %d cuts", len(got), count, cuts)
			}
		}
		if cuts < 10 {
			t.Errorf("only %d cuts", cuts)
		}
		for i := range want {
			same(t, want[i], got[i])
			if diff := cmp.Diff(want[i].Position, got[i].Position); diff != "" {
				t.Error(diff)
			}
		}
	})
}

var errEnough = errors.New("enough")

// TestServerKilled: a server that dies in the middle of a transaction that it is sending, with another one open.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	onPrivate(t, testenv.MySQLOptions{}, func(t *testing.T, e *env) {
		e.exec(t, "INSERT INTO a VALUES (-1, 'x')")
		_, at := e.read(t, nil, 1)
		// 20 MB are more than what lies in the buffers between.
		var rows []string
		for i := range 2000 {
			rows = append(rows, fmt.Sprintf("(%d, '%s')", i, strings.Repeat("x", 1000)))
		}
		statements := []string{"INSERT INTO a VALUES " + strings.Join(rows, ",")}
		for i := range 9 {
			statements = append(statements, fmt.Sprintf("INSERT INTO a SELECT id + %d, v FROM a WHERE id BETWEEN 0 AND 1999", 2000*(i+1)))
		}
		e.tx(t, append(statements, "UPDATE a SET v = 'z' WHERE id BETWEEN 0 AND 999")...)
		e.exec(t, "BEGIN", "INSERT INTO a VALUES (-2, 'never committed')")
		reached := make(chan struct{})
		h := &stuckAt{Recorder: &capturetest.Recorder{}, n: 100, reached: reached, release: make(chan struct{})}
		r := capturetest.Start(t, e.source(t), at, h)
		<-reached
		if err := e.server.Kill(); err != nil {
			t.Fatal(err)
		}
		close(h.release)
		if err := r.Wait(t); !passesBy(err) {
			t.Fatalf("Run ended with %v", err)
		}
		if n := len(h.Txs()); n != 0 || h.Partial() < 100 {
			t.Errorf("%d transactions ended, %d rows came of another", n, h.Partial())
		}
		if err := e.server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		e = e.on(t, e.server)
		e.exec(t, "INSERT INTO a VALUES (-3, 'x')")
		txs, _ := e.read(t, at, 2)
		if len(txs[0].Rows) != 21_000 || txs[1].Rows[0].New["id"] != "-3" {
			t.Errorf("%d rows, then %v", len(txs[0].Rows), txs[1])
		}
	})
}

// stuckAt waits at its n-th change.
type stuckAt struct {
	*capturetest.Recorder
	n       int
	reached chan struct{}
	release chan struct{}
	once    sync.Once
}

func (s *stuckAt) Change(c *capture.Change) error {
	if s.Rows() == s.n {
		s.once.Do(func() { close(s.reached) })
		<-s.release
	}
	return s.Recorder.Change(c)
}

// TestWithoutGTID: one server is followed by its files; any other, and a change of the way, is a gap.
func TestWithoutGTID(t *testing.T) {
	t.Parallel()
	e := newEnv(t, testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: testenv.MySQLServer, WithoutGTID: true}))
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(20))", "CREATE TABLE other (id int)")
	e.need("a", "id", "v")
	e.track(t)
	r := capturetest.Start(t, e.source(t), nil, &capturetest.Recorder{})
	if err := r.Wait(t); !errors.As(err, new(*SetupError)) || !capture.IsPermanent(err) {
		t.Fatalf("with require_gtid Run ended with %v", err)
	}
	e.change = func(o *Options) { o.RequireGTID = false }
	e.tx(t, "INSERT INTO a VALUES (1, 'x')", "INSERT INTO other VALUES (1)", "INSERT INTO a VALUES (2, 'x')")
	e.exec(t, "INSERT INTO a VALUES (3, 'x')", "FLUSH BINARY LOGS", "INSERT INTO a VALUES (4, 'x')", "TRUNCATE a", "INSERT INTO a VALUES (5, 'x')")
	all, end := e.read(t, nil, 5)
	ascending(t, all)
	if len(all[0].Rows) != 2 || all[3].Rows[0].Op != capture.OpTruncate {
		t.Errorf("read %v", all)
	}
	for i := range 4 {
		src := e.source(t)
		rest, _ := e.read(t, capturetest.CheckpointAt(t, src, all[i]), 4-i)
		for j := range rest {
			same(t, all[i+1+j], rest[j])
			if diff := cmp.Diff(all[i+1+j].Position, rest[j].Position); diff != "" {
				t.Error(diff)
			}
		}
	}
	gapped := func(from capture.Checkpoint, cause string) {
		t.Helper()
		r, _ := startKeeping(t, e.source(t), &from)
		wantGap(t, r, cause)
	}
	other := *end
	other.Identity.SystemID = "11111111-2222-3333-4444-555555555555"
	gapped(other, capture.GapOtherSystem)
	other = *end
	other.Identity.Slot = modeGTID.String()
	gapped(other, capture.GapModeChanged)
	e.exec(t, "RESET BINARY LOGS AND GTIDS")
	gapped(*end, capture.GapForkedHistory)
	for i := range 30 {
		e.exec(t, fmt.Sprintf("INSERT INTO a VALUES (%d, 'xxxxx')", 100+i))
	}
	for range 3 {
		e.exec(t, "FLUSH BINARY LOGS")
	}
	gapped(*end, capture.GapForkedHistory)
}

// TestLock: one capture at a time; the next one begins when the first ends, however it ends.
func TestLock(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
		e.need("a", "id")
		e.track(t)
		e.exec(t, "INSERT INTO a VALUES (1)")
		first, second := e.source(t), e.source(t)
		if st, err := first.Watch(t.Context()); err != nil || st.Active {
			t.Errorf("before: %+v, %v", st, err)
		}
		r, _ := startKeeping(t, first, nil)
		r.Collect(t, 1)
		if st, err := second.Watch(t.Context()); err != nil || !st.Active {
			t.Errorf("while the first runs: %+v, %v", st, err)
		}
		standby, _ := startKeeping(t, second, nil)
		if err := standby.Wait(t); !errors.Is(err, capture.ErrSlotInUse) || capture.IsPermanent(err) {
			t.Fatalf("the standby ended with %v", err)
		}
		e.exec(t, "KILL "+e.query(t, fmt.Sprintf("SELECT IS_USED_LOCK('%s')", first.lockName())))
		began := time.Now()
		if err := r.Wait(t); !errors.Is(err, errLockLost) || !passesBy(err) {
			t.Fatalf("the first ended with %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a lost lock was noticed after %v", took)
		}
		standby, _ = startKeeping(t, second, nil)
		standby.Collect(t, 1)
		stopped(t, standby)
		r, _ = startKeeping(t, first, nil)
		r.Collect(t, 1)
		stopped(t, r)
	})
}

// TestLongNamesOfLocks: MySQL refuses names of more than 64 bytes.
func TestLongNamesOfLocks(t *testing.T) {
	a := (&Source{o: Options{Name: strings.Repeat("n", 80) + "a"}}).lockName()
	b := (&Source{o: Options{Name: strings.Repeat("n", 80) + "b"}}).lockName()
	if len(a) > maxLockName || a == b {
		t.Errorf("the locks are %s and %s", a, b)
	}
}

// TestCompressed: compressed transactions are unfolded piece by piece.
func TestCompressed(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(300))", "CREATE TABLE other (id int PRIMARY KEY, v varchar(300))")
		e.need("a", "id", "v")
		e.track(t)
		if e.mariadb() {
			e.exec(t, "SET GLOBAL log_bin_compress = ON")
			t.Cleanup(func() { e.server.Exec(t, "", "SET GLOBAL log_bin_compress = OFF") })
		} else {
			e.exec(t, "SET SESSION binlog_transaction_compression = ON")
		}
		var rows []string
		for i := range 5000 {
			rows = append(rows, fmt.Sprintf("(%d, '%s')", i, strings.Repeat("the same words ", 10)))
		}
		values := strings.Join(rows, ",")
		e.tx(t, "INSERT INTO other VALUES "+values, "INSERT INTO a VALUES "+values, "UPDATE a SET v = 'z' WHERE id < 1000", "DELETE FROM a WHERE id = 7")
		e.exec(t, "TRUNCATE a", "INSERT INTO a VALUES (1, 'after')")
		txs, at := e.read(t, nil, 3)
		if n := len(txs[0].Rows); n != 6001 {
			t.Fatalf("%d rows", n)
		}
		if r := txs[0].Rows[5005]; r.Op != capture.OpUpdate || r.Old["v"] != strings.Repeat("the same words ", 10) || r.New["v"] != "z" {
			t.Errorf("an update is %+v", r)
		}
		if txs[1].Rows[0].Op != capture.OpTruncate || txs[2].Rows[0].New["v"] != "after" {
			t.Errorf("read %v", txs[1:])
		}
		rest, _ := e.read(t, func() *capture.Checkpoint {
			c := *at
			c.Position, c.CommittedAt = txs[0].Position, txs[0].CommittedAt
			return &c
		}(), 2)
		same(t, txs[1], rest[0])
		same(t, txs[2], rest[1])
	})
}

// TestNothingOfARowIsTold: whatever is wrong with the log, and whatever the library says of it, no value is in an error, in
// our log or on the process's own output.
func TestNothingOfARowIsTold(t *testing.T) {
	const canary = "CanaryZQX7"
	onEach(t, func(t *testing.T, e *env) {
		e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(200), d json)")
		e.need("a", "id", "v", "d")
		e.track(t)
		e.exec(t, fmt.Sprintf(`INSERT INTO a VALUES (1, '%s', '{"name": "%[1]s"}')`, canary),
			"SET binlog_format = 'STATEMENT'", fmt.Sprintf("UPDATE a SET v = '%s!' WHERE v = '%[1]s'", canary), "SET binlog_format = 'ROW'")

		var log bytes.Buffer
		var said []string
		outputs := redirect(t)
		p := newProxy(t, e.server.Addr())
		e.change = func(o *Options) {
			o.Login.DSN = strings.Replace(o.Login.DSN, e.server.Addr(), p.listener.Addr().String(), 1)
			o.Log = zerolog.New(&log)
		}
		run := func(from *capture.Checkpoint) error {
			k := &keeper{Recorder: &capturetest.Recorder{OnCommit: func(tx *capturetest.Tx) error {
				if tx.Rows != nil {
					return errEnough
				}
				return nil
			}}}
			err := e.source(t).Run(t.Context(), from, k)
			said = append(said, err.Error(), fmt.Sprintf("%+v", err))
			return err
		}
		p.set(0, func(b []byte) { // one bit of a value
			if i := bytes.Index(b, []byte(canary)); i >= 0 {
				b[i] ^= 1
			}
		})
		if err := run(nil); !errors.Is(err, errChecksum) || !passesBy(err) {
			t.Errorf("with a changed bit Run ended with %v", err)
		}
		p.set(0, nil)
		if err := run(nil); !errors.Is(err, errEnough) {
			t.Errorf("without it Run ended with %v", err)
		}
		e.exec(t, "ALTER TABLE a DROP COLUMN d", fmt.Sprintf("INSERT INTO a VALUES (3, '%s')", canary))
		if _, err := runAll(t, e, &log); err == nil || !capture.IsPermanent(err) {
			t.Errorf("without a column Run ended with %v", err)
		} else {
			said = append(said, err.Error())
		}
		said = append(said, log.String(), outputs())
		for _, s := range said {
			if strings.Contains(s, canary) || strings.Contains(s, canary[1:]) {
				t.Errorf("a value was told in %q", s)
			}
		}
		if !strings.Contains(log.String(), "statement") {
			t.Errorf("the statement was not told in %s", log.String())
		}
	})
}

// runAll reads until it ends by itself.
func runAll(t *testing.T, e *env, log *bytes.Buffer) (*keeper, error) {
	t.Helper()
	o := e.options(t)
	o.Log = zerolog.New(log)
	src, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close(t.Context()) }()
	k := &keeper{Recorder: &capturetest.Recorder{}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return k, src.Run(ctx, &capture.Checkpoint{Identity: e.start}, k)
}

// redirect sends the process's output into files until the function that it returns is called, which gives what came.
func redirect(t *testing.T) func() string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	out, errs := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = f, f
	restore := sync.OnceFunc(func() {
		os.Stdout, os.Stderr = out, errs
		_ = f.Close()
	})
	t.Cleanup(restore)
	return func() string {
		restore()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// TestRefusals: a login that may not, and a server that is not there, are told without what the driver says.
func TestRefusals(t *testing.T) {
	onEach(t, func(t *testing.T, e *env) {
		e.track(t)
		e.exec(t, fmt.Sprintf("CREATE USER '%s'@'%%'", e.db))
		t.Cleanup(func() { e.server.Exec(t, "", fmt.Sprintf("DROP USER '%s'@'%%'", e.db)) })
		e.change = func(o *Options) { o.Login.DSN = e.server.DSN("", e.db) }
		err := e.source(t).Run(t.Context(), nil, &capturetest.Recorder{})
		if n := pii.MySQLNumber(err); n != 1227 && n != 1045 {
			t.Errorf("without the right to replicate Run ended with %v", err)
		}
		e.change = func(o *Options) { o.Login.DSN = "root@tcp(127.0.0.1:1)/" }
		if err := e.source(t).Run(t.Context(), nil, &capturetest.Recorder{}); !passesBy(err) {
			t.Errorf("without a server Run ended with %v", err)
		}
	})
}
