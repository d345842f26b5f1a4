package config

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// Defaults of MySQL and MariaDB servers.
const (
	defaultMySQLPrefix    = "lethe_"
	defaultMaxBinlogLag   = 10 << 30
	defaultHeartbeatTable = "lethe_heartbeat"
)

// MySQLSource is a MySQL or MariaDB primary; which of the two it is, Lethe sees when it connects.
type MySQLSource struct {
	DSN      string // user@tcp(host:3306)/database, without password
	Password Secret
	CAFile   string // PEM of the authority that signed the server's certificate; empty: those of the system
	// ServerID is what Lethe calls itself among the server's replicas; no other replica may have it. 0: derived from the
	// config's name.
	ServerID uint32
	// Heartbeat is the table, as database.table, whose one row Lethe updates; default lethe_heartbeat in the dsn's database.
	Heartbeat string
	// RequireGTID refuses a server without GTID, where every change of server is a gap; default true. MariaDB always has them.
	RequireGTID bool
	// MaxBinlogLag is Lethe's alarm on binlog that it has not read, in bytes; default 10GB.
	MaxBinlogLag int64
}

// MySQLServer is a MySQL or MariaDB replica; which of the two it is, Lethe sees when it connects.
type MySQLServer struct {
	DSN      string // user@tcp(host:3306)/database, without password
	Password Secret
	CAFile   string // as in MySQLSource
	Prefix   string // of the names of Lethe's own tables, which lie in the dsn's database; default lethe_
	Verify   *Login // another, read-only login for reading back; nil: the same
}

// VerifyServer is what reading back connects to: the login of Verify where there is one, else m itself.
func (m *MySQLServer) VerifyServer() *MySQLServer {
	if m.Verify == nil {
		return m
	}
	return &MySQLServer{DSN: m.Verify.DSN, Password: m.Verify.Password, CAFile: m.Verify.CAFile, Prefix: m.Prefix}
}

func (m *MySQLSource) decode(it item) {
	m.RequireGTID, m.MaxBinlogLag = true, defaultMaxBinlogLag
	password, passwordFile := it.d.secret(&m.Password)
	it.fields(map[string]func(item){
		"dsn":             reader(&m.DSN, parseMySQLDSN),
		"password":        password,
		"password_file":   passwordFile,
		"ca_file":         it.d.file(&m.CAFile),
		"server_id":       serverID(&m.ServerID),
		"heartbeat_table": reader(&m.Heartbeat, parseSourceTable),
		"require_gtid":    boolean(&m.RequireGTID),
		"max_binlog_lag":  size(&m.MaxBinlogLag),
	}, "dsn: for example lethe@tcp(host:3306)/database?tls=true")
	it.authority(m.DSN, m.CAFile)
	if m.Heartbeat == "" && m.DSN != "" {
		m.Heartbeat = MySQLDatabase(m.DSN) + "." + defaultHeartbeatTable
	}
}

func (m *MySQLServer) decode(it item) {
	m.Prefix = defaultMySQLPrefix
	password, passwordFile := it.d.secret(&m.Password)
	it.fields(map[string]func(item){
		"dsn":           reader(&m.DSN, parseMySQLDSN),
		"password":      password,
		"password_file": passwordFile,
		"ca_file":       it.d.file(&m.CAFile),
		"prefix":        reader(&m.Prefix, parsePrefix),
		"verify": func(it item) {
			m.Verify = &Login{}
			password, passwordFile := it.d.secret(&m.Verify.Password)
			it.fields(map[string]func(item){
				"dsn":           reader(&m.Verify.DSN, parseMySQLDSN),
				"password":      password,
				"password_file": passwordFile,
				"ca_file":       it.d.file(&m.Verify.CAFile),
			}, "dsn: the same database with the login that only reads, for example lethe_verify@tcp(host:3306)/database?tls=true")
			it.authority(m.Verify.DSN, m.Verify.CAFile)
			if v := m.Verify.DSN; v != "" && m.DSN != "" && MySQLDatabase(v) != MySQLDatabase(m.DSN) {
				it.below("dsn").fault("name the database of the other dsn", "leads to another database")
			}
		},
	}, "dsn: for example lethe@tcp(host:3306)/database?tls=true")
	it.authority(m.DSN, m.CAFile)
}

// authority refuses a ca_file that nothing would look at.
func (it item) authority(dsn, file string) {
	if file == "" || dsn == "" {
		return
	}
	if c, err := mysql.ParseDSN(dsn); err == nil && c.TLSConfig != "true" {
		it.below("ca_file").fault("write tls=true in the dsn", "is not looked at: the dsn does not ask for a verified certificate")
	}
}

func serverID(into *uint32) func(item) {
	return func(it item) {
		var n int
		integer(&n, 1, 1<<32-1)(it)
		*into = uint32(n) //nolint:gosec // integer has bounded it
	}
}

// maxPrefix leaves room for the longest name behind it, and for those of its indexes.
const maxPrefix = 20

func parsePrefix(s string) (string, error) {
	if len(s) > maxPrefix || !codeForm.MatchString(s) {
		return "", fmt.Errorf("must be 1 to %d of a-z, 0-9 and _: server and client may not agree on capital letters", maxPrefix)
	}
	return s, nil
}

// MySQLDatabase is the database of a dsn that was accepted; empty for any other text.
func MySQLDatabase(dsn string) string {
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		return ""
	}
	return c.DBName
}

// mysqlOptions are the parameters of a dsn that are the operator's to set; all others steer what Lethe relies on.
var mysqlOptions = []string{
	"allowCleartextPasswords", "allowNativePasswords", "readTimeout", "timeout", "tls", "writeTimeout",
}

// tlsModes are the values of tls.
var tlsModes = []string{"true", "false", "skip-verify", "preferred"}

var mysqlForm = regexp.MustCompile(`^[^@/:]+@[a-z]+[46]?(\([^)]*\))?/[^/]*$`)

var errMySQLForm = errors.New("is no DSN; write user@tcp(host:3306)/database?tls=true")

// parseMySQLDSN accepts user@tcp(host:port)/database?options, without a password in it. Nothing of the text is in an error
// but the names of options: it may hold a password.
func parseMySQLDSN(s string) (string, error) {
	base, query, _ := strings.Cut(s, "?")
	if at := strings.LastIndex(base, "@"); at >= 0 && strings.Contains(base[:at], ":") {
		return "", errPassword
	}
	if !mysqlForm.MatchString(base) {
		return "", errMySQLForm
	}
	given := make(map[string]string)
	for option := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(option, "=")
		if _, twice := given[name]; twice {
			return "", errors.New("gives an option twice")
		}
		if name != "" {
			given[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(mysqlOptions, name) {
			return "", fmt.Errorf("sets %s, which is not the operator's to set, only %s", name, list(mysqlOptions))
		}
	}
	if mode, ok := given["tls"]; ok && !slices.Contains(tlsModes, mode) {
		return "", fmt.Errorf("has a tls that is none of %s; an authority of your own goes into ca_file", list(tlsModes))
	}
	c, err := mysql.ParseDSN(s)
	switch {
	case err != nil || c.User == "":
		return "", errMySQLForm
	case c.Passwd != "":
		return "", errPassword
	case c.DBName == "":
		return "", errors.New("names no database; write user@tcp(host:3306)/database?tls=true")
	case c.AllowCleartextPasswords && c.TLSConfig != "true":
		return "", errors.New("sends the password in clear; with allowCleartextPasswords write tls=true")
	}
	return s, nil
}
