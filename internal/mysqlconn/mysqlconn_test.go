package mysqlconn_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"lethe/config"
	"lethe/internal/mysqlconn"
	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// Whatever the dsn says, Lethe's sessions are as Lethe needs them.
func TestSettingsAreLethesOwn(t *testing.T) {
	c, err := mysqlconn.Login{DSN: "lethe@tcp(db:3306)/crm?interpolateParams=true&multiStatements=true&allowAllFiles=true", Password: config.NewSecret("p@:w")}.Config()
	if err != nil {
		t.Fatal(err)
	}
	if c.InterpolateParams || c.MultiStatements || c.AllowAllFiles || !c.ParseTime || c.Loc != time.UTC || c.Passwd != "p@:w" || c.Timeout <= 0 {
		t.Errorf("the settings are %+v", c)
	}
	if c.TLS != nil {
		t.Error("TLS that nobody asked for")
	}
	if user := (mysqlconn.Login{DSN: "lethe@tcp(db:3306)/crm"}).User(); user != "lethe" {
		t.Errorf("the user is %q", user)
	}
}

// No error repeats what may be a password.
func TestBrokenLoginsAreNotQuoted(t *testing.T) {
	folder := t.TempDir()
	empty := filepath.Join(folder, "empty.pem")
	if err := os.WriteFile(empty, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, login := range map[string]mysqlconn.Login{
		"reading the dsn":               {DSN: "lethe:hunter2@tcp(db:3306"},
		"empty.pem: it holds no cert":   {DSN: "lethe@tcp(db)/crm?tls=true", CAFile: empty},
		"missing.pem: no such file":     {DSN: "lethe@tcp(db)/crm?tls=true", CAFile: filepath.Join(folder, "missing.pem")},
		"reading the dsn: it is none; ": {DSN: "hunter2"},
	} {
		_, err := login.Config()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %q", err, want)
		}
		if login.CAFile == "" && login.User() != "" {
			t.Errorf("%q has a user", login.DSN)
		}
	}
}

// With an authority of one's own the server is verified, and one that it has not signed is refused; times are in UTC on a
// server that is not.
func TestConnectsByTLS(t *testing.T) {
	for _, flavor := range []string{testenv.MariaDB, testenv.MySQLServer} {
		t.Run(flavor, func(t *testing.T) {
			t.Parallel()
			ca, cert, key := certify(t)
			other, _, _ := certify(t)
			m := testenv.NewMySQL(t, testenv.MySQLOptions{Flavor: flavor, Settings: map[string]string{"ssl_ca": ca, "ssl_cert": cert, "ssl_key": key}})
			m.Exec(t, "", "CREATE DATABASE crm")
			dsn := m.DSN("crm", "") + "?tls=true"
			var cipher, zone string
			var now time.Time
			err := ask(t, mysqlconn.Login{DSN: dsn, CAFile: ca}, func(db *sql.DB) error {
				var name string
				err := db.QueryRowContext(t.Context(), "SHOW SESSION STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher)
				if err != nil {
					return err
				}
				return db.QueryRowContext(t.Context(), "SELECT @@session.time_zone, NOW()").Scan(&zone, &now)
			})
			if err != nil || cipher == "" || zone != "+00:00" || time.Since(now).Abs() > time.Minute {
				t.Errorf("cipher %q, time zone %q, now %v: %v", cipher, zone, now, err)
			}
			for name, login := range map[string]mysqlconn.Login{
				"the system's authorities": {DSN: dsn}, "another authority": {DSN: dsn, CAFile: other},
				"another host": {DSN: strings.Replace(dsn, "127.0.0.1", "localhost", 1), CAFile: ca},
			} {
				if err := ask(t, login, func(db *sql.DB) error { return db.PingContext(t.Context()) }); err == nil || !strings.Contains(fmt.Sprintf("%T %v", err, err), "x509") {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func ask(t *testing.T, login mysqlconn.Login, f func(*sql.DB) error) error {
	t.Helper()
	c, err := login.Config()
	if err != nil {
		t.Fatal(err)
	}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	return f(db)
}

// certify makes an authority that is its own certificate, for 127.0.0.1. The server runs under another uid.
func certify(t *testing.T) (ca, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "lethe-tls-") // the way into t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, data []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("ca.pem", "CERTIFICATE", der), write("server.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret)
}
