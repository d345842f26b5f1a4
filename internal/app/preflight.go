package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	capturekafka "lethe/capture/kafka"
	"lethe/config"
)

// PreflightOptions of Preflight.
type PreflightOptions struct {
	Roles []string // as in Options
	// Within is how long servers are waited for while none of them can be reached; what comes up later is the roles' own
	// business.
	Within time.Duration
	// Strict refuses to start for the fault of one replica too.
	Strict bool
	Logger zerolog.Logger
}

// preflightPause is between two looks at servers that do not answer.
const preflightPause = 2 * time.Second

// Preflight looks at what run needs before any role starts, and names every fault with the statement that mends it. It
// refuses (*FindingsError) what would stop capture, or every role of this process: a fault of one replica is logged, and stops only the
// role of that replica, because one replica's trouble never stops another. A server that does not answer is left to the
// roles, which wait for it, unless nothing at all answers (ErrUnreachable).
func Preflight(ctx context.Context, cfg *config.Config, o PreflightOptions) error {
	if cfg.Kafka.Embedded {
		return cfg.Faults([]config.Fault{{Path: "kafka.embedded", Message: errEmbedded.Error()}})
	}
	if faults := cfg.NotInThisVersion(); len(faults) > 0 {
		return cfg.Faults(faults)
	}
	roles, err := resolveRoles(cfg, o.Roles)
	if err != nil {
		return err
	}
	report, err := reachable(ctx, cfg, roles, o)
	if err != nil {
		return err
	}
	var refused []Finding
	broken := map[string]bool{}
	for _, f := range report.Findings {
		if f.Severity != SeverityError || passes(f.Code) {
			o.log(&f, "")
			continue
		}
		if f.Where == WhereSource && capturesOwn(cfg, f.Code) && hasPosition(ctx, cfg) {
			o.log(&f, "capture has a position already and decides by itself")
			continue
		}
		refused, broken[f.Where] = append(refused, f), true
	}
	if o.refuses(roles, broken) {
		return &FindingsError{refused}
	}
	for i := range refused {
		o.log(&refused[i], "the role of this replica stands still until it is mended; the others go on")
	}
	return nil
}

// reachable repeats the check while nothing at all answers.
func reachable(ctx context.Context, cfg *config.Config, roles []string, o PreflightOptions) (*Report, error) {
	deadline := time.Now().Add(o.Within)
	tick := time.NewTicker(preflightPause)
	defer tick.Stop()
	for {
		report, err := Check(ctx, cfg, roles)
		if err != nil {
			return nil, err
		}
		if len(report.Unreachable) < servers(roles) {
			return report, nil
		}
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("%w: none of %s answers for %s; last: %s", ErrUnreachable, strings.Join(report.Unreachable, ", "), o.Within,
				report.Findings[len(report.Findings)-1].Message)
		}
		o.Logger.Warn().Strs("servers", report.Unreachable).Msg("waiting for the servers")
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// servers is how many places the roles need: Kafka, and the database of each role.
func servers(roles []string) int { return 1 + len(roles) }

// refuses decides whether the process may start although some places have faults.
func (o *PreflightOptions) refuses(roles []string, broken map[string]bool) bool {
	if len(broken) == 0 {
		return false
	}
	if o.Strict || broken[WhereConfig] || broken[WhereKeys] || broken[WhereKafka] || broken[WhereSource] {
		return true
	}
	return !slices.ContainsFunc(roles, func(role string) bool {
		name, sink := strings.CutPrefix(role, rolePrefixSink)
		return !sink || !broken[whereReplica+name] // capture goes on without sinks: the slot must not fill the CRM's disk
	})
}

// passes reports whether a fault is one that the roles wait for: a server that is down, a broker that is, a failover under
// way, a mapping that setup has yet to activate.
func passes(code string) bool {
	return slices.Contains([]string{CodeUnreachable, CodeUnreadable, capturekafka.CodeUnavailable, codeStandby, codeReadOnly, codeDigest}, code)
}

// capturesOwn reports whether a fault is what the source may have come to while capture was down, and what capture itself
// understands.
func capturesOwn(cfg *config.Config, code string) bool {
	server, err := sourceOf(cfg)
	return err == nil && slices.Contains(server.capturesOwn(), code)
}

// hasPosition reports whether capture has run before. While Kafka does not say so, it is taken for granted: capture will
// find out.
func hasPosition(ctx context.Context, cfg *config.Config) bool {
	conn, err := connectKafka(cfg)
	if err != nil {
		return true
	}
	defer conn.Close()
	c, err := loadCheckpoint(ctx, cfg, conn)
	return err != nil || c != nil && (c.Position != capture.Position{} || len(c.Gaps) > 0)
}

func (o *PreflightOptions) log(f *Finding, note string) {
	event := o.Logger.Info()
	switch f.Severity {
	case SeverityError:
		event = o.Logger.Error()
	case SeverityWarning:
		event = o.Logger.Warn()
	case SeverityInfo:
	}
	event = event.Str("where", f.Where).Str("code", f.Code).Str("object", f.Object)
	if len(f.Fix) > 0 {
		event = event.Strs("fix", f.Fix)
	}
	if note != "" {
		event = event.Str("note", note)
	}
	event.Msg(f.Message)
}
