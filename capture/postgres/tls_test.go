package postgres_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"lethe/capture/capturetest"
	"lethe/capture/postgres"
	"lethe/internal/testenv"
)

// TestTLS: reads are gathered below TLS, and the deadlines of the status do not break it.
func TestTLS(t *testing.T) {
	pg := testenv.NewPostgres(t, testenv.Options{Version: 18, HBA: []string{"hostnossl crm all 127.0.0.1/32 reject"}})
	pg.Exec(t, "", "CREATE DATABASE crm")
	ca := certify(t, pg.DataDir)
	pg.Exec(t, "", "ALTER SYSTEM SET ssl = on")
	pg.Exec(t, "", "SELECT pg_reload_conf()")
	tlsDSN := strings.Replace(pg.DSN("crm", ""), "sslmode=disable", "sslmode=verify-full&sslrootcert="+ca, 1)
	e := &env{pg: pg, db: "crm", needs: map[string]postgres.TableNeeds{}}
	testenv.Eventually(t, within, func() (err error) { // the reload takes a moment
		e.conn, err = pgx.Connect(t.Context(), tlsDSN)
		return err
	})
	t.Cleanup(func() { _ = e.conn.Close(context.WithoutCancel(t.Context())) })
	e.exec(t, "CREATE TABLE a (id int PRIMARY KEY, v text)")
	e.need("public.a", "id", "v")
	e.publish(t)
	o := e.options(t)
	o.DSN = tlsDSN + "&wal_sender_timeout=1200" // a status four times a second
	r := capturetest.Start(t, newSource(t, o), nil, &capturetest.Recorder{})
	for id := range 8 {
		if id > 0 {
			<-time.After(time.Duration(id*60) * time.Millisecond) // idle for less and for more than a status
		}
		e.exec(t, "INSERT INTO a VALUES ("+strconv.Itoa(id)+", repeat('x', 200000))")
	}
	r.Collect(t, 8)
	e.exec(t, "INSERT INTO a SELECT g, 'y' FROM generate_series(100, 50000) g")
	r.Collect(t, 9)
	e.halt(t, r)
}

// certify puts a certificate for 127.0.0.1 into the server's folder and returns the path of what to trust.
func certify(tb testing.TB, dir string) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	owner, err := os.Stat(dir)
	if err != nil {
		tb.Fatal(err)
	}
	uid := int(owner.Sys().(*syscall.Stat_t).Uid) //nolint:forcetypeassert // on every platform that the server runs on here
	ca := filepath.Join(tb.TempDir(), "ca.pem")
	for path, block := range map[string]*pem.Block{
		ca:                               {Type: "CERTIFICATE", Bytes: cert},
		filepath.Join(dir, "server.crt"): {Type: "CERTIFICATE", Bytes: cert},
		filepath.Join(dir, "server.key"): {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			tb.Fatal(err)
		}
		if path != ca && uid != os.Getuid() {
			if err := os.Chown(path, uid, -1); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return ca
}
