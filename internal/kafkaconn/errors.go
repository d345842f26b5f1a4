package kafkaconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Class says what to do about an error of Kafka.
type Class string

// The classes. All but ClassTransient and ClassTopicMissing stay until somebody changes something.
const (
	ClassNone         Class = ""
	ClassTransient    Class = "transient"
	ClassTopicMissing Class = "topic_missing" // also a fresh topic that the broker does not show yet: wait a little
	ClassAuth         Class = "auth"
	ClassTooLarge     Class = "too_large"
	ClassInvalid      Class = "invalid"
	ClassTLS          Class = "tls"
)

// Permanent reports whether trying again as it is cannot help.
func (c Class) Permanent() bool {
	switch c {
	case ClassAuth, ClassTooLarge, ClassInvalid:
		return true
	case ClassNone, ClassTransient, ClassTopicMissing, ClassTLS:
	}
	return false
}

// Classify unpacks kafka.WriteErrors too, into which errors.Is does not look, and takes the worst of several errors.
func Classify(err error) Class {
	if err == nil {
		return ClassNone
	}
	var list kafka.WriteErrors
	if errors.As(err, &list) {
		worst := ClassTransient
		for _, e := range list {
			if c := Classify(e); c.Permanent() || c == ClassTopicMissing && !worst.Permanent() {
				worst = c
			}
		}
		return worst
	}
	var tls *TLSError
	var code kafka.Error
	switch {
	case errors.As(err, &tls):
		return ClassTLS
	case errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return ClassTopicMissing
	case errors.As(err, &code):
		return classifyCode(code)
	}
	return ClassTransient
}

func classifyCode(code kafka.Error) Class {
	switch code { //nolint:exhaustive // every other code is worth another try
	case kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState, kafka.SecurityDisabled,
		kafka.BrokerAuthorizationFailed:
		return ClassAuth
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		return ClassTooLarge
	case kafka.UnknownTopicOrPartition:
		return ClassTopicMissing
	case kafka.InvalidTopic, kafka.InvalidRequiredAcks, kafka.UnsupportedVersion, kafka.InvalidRequest,
		kafka.UnsupportedForMessageFormat, kafka.PolicyViolation, kafka.InvalidTimestamp, kafka.UnsupportedCompressionType:
		return ClassInvalid
	}
	return ClassTransient
}

// Reason is an error's code for logs, metrics and states: never text that a broker or a library wrote.
func Reason(err error) string {
	var code kafka.Error
	var tls *TLSError
	var netErr net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &tls):
		return "tls"
	case errors.As(err, &code):
		return fmt.Sprintf("kafka_%d", int(code))
	case errors.Is(err, protocol.ErrNoTopic):
		return "unknown_topic"
	case errors.Is(err, protocol.ErrNoPartition):
		return "unknown_partition"
	case errors.Is(err, protocol.ErrNoLeader):
		return "no_leader"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection_closed"
	case errors.As(err, &netErr):
		if netErr.Timeout() {
			return "timeout"
		}
		return "network"
	}
	return "other"
}

// Hint tells the operator what to do about a class.
func Hint(class Class) string {
	switch class {
	case ClassAuth:
		return "the broker refused this user: compare kafka.sasl with the broker's users, and grant Write, Read and Describe on Lethe's topics"
	case ClassTooLarge:
		return "raise max.message.bytes of the topic: `lethe check` prints the command"
	case ClassTopicMissing:
		return "create the topics with `lethe setup`"
	case ClassInvalid:
		return "the broker refuses the request as it is: run `lethe check`, which compares versions and topic settings"
	case ClassTLS:
		return "compare kafka.tls with the broker's listener and its certificate"
	case ClassTransient:
		return "Lethe keeps trying; look at the brokers' logs if it lasts"
	case ClassNone:
	}
	return ""
}
