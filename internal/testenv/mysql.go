package testenv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// The flavors of MySQL that are tested against.
const (
	MariaDB     = "mariadb" // MariaDB of the distribution, 10.11 on Debian 12
	MySQLServer = "mysql"   // Oracle's MySQL 9
)

var mysqlTitles = map[string]string{MariaDB: "MariaDB", MySQLServer: "MySQL 9"}

// mysqlRoot may do everything, from any address, without a password.
const mysqlRoot = "root"

// MySQLOptions says which server to start. The zero value is a MariaDB with
// the settings below in a temporary folder.
type MySQLOptions struct {
	// Flavor is MariaDB (the default) or MySQLServer.
	Flavor string

	// ServerID is the server's id in replication; 0 takes a random one.
	ServerID uint32

	// WithoutGTID turns GTIDs off on MySQL. MariaDB cannot do without.
	WithoutGTID bool

	// Settings are added to the section [mysqld] of my.cnf; they win over the
	// defaults, which are a binary log with binlog_format=ROW and row image and
	// metadata FULL, GTIDs, default_time_zone=+05:30, utf8mb4, a buffer pool
	// of 64 MB, 200 connections, no performance schema, and no waiting for the
	// disk. The last is safe for tests that kill the server: what a process
	// has written the kernel keeps.
	Settings map[string]string

	// Dir is the folder that everything is put in. It is made where it is
	// missing, must be open to the servers' uid, and is left behind by Close.
	// Empty means a temporary folder that Close removes.
	Dir string

	// DataDir is the server's data; what was made before (MySQL.CopyData) is
	// taken as it is. Empty means the folder data in Dir.
	DataDir string

	// Port is the TCP port on 127.0.0.1; 0 takes a free one.
	Port int
}

// MySQL is a MariaDB or MySQL server. Its methods may be called by several
// goroutines.
type MySQL struct {
	server
	Port    int
	DataDir string // empty for a server that another process started

	flavor   string
	tree     string
	uid, gid int
}

// StartMySQL starts a server and returns when it takes connections. ctx bounds
// the start only. The error wraps ErrMissing where the server is not
// installed.
func StartMySQL(ctx context.Context, o MySQLOptions) (*MySQL, error) {
	if o.Flavor == "" {
		o.Flavor = MariaDB
	}
	if o.ServerID == 0 {
		o.ServerID = 1 + rand.Uint32N(1<<31)
	}
	tree, err := MySQLTree(o.Flavor)
	if err != nil {
		return nil, err
	}
	m := &MySQL{Port: o.Port, DataDir: o.DataDir, flavor: o.Flavor, tree: tree}
	m.server = server{Dir: o.Dir, name: mysqlTitles[o.Flavor], stopSignal: syscall.SIGTERM, stopWithin: 20 * time.Second}
	m.uid, m.gid = serverID()
	if m.Dir == "" {
		if m.Dir, err = newFolder(o.Flavor); err != nil {
			return nil, err
		}
		m.temporary = true
	} else if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making server folder: %w", err)
	}
	if m.DataDir == "" {
		m.DataDir = filepath.Join(m.Dir, "data")
	}
	if err := m.startNew(ctx, o); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// startNew copies the prepared data where there are none, and starts the
// server. A port that was free a moment ago may be taken by now, so the choice
// is made again.
func (m *MySQL) startNew(ctx context.Context, o MySQLOptions) error {
	if !isFile(filepath.Join(m.DataDir, "ibdata1")) {
		template, err := mysqlTemplate(ctx, m.flavor, m.tree)
		if err != nil {
			return err
		}
		if err := copyTree(m.DataDir, template, m.uid, m.gid); err != nil {
			return err
		}
	}
	if err := m.makeTemp(); err != nil {
		return err
	}
	var err error
	for range 3 {
		if o.Port == 0 {
			if m.Port, err = FreePort(); err != nil {
				return err
			}
		}
		if err = m.writeConfig(o); err != nil {
			return err
		}
		if err = m.Start(ctx); err == nil || o.Port != 0 {
			return err
		}
		if !strings.Contains(logTail(m.LogFile()), "Address already in use") {
			return err
		}
	}
	return err
}

// makeTemp makes the folder for the server's temporary files, so that what a
// killed server leaves goes with its folder.
func (m *MySQL) makeTemp() error {
	dir := filepath.Join(m.Dir, "tmp")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making server folder: %w", err)
	}
	if m.uid == os.Geteuid() {
		return nil
	}
	if err := os.Chown(dir, m.uid, m.gid); err != nil {
		return fmt.Errorf("making server folder: %w", err)
	}
	return nil
}

// writeConfig writes the whole configuration. Nothing of /etc is read.
func (m *MySQL) writeConfig(o MySQLOptions) error {
	settings := map[string]string{
		"datadir":                        m.DataDir,
		"tmpdir":                         filepath.Join(m.Dir, "tmp"),
		"socket":                         "mysqld.sock", // in datadir: the whole path may be too long for a socket
		"pid_file":                       "mysqld.pid",
		"bind_address":                   "127.0.0.1",
		"port":                           strconv.Itoa(m.Port),
		"server_id":                      strconv.FormatUint(uint64(o.ServerID), 10),
		"log_bin":                        "binlog",
		"binlog_format":                  "ROW",
		"binlog_row_image":               "FULL",
		"binlog_row_metadata":            "FULL",
		"default_time_zone":              "+05:30",
		"character_set_server":           "utf8mb4",
		"max_connections":                "200",
		"performance_schema":             "OFF",
		"skip_name_resolve":              "ON",
		"table_open_cache":               "400",
		"sync_binlog":                    "0",
		"innodb_flush_log_at_trx_commit": "2", // written at each commit, so that a kill loses nothing
		"innodb_flush_method":            "nosync",
		"innodb_buffer_pool_size":        "64M",
		"innodb_use_native_aio":          "OFF", // the kernel's contexts are few, and the servers may be many
	}
	maps.Copy(settings, mysqlPaths(m.tree))
	maps.Copy(settings, mysqlFlavored(o))
	maps.Copy(settings, o.Settings)
	conf := strings.Builder{}
	conf.WriteString("[mysqld]\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s = %s\n", name, settings[name])
	}
	if err := os.WriteFile(m.configFile(), []byte(conf.String()), 0o644); err != nil {
		return fmt.Errorf("writing server configuration: %w", err)
	}
	return nil
}

// mysqlFlavored are the settings that only one of the flavors knows, or needs.
func mysqlFlavored(o MySQLOptions) map[string]string {
	if o.Flavor == MariaDB {
		return map[string]string{
			"log_slave_updates":    "ON",
			"innodb_log_file_size": "32M",
			"debug_no_sync":        "ON",
		}
	}
	gtid := "ON"
	if o.WithoutGTID {
		gtid = "OFF"
	}
	return map[string]string{
		"gtid_mode":                gtid,
		"enforce_gtid_consistency": gtid,
		"log_replica_updates":      "ON",
		"innodb_redo_log_capacity": "32M",
		"mysqlx":                   "OFF",
		"secure_file_priv":         "NULL", // the compiled-in folder is not there
	}
}

// Start starts the server again after Stop or Kill, on the same port and data.
func (m *MySQL) Start(ctx context.Context) error {
	cmd := mysqlCommand(context.Background(), m.flavor, m.tree, "--defaults-file="+m.configFile())
	return m.start(ctx, cmd, m.LogFile(), m.ping)
}

func (m *MySQL) configFile() string { return filepath.Join(m.Dir, "my.cnf") }

// mysqlPaths are where a server of the cache finds what comes with it.
func mysqlPaths(tree string) map[string]string {
	return map[string]string{
		"basedir":            tree,
		"lc_messages_dir":    filepath.Join(tree, "share"),
		"character_sets_dir": filepath.Join(tree, "share", "charsets"),
		"plugin_dir":         filepath.Join(tree, "plugin"),
	}
}

// mysqlCommand is a flavor's server under the servers' uid, run by the dynamic
// linker that it was packaged with: the libraries of this machine may be too
// old for it. Nothing of our environment reaches it.
func mysqlCommand(ctx context.Context, flavor, tree string, args ...string) *exec.Cmd {
	lib := filepath.Join(tree, "lib")
	args = append([]string{"--library-path", lib, filepath.Join(tree, "bin", mysqlServers[flavor])}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(lib, MySQLLinker), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = as(serverID())
	return cmd
}

func (m *MySQL) ping(ctx context.Context) error {
	db, err := m.open("", nil)
	if err != nil {
		return err
	}
	return errors.Join(db.PingContext(ctx), db.Close())
}

// Flavor returns MariaDB or MySQLServer.
func (m *MySQL) Flavor() string { return m.flavor }

// Addr returns the server's host:port.
func (m *MySQL) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(m.Port)) }

// Root returns the login that may do everything and needs no password.
func (m *MySQL) Root() string { return mysqlRoot }

// LogFile returns the path of the server's log.
func (m *MySQL) LogFile() string { return filepath.Join(m.Dir, "mysqld.log") }

// DSN returns the data source name, in the form of go-sql-driver and without a
// password, of a database for a login; empty means no database and Root.
func (m *MySQL) DSN(db, user string) string {
	c := m.driverConfig(db)
	if user != "" {
		c.User = user
	}
	return c.FormatDSN()
}

func (m *MySQL) driverConfig(db string) *mysql.Config {
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr, c.DBName = mysqlRoot, "tcp", m.Addr(), db
	return c
}

// CopyData copies the data of a server that does not run to dst, which must
// not exist: a storage snapshot, that another server can be started on by
// MySQLOptions.DataDir. Binary logs, GTIDs and MySQL's server uuid are copied
// too.
func (m *MySQL) CopyData(dst string) error {
	if !m.down() {
		return errors.New("copying data: the server has to be stopped or killed first")
	}
	// What a killed server leaves of these is neither data nor a file.
	for _, name := range []string{"mysqld.sock", "mysqld.sock.lock", "mysqld.pid"} {
		if err := os.Remove(filepath.Join(m.DataDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("copying data: %w", err)
		}
	}
	return copyTree(dst, m.DataDir, m.uid, m.gid)
}

// NewMySQL starts a private server for one test, which closes it at its end,
// and shows the end of its log when it failed.
func NewMySQL(tb testing.TB, o MySQLOptions) *MySQL {
	tb.Helper()
	m, err := StartMySQL(context.Background(), o)
	if err != nil {
		skipOrFail(tb, err)
	}
	m.closeAfter(tb, m.LogFile())
	return m
}
