package app

import (
	"context"
	"errors"
	"fmt"

	"lethe/config"
)

// SetupOptions say where to set up, with the logins of owners. A place that is not named is not touched.
type SetupOptions struct {
	Kafka bool
	// SourceDSN is the owner's; empty: not the source. SourceRole is Lethe's login there; default the user of the config's
	// dsn.
	SourceDSN, SourceRole string
	// ReplicaDSN are the owners' by replica, ReplicaRole the run roles where they are not the user of the config's dsn.
	ReplicaDSN, ReplicaRole map[string]string
	// StatusRoles may read lethe.status in the replicas.
	StatusRoles []string
	// DryRun changes nothing, and says what would be done.
	DryRun bool
}

// Done is one thing that setup did, or would do.
type Done struct {
	Where string `json:"where"`
	What  string `json:"what"`
}

// SetupReport is what was done, and what is left to a person.
type SetupReport struct {
	Done []Done    `json:"done"`
	Left []Finding `json:"left"`
}

func (r *SetupReport) did(where, what string) { r.Done = append(r.Done, Done{where, what}) }

func (r *SetupReport) left(where string, findings []Finding) {
	for _, f := range findings {
		f.Where = where
		if f.Severity != SeverityInfo {
			r.Left = append(r.Left, f)
		}
	}
}

// Setup makes what Lethe needs: topics, then the source, then the replicas in the order of their names. Doing it again
// changes nothing. What was done before an error is in the report.
func Setup(ctx context.Context, cfg *config.Config, o SetupOptions) (*SetupReport, error) {
	r := &SetupReport{Done: []Done{}, Left: []Finding{}}
	if faults := cfg.NotInThisVersion(); len(faults) > 0 {
		return r, cfg.Faults(faults)
	}
	for _, m := range []map[string]string{o.ReplicaDSN, o.ReplicaRole} {
		for name := range m {
			if cfg.Replicas[name] == nil {
				return r, errNoReplica(cfg, name)
			}
		}
	}
	if o.Kafka {
		if err := setupKafka(ctx, cfg, o, r); err != nil {
			return r, err
		}
	}
	if o.SourceDSN != "" {
		if err := setupSource(ctx, cfg, o, r); err != nil {
			return r, err
		}
	}
	for _, name := range ReplicaNames(cfg) {
		if o.ReplicaDSN[name] == "" {
			continue
		}
		if err := setupReplica(ctx, cfg, cfg.Replicas[name], &o, r); err != nil {
			return r, fmt.Errorf("setting up replica %s: %w", name, err)
		}
	}
	return r, nil
}

func setupKafka(ctx context.Context, cfg *config.Config, o SetupOptions, r *SetupReport) error {
	conn, err := connectKafka(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	t := topics(cfg, conn)
	if !o.DryRun {
		created, err := t.Setup(ctx)
		for _, name := range created {
			r.did(WhereKafka, "created topic "+name)
		}
		if err != nil {
			return err
		}
	}
	var left []Finding
	for _, f := range t.Check(ctx) {
		left = append(left, Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: statement(f.Fix)})
	}
	r.left(WhereKafka, left)
	return nil
}

func setupSource(ctx context.Context, cfg *config.Config, o SetupOptions, r *SetupReport) error {
	server, err := sourceOf(cfg)
	if err != nil {
		return err
	}
	if o.DryRun {
		findings, err := server.preview(ctx, o.SourceDSN, o.SourceRole)
		r.left(WhereSource, findings)
		return err
	}
	ran, left, err := server.setup(ctx, o.SourceDSN, o.SourceRole)
	for _, sql := range ran {
		r.did(WhereSource, sql)
	}
	r.left(WhereSource, left)
	return err
}

func setupReplica(ctx context.Context, cfg *config.Config, replica *config.Replica, o *SetupOptions, r *SetupReport) error {
	server, err := replicaOf(cfg, replica)
	if err != nil {
		return err
	}
	return server.setup(ctx, o.ReplicaDSN[replica.Name], o.ReplicaRole[replica.Name], o, r)
}

// activated tells what making Lethe's own tables has changed.
func (r *SetupReport) activated(where string, tables, digest bool) {
	if tables {
		r.did(where, "made Lethe's own tables and activated the mapping")
	}
	if digest {
		r.did(where, "activated the mapping; erased people go through phase 2 again under it")
	}
}

// ErrNothingToSetUp is the error of a setup that names no place.
var ErrNothingToSetUp = errors.New("say what to set up: --kafka, --source-dsn, --replica-dsn NAME=DSN")
