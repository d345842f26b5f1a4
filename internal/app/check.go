package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/segmentio/kafka-go"

	"lethe/capture"
	"lethe/capture/checkpoint"
	capturekafka "lethe/capture/kafka"
	capturepg "lethe/capture/postgres"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/internal/pii"
	sinkspg "lethe/sinks/postgres"
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
	if cfg.Source.Postgres == nil {
		return nil, nil // a later version's, which checkConfig tells
	}
	o, err := SourceOptions(cfg)
	if err != nil {
		return nil, nil //nolint:nilerr // a fault of the mapping, which checkConfig tells
	}
	findings, err := capturepg.Check(ctx, o)
	if err != nil {
		role := userOf(o.DSN)
		if f, ok := loginFinding(err, "the source", role, "CREATE ROLE "+pgx.Identifier{role}.Sanitize()+" LOGIN REPLICATION"); ok {
			return []Finding{f}, nil
		}
	}
	return fromSource(findings), err
}

func fromSource(list []capturepg.Finding) []Finding {
	out := make([]Finding, len(list))
	for i, f := range list {
		out[i] = Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: f.FixSQL}
	}
	return out
}

// userOf is the login of a dsn; empty where it cannot be read, which config has checked.
func userOf(dsn string) string {
	c, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return ""
	}
	return c.User
}

// connectPostgres opens one connection of a command.
func connectPostgres(ctx context.Context, dsn string, password config.Secret) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("reading the dsn: %w", pii.DriverError(err))
	}
	if password.IsSet() {
		c.Password = password.Reveal()
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	c.RuntimeParams["application_name"], c.RuntimeParams["timezone"] = "lethe", "UTC"
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", pii.DriverError(err))
	}
	return conn, nil
}

func closePostgres(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the work is done, and nothing hangs on the goodbye
}

func checkReplica(ctx context.Context, cfg *config.Config, r *config.Replica) ([]Finding, error) {
	if r.Postgres == nil || len(r.Person.CRMKey) == 0 {
		return nil, nil // a later version's, which checkConfig tells
	}
	conn, err := connectPostgres(ctx, r.Postgres.DSN, r.Postgres.Password)
	if err != nil {
		role := userOf(r.Postgres.DSN)
		if f, ok := loginFinding(err, "replica "+r.Name, role, "CREATE ROLE "+pgx.Identifier{role}.Sanitize()+" LOGIN"); ok {
			return []Finding{f}, nil
		}
		return nil, err
	}
	defer closePostgres(ctx, conn)
	verify := ""
	if r.Postgres.Verify != nil {
		verify = userOf(r.Postgres.Verify.DSN)
	}
	findings, err := sinkspg.Check(ctx, conn, sinkspg.CheckOptions{
		Name: r.Name, Source: cfg.Name, Config: r, Digest: r.Digest(), VerifyRole: verify,
	})
	if err != nil || r.Postgres.Verify == nil {
		return fromReplica(findings), err
	}
	second, err := checkVerifyLogin(ctx, r)
	return append(fromReplica(findings), second...), err
}

// checkVerifyLogin only connects: what it may read was looked at with the other login.
func checkVerifyLogin(ctx context.Context, r *config.Replica) ([]Finding, error) {
	v := r.Postgres.Verify
	conn, err := connectPostgres(ctx, v.DSN, v.Password)
	if err != nil {
		role := userOf(v.DSN)
		if f, ok := loginFinding(err, "replica "+r.Name+" (verify)", role, "CREATE ROLE "+pgx.Identifier{role}.Sanitize()+" LOGIN"); ok {
			return []Finding{f}, nil
		}
		return nil, err
	}
	closePostgres(ctx, conn)
	return nil, nil
}

func fromReplica(list []sinkspg.Finding) []Finding {
	out := make([]Finding, len(list))
	for i, f := range list {
		out[i] = Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: statement(f.FixSQL)}
	}
	return out
}
