package kafkaconn

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// TLSError says that the handshake with a broker failed.
type TLSError struct {
	Address string
	Err     error
}

func (e *TLSError) Error() string {
	return fmt.Sprintf("TLS handshake with Kafka broker %s: %v (compare kafka.tls with the broker's listener)", e.Address, e.Err)
}

func (e *TLSError) Unwrap() error { return e.Err }

// load reads the files anew at each connection: they are small, and connections are rare.
func (t *tlsHandshake) load() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.cfg.CAFile != "" {
		pem, err := os.ReadFile(t.cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading kafka.tls.ca_file %s: it holds no PEM certificate", t.cfg.CAFile)
		}
	}
	if t.cfg.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.cfg.CertFile, t.cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.cert_file and key_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}
