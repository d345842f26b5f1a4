// Package postgres applies events to one PostgreSQL replica. Its promise: what an event asks for, the facts that it
// leaves, its receipt and the offset behind it are committed in one transaction, or none of them is; and nothing of the
// replica's rows ever appears in an error, a log line or a receipt.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/config"
	"lethe/internal/pii"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// Options are what a Replica needs. Everything without a default is required.
type Options struct {
	Name   string // of the replica, as in the config
	Source string // the config's name
	Config *config.Replica
	Pool   *pgxpool.Pool // the run role; at least 3 connections: batches, chores, receipts
	// VerifyPool is what verification reads back through: other connections, and another login where there is one.
	// nil: Pool.
	VerifyPool *pgxpool.Pool
	Seal       schema.AEAD   // opens and seals CRM keys
	Pseudonym  schema.PRF    // re-keys subject references in this replica's tables; never rotated
	Signer     schema.Signer // proof key of this replica
	// Match makes the match keys of what lies in the replica; required where the config has find.
	Match ledger.KeyMaker

	MappingDigest [32]byte // of this replica's section; must be the one that Setup activated
	Version       string   // of Lethe, for receipts

	LockTimeout      time.Duration // wait for a row that another session holds; default 5s
	StatementTimeout time.Duration // of one statement; default 60s
	RecheckFirst     time.Duration // pause before a subject without a row is looked up again; default 1m
	RecheckLater     time.Duration // the pause once the subject is an hour old; default 1h

	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: metrics are not exported
}

const (
	defaultLockTimeout      = 5 * time.Second
	defaultStatementTimeout = time.Minute

	defaultSchema = "lethe"
)

func (o *Options) validate() error {
	switch {
	case o.Name == "" || o.Source == "":
		return errors.New("validating options: name and source are required")
	case o.Config == nil || o.Config.Postgres == nil:
		return fmt.Errorf("validating options: replica %s is not a PostgreSQL replica", o.Name)
	case o.Pool == nil || o.Seal == nil || o.Pseudonym == nil || o.Signer == nil:
		return fmt.Errorf("validating options: pool and keys of replica %s are required", o.Name)
	case len(o.Config.Person.CRMKey) == 0 && o.Config.Find == nil:
		return fmt.Errorf("validating options: replica %s has neither person.crm_key nor find: nobody could be found in it", o.Name)
	case o.Config.Find != nil && o.Match == nil:
		return fmt.Errorf("validating options: match keys of replica %s are required: it finds people by them", o.Name)
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&o.LockTimeout, defaultLockTimeout},
		{&o.StatementTimeout, defaultStatementTimeout},
		{&o.RecheckFirst, ledger.DefaultRecheckFirst},
		{&o.RecheckLater, ledger.DefaultRecheckLater},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if o.VerifyPool == nil {
		o.VerifyPool = o.Pool
	}
	return nil
}

// Replica is one PostgreSQL replica. It implements sinks.Replica. Its methods may be called from several goroutines;
// the rows of lethe.partition serialise whatever concerns the same partition, between processes too.
type Replica struct {
	opts    Options
	cfg     *config.Replica
	core    *ledger.Core
	ledger  ledgerTables
	decoder *schema.Decoder
	log     zerolog.Logger
	metrics *ledger.Metrics
	gauges  *ledger.Gauges

	// chores are what RunDue does, in this order.
	chores []ledger.Chore

	grown    ledger.Grown
	reseal   ledger.ResealRounds
	absences ledger.Absences

	scanChunk int // rows that a scan reads at a time

	mu         sync.Mutex
	mapping    *Mapping // nil: read the catalog again before the next use
	compiledAt time.Time
}

// New makes a Replica. It opens nothing: the first call that needs the replica reads and checks its catalog.
func New(opts Options) (*Replica, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	log := opts.Logger.With().Str("replica", opts.Name).Logger()
	r := &Replica{
		opts:   opts,
		cfg:    opts.Config,
		ledger: ledgerTables{schema: ledgerSchema(opts.Config)},
		core: ledger.NewCore(ledger.Core{
			Name: opts.Name, Source: opts.Source, Config: opts.Config, Seal: opts.Seal, Pseudonym: opts.Pseudonym, Signer: opts.Signer, Match: opts.Match,
			MappingDigest: opts.MappingDigest, Version: opts.Version, RecheckFirst: opts.RecheckFirst, RecheckLater: opts.RecheckLater, Log: log,
		}),
		decoder:   schema.NewDecoder(opts.Seal),
		log:       log,
		scanChunk: scanChunk,
	}
	var err error
	if r.metrics, err = ledger.NewMetrics(opts.Registerer, opts.Name); err != nil {
		return nil, err
	}
	r.gauges = ledger.NewGauges(opts.Name)
	if opts.Registerer != nil {
		if err := opts.Registerer.Register(r.gauges); err != nil {
			r.metrics.Close(opts.Registerer)
			return nil, fmt.Errorf("registering gauges of replica %s: %w", opts.Name, err)
		}
	}
	r.chores = []ledger.Chore{
		r.checkWitness, r.applyDecisions, r.runParked, r.lookAgain, r.scanTables, r.recheckUnmatched, r.refoldGrown, r.refoldDue, r.runTouches, r.runPhase2, r.verifyErased, r.verifyFollowed,
		r.lookForAbsent, r.resealKeys, r.refreshGauges,
	}
	return r, nil
}

func ledgerSchema(cfg *config.Replica) string {
	if cfg.Postgres != nil && cfg.Postgres.Schema != "" {
		return cfg.Postgres.Schema
	}
	return defaultSchema
}

// Close unregisters the metrics. The pools belong to the caller.
func (r *Replica) Close() {
	r.metrics.Close(r.opts.Registerer)
	if r.opts.Registerer != nil {
		r.opts.Registerer.Unregister(r.gauges)
	}
}

// Name returns the replica's name.
func (r *Replica) Name() string { return r.opts.Name }

// Start checks the ledger tables, the active mapping digest and the mapped tables. ErrDigest in the chain means that
// this process waits for a Setup; every other error says what to do. Whatever needs the mapping calls it.
func (r *Replica) Start(ctx context.Context) error {
	_, err := r.compiled(ctx)
	return err
}

// compiled returns the mapping, reading the catalog where that has not been done yet.
func (r *Replica) compiled(ctx context.Context) (*Mapping, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mapping != nil {
		return r.mapping, nil
	}
	if err := r.ledger.verifyTables(ctx, r.opts.Pool, r.opts.Name, r.opts.Source, r.core.Digest()); err != nil {
		return nil, err
	}
	m, findings, err := compile(ctx, r.opts.Pool, r.cfg)
	if err != nil {
		return nil, err
	}
	if err := ledger.ErrorOf(r.opts.Name, findings); err != nil {
		return nil, err
	}
	if m.Unmapped, err = unmappedColumns(ctx, r.opts.Pool, m, r.ledger.schema); err != nil {
		return nil, err
	}
	r.mapping, r.compiledAt = m, time.Now()
	return m, nil
}

// compiledAnew returns a mapping that knows the catalog of a minute ago: a column that looks personal and came since this
// process has started keeps verified away too.
func (r *Replica) compiledAnew(ctx context.Context) (*Mapping, error) {
	r.mu.Lock()
	if time.Since(r.compiledAt) > ledger.MappingAge {
		r.mapping = nil
	}
	r.mu.Unlock()
	return r.compiled(ctx)
}

// forget makes the next use read the catalog again: after an error that says that it has changed, and at every
// assignment, because Setup may have activated another mapping meanwhile.
func (r *Replica) forget() {
	r.mu.Lock()
	r.mapping = nil
	r.mu.Unlock()
	r.grown.Forget()
}

// Assign implements sinks.Applier.
func (r *Replica) Assign(ctx context.Context, partitions []int32) ([]sinks.Place, error) {
	r.forget()
	if _, err := r.compiled(ctx); err != nil {
		return nil, err
	}
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(
		`INSERT INTO {s}.partition (part) SELECT unnest($1::int[]) ON CONFLICT DO NOTHING`), partitions)
	if err != nil {
		return nil, classify("creating partition rows", err)
	}
	places, err := r.places(ctx, r.opts.Pool, partitions)
	if err == nil && len(places) != len(partitions) {
		return nil, &sinks.Error{Class: sinks.Transient, Op: "reading partition rows", Code: "rows_vanished"}
	}
	return places, err
}

// Places returns the durable position of every partition that this replica knows, for status.
func (r *Replica) Places(ctx context.Context) ([]sinks.Place, error) {
	return r.places(ctx, r.opts.Pool, nil)
}

// places reads partition rows in their order; nil partitions means all.
func (r *Replica) places(ctx context.Context, q querier, partitions []int32) ([]sinks.Place, error) {
	rows, err := q.Query(ctx, r.ledger.sql(`
		SELECT part, next_offset, last_event_id, last_order, updated_at FROM {s}.partition
		WHERE $1::int[] IS NULL OR part = ANY ($1) ORDER BY part`), partitions)
	if err != nil {
		return nil, classify("reading partition rows", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p sinks.Place, err error) {
		var event, order []byte
		err = row.Scan(&p.Partition, &p.NextOffset, &event, &order, &p.UpdatedAt)
		copy(p.LastEventID[:], event)
		copy(p.LastOrder[:], order)
		return p, err
	})
	return out, classify("reading partition rows", err)
}

// inTx runs fn in one transaction with this replica's timeouts. Whatever fn has begun is rolled back unless it returns
// nil and the commit succeeds. An unknown outcome of the commit is an error like any other: the caller reads the places
// again, and finds out.
func (r *Replica) inTx(ctx context.Context, op string, fn func(ctx context.Context, tx pgx.Tx) error) error {
	tx, err := r.opts.Pool.Begin(ctx)
	if err != nil {
		return classify(op, err)
	}
	defer rollBack(ctx, tx.Rollback) // nothing, after a commit
	// Chores are few and their tables may have grown from nothing since the connection was opened: plan each time.
	_, err = tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
		set_config('plan_cache_mode', 'force_custom_plan', true)`,
		milliseconds(r.opts.LockTimeout), milliseconds(r.opts.StatementTimeout))
	if err != nil {
		return classify(op, err)
	}
	if err := fn(ctx, tx); err != nil {
		return r.reduced(op, err)
	}
	return r.reduced(op, tx.Commit(ctx))
}

// reduced classifies an error, and drops the compiled mapping where the error says that the catalog has changed.
func (r *Replica) reduced(op string, err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		if pg.SchemaName == r.ledger.schema && strings.HasPrefix(pg.Code, "23") {
			// No event is to blame for what the ledger refuses: it is not as it was read. It is read again.
			return &sinks.Error{
				Class: sinks.Transient, Op: op, Code: "ledger_" + pg.Code, Err: pii.DriverError(err),
				Hint: "does anybody but Lethe write into its tables?",
			}
		}
		if class, _ := classOf(pg.Code); class == sinks.Permanent {
			r.forget()
		}
	}
	return classify(op, err)
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// lockPlaces takes the rows of the partitions, in their order, and compares them with where this worker left them.
// Every change of anything that belongs to a subject happens under the row of its partition, so that a worker that has
// lost a partition is stopped here, and two sessions never change one subject at once.
func (r *Replica) lockPlaces(ctx context.Context, tx pgx.Tx, places []sinks.Place) error {
	parts := make([]int32, len(places))
	next := make([]int64, len(places))
	for i, p := range places {
		parts[i], next[i] = p.Partition, p.NextOffset
	}
	var n int
	err := tx.QueryRow(ctx, r.ledger.sql(`
		SELECT count(*) FROM (
			SELECT p.part FROM {s}.partition p JOIN unnest($1::int[], $2::bigint[]) w(part, next_offset) USING (part)
			WHERE p.next_offset = w.next_offset ORDER BY p.part FOR UPDATE OF p) locked`), parts, next).Scan(&n)
	if err != nil {
		return classify("locking partitions", err)
	}
	if n != len(places) {
		return fmt.Errorf("locking partitions: %w", sinks.ErrFenced)
	}
	return nil
}
