package app

import (
	"context"
	"fmt"
	"time"

	"lethe/internal/admin"
	"lethe/internal/kafkaconn"
	"lethe/internal/keys"
	"lethe/schema"
	"lethe/sinks"
	sinkskafka "lethe/sinks/kafka"
	"lethe/sinks/ledger"
)

// sinkRole applies the log to one replica.
type sinkRole struct {
	replica string
	worker  *sinks.Worker
	// incomplete tells that the replica waits for its first pass: it works, and nothing is called verified.
	incomplete func() bool
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
	server, err := replicaOf(a.cfg, cfg)
	if err != nil {
		return nil, err
	}
	replica, closeAll, err := server.open(ctx, a, ring)
	if err != nil {
		return nil, fmt.Errorf("preparing connections to replica %s: %w", name, err)
	}
	a.onClose(closeAll)
	a.onClose(replica.Close)
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
	return &sinkRole{replica: name, worker: worker, incomplete: replica.Incomplete}, nil
}

func (r *sinkRole) name() string { return rolePrefixSink + r.replica }

func (r *sinkRole) run(ctx context.Context) error { return r.worker.Run(ctx) }

func (r *sinkRole) status() admin.RoleStatus {
	s := r.worker.Status()
	out := admin.RoleStatus{Role: r.name(), Ready: s.Ready, State: string(s.State), Cause: s.Cause}
	if s.Hint != "" {
		out.Cause += ": " + s.Hint
	}
	if out.Cause == "" && r.incomplete() {
		out.Cause = ledger.ReasonIncomplete + ": " + nextSteps[ledger.ReasonIncomplete]
	}
	return out
}
