package app

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/rules"
	"lethe/config"
)

// source reads the log of the CRM; every kind of database has one.
type source interface {
	capture.Source
	// EmitHeartbeat writes what comes back through the log.
	EmitHeartbeat(ctx context.Context) error
	// Watch looks at what could make the log be lost. Together with the status it may return a *capture.GapError, and an
	// error of what was changed under capture's feet.
	Watch(ctx context.Context) (LogStatus, error)
	Close(ctx context.Context) error
}

// LogStatus is how the source's log stands.
type LogStatus struct {
	Reading       bool          // a process reads
	State         string        // of the slot, or of the binlog that is needed
	LagBytes      int64         // not acknowledged; -1: not known
	RetainedBytes int64         // held back for us, or kept by the server; -1: not known
	SafeBytes     int64         // that can still be written before the log is lost; -1: no limit, or none in bytes
	SafeFor       time.Duration // until the log may be lost; -1: no limit, or none in time
	OverLimit     bool          // more than the limit of the config
}

// sourceServer is what commands do with the database of the CRM.
type sourceServer interface {
	// open wires the source and connects to nothing.
	open(log zerolog.Logger, registerer prometheus.Registerer) (source, error)
	// status looks at the log once, as source.Watch does.
	status(ctx context.Context) (LogStatus, error)
	check(ctx context.Context) ([]Finding, error)
	// preview and setup connect with an owner's dsn; role is Lethe's login, empty for the user of the config's dsn.
	preview(ctx context.Context, ownerDSN, role string) ([]Finding, error)
	setup(ctx context.Context, ownerDSN, role string) (ran []string, left []Finding, err error)
	// uninstall returns the statements in order; lines that begin with -- are for reading only.
	uninstall(ctx context.Context) ([]string, error)
	// dropLogin takes Lethe's login away.
	dropLogin() string
	// form is how the server writes SQL.
	form() capture.SQLForm
	// database and limit are how the config calls the section, and the alarm on log that waits.
	database() string
	limit() string
	// capturesOwn lists the codes of findings that capture understands by itself; see Preflight.
	capturesOwn() []string
}

// errNoSource is the error of a config that names no database of a kind that this build knows.
var errNoSource = errors.New("the config names no source")

// sourceOf is the one place that knows which kinds of sources there are.
func sourceOf(cfg *config.Config) (sourceServer, error) {
	switch {
	case cfg.Source.Postgres != nil:
		return &postgresSource{cfg}, nil
	case cfg.Source.MySQL != nil:
		return &mysqlSource{cfg}, nil
	default:
		return nil, errNoSource
	}
}

// openSource wires the source of a command; it connects to nothing.
func openSource(cfg *config.Config) (source, error) {
	server, err := sourceOf(cfg)
	if err != nil {
		return nil, err
	}
	return server.open(zerolog.Nop(), nil)
}

// look watches the log once, and closes the source.
func look(ctx context.Context, s source) (LogStatus, error) {
	status, err := s.Watch(ctx)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return status, errors.Join(err, s.Close(bound))
}

// tableNeeds is what the mapping reads of one table.
type tableNeeds struct {
	rules.TableNeeds
	mapped   []string // columns that the mapping names besides: they need not be in the log
	optional bool
}

// sourceNeeds says what the mapping reads, by schema.table.
func sourceNeeds(cfg *config.Source) (map[string]tableNeeds, error) {
	byTable, err := rules.Needs(cfg)
	if err != nil {
		return nil, err
	}
	out := make(map[string]tableNeeds, len(byTable))
	for table, n := range byTable {
		needs := tableNeeds{TableNeeds: n}
		if t := cfg.Tables[table]; t != nil {
			needs.mapped = append(slices.Clone(t.Erase), slices.Sorted(maps.Keys(t.State))...)
			needs.optional = t.Optional
			if t.EraseRow {
				needs.mapped = append(needs.mapped, n.SubjectColumns...) // by which it is looked for in the end
			}
		}
		out[table] = needs
	}
	return out, nil
}
