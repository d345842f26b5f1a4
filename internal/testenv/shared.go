package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// The variables by which one run of many test binaries shares its servers; set
// by internal/tools/testservers.
const (
	EnvPostgres15 = "LETHE_TEST_PG15"    // postgres://postgres@127.0.0.1:PORT
	EnvPostgres18 = "LETHE_TEST_PG18"    // likewise
	EnvMariaDB    = "LETHE_TEST_MARIADB" // host:port, where root needs no password
	EnvMySQL      = "LETHE_TEST_MYSQL"   // likewise
	EnvKafka      = "LETHE_TEST_KAFKA"   // brokers, host:port, comma-separated
)

// servers are those that the tests of this process share. The lock is held
// while one starts: whoever wants it too has to wait for it anyway.
var servers struct {
	sync.Mutex
	postgres map[int]*Postgres
	mysql    map[string]*MySQL // by flavor
	kafka    *Kafka
	closing  []func() error
}

// AtEnd has Main call f after the last test, for servers that a package shares
// among its tests only.
func AtEnd(f func() error) {
	servers.Lock()
	defer servers.Unlock()
	servers.closing = append(servers.closing, f)
}

// SharedPostgres returns the server of a major version, 15 or 18, that all
// tests share: the one that the environment names, or one that is started now
// and stopped by Main. It refuses to be stopped, killed or paused.
func SharedPostgres(tb testing.TB, version int) *Postgres {
	tb.Helper()
	servers.Lock()
	defer servers.Unlock()
	if p := servers.postgres[version]; p != nil {
		return p
	}
	p, err := sharedPostgres(version)
	if err != nil {
		skipOrFail(tb, err)
	}
	if servers.postgres == nil {
		servers.postgres = map[int]*Postgres{}
	}
	servers.postgres[version] = p
	return p
}

func sharedPostgres(version int) (*Postgres, error) {
	name := map[int]string{15: EnvPostgres15, 18: EnvPostgres18}[version]
	if name == "" {
		return nil, fmt.Errorf("sharing PostgreSQL %d: only 15 and 18 are", version)
	}
	base := os.Getenv(name)
	if base == "" {
		p, err := StartPostgres(context.Background(), Options{Version: version})
		if err != nil {
			return nil, err
		}
		p.share(true)
		return p, nil
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil || u.Hostname() != "127.0.0.1" {
		return nil, fmt.Errorf("reading %s: want postgres://%s@127.0.0.1:PORT", name, superuser)
	}
	bin, err := PostgresBin(version)
	if err != nil {
		return nil, err
	}
	p := &Postgres{Version: version, Port: port, BinDir: bin}
	p.share(true)
	return p, nil
}

// SharedMySQL returns the server of a flavor, MariaDB or MySQLServer, that all
// tests share: the one that the environment names, or one that is started now
// and stopped by Main. It refuses to be stopped, killed or paused. Its binary
// log holds what all tests do, so who reads it must ask for a database of its
// own; who purges it needs a private server.
func SharedMySQL(tb testing.TB, flavor string) *MySQL {
	tb.Helper()
	servers.Lock()
	defer servers.Unlock()
	if m := servers.mysql[flavor]; m != nil {
		return m
	}
	m, err := sharedMySQL(flavor)
	if err != nil {
		skipOrFail(tb, err)
	}
	if servers.mysql == nil {
		servers.mysql = map[string]*MySQL{}
	}
	servers.mysql[flavor] = m
	return m
}

func sharedMySQL(flavor string) (*MySQL, error) {
	name := map[string]string{MariaDB: EnvMariaDB, MySQLServer: EnvMySQL}[flavor]
	if name == "" {
		return nil, fmt.Errorf("sharing a server: no flavor is called %q", flavor)
	}
	addr := os.Getenv(name)
	if addr == "" {
		m, err := StartMySQL(context.Background(), MySQLOptions{Flavor: flavor})
		if err != nil {
			return nil, err
		}
		m.share(true)
		return m, nil
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || host != "127.0.0.1" {
		return nil, fmt.Errorf("reading %s: want 127.0.0.1:PORT", name)
	}
	m := &MySQL{Port: port, flavor: flavor}
	m.share(true)
	return m, nil
}

// SharedKafka returns the broker that all tests share: the one that the
// environment names, or one that is started now and stopped by Main. It
// refuses to be stopped, killed or paused. Topics and groups need names of
// their own: UniqueName.
func SharedKafka(tb testing.TB) *Kafka {
	tb.Helper()
	servers.Lock()
	defer servers.Unlock()
	if servers.kafka != nil {
		return servers.kafka
	}
	if brokers := os.Getenv(EnvKafka); brokers != "" {
		servers.kafka = &Kafka{brokers: strings.Split(brokers, ",")}
		servers.kafka.share(true)
		return servers.kafka
	}
	k, err := StartKafka(context.Background(), KafkaOptions{})
	if err != nil {
		skipOrFail(tb, err)
	}
	k.share(true)
	servers.kafka = k
	return k
}

// Main runs the tests, stops the shared servers, looks for goroutines that are
// still there, and exits. Call it as the whole of TestMain.
func Main(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "testenv:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// closeShared closes the shared servers that this process started.
func closeShared() error {
	servers.Lock()
	defer servers.Unlock()
	var errs []error
	for _, f := range servers.closing {
		errs = append(errs, f())
	}
	for _, p := range servers.postgres {
		if p.Dir != "" {
			p.share(false)
			errs = append(errs, p.Close())
		}
	}
	for _, m := range servers.mysql {
		if m.Dir != "" {
			m.share(false)
			errs = append(errs, m.Close())
		}
	}
	if k := servers.kafka; k != nil && k.Dir != "" {
		k.share(false)
		errs = append(errs, k.Close())
	}
	servers.postgres, servers.mysql, servers.kafka, servers.closing = nil, nil, nil, nil
	return errors.Join(errs...)
}
