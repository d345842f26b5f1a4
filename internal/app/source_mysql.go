package app

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/capture"
	capturemy "lethe/capture/mysql"
	"lethe/config"
	"lethe/internal/mysqlconn"
)

// mysqlSource is a CRM on MySQL or MariaDB.
type mysqlSource struct{ cfg *config.Config }

// options say how the source is read; the mapping's needs are compiled on the way.
func (s *mysqlSource) options() (capturemy.Options, error) {
	byTable, err := sourceNeeds(&s.cfg.Source)
	if err != nil {
		return capturemy.Options{}, err
	}
	needs := make(map[string]capturemy.TableNeeds, len(byTable))
	for table, n := range byTable {
		needs[table] = capturemy.TableNeeds{
			Columns: n.Columns, OldColumns: n.OldColumns, SubjectColumns: n.SubjectColumns, ReadsDelete: n.ReadsDelete, Mapped: n.mapped,
			Optional: n.optional,
		}
	}
	m := s.cfg.Source.MySQL
	return capturemy.Options{
		Name: s.cfg.Name, Login: mysqlconn.Source(m), ServerID: m.ServerID, Heartbeat: m.Heartbeat, RequireGTID: m.RequireGTID,
		MaxBinlogLag: m.MaxBinlogLag, Needs: needs,
	}, nil
}

func (s *mysqlSource) open(log zerolog.Logger, registerer prometheus.Registerer) (source, error) {
	o, err := s.options()
	if err != nil {
		return nil, err
	}
	o.Log, o.Registerer = log, registerer
	opened, err := capturemy.New(o)
	if err != nil {
		return nil, err
	}
	return watchedBinlog{opened}, nil
}

func (*mysqlSource) form() capture.SQLForm { return capture.MySQLSQL }

// watchedBinlog puts the status of the binary log into the words of every source.
type watchedBinlog struct{ *capturemy.Source }

// Watch implements source.
func (w watchedBinlog) Watch(ctx context.Context) (LogStatus, error) {
	s, err := w.Source.Watch(ctx)
	return LogStatus{
		Reading: s.Active, State: s.State, LagBytes: s.LagBytes, RetainedBytes: s.RetainedBytes, SafeBytes: -1, SafeFor: s.SafeFor,
		OverLimit: s.OverLimit,
	}, err
}

// status compares the log with the checkpoint: the server remembers nothing of where capture is.
func (s *mysqlSource) status(ctx context.Context) (LogStatus, error) {
	opened, err := s.open(zerolog.Nop(), nil)
	if err != nil {
		return LogStatus{SafeBytes: -1, SafeFor: -1}, err
	}
	if conn, err := connectKafka(s.cfg); err == nil {
		defer conn.Close()
		bound, cancel := context.WithTimeout(ctx, checkpointWithin)
		defer cancel()
		if c, err := loadCheckpoint(bound, s.cfg, conn); err == nil && c != nil {
			opened.Acknowledge(c.Position)
		} // else the server alone is looked at: what is wrong with Kafka stands in its own part
	}
	return look(ctx, opened)
}

// checkpointWithin bounds the wait for the checkpoint, so that a silent Kafka leaves time to look at the server.
const checkpointWithin = 10 * time.Second

// lost says that the log which capture has yet to read is gone already, although capture has not met it.
func (s *mysqlSource) lost(ctx context.Context) []Finding {
	var gap *capture.GapError
	if _, err := s.status(ctx); !errors.As(err, &gap) {
		return nil // what else is wrong stands among the other findings
	}
	return []Finding{{Code: CodeGap, Severity: SeverityWarning, Object: "binary log", Message: gap.Hint + " (" + gap.Cause + ")"}}
}

// owner connects with an owner's dsn, and takes no more than the login's name from the config's.
func (s *mysqlSource) owner(dsn, role string) (mysqlconn.Login, capturemy.Options, error) {
	o, err := s.options()
	if role != "" {
		o.Login = mysqlconn.Login{DSN: role + "@tcp(localhost)/"}
	}
	return mysqlconn.Login{DSN: dsn, CAFile: s.cfg.Source.MySQL.CAFile, Anywhere: true}, o, err
}

func (s *mysqlSource) check(ctx context.Context) ([]Finding, error) {
	o, err := s.options()
	if err != nil {
		return nil, nil //nolint:nilerr // a fault of the mapping, which checkConfig tells
	}
	findings, err := capturemy.Check(ctx, o)
	if err != nil {
		return mysqlLogin(err, "the source", o.Login)
	}
	return append(fromMySQLSource(findings), s.lost(ctx)...), nil
}

func (s *mysqlSource) preview(ctx context.Context, ownerDSN, role string) ([]Finding, error) {
	login, o, err := s.owner(ownerDSN, role)
	if err != nil {
		return nil, err
	}
	findings, err := capturemy.Preview(ctx, login, o)
	return fromMySQLSource(findings), err
}

func (s *mysqlSource) setup(ctx context.Context, ownerDSN, role string) (ran []string, left []Finding, err error) {
	login, o, err := s.owner(ownerDSN, role)
	if err != nil {
		return nil, nil, err
	}
	ran, findings, err := capturemy.Setup(ctx, login, o)
	return ran, fromMySQLSource(findings), err
}

func (s *mysqlSource) uninstall(ctx context.Context) ([]string, error) {
	o, err := s.options()
	if err != nil {
		return nil, err
	}
	return capturemy.UninstallSQL(ctx, o)
}

func (s *mysqlSource) dropLogin() string {
	return dropMySQLLogin(mysqlconn.Source(s.cfg.Source.MySQL).User())
}

func (s *mysqlSource) database() string { return "mysql" }

func (s *mysqlSource) limit() string { return "max_binlog_lag" }

// capturesOwn: the log before a changed table can only be read under the old mapping.
func (s *mysqlSource) capturesOwn() []string {
	return []string{capturemy.CodeTableMissing, capturemy.CodeColumnMissing}
}

func fromMySQLSource(list []capturemy.Finding) []Finding {
	out := make([]Finding, len(list))
	for i, f := range list {
		out[i] = Finding{Code: f.Code, Severity: Severity(f.Severity), Object: f.Object, Message: f.Message, Fix: f.FixSQL}
	}
	return out
}
