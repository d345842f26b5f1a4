// Package kafkaconn makes the connections to Kafka that capture and the sinks share: TLS, SASL, names of the topics, the
// check of the broker's protocol versions, and the classes of its errors.
package kafkaconn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"lethe/config"
)

// Timeouts of one connection. A black-holed broker is noticed after requestTimeout (FAULTS 31).
const (
	dialTimeout    = 5 * time.Second
	requestTimeout = 15 * time.Second
	// metadataTTL bounds how long a moved leader goes unnoticed: kafka-go refreshes at random within it.
	metadataTTL = time.Second
	// idleTimeout is longer than the heartbeat interval, so that an idle source does not reconnect for each of them.
	idleTimeout = 5 * time.Minute
)

// DialFunc opens a network connection; net.Dialer.DialContext has its shape.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Options are what the config file does not say.
type Options struct {
	// Dial opens connections; nil: TCP with keep-alive. Tests put an in-memory network here; simulated failures must wrap
	// syscall.ECONNREFUSED, else kafka-go does not retry inside its consumer groups.
	Dial DialFunc
	// ClientID is what the broker's logs and quotas know this process as; default lethe.
	ClientID string
}

// Conn is the way to one cluster. It opens nothing until it is used. Safe for concurrent use.
type Conn struct {
	cfg       config.Kafka
	clientID  string
	dial      DialFunc
	sasl      sasl.Mechanism
	transport *kafka.Transport
}

// New wires a Conn. It fails when a certificate cannot be read or a SASL mechanism is unknown.
func New(cfg config.Kafka, opts Options) (*Conn, error) {
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("connecting to Kafka: kafka.brokers is empty: name at least one host:port")
	}
	if opts.ClientID == "" {
		opts.ClientID = "lethe"
	}
	dial := opts.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	if cfg.TLS != nil {
		secure, err := newTLS(*cfg.TLS)
		if err != nil {
			return nil, err
		}
		dial = secure.wrap(dial)
	}
	mechanism, err := newMechanism(cfg.SASL)
	if err != nil {
		return nil, err
	}
	c := &Conn{cfg: cfg, clientID: opts.ClientID, dial: dial, sasl: mechanism}
	c.transport = c.newTransport()
	return c, nil
}

func (c *Conn) newTransport() *kafka.Transport {
	return &kafka.Transport{
		Dial:        c.dial,
		DialTimeout: dialTimeout,
		IdleTimeout: idleTimeout,
		MetadataTTL: metadataTTL,
		// Without the list every refresh would carry the metadata of all topics of a shared cluster.
		MetadataTopics: []string{c.EventsTopic(), c.CheckpointsTopic(), c.ReceiptsTopic(), c.DeadLettersTopic()},
		ClientID:       c.clientID,
		SASL:           c.sasl,
	}
}

func newMechanism(cfg *config.SASL) (sasl.Mechanism, error) {
	if cfg == nil {
		return nil, nil
	}
	switch strings.ToUpper(cfg.Mechanism) {
	case "PLAIN":
		return plain.Mechanism{Username: cfg.Username, Password: cfg.Password.Reveal()}, nil
	case "SCRAM-SHA-256":
		return scramMechanism(scram.SHA256, cfg)
	case "SCRAM-SHA-512":
		return scramMechanism(scram.SHA512, cfg)
	}
	return nil, fmt.Errorf("connecting to Kafka: kafka.sasl.mechanism %q is unknown: use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
		cfg.Mechanism)
}

// scramMechanism does not wrap the library's error: it may quote what it could not prepare, which is the password.
func scramMechanism(algorithm scram.Algorithm, cfg *config.SASL) (sasl.Mechanism, error) {
	m, err := scram.Mechanism(algorithm, cfg.Username, cfg.Password.Reveal())
	if err != nil {
		return nil, errors.New("connecting to Kafka: the SASL user name or password holds characters that SCRAM does not allow")
	}
	return m, nil
}

// Addr is the list of bootstrap brokers.
func (c *Conn) Addr() net.Addr { return kafka.TCP(c.cfg.Brokers...) }

// Brokers returns the bootstrap brokers as host:port.
func (c *Conn) Brokers() []string { return c.cfg.Brokers }

// Client returns a client on the shared transport; its requests end after 15 seconds.
func (c *Conn) Client() *kafka.Client {
	return &kafka.Client{Addr: c.Addr(), Timeout: requestTimeout, Transport: c.transport}
}

// FreshClient returns a client on a transport of its own, which has cached nothing yet: the shared one may not show for
// a second what has just been created or changed. close ends its connections.
func (c *Conn) FreshClient() (client *kafka.Client, close func()) {
	t := c.newTransport()
	return &kafka.Client{Addr: c.Addr(), Timeout: requestTimeout, Transport: t}, t.CloseIdleConnections
}

// Transport returns the shared transport.
func (c *Conn) Transport() *kafka.Transport { return c.transport }

// Dialer returns a dialer for Reader, ConsumerGroup and single connections.
func (c *Conn) Dialer() *kafka.Dialer {
	return &kafka.Dialer{ClientID: c.clientID, DialFunc: c.dial, Timeout: dialTimeout, SASLMechanism: c.sasl}
}

// EventsTopic is the topic of the events.
func (c *Conn) EventsTopic() string { return c.cfg.TopicPrefix + ".events" }

// CheckpointsTopic is the compacted topic of the sources' positions.
func (c *Conn) CheckpointsTopic() string { return c.cfg.TopicPrefix + ".checkpoints" }

// ReceiptsTopic is the topic of the signed receipts.
func (c *Conn) ReceiptsTopic() string { return c.cfg.TopicPrefix + ".receipts" }

// DeadLettersTopic is the topic of the copies of parked events.
func (c *Conn) DeadLettersTopic() string { return c.cfg.TopicPrefix + ".dead-letters" }

// Partitions is the configured partition count of the events topic.
func (c *Conn) Partitions() int { return c.cfg.Partitions }

// ReplicationFactor is the configured replication factor of all topics.
func (c *Conn) ReplicationFactor() int { return c.cfg.ReplicationFactor }

// Close closes idle connections; those in use close when their request ends.
func (c *Conn) Close() { c.transport.CloseIdleConnections() }

// tlsHandshake does the handshake here and not in kafka-go, so that the error names TLS, and certificates that were
// renewed on disk are in force at the next connection.
type tlsHandshake struct{ cfg config.TLS }

func newTLS(cfg config.TLS) (*tlsHandshake, error) {
	t := &tlsHandshake{cfg: cfg}
	if _, err := t.load(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *tlsHandshake) wrap(dial DialFunc) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conf, err := t.load()
		if err != nil {
			return nil, err
		}
		raw, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		conf.ServerName = host
		conn := tls.Client(raw, conf)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(&TLSError{Address: address, Err: err}, raw.Close())
		}
		return conn, nil
	}
}
