package testenv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/internal/testenv"
)

// envOwner makes the test binary a process that starts a server, postgres or a
// flavor of MySQL, prints its pid and folder, and waits to be killed.
const envOwner = "TESTENV_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(envOwner) != "" {
		own()
	}
	testenv.Main(m)
}

func own() {
	var (
		pid int
		dir string
		err error
	)
	switch flavor := os.Getenv(envOwner); flavor {
	case "postgres":
		var p *testenv.Postgres
		if p, err = testenv.StartPostgres(context.Background(), testenv.Options{}); err == nil {
			pid, dir = p.PID(), p.Dir
		}
	default:
		var m *testenv.MySQL
		if m, err = testenv.StartMySQL(context.Background(), testenv.MySQLOptions{Flavor: flavor}); err == nil {
			pid, dir = m.PID(), m.Dir
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, pid, dir)
	select {}
}

func versions(t *testing.T, f func(t *testing.T, version int)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			t.Parallel()
			f(t, version)
		})
	}
}

func TestPostgresSurvivesKillAndStop(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version int) {
		ctx := t.Context()
		p := testenv.NewPostgres(t, testenv.Options{Version: version})
		p.Exec(t, "", "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
		for round, end := range []func() error{p.Kill, p.Stop} {
			pid, port := p.PID(), p.Port
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Fatalf("round %d: the postmaster is still there: %v", round, err)
			}
			if err := p.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if p.Port != port {
				t.Fatalf("round %d: port changed from %d to %d", round, port, p.Port)
			}
			var n int
			if err := p.Connect(t, "").QueryRow(ctx, "SELECT n FROM kept").Scan(&n); err != nil || n != 1 {
				t.Fatalf("round %d: kept row: %d, %v", round, n, err)
			}
		}
		log, err := os.ReadFile(p.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if want := "database system was not properly shut down"; !strings.Contains(string(log), want) {
			t.Errorf("Kill was no crash: the log lacks %q", want)
		}
	})
}

func TestPostgresIsConfiguredAsDocumented(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version int) {
		ctx := t.Context()
		p := testenv.SharedPostgres(t, version)
		conn := p.Connect(t, p.NewDatabase(t))
		for name, want := range map[string]string{
			"wal_level": "logical", "max_replication_slots": "32", "max_wal_senders": "32",
			"max_connections": "200", "track_commit_timestamp": "on", "listen_addresses": "127.0.0.1",
		} {
			var got string
			if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&got); err != nil || got != want {
				t.Errorf("%s = %q, %v; want %q", name, got, err, want)
			}
		}
		var num int
		if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&num); err != nil || num/10000 != version {
			t.Errorf("server_version_num = %d, %v; want version %d", num, err, version)
		}
	})
}

func TestPostgresTakesSettingsAndPasswords(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := testenv.NewPostgres(t, testenv.Options{
		Settings: map[string]string{"max_wal_senders": "3", "cluster_name": "it's one"},
		HBA:      []string{"host all guarded 127.0.0.1/32 scram-sha-256"},
	})
	p.Exec(t, "", "CREATE ROLE guarded LOGIN PASSWORD 'right'")
	var name, senders string
	row := p.Connect(t, "").QueryRow(ctx, "SELECT current_setting('cluster_name'), current_setting('max_wal_senders')")
	if err := row.Scan(&name, &senders); err != nil || name != "it's one" || senders != "3" {
		t.Errorf("settings: %q, %q, %v", name, senders, err)
	}
	login := func(password string) error {
		cmd := p.Command(ctx, "psql", "-w", "-c", "SELECT 1", p.DSN("", "guarded"))
		cmd.Env = append(cmd.Env, "PGPASSWORD="+password)
		return cmd.Run()
	}
	if err := login("right"); err != nil {
		t.Errorf("login with the password: %v", err)
	}
	if err := login("wrong"); err == nil {
		t.Error("login with a wrong password succeeded")
	}
}

func TestClustersDifferAndCopiesDoNot(t *testing.T) {
	t.Parallel()
	versions(t, func(t *testing.T, version int) {
		ctx := t.Context()
		systemID := func(p *testenv.Postgres) (id string) {
			t.Helper()
			row := p.Connect(t, "").QueryRow(ctx, "SELECT system_identifier::text FROM pg_control_system()")
			if err := row.Scan(&id); err != nil {
				t.Fatal(err)
			}
			return id
		}
		a := testenv.NewPostgres(t, testenv.Options{Version: version})
		b := testenv.NewPostgres(t, testenv.Options{Version: version})
		if systemID(a) == systemID(b) {
			t.Error("two clusters have the same system identifier")
		}
		a.Exec(t, "", "CREATE TABLE copied (n int)")
		want := systemID(a)
		copied := filepath.Join(b.Dir, "copied")
		if err := a.CopyData(copied); err == nil {
			t.Error("the cluster of a running server was copied")
		}
		if err := a.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := a.CopyData(copied); err != nil {
			t.Fatal(err)
		}
		c := testenv.NewPostgres(t, testenv.Options{Version: version, DataDir: copied})
		if got := systemID(c); got != want {
			t.Errorf("the copy has system identifier %s, not %s", got, want)
		}
		c.Exec(t, "", "SELECT * FROM copied")
	})
}

func TestPausedPostgresGoesOn(t *testing.T) {
	t.Parallel()
	p := testenv.NewPostgres(t, testenv.Options{})
	conn := p.Connect(t, "")
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT 1")
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("a paused server answered: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

func TestDatabaseWithABusySlotIsDropped(t *testing.T) {
	t.Parallel()
	p := testenv.SharedPostgres(t, 15)
	var db string
	slot := testenv.UniqueName("slot")
	t.Run("user", func(t *testing.T) {
		// Waiting for the reader comes after the drop, which has to end it.
		var recv *exec.Cmd
		t.Cleanup(func() {
			if recv != nil && recv.Process != nil {
				_ = recv.Wait()
			}
		})
		db = p.NewDatabase(t)
		p.Exec(t, db, "SELECT pg_create_logical_replication_slot('"+slot+"', 'test_decoding')")
		recv = p.Command(context.Background(), "pg_recvlogical", "-d", p.DSN(db, ""), "-S", slot, "--start", "--no-loop", "-f", "-")
		if err := recv.Start(); err != nil {
			t.Fatal(err)
		}
		conn := p.Connect(t, db)
		testenv.Eventually(t, 10*time.Second, func() error {
			var active bool
			if err := conn.QueryRow(t.Context(), "SELECT active FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&active); err != nil {
				return err
			}
			if !active {
				return errors.New("nobody reads the slot")
			}
			return nil
		})
	})
	var left int
	row := p.Connect(t, "").QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_database WHERE datname = $1)
		+ (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $2)`, db, slot)
	if err := row.Scan(&left); err != nil || left != 0 {
		t.Fatalf("%d of database and slot are left: %v", left, err)
	}
}

func TestSharedServersCannotBeTakenAway(t *testing.T) {
	t.Parallel()
	p := testenv.SharedPostgres(t, 15)
	for name, f := range map[string]func() error{"Stop": p.Stop, "Kill": p.Kill, "Pause": p.Pause, "Close": p.Close} {
		if err := f(); err == nil {
			t.Errorf("%s of a shared server succeeded", name)
		}
	}
	p.Exec(t, "", "SELECT 1")
	if again := testenv.SharedPostgres(t, 15); again != p {
		t.Error("a second call gave another server")
	}
}

func TestServersDieWithTheirOwner(t *testing.T) {
	t.Parallel()
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		testenv.RequirePostgres(t, 15)
		diesWithOwner(t, "postgres")
	})
	flavors(t, func(t *testing.T, flavor string) {
		testenv.RequireMySQL(t, flavor)
		diesWithOwner(t, flavor)
	})
}

// diesWithOwner starts a server in another process, kills that, and waits for
// the server to be gone.
func diesWithOwner(t *testing.T, kind string) {
	t.Helper()
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), envOwner+"="+kind)
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var (
		pid int
		dir string
	)
	_, scanErr := fmt.Fscan(out, &pid, &dir)
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	if scanErr != nil {
		t.Fatalf("reading the owner's server: %v", scanErr)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	testenv.Eventually(t, 10*time.Second, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("server %d outlives its owner", pid)
		}
		return nil
	})
}

func TestKafkaKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	k := testenv.NewKafka(t, testenv.KafkaOptions{})
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(k.Brokers()...), Transport: transport}
	const topic = "kept"
	created, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}},
	})
	if err != nil || created.Errors[topic] != nil {
		t.Fatalf("creating topic: %v, %v", err, created)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		res, err := client.Produce(ctx, &kafka.ProduceRequest{
			Topic: topic, RequiredAcks: kafka.RequireAll,
			Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("here"))}),
		})
		if err != nil {
			return err
		}
		return res.Error
	})
	for _, end := range []func() error{k.Kill, k.Stop} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		transport.CloseIdleConnections()
		if err := k.Start(ctx); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 30*time.Second, func() error {
			conn, err := kafka.DialLeader(ctx, "tcp", k.Brokers()[0], topic, 0)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			m, err := conn.ReadMessage(1 << 20)
			if err == nil && string(m.Value) != "here" {
				t.Fatalf("read %q", m.Value)
			}
			return err
		})
	}
}

func TestPausedKafkaGoesOn(t *testing.T) {
	t.Parallel()
	k := testenv.NewKafka(t, testenv.KafkaOptions{HeapMB: 256})
	ask := func(within time.Duration) error {
		conn, err := kafka.Dial("tcp", k.Brokers()[0])
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		_, err = conn.Brokers()
		return err
	}
	if err := k.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := ask(300 * time.Millisecond); err == nil {
		t.Error("a paused broker answered")
	}
	if err := k.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := ask(20 * time.Second); err != nil {
		t.Errorf("asking a resumed broker: %v", err)
	}
}

func TestMissingVersionSaysWhatToDo(t *testing.T) {
	t.Parallel()
	_, err := testenv.StartPostgres(t.Context(), testenv.Options{Version: 7})
	if !errors.Is(err, testenv.ErrMissing) || !strings.Contains(err.Error(), "testdeps") {
		t.Errorf("StartPostgres of a missing version: %v", err)
	}
}
