// Package mysqlconn makes the connection settings of a MySQL or MariaDB server of what the config file says. Capture,
// sinks and commands connect with the same ones; each adds the session settings that it relies on.
package mysqlconn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/go-sql-driver/mysql"

	"lethe/config"
	"lethe/internal/pii"
)

// Login is a way into a server.
type Login struct {
	DSN      string // user@tcp(host:3306)/database, as config accepts it; an owner's may hold a password
	Password config.Secret
	CAFile   string // PEM of the authority that signed the server's certificate; empty: those of the system
	// Anywhere connects to no database: statements name theirs, and a login that may do nothing in the dsn's database yet can
	// be told so.
	Anywhere bool
}

// Source is the login of a CRM. Its statements name their databases.
func Source(m *config.MySQLSource) Login {
	return Login{DSN: m.DSN, Password: m.Password, CAFile: m.CAFile, Anywhere: true}
}

// Replica is the login of a replica.
func Replica(m *config.MySQLServer) Login {
	return Login{DSN: m.DSN, Password: m.Password, CAFile: m.CAFile}
}

// connectTimeout is used where the dsn names none.
const connectTimeout = 10 * time.Second

// Config returns settings that a caller may change: everything in UTC, times as time.Time, placeholders bound by the
// server, one statement at a time, and no word of the driver's on standard error. With TLS it is set up in the field TLS,
// for capture too, which does not connect with this driver. Its errors hold nothing of the dsn.
func (l Login) Config() (*mysql.Config, error) {
	c, err := mysql.ParseDSN(l.DSN)
	if err != nil {
		return nil, errors.New("reading the dsn: it is none; write user@tcp(host:3306)/database?tls=true")
	}
	if l.Password.IsSet() {
		c.Passwd = l.Password.Reveal()
	}
	if l.Anywhere {
		c.DBName = ""
	}
	if c.Timeout == 0 {
		c.Timeout = connectTimeout
	}
	c.ParseTime, c.Loc = true, time.UTC
	c.InterpolateParams, c.MultiStatements, c.AllowAllFiles = false, false, false
	c.Logger = &mysql.NopLogger{}
	c.ConnectionAttributes = "program_name:lethe"
	if err := c.Apply(mysql.Charset("utf8mb4", "")); err != nil {
		return nil, fmt.Errorf("preparing the connection: %w", pii.DriverError(err))
	}
	if c.Params == nil {
		c.Params = make(map[string]string)
	}
	c.Params["time_zone"] = "'+00:00'"
	if c.TLSConfig != "true" {
		return c, nil // the driver's own words for no TLS, and for TLS that proves nothing
	}
	c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if host, _, err := net.SplitHostPort(c.Addr); err == nil {
		c.TLS.ServerName = host
	}
	if l.CAFile != "" {
		if c.TLS.RootCAs, err = authority(l.CAFile); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// authority reads the certificates of a ca_file.
func authority(name string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(name)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, fmt.Errorf("reading ca_file %s: %w", name, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading ca_file %s: it holds no certificate in PEM form", name)
	}
	return pool, nil
}

// User is the login's name; empty for a dsn that is none.
func (l Login) User() string {
	c, err := mysql.ParseDSN(l.DSN)
	if err != nil {
		return ""
	}
	return c.User
}
