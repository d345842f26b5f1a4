package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/demo"
	"lethe/internal/keys"
	"lethe/internal/testenv"
)

// stage is a PostgreSQL with the demo's three databases, and a Kafka.
type stage struct {
	dir   string
	pg    *testenv.Postgres
	kafka *testenv.Kafka
}

// databases are those of the demo's schemas.
var databases = []string{"crm", "marketing", "reporting"}

func newStage(ctx context.Context, dir string) (_ *stage, err error) {
	s := &stage{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.pg, err = testenv.StartPostgres(ctx, testenv.Options{Dir: filepath.Join(dir, "pg"), Settings: map[string]string{
		"max_wal_size": "8GB", "checkpoint_timeout": "1h", "shared_buffers": "512MB", "max_slot_wal_keep_size": "16GB",
	}}); err != nil {
		return nil, err
	}
	if s.kafka, err = testenv.StartKafka(ctx, testenv.KafkaOptions{Tuned: true}); err != nil {
		return nil, err
	}
	if err := s.exec(ctx, "", "create role lethe login replication"); err != nil {
		return nil, err
	}
	for _, name := range databases {
		if err := s.exec(ctx, "", "create database "+name); err != nil {
			return nil, err
		}
	}
	crm, marketing, reporting := demo.Schemas()
	for i, script := range []string{crm, marketing, reporting} {
		if err := s.exec(ctx, databases[i], script+`;
			grant usage on schema public to lethe; grant select, insert, update, delete on all tables in schema public to lethe`); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) close() error {
	var errs []error
	if s.pg != nil {
		errs = append(errs, s.pg.Close())
	}
	if s.kafka != nil {
		errs = append(errs, s.kafka.Close())
	}
	return errors.Join(errs...)
}

func (s *stage) connect(ctx context.Context, db string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.pg.DSN(db, ""))
}

// exec runs a script of several statements.
func (s *stage) exec(ctx context.Context, db, script string) error {
	conn, err := s.connect(ctx, db)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is in flight
	_, err = conn.PgConn().Exec(ctx, script).ReadAll()
	return err
}

// prepare writes a config under a name of its own (slot, topics, ledger schemas stay apart by it), and sets everything up.
func (s *stage) prepare(ctx context.Context, name string) (path, listen string, err error) {
	return s.configure(ctx, name, func(values map[string]string) string {
		return demo.ConfigText(demo.Postgres, demo.Postgres, values)
	}, s.pg.DSN("crm", ""))
}

// configure is prepare for any CRM: text makes the config of the demo's values, and owner is the CRM's owner.
func (s *stage) configure(ctx context.Context, name string, text func(map[string]string) string, owner string) (path, listen string, err error) {
	port, err := testenv.FreePort()
	if err != nil {
		return "", "", err
	}
	listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	config := text(map[string]string{
		"LETHE_DEMO_KEYS": filepath.Join(s.dir, "keys-"+name), "LETHE_DEMO_BROKER": s.kafka.Brokers()[0], "LETHE_DEMO_COOL_OFF": "2s",
		"LETHE_DEMO_CRM": s.pg.DSN("crm", "lethe"), "LETHE_DEMO_MARKETING": s.pg.DSN("marketing", "lethe"),
		"LETHE_DEMO_REPORTING": s.pg.DSN("reporting", "lethe"),
	})
	config = strings.NewReplacer("slot: lethe", "slot: lethe_"+name, "topic_prefix: lethe", "topic_prefix: "+name, `"127.0.0.1:0"`, strconv.Quote(listen)).Replace(config)
	path = filepath.Join(s.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return "", "", err
	}
	return path, listen, s.setup(ctx, path, owner)
}

func (s *stage) setup(ctx context.Context, path, owner string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	if _, err := keys.Init(cfg.Keys.Dir, app.ReplicaNames(cfg)); err != nil {
		return err
	}
	_, err = app.Setup(ctx, cfg, app.SetupOptions{Kafka: true, SourceDSN: owner, ReplicaDSN: map[string]string{
		"marketing": s.pg.DSN("marketing", ""), "reporting": s.pg.DSN("reporting", ""),
	}})
	return err
}

// process is a running lethe.
type process struct {
	cmd *exec.Cmd
	log *os.File
}

func (s *stage) start(ctx context.Context, lethe, config string, args ...string) (*process, error) {
	log, err := os.Create(config + ".log")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, lethe, append([]string{"run", "-c", config}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &process{cmd: cmd, log: log}, nil
}

// stop ends the process in order; after a failure it shows how the process's log ends.
func (p *process) stop(failure error) error {
	err := errors.Join(p.cmd.Process.Signal(syscall.SIGTERM), p.cmd.Wait(), p.log.Close())
	if failure == nil {
		return err
	}
	text, readErr := os.ReadFile(p.log.Name())
	return errors.Join(failure, err, readErr, fmt.Errorf("its log ends with:\n%s", text[max(0, len(text)-2000):]))
}

// peak is the greatest resident size so far, in MB.
func (p *process) peak() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("no VmHWM")
}

// metric reads the sum of a metric whose line begins with prefix.
func metric(ctx context.Context, listen, prefix string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept-Encoding", "identity") // compressing would be measured too
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, prefix) {
			fields := strings.Fields(line)
			v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
	}
	return sum, nil
}

// await polls until done, or fails after within.
func await(ctx context.Context, every, within time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited %s in vain", within), err)
		case <-tick.C:
		}
	}
}
