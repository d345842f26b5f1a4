// Package demo is `lethe demo`: a magazine publisher's CRM, two replicas, a broker and Lethe on one machine, and a working
// day that is played on them.
package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sync/errgroup"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/keys"
	"lethe/internal/testenv"
)

//go:embed lethe.yaml
var configText string

// Options of Run.
type Options struct {
	For       time.Duration // how long the day is; default 30 s
	Customers int           // default 10,000
	Rate      int           // transactions a second; default 200
	CoolOff   time.Duration // before phase 2; default 2 s
	Keep      bool          // leave the folder behind
	Version   string
	Out       io.Writer // what happens, line by line; nil: nothing
}

func (o *Options) defaults() {
	for _, d := range []struct{ v, fallback *time.Duration }{
		{&o.For, ptr(30 * time.Second)}, {&o.CoolOff, ptr(2 * time.Second)},
	} {
		if *d.v <= 0 {
			*d.v = *d.fallback
		}
	}
	if o.Customers <= 0 {
		o.Customers = 10_000
	}
	if o.Rate <= 0 {
		o.Rate = 200
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
}

func ptr[T any](v T) *T { return &v }

// fewestCustomers leaves enough of them for the marked, the late and the erased.
const fewestCustomers = 100

// ErrNotFollowed says that a copy did not follow, or that it was not proven: the Summary says which.
var ErrNotFollowed = errors.New("not everything followed and was verified")

// ErrStopped says that somebody ended the demo before its time; everything it started is closed.
var ErrStopped = errors.New("stopped")

// stage is a running demo.
type stage struct {
	o       Options
	dir     string
	say     *teller
	servers []*testenv.Postgres // CRM, marketing, reporting
	broker  *kfake.Cluster
	cfg     *config.Config
	app     *app.App
	logFile *os.File

	crm, market, report *pgx.Conn
	fill                fill
	counts              Counts
	marketProbe         *prober
	reportProbe         *prober
}

// The databases of the stage's servers.
const (
	crm = iota
	marketing
	reporting
)

var databases = [...]string{"crm", "marketing", "reporting"}

// Run plays the demo and returns what came of it. ErrNotFollowed comes with a Summary.
func Run(ctx context.Context, o Options) (*Summary, error) {
	o.defaults()
	if o.Customers < fewestCustomers {
		return nil, fmt.Errorf("playing the demo: %d customers make no day: at least %d", o.Customers, fewestCustomers)
	}
	s := &stage{o: o, say: newTeller(o.Out), fill: newFill(o.Customers), marketProbe: newProber(probeMarketing), reportProbe: newProber(probeReporting)}
	summary, err := s.run(ctx)
	if ctx.Err() != nil && summary == nil {
		err = ErrStopped // what was under way when it was stopped tells nobody anything
	}
	return summary, errors.Join(err, s.close()) //nolint:contextcheck // what ran is closed although ctx is over
}

func (s *stage) run(ctx context.Context) (*Summary, error) {
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	// Lethe starts from an empty CRM, so that it knows everything that the filling does.
	running, stop := context.WithCancel(ctx)
	defer stop()
	group, groupCtx := errgroup.WithContext(running)
	group.Go(func() error { return s.app.Run(groupCtx) })
	if err := s.prepareData(groupCtx); err != nil {
		return nil, errors.Join(err, stopAndWait(stop, group))
	}
	probes, err := s.startProbes(groupCtx, group)
	if err != nil {
		return nil, errors.Join(err, stopAndWait(stop, group))
	}
	defer probes()
	summary, err := s.play(groupCtx)
	return summary, errors.Join(err, stopAndWait(stop, group))
}

func stopAndWait(stop context.CancelFunc, group *errgroup.Group) error {
	stop()
	return group.Wait()
}

// open starts servers and broker, makes keys, tables, slot, topics and ledger, and wires Lethe.
func (s *stage) open(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "lethe-demo-"); err != nil {
		return fmt.Errorf("making the demo's folder: %w", err)
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // entered by the servers' uid
		return fmt.Errorf("opening the demo's folder: %w", err)
	}
	s.say.line("starting three PostgreSQL servers and the embedded broker in %s", s.dir)
	if err := s.startServers(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "broker"), 0o700); err != nil {
		return fmt.Errorf("making the broker's folder: %w", err)
	}
	if s.broker, err = startBroker(filepath.Join(s.dir, "broker")); err != nil {
		return err
	}
	if s.cfg, err = s.config(); err != nil {
		return err
	}
	if _, err := keys.Init(s.cfg.Keys.Dir, slices.Sorted(maps.Keys(s.cfg.Replicas))); err != nil {
		return err
	}
	for i, script := range []string{crm: crmSchema, marketing: marketingSchema, reporting: reportingSchema} {
		if err := execScript(ctx, s.dsn(i, s.servers[i].Superuser()), script); err != nil {
			return err
		}
	}
	return s.wire(ctx)
}

func (s *stage) startServers(ctx context.Context) error {
	bin, version, err := findPostgres(ctx)
	if err != nil {
		return err
	}
	s.servers = make([]*testenv.Postgres, len(databases))
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range databases {
		group.Go(func() error {
			server, err := testenv.StartPostgres(groupCtx, testenv.Options{
				BinDir: bin, Version: version, Dir: filepath.Join(s.dir, "pg-"+databases[i]), Settings: map[string]string{"max_slot_wal_keep_size": "4GB"},
			})
			if err != nil {
				return fmt.Errorf("starting PostgreSQL for %s: %w", databases[i], err)
			}
			s.servers[i] = server
			conn, err := pgx.Connect(groupCtx, server.DSN("", ""))
			if err != nil {
				return fmt.Errorf("connecting to PostgreSQL for %s: %w", databases[i], err)
			}
			defer func() { _ = conn.Close(context.WithoutCancel(groupCtx)) }() // nothing is in flight
			for _, sql := range []string{"create role lethe login replication", "create database " + databases[i]} {
				if _, err := conn.Exec(groupCtx, sql); err != nil {
					return fmt.Errorf("preparing PostgreSQL for %s: %w", databases[i], err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (s *stage) dsn(server int, user string) string {
	return s.servers[server].DSN(databases[server], user)
}

// config fills in the embedded file and loads it as any other.
func (s *stage) config() (*config.Config, error) {
	path := filepath.Join(s.dir, "lethe.yaml")
	values := map[string]string{
		"LETHE_DEMO_KEYS":      filepath.Join(s.dir, "keys"),
		"LETHE_DEMO_BROKER":    s.broker.ListenAddrs()[0],
		"LETHE_DEMO_COOL_OFF":  strconv.Itoa(int(s.o.CoolOff/time.Millisecond)) + "ms",
		"LETHE_DEMO_CRM":       s.dsn(crm, "lethe"),
		"LETHE_DEMO_MARKETING": s.dsn(marketing, "lethe"),
		"LETHE_DEMO_REPORTING": s.dsn(reporting, "lethe"),
	}
	text := ConfigText(values)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("writing the demo's config: %w", err)
	}
	return config.Load(path)
}

// startProbes opens the connections that measure; the function returned closes them.
func (s *stage) startProbes(ctx context.Context, group *errgroup.Group) (func(), error) {
	var conns []*pgx.Conn
	for _, p := range []struct {
		probe  *prober
		server int
	}{{s.marketProbe, marketing}, {s.reportProbe, reporting}} {
		conn, err := s.connect(ctx, p.server)
		if err != nil {
			return nil, err
		}
		conns = append(conns, conn)
		group.Go(func() error { return p.probe.run(ctx, conn) })
	}
	return func() {
		for _, c := range conns {
			_ = c.Close(context.WithoutCancel(ctx)) // it has only read
		}
	}, nil
}

func (s *stage) connect(ctx context.Context, server int) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, s.dsn(server, s.servers[server].Superuser()))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", databases[server], err)
	}
	return conn, nil
}

// prepareData fills the three databases while Lethe runs.
func (s *stage) prepareData(ctx context.Context) error {
	var err error
	for _, c := range []struct {
		conn   **pgx.Conn
		server int
	}{{&s.crm, crm}, {&s.market, marketing}, {&s.report, reporting}} {
		if *c.conn, err = s.connect(ctx, c.server); err != nil {
			return err
		}
	}
	s.say.line("filling the CRM with %d customers; the ETL has copied most of them into marketing and reporting", s.o.Customers)
	if err := s.fill.marketing(ctx, s.market); err != nil {
		return err
	}
	if err := s.fill.reporting(ctx, s.report); err != nil {
		return err
	}
	return s.fill.crm(ctx, s.crm)
}

// close stops what runs, in reverse order, and removes the folder.
func (s *stage) close() error {
	var errs []error
	for _, c := range []*pgx.Conn{s.crm, s.market, s.report} {
		if c != nil {
			_ = c.Close(context.Background()) // servers are about to stop
		}
	}
	if s.broker != nil {
		s.broker.Close()
	}
	for _, p := range s.servers {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	if s.logFile != nil {
		errs = append(errs, s.logFile.Close())
	}
	if s.dir == "" {
		return errors.Join(errs...)
	}
	if s.o.Keep {
		s.say.line("everything is left in %s", s.dir)
	} else {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// wire makes topics, slot, publication and ledger with the owners' logins, and Lethe with its own.
func (s *stage) wire(ctx context.Context) (err error) {
	for i, grants := range []string{crm: crmGrants, marketing: replicaGrants, reporting: replicaGrants} {
		if err := execScript(ctx, s.dsn(i, s.servers[i].Superuser()), grants); err != nil {
			return err
		}
	}
	owners := map[string]string{}
	for i, name := range databases[1:] {
		owners[name] = s.dsn(i+1, s.servers[i+1].Superuser())
	}
	_, err = app.Setup(ctx, s.cfg, app.SetupOptions{Kafka: true, SourceDSN: s.dsn(crm, s.servers[crm].Superuser()), ReplicaDSN: owners})
	if err != nil {
		return err
	}
	if s.logFile, err = os.Create(filepath.Join(s.dir, "lethe.log")); err != nil {
		return fmt.Errorf("making Lethe's log: %w", err)
	}
	s.app, err = app.New(ctx, s.cfg, app.Options{
		Version: s.o.Version, Logger: zerolog.New(s.logFile).With().Timestamp().Logger(), RecheckFirst: time.Second,
	})
	return err
}

// crmGrants and replicaGrants are what the owners grant to Lethe's logins, beside what setup does.
const (
	crmGrants     = `grant usage on schema public to lethe; grant select on all tables in schema public to lethe`
	replicaGrants = `grant usage on schema public to lethe; grant select, insert, update, delete on all tables in schema public to lethe`
)
