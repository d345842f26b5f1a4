package kafkaconn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"lethe/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cluster(t *testing.T, opts ...kfake.Opt) []string {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(1, "lethe.events")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

func connect(t *testing.T, cfg config.Kafka) *Conn {
	t.Helper()
	cfg.TopicPrefix = "lethe"
	c, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// works asks over the transport and over the dialer: they are two implementations in kafka-go.
func works(t *testing.T, c *Conn) {
	t.Helper()
	if err := c.CheckConnect(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.CheckVersions(t.Context()); err != nil {
		t.Error(err)
	}
	m, err := c.Client().Metadata(t.Context(), &kafka.MetadataRequest{Topics: []string{c.EventsTopic()}})
	if err != nil || m.Topics[0].Error != nil {
		t.Errorf("metadata: %v, %+v", err, m)
	}
}

func TestSASL(t *testing.T) {
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			brokers := cluster(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "lethe", "right"))
			sasl := config.SASL{Mechanism: mechanism, Username: "lethe", Password: config.NewSecret("right")}
			works(t, connect(t, config.Kafka{Brokers: brokers, SASL: &sasl}))

			sasl.Password = config.NewSecret("wrong")
			err := connect(t, config.Kafka{Brokers: brokers, SASL: &sasl}).CheckConnect(t.Context())
			if err == nil {
				t.Fatal("a wrong password was taken")
			}
			if !strings.Contains(err.Error(), "kafka.sasl") || strings.Contains(err.Error(), "wrong") || strings.Contains(err.Error(), "EOF") {
				t.Errorf("a wrong password says: %v", err)
			}
		})
	}
	if _, err := New(config.Kafka{Brokers: []string{"a:1"}, SASL: &config.SASL{Mechanism: "GSSAPI"}}, Options{}); err == nil {
		t.Error("an unknown mechanism was taken")
	}
}

// authority writes a CA and a server certificate for 127.0.0.1 and gives the server's configuration.
func authority(t *testing.T, dir string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}

func TestTLSReadsItsFilesAtEachConnection(t *testing.T) {
	dir := t.TempDir()
	brokers := cluster(t, kfake.TLS(authority(t, dir)))
	cfg := config.Kafka{Brokers: brokers, TLS: &config.TLS{CAFile: filepath.Join(dir, "ca.pem")}}
	works(t, connect(t, cfg))

	authority(t, dir) // another CA now
	c := connect(t, cfg)
	err := c.CheckConnect(t.Context())
	var tlsErr *TLSError
	if !errors.As(err, &tlsErr) || Classify(err) != ClassTLS {
		t.Errorf("a broker of another CA: %v", err)
	}
	cfg.TLS.CAFile = filepath.Join(dir, "missing.pem")
	if _, err := New(cfg, Options{}); err == nil || !strings.Contains(err.Error(), "kafka.tls.ca_file") {
		t.Errorf("a missing CA file: %v", err)
	}
}

func TestUnreachableBrokers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	err = connect(t, config.Kafka{Brokers: []string{dead}}).CheckConnect(t.Context())
	if err == nil || !strings.Contains(err.Error(), dead) {
		t.Errorf("got %v", err)
	}
	alive := cluster(t)
	if err := connect(t, config.Kafka{Brokers: append([]string{dead}, alive...)}).CheckConnect(t.Context()); err != nil {
		t.Errorf("one of two brokers answers: %v", err)
	}
}

// TestSilentBroker: a broker that takes the connection and never answers is unreachable, after a while.
func TestSilentBroker(t *testing.T) {
	for name, login := range map[string]*config.SASL{
		"versions": nil, "login": {Mechanism: "PLAIN", Username: "lethe", Password: config.NewSecret("x")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, err := New(config.Kafka{Brokers: []string{"broker:9092"}, SASL: login}, Options{
					Dial: func(context.Context, string, string) (net.Conn, error) {
						ours, theirs := net.Pipe()
						go func() { _, _ = io.Copy(io.Discard, theirs) }() // reads, and says nothing
						return ours, nil
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				err = c.CheckVersions(t.Context())
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
					t.Errorf("%v", err)
				}
				if took := time.Since(start); took > requestTimeout {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestBrokerVersions(t *testing.T) {
	kafka41 := func() map[int][2]int16 { // as Kafka 4.1.0 answers
		return map[int][2]int16{
			0: {3, 13}, 1: {4, 18}, 2: {1, 10}, 3: {0, 13}, 8: {2, 10}, 9: {1, 10}, 10: {0, 6}, 11: {0, 9}, 12: {0, 4}, 13: {0, 5},
			14: {0, 5}, 17: {0, 1}, 18: {0, 4}, 19: {2, 7}, 32: {1, 4}, 36: {0, 2},
		}
	}
	for name, c := range map[string]struct {
		change func(map[int][2]int16)
		want   string
	}{
		"4.1":                       {func(map[int][2]int16) {}, ""},
		"0.10: no record batches":   {func(m map[int][2]int16) { m[0] = [2]int16{0, 2} }, "too old: it does not speak Produce v3"},
		"no DescribeConfigs":        {func(m map[int][2]int16) { delete(m, 32) }, "too old: it does not speak DescribeConfigs v0"},
		"5.x drops Produce v8":      {func(m map[int][2]int16) { m[0] = [2]int16{9, 15} }, "too new: it no longer speaks Produce v8 (the broker starts at v9)"},
		"5.x drops ListOffsets v1":  {func(m map[int][2]int16) { m[2] = [2]int16{2, 11} }, "too new: it no longer speaks ListOffsets v1"},
		"Fetch between our two":     {func(m map[int][2]int16) { m[1] = [2]int16{6, 9} }, "Fetch v10"},
		"4.0.0 without JoinGroup 1": {func(m map[int][2]int16) { m[11] = [2]int16{2, 9} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			have := kafka41()
			c.change(have)
			var versions []kafka.ApiVersion
			for k, v := range have {
				versions = append(versions, kafka.ApiVersion{ApiKey: int16(k), MinVersion: v[0], MaxVersion: v[1]})
			}
			err := compareVersions("kafka-1:9092", append(append([]api(nil), spoken...), spokenSASL...), versions)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got %v", err)
			case c.want != "" && (err == nil || !errors.Is(err, ErrBrokerVersion) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestClasses(t *testing.T) {
	for _, c := range []struct {
		err    error
		class  Class
		reason string
	}{
		{nil, ClassNone, ""},
		{kafka.RequestTimedOut, ClassTransient, "kafka_7"},
		{fmt.Errorf("wrapped: %w", kafka.TopicAuthorizationFailed), ClassAuth, "kafka_29"},
		{kafka.WriteErrors{nil, kafka.NotLeaderForPartition, kafka.MessageSizeTooLarge}, ClassTooLarge, "other"},
		{kafka.WriteErrors{kafka.UnknownTopicOrPartition, kafka.RequestTimedOut}, ClassTopicMissing, "other"},
		{protocol.NewErrNoTopic("x"), ClassTopicMissing, "unknown_topic"},
		{protocol.NewErrNoLeader("x", 1), ClassTransient, "no_leader"},
		{io.ErrUnexpectedEOF, ClassTransient, "connection_closed"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, ClassTransient, "network"},
		{context.DeadlineExceeded, ClassTransient, "timeout"},
		{errors.New("somebody@example.org"), ClassTransient, "other"},
	} {
		if got := Classify(c.err); got != c.class {
			t.Errorf("%v is %s, want %s", c.err, got, c.class)
		}
		if got := Reason(c.err); got != c.reason {
			t.Errorf("%v has reason %s, want %s", c.err, got, c.reason)
		}
		if c.class != ClassNone && Hint(c.class) == "" {
			t.Errorf("class %s has no hint", c.class)
		}
	}
}
