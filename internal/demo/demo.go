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

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sync/errgroup"

	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/keys"
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
	Source    string        // what the CRM runs on: Postgres, the default, MySQL or MariaDB
	Marketing string        // the same of the marketing replica
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
	if o.Source == "" {
		o.Source = Postgres
	}
	if o.Marketing == "" {
		o.Marketing = Postgres
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
	servers []server // CRM, marketing, reporting
	broker  *kfake.Cluster
	cfg     *config.Config
	app     *app.App
	logFile *os.File

	on          Databases
	hangUp      []func() // closes the connections of on
	fill        fill
	counts      Counts
	marketProbe *prober
	reportProbe *prober
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
	for _, kind := range []string{o.Source, o.Marketing} {
		if titles[kind] == "" {
			return nil, fmt.Errorf("playing the demo: no kind of database is called %q: choose %s, %s or %s", kind, Postgres, MySQL, MariaDB)
		}
	}
	s := &stage{o: o, say: newTeller(o.Out), fill: newFill(o.Customers), marketProbe: newProber(probeMarketing), reportProbe: newProber(probeReporting)}
	summary, err := s.run(ctx)
	if ctx.Err() != nil && summary == nil {
		err = ErrStopped // what was under way when it was stopped tells nobody anything
	}
	return summary, errors.Join(err, s.close())
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
	s.say.line("starting %s for the CRM, %s for marketing, %s for reporting and the embedded broker in %s",
		titles[s.o.Source], titles[s.o.Marketing], titles[Postgres], s.dir)
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
	return s.wire(ctx)
}

func (s *stage) startServers(ctx context.Context) error {
	s.servers = make([]server, len(databases))
	group, groupCtx := errgroup.WithContext(ctx)
	for i, kind := range s.kinds() {
		group.Go(func() error {
			server, err := startServer(groupCtx, kind, serverFolder(s.dir, databases[i]))
			if err != nil {
				return fmt.Errorf("starting %s for %s: %w", titles[kind], databases[i], err)
			}
			s.servers[i] = server
			return server.prepare(groupCtx, databases[i], schemaOf(i, kind))
		})
	}
	return group.Wait()
}

// kinds are the kinds of the servers. The reporting replica stays on PostgreSQL, so that there is a mix.
func (s *stage) kinds() []string {
	return []string{crm: s.o.Source, marketing: s.o.Marketing, reporting: Postgres}
}

func schemaOf(database int, kind string) string {
	d := mysqlDialect
	if kind == Postgres {
		d = postgresDialect
	}
	crm, marketing, reporting := d.schemas()
	return []string{crm, marketing, reporting}[database]
}

func (s *stage) dsn(server int) string      { return s.servers[server].dsn(databases[server]) }
func (s *stage) ownerDSN(server int) string { return s.servers[server].ownerDSN(databases[server]) }

// config fills in the embedded file and loads it as any other.
func (s *stage) config() (*config.Config, error) {
	path := filepath.Join(s.dir, "lethe.yaml")
	values := map[string]string{
		"LETHE_DEMO_KEYS":      filepath.Join(s.dir, "keys"),
		"LETHE_DEMO_BROKER":    s.broker.ListenAddrs()[0],
		"LETHE_DEMO_COOL_OFF":  strconv.Itoa(int(s.o.CoolOff/time.Millisecond)) + "ms",
		"LETHE_DEMO_CRM":       s.dsn(crm),
		"LETHE_DEMO_MARKETING": s.dsn(marketing),
		"LETHE_DEMO_REPORTING": s.dsn(reporting),
	}
	text := ConfigText(s.o.Source, s.o.Marketing, values)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("writing the demo's config: %w", err)
	}
	return config.Load(path)
}

// startProbes opens the connections that measure; the function returned closes them.
func (s *stage) startProbes(ctx context.Context, group *errgroup.Group) (func(), error) {
	var hangUps []func()
	closeAll := func() {
		for _, hangUp := range hangUps {
			hangUp()
		}
	}
	for _, p := range []struct {
		probe  *prober
		server int
	}{{s.marketProbe, marketing}, {s.reportProbe, reporting}} {
		db, hangUp, err := s.servers[p.server].connect(ctx, databases[p.server])
		if err != nil {
			closeAll()
			return nil, err
		}
		hangUps = append(hangUps, hangUp)
		group.Go(func() error { return p.probe.run(ctx, db) })
	}
	return closeAll, nil
}

// prepareData fills the three databases while Lethe runs.
func (s *stage) prepareData(ctx context.Context) error {
	for i, db := range []*DB{crm: &s.on.CRM, marketing: &s.on.Marketing, reporting: &s.on.Reporting} {
		opened, hangUp, err := s.servers[i].connect(ctx, databases[i])
		if err != nil {
			return err
		}
		*db, s.hangUp = opened, append(s.hangUp, hangUp)
	}
	s.say.line("filling the CRM with %d customers; the ETL has copied most of them into marketing and reporting", s.o.Customers)
	return (&Publisher{s.fill}).Fill(ctx, s.on)
}

// close stops what runs, in reverse order, and removes the folder.
func (s *stage) close() error {
	var errs []error
	for _, hangUp := range s.hangUp {
		hangUp()
	}
	if s.broker != nil {
		s.broker.Close()
	}
	for _, server := range s.servers {
		if server != nil {
			errs = append(errs, server.close())
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
	for i, name := range databases {
		if err := s.servers[i].grant(ctx, name, i != crm); err != nil {
			return err
		}
	}
	owners := map[string]string{}
	for i, name := range databases[1:] {
		owners[name] = s.ownerDSN(i + 1)
	}
	_, err = app.Setup(ctx, s.cfg, app.SetupOptions{Kafka: true, SourceDSN: s.ownerDSN(crm), ReplicaDSN: owners})
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
