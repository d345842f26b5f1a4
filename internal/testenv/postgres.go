package testenv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// superuser owns every cluster that this package makes.
const superuser = "postgres"

// Options says which PostgreSQL to start. The zero value is version 15 with
// the settings below in a temporary folder.
type Options struct {
	// Version is the major version, 15 (the default) or 18; with BinDir, what lies there.
	Version int

	// BinDir holds postgres and initdb; empty means PostgresBin(Version).
	BinDir string

	// Settings are added to postgresql.conf; they win over the defaults, which
	// are wal_level=logical, 32 slots and senders, 200 connections,
	// track_commit_timestamp=on and fsync=off. The last is safe for tests that
	// kill the server: what a process has written the kernel keeps.
	Settings map[string]string

	// HBA are lines of pg_hba.conf that come before the default, which trusts
	// everybody on the loopback interface, replication included.
	HBA []string

	// Dir is the folder that everything is put in. It is made where it is
	// missing, must be open to the servers' uid, and is left behind by Close.
	// Empty means a temporary folder that Close removes.
	Dir string

	// DataDir is the cluster; one made before is taken as it is, with its
	// configuration written anew. Empty means the folder data in Dir.
	DataDir string

	// Port is the TCP port on 127.0.0.1; 0 takes a free one.
	Port int
}

// Postgres is a PostgreSQL server. Its methods may be called by several
// goroutines.
type Postgres struct {
	server
	Version int
	Port    int
	DataDir string // empty for a server that another process started
	BinDir  string // may lack pg_recvlogical and other tools for version 18

	uid, gid int
}

// StartPostgres starts a server and returns when it takes connections. ctx
// bounds the start only. The error wraps ErrMissing where the binaries are not
// installed.
func StartPostgres(ctx context.Context, o Options) (*Postgres, error) {
	if o.Version == 0 {
		o.Version = 15
	}
	var err error
	if o.BinDir == "" {
		if o.BinDir, err = PostgresBin(o.Version); err != nil {
			return nil, err
		}
	}
	p := &Postgres{Version: o.Version, Port: o.Port, BinDir: o.BinDir, DataDir: o.DataDir}
	p.server = server{Dir: o.Dir, name: fmt.Sprintf("PostgreSQL %d", o.Version), stopSignal: syscall.SIGINT, stopWithin: 15 * time.Second}
	p.uid, p.gid = serverID()
	if p.Dir == "" {
		if p.Dir, err = newFolder(fmt.Sprintf("pg%d", o.Version)); err != nil {
			return nil, err
		}
		p.temporary = true
	} else if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making server folder: %w", err)
	}
	if p.DataDir == "" {
		p.DataDir = filepath.Join(p.Dir, "data")
	}
	if err := p.startNew(ctx, o); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// startNew makes the cluster where there is none, and starts it. A port that
// was free a moment ago may be taken by now, so the choice is made again.
func (p *Postgres) startNew(ctx context.Context, o Options) error {
	if !isFile(filepath.Join(p.DataDir, "PG_VERSION")) {
		if err := newCluster(ctx, p.BinDir, p.Version, p.DataDir); err != nil {
			return err
		}
	}
	var err error
	for range 3 {
		if o.Port == 0 {
			if p.Port, err = FreePort(); err != nil {
				return err
			}
		}
		if err = p.writeConfig(o); err != nil {
			return err
		}
		if err = p.Start(ctx); err == nil || o.Port != 0 {
			return err
		}
		if !strings.Contains(logTail(p.LogFile()), "Address already in use") {
			return err
		}
	}
	return err
}

// writeConfig writes the whole configuration, so that a cluster copied from
// another server takes nothing over from it.
func (p *Postgres) writeConfig(o Options) error {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(p.Port),
		"unix_socket_directories": "",
		"wal_level":               "logical",
		"max_replication_slots":   "32",
		"max_wal_senders":         "32",
		"max_connections":         "200",
		"shared_buffers":          "64MB",
		"track_commit_timestamp":  "on",
		"fsync":                   "off",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"lc_messages":             "C",
		"log_line_prefix":         "%m [%p] %q%u@%d ",
	}
	maps.Copy(settings, o.Settings)
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	hba := append(slices.Clone(o.HBA),
		"host all all 127.0.0.1/32 trust",
		"host replication all 127.0.0.1/32 trust", "")
	for name, text := range map[string]string{
		"postgresql.conf": conf.String(),
		"pg_hba.conf":     strings.Join(hba, "\n"),
	} {
		path := filepath.Join(p.DataDir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing server configuration: %w", err)
		}
	}
	return nil
}

// Start starts the server again after Stop or Kill, on the same port and data.
func (p *Postgres) Start(ctx context.Context) error {
	return p.start(ctx, p.Command(context.Background(), "postgres", "-D", p.DataDir), p.LogFile(), p.ping)
}

func (p *Postgres) ping(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.DSN("", ""))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// Command returns a command of the server's BinDir, such as pg_basebackup,
// that runs under the server's uid with nothing of our environment.
func (p *Postgres) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return serverCommand(ctx, p.BinDir, name, args...)
}

// serverCommand is a command of PostgreSQL under the servers' uid. Variables
// such as PGPORT or LANG of whoever runs the tests must not reach it.
func serverCommand(ctx context.Context, bin, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = as(serverID())
	return cmd
}

// Superuser returns the role that owns everything and needs no password.
func (p *Postgres) Superuser() string { return superuser }

// LogFile returns the path of the server's log.
func (p *Postgres) LogFile() string { return filepath.Join(p.Dir, "postgres.log") }

// DSN returns the URL of a database for a role; empty means the database
// postgres and the superuser.
func (p *Postgres) DSN(db, user string) string {
	if db == "" {
		db = "postgres"
	}
	if user == "" {
		user = superuser
	}
	u := url.URL{
		Scheme: "postgres", User: url.User(user),
		Host: "127.0.0.1:" + strconv.Itoa(p.Port), Path: "/" + db, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// CopyData copies the cluster of a server that does not run to dst, which must
// not exist: a storage snapshot, that another server can be started on by
// Options.DataDir.
func (p *Postgres) CopyData(dst string) error {
	if !p.down() {
		return errors.New("copying cluster: the server has to be stopped or killed first")
	}
	if err := copyTree(dst, p.DataDir, p.uid, p.gid); err != nil {
		return err
	}
	// The lock file of a killed server names a pid that may be taken by now.
	if err := os.Remove(filepath.Join(dst, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("copying cluster: %w", err)
	}
	return nil
}

// NewPostgres starts a private server for one test, which closes it at its
// end, and shows the end of its log when it failed.
func NewPostgres(tb testing.TB, o Options) *Postgres {
	tb.Helper()
	p, err := StartPostgres(context.Background(), o)
	if err != nil {
		skipOrFail(tb, err)
	}
	p.closeAfter(tb, p.LogFile())
	return p
}
