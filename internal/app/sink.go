package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"lethe/config"
	"lethe/internal/admin"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/internal/pii"
	"lethe/schema"
	"lethe/sinks"
	sinkskafka "lethe/sinks/kafka"
	sinkspg "lethe/sinks/postgres"
)

// sinkRole applies the log to one replica.
type sinkRole struct {
	replica string
	worker  *sinks.Worker
}

// Connections of a sink: batches, chores and receipts each have their own, and verification reads on others.
const (
	sinkConnections   = 4
	verifyConnections = 2
	connectTimeout    = 10 * time.Second
)

func (a *App) newSinkRole(ctx context.Context, name string) (role, error) {
	cfg := a.cfg.Replicas[name]
	log := a.log.With().Str("role", rolePrefixSink+name).Logger()
	ring, err := keys.Open(a.cfg.Keys.Dir, keys.RoleSink(name))
	if err != nil {
		return nil, err
	}
	replica, err := a.newReplica(ctx, cfg, ring)
	if err != nil {
		return nil, err
	}
	conn, err := kafkaconn.New(a.cfg.Kafka, kafkaconn.Options{ClientID: "lethe-sink-" + name})
	if err != nil {
		return nil, err
	}
	a.onClose(conn.Close)
	feed, err := sinkskafka.NewFeed(sinkskafka.FeedOptions{
		Conn: conn, Group: sinkskafka.GroupName(a.cfg.Kafka.TopicPrefix, name), Decoder: schema.NewDecoder(ring.Seal()), Log: log,
	})
	if err != nil {
		return nil, err
	}
	receipts := sinkskafka.NewReceipts(conn)
	a.onClose(func() {
		if err := receipts.Close(); err != nil {
			log.Warn().Str("class", string(kafkaconn.Classify(err))).Msg("closing the sender of receipts")
		}
	})
	worker, err := sinks.NewWorker(sinks.WorkerOptions{
		Name: name, Replica: replica, Feed: feed, Sender: receipts, Pauser: replica, Log: log, Registerer: a.registry,
	})
	if err != nil {
		return nil, err
	}
	return &sinkRole{replica: name, worker: worker}, nil
}

// newReplica makes the Replica with its pools; nothing is connected to yet.
func (a *App) newReplica(ctx context.Context, cfg *config.Replica, ring *keys.Ring) (*sinkspg.Replica, error) {
	pool, err := newPool(ctx, cfg.Postgres, sinkConnections)
	if err != nil {
		return nil, fmt.Errorf("preparing connections to replica %s: %w", cfg.Name, err)
	}
	a.onClose(pool.Close)
	verify, err := newPool(ctx, cfg.Postgres.VerifyServer(), verifyConnections)
	if err != nil {
		return nil, fmt.Errorf("preparing connections to replica %s: %w", cfg.Name, err)
	}
	a.onClose(verify.Close)
	signer, proofErr := ring.Proof(cfg.Name)
	pseudonym, pseudonymErr := ring.Pseudonym(cfg.Name)
	if err := errors.Join(proofErr, pseudonymErr); err != nil {
		return nil, err
	}
	replica, err := sinkspg.New(sinkspg.Options{
		Name: cfg.Name, Source: a.cfg.Name, Config: cfg, Pool: pool, VerifyPool: verify, Seal: ring.Seal(), Pseudonym: pseudonym, Signer: signer,
		MappingDigest: cfg.Digest(), Version: a.options.Version, RecheckFirst: a.options.RecheckFirst, Logger: a.log, Registerer: a.registry,
	})
	if err != nil {
		return nil, err
	}
	a.onClose(replica.Close)
	return replica, nil
}

// newPool prepares a pool of at most n connections; it connects when it is used.
func newPool(ctx context.Context, server *config.PostgresServer, n int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(server.DSN)
	if err != nil {
		return nil, fmt.Errorf("reading the dsn: %w", pii.DriverError(err))
	}
	if server.Password.IsSet() {
		cfg.ConnConfig.Password = server.Password.Reveal()
	}
	cfg.MaxConns = n
	cfg.ConnConfig.ConnectTimeout = connectTimeout
	cfg.ConnConfig.RuntimeParams["application_name"] = "lethe"
	cfg.ConnConfig.RuntimeParams["timezone"] = "UTC"
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	return pgxpool.NewWithConfig(ctx, cfg)
}

func (r *sinkRole) name() string { return rolePrefixSink + r.replica }

func (r *sinkRole) run(ctx context.Context) error { return r.worker.Run(ctx) }

func (r *sinkRole) status() admin.RoleStatus {
	s := r.worker.Status()
	out := admin.RoleStatus{Role: r.name(), Ready: s.Ready, State: string(s.State), Cause: s.Cause}
	if s.Hint != "" {
		out.Cause += ": " + s.Hint
	}
	return out
}
