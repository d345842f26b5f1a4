package kafkaconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/segmentio/kafka-go"
)

// api is what kafka-go v0.4.51 speaks of one Kafka API: any one of versions must be in the broker's range. Client and
// Writer negotiate, Conn and Reader use fixed old versions, so that a later broker may drop what they need.
type api struct {
	key      int
	name     string
	versions []int
}

// spoken is the table of FAULTS 2.1, read in the source of kafka-go v0.4.51 and tried against Kafka 4.1.
var spoken = []api{
	{0, "Produce", []int{3, 4, 5, 6, 7, 8}}, // below 3 there are no record batches
	{1, "Fetch", []int{5, 10}},
	{2, "ListOffsets", []int{1}},
	{3, "Metadata", []int{1}},
	{8, "OffsetCommit", []int{2}},
	{9, "OffsetFetch", []int{1}},
	{10, "FindCoordinator", []int{0}},
	{11, "JoinGroup", []int{1, 2}},
	{12, "Heartbeat", []int{0}},
	{13, "LeaveGroup", []int{0}},
	{14, "SyncGroup", []int{0}},
	{18, "ApiVersions", []int{0}},
	{19, "CreateTopics", []int{0, 1, 2, 3, 4, 5}},
	{32, "DescribeConfigs", []int{0, 1, 2, 3}},
}

var spokenSASL = []api{
	{17, "SaslHandshake", []int{0, 1}},
	{36, "SaslAuthenticate", []int{0, 1}},
}

// ErrBrokerVersion is wrapped by the errors that speak of a broker too old or too new.
var ErrBrokerVersion = errors.New("the broker's protocol versions do not fit this Lethe")

// CheckVersions asks one broker after the other for its protocol versions and compares them with what kafka-go needs:
// on its own it would fail with a dropped connection instead of a sentence.
func (c *Conn) CheckVersions(ctx context.Context) error {
	wanted := spoken
	if c.sasl != nil {
		wanted = append(append([]api(nil), spoken...), spokenSASL...)
	}
	return c.eachBroker(ctx, func(conn *kafka.Conn, broker string) error {
		versions, err := conn.ApiVersions()
		if err != nil {
			return fmt.Errorf("asking Kafka broker %s for its protocol versions: %w", broker, err)
		}
		return compareVersions(broker, wanted, versions)
	})
}

func compareVersions(broker string, wanted []api, versions []kafka.ApiVersion) error {
	have := make(map[int]kafka.ApiVersion, len(versions))
	for _, v := range versions {
		have[int(v.ApiKey)] = v
	}
	var tooOld, tooNew []string
	for _, w := range wanted {
		lowest, highest := w.versions[0], w.versions[len(w.versions)-1]
		v, known := have[w.key]
		switch {
		case !known || int(v.MaxVersion) < lowest:
			tooOld = append(tooOld, fmt.Sprintf("%s v%d", w.name, lowest))
		case int(v.MinVersion) > highest:
			tooNew = append(tooNew, fmt.Sprintf("%s v%d (the broker starts at v%d)", w.name, highest, v.MinVersion))
		case !within(w.versions, int(v.MinVersion), int(v.MaxVersion)):
			tooNew = append(tooNew, fmt.Sprintf("%s v%d", w.name, highest))
		}
	}
	switch {
	case len(tooOld) > 0:
		return fmt.Errorf("%w: Kafka broker %s is too old: it does not speak %s; use Kafka 2.1 to 4.x",
			ErrBrokerVersion, broker, strings.Join(tooOld, ", "))
	case len(tooNew) > 0:
		return fmt.Errorf("%w: Kafka broker %s is too new: it no longer speaks %s; use Kafka 2.1 to 4.x or a later Lethe",
			ErrBrokerVersion, broker, strings.Join(tooNew, ", "))
	}
	return nil
}

func within(versions []int, low, high int) bool {
	for _, v := range versions {
		if v >= low && v <= high {
			return true
		}
	}
	return false
}

// CheckConnect dials each bootstrap broker and logs in: over the transport a wrong password would surface as an
// unexpected EOF. It succeeds when one broker answers; a refused login is an error even then.
func (c *Conn) CheckConnect(ctx context.Context) error {
	return c.eachBroker(ctx, func(*kafka.Conn, string) error { return nil })
}

// eachBroker runs f on every bootstrap broker that can be reached. Unreachable ones are an error only when all are, a
// refused login and f's own errors always are.
func (c *Conn) eachBroker(ctx context.Context, f func(*kafka.Conn, string) error) error {
	var unreachable []error
	for _, broker := range c.cfg.Brokers {
		reached, err := c.onBroker(ctx, broker, f)
		switch class := Classify(err); {
		case err == nil:
		case reached:
			return err
		case class.Permanent(), class == ClassTLS:
			return fmt.Errorf("logging in to Kafka broker %s: %w: %s", broker, err, Hint(class))
		default:
			unreachable = append(unreachable, fmt.Errorf("connecting to Kafka broker %s: %w", broker, err))
		}
	}
	if len(unreachable) == len(c.cfg.Brokers) {
		return fmt.Errorf("no Kafka broker of kafka.brokers can be reached: %w", errors.Join(unreachable...))
	}
	return nil
}

// onBroker runs f on one broker and says whether that was reached. kafka-go logs in and asks for versions without a
// deadline of its own: a broker that takes the connection and never answers would be waited for without end.
func (c *Conn) onBroker(ctx context.Context, broker string, f func(*kafka.Conn, string) error) (reached bool, err error) {
	bound, cancel := context.WithTimeoutCause(ctx, requestTimeout, fmt.Errorf("it does not answer: %w", context.DeadlineExceeded))
	defer cancel()
	dialer := c.Dialer()
	dialer.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := c.dial(ctx, network, address)
		if err == nil {
			context.AfterFunc(bound, func() { _ = conn.Close() }) // whoever reads or writes is told
		}
		return conn, err
	}
	conn, err := dialer.DialContext(bound, "tcp", broker)
	if err == nil {
		reached = true
		err = f(conn, broker)
		err = errors.Join(err, conn.Close())
	}
	if err != nil && bound.Err() != nil {
		return false, context.Cause(bound)
	}
	return reached, err
}
