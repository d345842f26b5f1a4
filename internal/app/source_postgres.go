package app

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/capture"
	capturepg "lethe/capture/postgres"
	"lethe/config"
)

// postgresSource is a CRM on PostgreSQL.
type postgresSource struct{ cfg *config.Config }

// options say how the source is read; the mapping's needs are compiled on the way.
func (s *postgresSource) options() (capturepg.Options, error) {
	byTable, err := sourceNeeds(&s.cfg.Source)
	if err != nil {
		return capturepg.Options{}, err
	}
	needs := make(map[string]capturepg.TableNeeds, len(byTable))
	for table, n := range byTable {
		needs[table] = capturepg.TableNeeds{
			Columns: n.Columns, OldColumns: n.OldColumns, SubjectColumns: n.SubjectColumns, ReadsDelete: n.ReadsDelete, Mapped: n.mapped,
			Optional: n.optional, ReadsRows: n.ReadsRows,
		}
	}
	pg := s.cfg.Source.Postgres
	return capturepg.Options{
		DSN: pg.DSN, Password: pg.Password, Slot: pg.Slot, Publication: pg.Publication, MaxRetainedWAL: pg.MaxRetainedWAL, Needs: needs,
	}, nil
}

// ownerOptions are for an owner's connection, which takes no more than the login's name from the dsn.
func (s *postgresSource) ownerOptions(role string) (capturepg.Options, error) {
	o, err := s.options()
	if role != "" {
		o.DSN = "user='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(role) + "'"
	}
	return o, err
}

func (s *postgresSource) open(log zerolog.Logger, registerer prometheus.Registerer) (source, error) {
	o, err := s.options()
	if err != nil {
		return nil, err
	}
	o.Log, o.Registerer = log, registerer
	opened, err := capturepg.New(o)
	if err != nil {
		return nil, err
	}
	return watchedSlot{opened}, nil
}

func (*postgresSource) form() capture.SQLForm { return capture.PostgresSQL }

// watchedSlot puts the slot's status into the words of every source.
type watchedSlot struct{ *capturepg.Source }

// Watch implements source.
func (w watchedSlot) Watch(ctx context.Context) (LogStatus, error) {
	s, err := w.Source.Watch(ctx)
	return LogStatus{
		Reading: s.Active, State: s.WALStatus, LagBytes: s.Lag, RetainedBytes: s.RetainedWAL, SafeBytes: s.SafeWAL, SafeFor: -1,
		OverLimit: s.OverLimit,
	}, err
}

func (s *postgresSource) status(ctx context.Context) (LogStatus, error) {
	opened, err := s.open(zerolog.Nop(), nil)
	if err != nil {
		return LogStatus{}, err
	}
	return look(ctx, opened)
}

func (s *postgresSource) check(ctx context.Context) ([]Finding, error) {
	o, err := s.options()
	if err != nil {
		return nil, nil //nolint:nilerr // a fault of the mapping, which checkConfig tells
	}
	findings, err := capturepg.Check(ctx, o)
	if err != nil {
		role := postgresUser(o.DSN)
		if f, ok := loginFinding(err, "the source", role, "CREATE ROLE "+quoted(role)+" LOGIN REPLICATION"); ok {
			return []Finding{f}, nil
		}
	}
	return fromPostgresSource(findings), err
}

func (s *postgresSource) preview(ctx context.Context, ownerDSN, role string) ([]Finding, error) {
	o, err := s.ownerOptions(role)
	if err != nil {
		return nil, err
	}
	findings, err := capturepg.Preview(ctx, ownerDSN, config.Secret{}, o)
	return fromPostgresSource(findings), err
}

func (s *postgresSource) setup(ctx context.Context, ownerDSN, role string) (ran []string, left []Finding, err error) {
	o, err := s.ownerOptions(role)
	if err != nil {
		return nil, nil, err
	}
	ran, findings, err := capturepg.Setup(ctx, ownerDSN, config.Secret{}, o)
	return ran, fromPostgresSource(findings), err
}

func (s *postgresSource) uninstall(ctx context.Context) ([]string, error) {
	o, err := s.options()
	if err != nil {
		return nil, err
	}
	return capturepg.UninstallSQL(ctx, o)
}

func (s *postgresSource) dropLogin() string {
	return dropPostgresLogin(postgresUser(s.cfg.Source.Postgres.DSN))
}

func (s *postgresSource) database() string { return "postgres" }

func (s *postgresSource) limit() string { return "max_retained_wal" }

// capturesOwn: a lost slot is a gap that capture announces, and the log before a changed table can only be read under the
// old mapping.
func (s *postgresSource) capturesOwn() []string {
	return []string{
		capturepg.CodeSlotMissing, capturepg.CodeSlotLost, capturepg.CodeTableMissing, capturepg.CodeColumnMissing, capturepg.CodePublicationColumn,
	}
}

func fromPostgresSource(list []capturepg.Finding) []Finding {
	out := make([]Finding, len(list))
	for i, f := range list {
		out[i] = Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: f.FixSQL}
	}
	return out
}

// postgresUser is the login of a dsn; empty where it cannot be read, which config has checked.
func postgresUser(dsn string) string {
	c, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return ""
	}
	return c.User
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

// dropPostgresLogin takes a login of Lethe's away with what it was granted. DROP OWNED drops tables as well where the
// login owns any, as one that the application shares does: then it must not run.
func dropPostgresLogin(user string) string {
	if user == "" {
		return ""
	}
	role := quoted(user)
	return fmt.Sprintf("DO $lethe$ BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_shdepend WHERE refclassid = 'pg_catalog.pg_authid'::regclass"+
		" AND refobjid = '%s'::regrole AND deptype = 'o' AND dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))"+
		" THEN RAISE EXCEPTION 'the login owns objects here: it is not Lethe''s alone, and stays'; END IF; DROP OWNED BY %s; END $lethe$;\nDROP ROLE %[2]s;\n",
		strings.ReplaceAll(role, "'", "''"), role)
}
