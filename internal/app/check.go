package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/capture"
	"lethe/capture/checkpoint"
	capturekafka "lethe/capture/kafka"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
)

// ReplicaNames lists the replicas of a config, sorted.
func ReplicaNames(cfg *config.Config) []string { return slices.Sorted(maps.Keys(cfg.Replicas)) }

// Roles lists the roles of a config.
func Roles(cfg *config.Config) []string {
	out := []string{RoleCapture}
	for _, name := range ReplicaNames(cfg) {
		out = append(out, rolePrefixSink+name)
	}
	return out
}

// resolveRoles returns the roles asked for, each once, all of them where none is.
func resolveRoles(cfg *config.Config, roles []string) ([]string, error) {
	all := Roles(cfg)
	var out []string
	for _, name := range roles {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("role %q is not one of this config file: want %s", name, strings.Join(all, ", "))
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	if len(roles) == 0 {
		return all, nil
	}
	return out, nil
}

// CheckRoles refuses the name of a role that the config does not have.
func CheckRoles(cfg *config.Config, roles []string) error {
	_, err := resolveRoles(cfg, roles)
	return err
}

// Check looks at every precondition of some roles, of all where roles is empty, with Lethe's own logins, and changes
// nothing. Its error is one of the roles' names.
func Check(ctx context.Context, cfg *config.Config, roles []string) (*Report, error) {
	roles, err := resolveRoles(cfg, roles)
	if err != nil {
		return nil, err
	}
	parts := []part{
		{WhereConfig, func(context.Context) ([]Finding, error) { return checkConfig(cfg), nil }},
		{WhereKeys, func(context.Context) ([]Finding, error) { return checkKeys(cfg, roles), nil }},
		{WhereKafka, func(ctx context.Context) ([]Finding, error) { return checkKafka(ctx, cfg) }},
	}
	if slices.Contains(roles, RoleCapture) {
		parts = append(parts, part{WhereSource, func(ctx context.Context) ([]Finding, error) { return checkSource(ctx, cfg) }})
	}
	for _, name := range ReplicaNames(cfg) {
		if slices.Contains(roles, rolePrefixSink+name) {
			r := cfg.Replicas[name]
			parts = append(parts, part{whereReplica + name, func(ctx context.Context) ([]Finding, error) { return checkReplica(ctx, cfg, r) }})
		}
	}
	return examine(ctx, parts), nil
}

// checkConfig finds what the file alone tells: sections of later versions, and expressions that do not compile.
func checkConfig(cfg *config.Config) []Finding {
	var out []Finding
	for _, f := range cfg.NotInThisVersion() {
		message := f.Message
		if f.Hint != "" {
			message += "; " + f.Hint
		}
		out = append(out, Finding{Code: CodeLater, Severity: SeverityError, Object: f.Path, Message: fmt.Sprintf("line %d: %s", f.Line, message)})
	}
	_, err := rules.New(&cfg.Source, rules.Options{})
	for _, e := range leaves(err) {
		f := Finding{Code: CodeMapping, Severity: SeverityError, Object: "source", Message: e.Error()}
		var fault *rules.CompileError
		if errors.As(e, &fault) {
			f.Object, f.Message = fault.Path, fmt.Sprintf("line %d: %s", cfg.Line(fault.Path), fault.Reason)
			if fault.Hint != "" {
				f.Message += "; " + fault.Hint
			}
		}
		out = append(out, f)
	}
	return out
}

func checkKeys(cfg *config.Config, roles []string) []Finding {
	of := make([]keys.Role, len(roles))
	for i, r := range roles {
		of[i] = keys.Role(r)
	}
	_, err := keys.Open(cfg.Keys.Dir, of...)
	if err == nil {
		return nil
	}
	return []Finding{{Code: CodeKeys, Severity: SeverityError, Object: cfg.Keys.Dir, Message: err.Error(), Fix: []string{"lethe keys init"}}}
}

// topics are Lethe's topics with the retention that the config's backups ask for.
func topics(cfg *config.Config, conn *kafkaconn.Conn) *capturekafka.Topics {
	var oldest time.Duration
	now := time.Now()
	for _, r := range cfg.Replicas {
		oldest = max(oldest, r.Residuals["backup"].After(now).Sub(now))
	}
	return &capturekafka.Topics{Conn: conn, Retention: capturekafka.RetentionFor(oldest)}
}

// errEmbedded refuses the broker of the demo.
var errEmbedded = errors.New("kafka.embedded is the broker of `lethe demo`, which keeps nothing: name real brokers")

// connectKafka wires the connection of a command.
func connectKafka(cfg *config.Config) (*kafkaconn.Conn, error) {
	if cfg.Kafka.Embedded {
		return nil, errEmbedded
	}
	return kafkaconn.New(cfg.Kafka, kafkaconn.Options{ClientID: "lethe-cli"})
}

func checkKafka(ctx context.Context, cfg *config.Config) ([]Finding, error) {
	conn, err := connectKafka(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var out []Finding
	for _, f := range topics(cfg, conn).Check(ctx) {
		g := Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: statement(f.Fix)}
		if f.Code == capturekafka.CodeUnreachable {
			g.Code = CodeUnreachable
		}
		out = append(out, g)
	}
	if slices.ContainsFunc(out, func(f Finding) bool {
		return f.Object == conn.CheckpointsTopic() || f.Object == strings.Join(conn.Brokers(), ",")
	}) {
		return out, nil // there is no checkpoint to read
	}
	c, err := loadCheckpoint(ctx, cfg, conn)
	if err != nil {
		return append(out, failedFinding(err)), nil
	}
	return append(out, gapFindings(c)...), nil
}

func loadCheckpoint(ctx context.Context, cfg *config.Config, conn *kafkaconn.Conn) (c *capture.Checkpoint, err error) {
	store := checkpoint.New(checkpoint.Options{Conn: conn, Source: cfg.Name})
	err = settled(ctx, func() error {
		c, err = store.Load(ctx)
		return err
	})
	return c, err
}

// A broker that has just made a topic, or is electing a leader, says so for a moment.
const (
	settleWithin = 5 * time.Second
	settlePause  = 100 * time.Millisecond
)

// settled repeats what a broker answers with an error that passes.
func settled(ctx context.Context, ask func() error) error {
	deadline := time.Now().Add(settleWithin)
	tick := time.NewTicker(settlePause)
	defer tick.Stop()
	for {
		err := ask()
		var code kafka.Error
		if !errors.As(err, &code) || kafkaconn.Classify(err) != kafkaconn.ClassTransient || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func gapFindings(c *capture.Checkpoint) []Finding {
	if c == nil {
		return nil
	}
	var out []Finding
	for _, g := range c.Gaps {
		message := fmt.Sprintf("a part of the source's log is lost since %s (%s): nothing is called verified while the gap is open; a later version closes gaps, by a pass over the source",
			g.OpenedAt.UTC().Format(time.RFC3339), g.Cause)
		if g.Blocks() {
			message += "; capture stands still until `lethe gap resume`"
		}
		out = append(out, Finding{Code: CodeGap, Severity: SeverityWarning, Object: g.ID, Message: message})
	}
	return out
}

func checkSource(ctx context.Context, cfg *config.Config) ([]Finding, error) {
	server, err := sourceOf(cfg)
	if err != nil {
		return nil, nil //nolint:nilerr // a later version's, which checkConfig tells
	}
	out, err := server.check(ctx)
	if err != nil || slices.ContainsFunc(out, func(f Finding) bool { return f.Code == CodeUnreachable }) {
		return out, err
	}
	asked, err := checkReadback(ctx, cfg)
	return append(out, asked...), err
}

func checkReplica(ctx context.Context, cfg *config.Config, r *config.Replica) ([]Finding, error) {
	server, err := replicaOf(cfg, r)
	if err != nil || len(r.Person.CRMKey) == 0 {
		return nil, nil //nolint:nilerr // a later version's, which checkConfig tells
	}
	return server.check(ctx)
}
