package app

import (
	"context"
	"errors"
	"fmt"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// What a replica's desk tells, whatever its database.
type (
	replicaCase   = ledger.Case
	replicaGap    = ledger.Gap
	replicaParked = ledger.ParkedEvent
)

// ReplicaPlan is what erasing one person would touch in one replica.
type ReplicaPlan = ledger.Plan

// Status is where a replica stands, by its own tables.
type Status = ledger.Status

// Codes of findings that mean the same for every database.
const (
	codeDigest      = "mapping_digest"      // another mapping is the active one
	codeStandby     = "server_is_standby"   // the login leads to a server that takes no writes
	codeReadOnly    = "server_is_read_only" // the same of a MySQL source
	codeRoleMissing = "role_missing"        // the login of run does not exist
	codeLedger      = ledger.CodeLedger
	codePrivilege   = ledger.CodePrivilege
)

// decisionDone is the outcome of a decision that was carried out.
const decisionDone = ledger.DecisionDone

// desk is what commands read and record in one replica, beside the running workers.
type desk interface {
	Cases(ctx context.Context, openOnly bool, limit int) ([]replicaCase, error)
	RunCases(ctx context.Context, run string) (ledger.RunCases, error)
	FindCase(ctx context.Context, id schema.CaseID, seal schema.AEAD) (crmKey []byte, found bool, err error)
	DecisionOutcome(ctx context.Context, id schema.EventID) (string, error)
	Gaps(ctx context.Context) ([]replicaGap, error)
	Findings(ctx context.Context, limit int) ([]ledger.SubjectFinding, error)
	Parked(ctx context.Context, done bool, limit int) ([]replicaParked, error)
	ReplayParked(ctx context.Context, partition int32, offset int64, by string) error
	DiscardParked(ctx context.Context, partition int32, offset int64, by string) error
	Pause(ctx context.Context, by string) error
	Resume(ctx context.Context, by string) error
	Plan(ctx context.Context, key []string) (*ReplicaPlan, error)
	Reviews(ctx context.Context, open bool, limit int) ([]ledger.Review, error)
	ReviewCase(ctx context.Context, id string) (*ledger.ReviewDetail, error)
	DecideReview(ctx context.Context, id string, same bool, by string) error
	SealedUnder(ctx context.Context, id uint32, keyID func(sealed []byte) (uint32, error)) (subjects, parked int, err error)
	SignedUnder(ctx context.Context, id uint32) (found bool, err error)
	MatchedUnder(ctx context.Context, id, primary uint32) (contacts, blocks int, err error)
	Status(ctx context.Context) (*Status, error)
}

// replica is what the worker of a sink drives.
type replica interface {
	sinks.Replica
	sinks.Pauser
	Incomplete() bool
	Close()
}

// replicaServer is what commands and the sink's role do with the database of a replica.
type replicaServer interface {
	// open wires the replica and its connections; nothing is connected to yet. close gives the connections back.
	open(ctx context.Context, a *App, ring *keys.Ring) (r replica, closeAll func(), err error)
	// desk lends a connection.
	desk(ctx context.Context) (d desk, closeAll func(), err error)
	check(ctx context.Context) ([]Finding, error)
	// setup makes Lethe's tables and grants with an owner's dsn; what was done before an error is in the report.
	setup(ctx context.Context, ownerDSN, role string, o *SetupOptions, r *SetupReport) error
	// uninstall returns the statements for the owner, dropLogin those that take Lethe's login away.
	uninstall() string
	dropLogin() string
}

// replicaOf is the one place that knows which kinds of replicas there are.
func replicaOf(cfg *config.Config, r *config.Replica) (replicaServer, error) {
	switch {
	case r.Postgres != nil:
		return &postgresReplica{cfg, r}, nil
	case r.MySQL != nil:
		return &mysqlReplica{cfg, r}, nil
	default:
		return nil, errors.New("the config names no database")
	}
}

// withDesk lends the desk of one replica.
func withDesk(ctx context.Context, cfg *config.Config, r *config.Replica, f func(desk) error) error {
	server, err := replicaOf(cfg, r)
	if err == nil {
		var d desk
		var done func()
		if d, done, err = server.desk(ctx); err == nil {
			defer done()
			err = f(d)
		}
	}
	if err != nil {
		return fmt.Errorf("replica %s: %w", r.Name, err)
	}
	return nil
}
