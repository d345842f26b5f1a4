package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go"

	"lethe/internal/kafkaconn"
)

// Severity says what a Finding means for run.
type Severity string

// The severities. run refuses an error; a warning says what is at risk.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// The codes of findings.
const (
	CodeUnreachable   = "kafka_unreachable"
	CodeAuth          = "kafka_auth"
	CodeTLS           = "kafka_tls"
	CodeVersion       = "kafka_version"          // the broker is too old or too new
	CodeMissing       = "topic_missing"          // lethe setup makes it
	CodePartitions    = "topic_partitions"       // fixed by contract
	CodeReplication   = "topic_replication"      // fewer replicas than configured
	CodeSetting       = "topic_setting"          // a setting of the topic
	CodeUnavailable   = "topic_unavailable"      // a partition without a leader
	CodeSettingsBlind = "topic_settings_unknown" // no right to describe the topic's settings
	CodeInsync        = "topic_under_replicated" // fewer replicas in sync than acks=all needs
)

// Finding is one thing that Check saw.
type Finding struct {
	Code     string
	Severity Severity
	Object   string // a broker or a topic
	Message  string
	Fix      string // the command that mends it, for the owner of the cluster; empty where there is none
}

// Check compares the cluster and the topics with what Lethe needs. It returns what keeps it from looking further as a
// finding too: an unreachable broker is one, a refused login another.
func (t *Topics) Check(ctx context.Context) []Finding {
	if err := t.Conn.CheckConnect(ctx); err != nil {
		return []Finding{t.connectFinding(err)}
	}
	if err := t.Conn.CheckVersions(ctx); err != nil {
		code := CodeUnreachable
		if errors.Is(err, kafkaconn.ErrBrokerVersion) {
			code = CodeVersion
		}
		return []Finding{{Code: code, Severity: SeverityError, Object: t.brokers(), Message: err.Error()}}
	}
	specs := t.specs()
	names := make([]string, len(specs))
	for i := range specs {
		names[i] = specs[i].name
	}
	client, done := t.Conn.FreshClient()
	defer done()
	m, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: names})
	if err != nil {
		return []Finding{t.connectFinding(err)}
	}
	var list []Finding
	for i := range specs {
		topic := &m.Topics[i]
		switch {
		case errors.Is(topic.Error, kafka.UnknownTopicOrPartition):
			list = append(list, t.missing(&specs[i]))
		case topic.Error != nil:
			list = append(list, Finding{
				Code: CodeAuth, Severity: SeverityError, Object: specs[i].name,
				Message: fmt.Sprintf("asking for the topic: %s: %s", kafkaconn.Reason(topic.Error), kafkaconn.Hint(kafkaconn.Classify(topic.Error))),
			})
		default:
			list = append(list, t.shape(&specs[i], topic)...)
			list = append(list, t.settings(ctx, client, &specs[i])...)
		}
	}
	return list
}

func (t *Topics) brokers() string { return strings.Join(t.Conn.Brokers(), ",") }

func (t *Topics) connectFinding(err error) Finding {
	code := CodeUnreachable
	switch kafkaconn.Classify(err) { //nolint:exhaustive // the rest is a connection that did not come about
	case kafkaconn.ClassAuth:
		code = CodeAuth
	case kafkaconn.ClassTLS:
		code = CodeTLS
	}
	return Finding{Code: code, Severity: SeverityError, Object: t.brokers(), Message: err.Error()}
}

func (t *Topics) missing(spec *topicSpec) Finding {
	c := kafka.TopicConfig{Topic: spec.name, NumPartitions: spec.partitions, ReplicationFactor: max(t.Conn.ReplicationFactor(), 1)}
	for _, s := range spec.settings {
		c.ConfigEntries = append(c.ConfigEntries, kafka.ConfigEntry{ConfigName: s.name, ConfigValue: s.want})
	}
	return Finding{
		Code: CodeMissing, Severity: SeverityError, Object: spec.name,
		Message: "the topic does not exist: `lethe setup --kafka` makes it", Fix: createCommand(t.Conn.Brokers(), c),
	}
}

func (t *Topics) shape(spec *topicSpec, topic *kafka.Topic) (list []Finding) {
	if n := len(topic.Partitions); n != spec.partitions && !spec.anyPartitions {
		list = append(list, Finding{
			Code: CodePartitions, Severity: SeverityError, Object: spec.name,
			Message: fmt.Sprintf("it has %d partitions, the contract says %d: another count would send a person's later events to another"+
				" partition, so it cannot be changed; set kafka.partitions to %d, or use another kafka.topic_prefix", n, spec.partitions, n),
		})
	}
	fewest, insync, leaderless := -1, -1, 0
	for _, p := range topic.Partitions {
		if fewest < 0 || len(p.Replicas) < fewest {
			fewest = len(p.Replicas)
		}
		if insync < 0 || len(p.Isr) < insync {
			insync = len(p.Isr)
		}
		if p.Leader.Host == "" {
			leaderless++
		}
	}
	if fewest < t.Conn.ReplicationFactor() {
		list = append(list, Finding{
			Code: CodeReplication, Severity: SeverityError, Object: spec.name,
			Message: fmt.Sprintf("it has %d replicas, kafka.replication_factor says %d: change one of them", fewest, t.Conn.ReplicationFactor()),
			Fix: fmt.Sprintf("kafka-reassign-partitions.sh --bootstrap-server %s --execute --reassignment-json-file FILE # %d replicas for each partition of %s",
				t.brokers(), t.Conn.ReplicationFactor(), spec.name),
		})
	}
	if leaderless > 0 {
		list = append(list, Finding{
			Code: CodeUnavailable, Severity: SeverityError, Object: spec.name,
			Message: fmt.Sprintf("%d partitions have no leader: a broker that holds them is down", leaderless),
		})
	} else if insync < t.minInsync() {
		list = append(list, Finding{
			Code: CodeInsync, Severity: SeverityWarning, Object: spec.name,
			Message: fmt.Sprintf("only %d replicas are in sync: events wait until there are %d", insync, t.minInsync()),
		})
	}
	return list
}

func (t *Topics) settings(ctx context.Context, client *kafka.Client, spec *topicSpec) (list []Finding) {
	names := make([]string, len(spec.settings))
	for i, s := range spec.settings {
		names[i] = s.name
	}
	res, err := client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{
		{ResourceType: kafka.ResourceTypeTopic, ResourceName: spec.name, ConfigNames: names},
	}})
	if err == nil && len(res.Resources) == 1 {
		err = res.Resources[0].Error
	}
	if err != nil || len(res.Resources) != 1 {
		return []Finding{{
			Code: CodeSettingsBlind, Severity: SeverityWarning, Object: spec.name,
			Message: "its settings could not be read (" + kafkaconn.Reason(err) + "): compare them by hand, or grant DescribeConfigs on it",
			Fix:     fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --describe --entity-type topics --entity-name %s", t.brokers(), spec.name),
		}}
	}
	have := make(map[string]string)
	for _, e := range res.Resources[0].ConfigEntries {
		have[e.ConfigName] = e.ConfigValue
	}
	for _, s := range spec.settings {
		value, known := have[s.name]
		if !known || value == s.want || s.enough != nil && s.enough(value) {
			continue
		}
		severity := SeverityError
		if s.name == "segment.ms" || s.name == "min.insync.replicas" {
			severity = SeverityWarning
		}
		list = append(list, Finding{
			Code: CodeSetting, Severity: severity, Object: spec.name,
			Message: fmt.Sprintf("%s is %s and should be %s: %s", s.name, value, s.want, s.why),
			Fix: fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --alter --entity-type topics --entity-name %s --add-config %s=%s",
				t.brokers(), spec.name, s.name, s.want),
		})
	}
	return list
}

func createCommand(brokers []string, c kafka.TopicConfig) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kafka-topics.sh --bootstrap-server %s --create --topic %s --partitions %d --replication-factor %d",
		strings.Join(brokers, ","), c.Topic, c.NumPartitions, c.ReplicationFactor)
	for _, e := range c.ConfigEntries {
		fmt.Fprintf(&b, " --config %s=%s", e.ConfigName, e.ConfigValue)
	}
	return b.String()
}
