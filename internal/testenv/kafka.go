package testenv

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// KafkaOptions says which broker to start. The zero value is one node with
// combined roles and 512 MB of heap in a temporary folder.
type KafkaOptions struct {
	// Settings are added to server.properties and win over the defaults: one
	// replica of everything, no topics made by themselves, no delay at the
	// first join of a group.
	Settings map[string]string

	// HeapMB is the JVM's maximum heap in megabytes; 0 means 512.
	HeapMB int

	// Tuned runs the JVM with the options of Kafka's own start script, for
	// benchmarks. Otherwise it is made to start quickly and runs slower.
	Tuned bool

	// Dir is the folder that everything is put in, left behind by Close. Empty
	// means a temporary folder that Close removes.
	Dir string
}

// Kafka is an Apache Kafka broker. Its methods may be called by several
// goroutines.
type Kafka struct {
	server

	brokers []string
	java    string
	args    []string // of java, up to the main class
}

// StartKafka formats the storage and starts a broker in KRaft mode; it returns
// when the broker answers. ctx bounds the start only. The error wraps
// ErrMissing where Kafka or Java are not installed.
func StartKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	libs, err := KafkaLibs()
	if err != nil {
		return nil, err
	}
	java, err := Java()
	if err != nil {
		return nil, err
	}
	if o.HeapMB == 0 {
		o.HeapMB = 512
	}
	k := &Kafka{java: java}
	k.server = server{Dir: o.Dir, name: "Kafka " + KafkaVersion, stopSignal: syscall.SIGTERM, stopWithin: 20 * time.Second}
	if k.Dir == "" {
		if k.Dir, err = newFolder("kafka"); err != nil {
			return nil, err
		}
		k.temporary = true
	} else if err := os.MkdirAll(k.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making broker folder: %w", err)
	}
	k.args = append(jvmArgs(o), "-cp", filepath.Join(libs, "*"))
	if err := k.startNew(ctx, o); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// jvmArgs returns the options of java. Starting a broker is mostly compiling
// it: with the quick compiler alone it takes 5 seconds of a core instead of 8,
// which counts where two cores are shared with the tests.
func jvmArgs(o KafkaOptions) []string {
	args := []string{
		"-Xmx" + strconv.Itoa(o.HeapMB) + "m", "-Djava.awt.headless=true",
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
		"-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
	}
	if !o.Tuned {
		return append(args, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
	}
	return append(args, "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
		"-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent")
}

// startNew configures, formats and starts the broker, with other ports when
// somebody else took one meanwhile.
func (k *Kafka) startNew(ctx context.Context, o KafkaOptions) error {
	var err error
	for range 3 {
		if err = k.writeConfig(o); err != nil {
			return err
		}
		if err = k.format(ctx); err != nil {
			return err
		}
		if err = k.Start(ctx); err == nil || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
		if err := os.RemoveAll(k.dataDir()); err != nil {
			return fmt.Errorf("removing broker data: %w", err)
		}
	}
	return err
}

func (k *Kafka) dataDir() string    { return filepath.Join(k.Dir, "data") }
func (k *Kafka) configFile() string { return filepath.Join(k.Dir, "server.properties") }

// LogFile returns the path of the broker's log.
func (k *Kafka) LogFile() string { return filepath.Join(k.Dir, "kafka.log") }

// writeConfig chooses the ports and writes server.properties.
func (k *Kafka) writeConfig(o KafkaOptions) error {
	port, err := FreePort()
	if err != nil {
		return err
	}
	controller, err := FreePort()
	if err != nil {
		return err
	}
	broker := "127.0.0.1:" + strconv.Itoa(port)
	k.brokers = []string{broker}
	settings := map[string]string{
		"process.roles":                                    "broker,controller",
		"node.id":                                          "1",
		"listeners":                                        "PLAINTEXT://" + broker + ",CONTROLLER://127.0.0.1:" + strconv.Itoa(controller),
		"advertised.listeners":                             "PLAINTEXT://" + broker,
		"listener.security.protocol.map":                   "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"inter.broker.listener.name":                       "PLAINTEXT",
		"controller.listener.names":                        "CONTROLLER",
		"controller.quorum.bootstrap.servers":              "127.0.0.1:" + strconv.Itoa(controller),
		"log.dirs":                                         k.dataDir(),
		"num.partitions":                                   "1",
		"auto.create.topics.enable":                        "false",
		"offsets.topic.replication.factor":                 "1",
		"offsets.topic.num.partitions":                     "5",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"transaction.state.log.num.partitions":             "5",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		"broker.session.timeout.ms":                        "5000", "broker.heartbeat.interval.ms": "1000",
		"group.initial.rebalance.delay.ms": "0",
		"num.network.threads":              "2",
		"num.io.threads":                   "4",
	}
	maps.Copy(settings, o.Settings)
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s=%s\n", name, settings[name])
	}
	if err := os.WriteFile(k.configFile(), []byte(conf.String()), 0o644); err != nil {
		return fmt.Errorf("writing broker configuration: %w", err)
	}
	return nil
}

// format prepares the storage with a new cluster id, as KRaft demands before
// the first start.
func (k *Kafka) format(ctx context.Context) error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("making cluster id: %w", err)
	}
	id[0] &= 0x7f // a leading dash would read as an option
	cmd := k.command(ctx, "kafka.tools.StorageTool", "format", "--standalone",
		"-t", base64.RawURLEncoding.EncodeToString(id[:]), "-c", k.configFile())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("formatting broker storage: %w\n%s", err, out)
	}
	return nil
}

func (k *Kafka) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.java, append(slices.Clone(k.args), args...)...)
	cmd.Dir = k.Dir
	return cmd
}

// Start starts the broker again after Stop or Kill, on the same ports and data.
func (k *Kafka) Start(ctx context.Context) error {
	return k.start(ctx, k.command(context.Background(), "kafka.Kafka", k.configFile()), k.LogFile(), k.ping)
}

// ping succeeds once the broker is registered with its controller; before
// that it answers, but knows no broker that could hold a partition.
func (k *Kafka) ping(ctx context.Context) error {
	dialer := kafka.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", k.brokers[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	brokers, err := conn.Brokers()
	if err == nil && len(brokers) == 0 {
		err = errors.New("the broker has not registered yet")
	}
	return err
}

// Brokers returns the addresses to bootstrap from, as host:port.
func (k *Kafka) Brokers() []string { return slices.Clone(k.brokers) }

// NewKafka starts a private broker for one test, which closes it at its end,
// and shows the end of its log when it failed.
func NewKafka(tb testing.TB, o KafkaOptions) *Kafka {
	tb.Helper()
	k, err := StartKafka(context.Background(), o)
	if err != nil {
		skipOrFail(tb, err)
	}
	k.closeAfter(tb, k.LogFile())
	return k
}
