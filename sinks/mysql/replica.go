// Package mysql applies events to one MySQL or MariaDB replica. Its promise is that of sinks/postgres: what an event asks
// for, the facts that it leaves, its receipt and the offset behind it are committed in one InnoDB transaction, or none of
// them is; and nothing of the replica's rows ever appears in an error, a log line or a receipt.
package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

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
	DB     *sql.DB // of Open with the run role; at least 3 connections: batches, chores, receipts
	// VerifyDB is what verification reads back through: other connections, and another login where there is one, of Open
	// too. nil: DB.
	VerifyDB  *sql.DB
	Seal      schema.AEAD   // opens and seals CRM keys
	Pseudonym schema.PRF    // re-keys subject references in this replica's tables; never rotated
	Signer    schema.Signer // proof key of this replica
	// Match makes the match keys of what lies in the replica; required where the config has find.
	Match ledger.KeyMaker

	MappingDigest [32]byte // of this replica's section; must be the one that Setup activated
	Version       string   // of Lethe, for receipts

	StatementTimeout time.Duration // that DB was opened with, and a third of what a batch may take; default 60s
	RecheckFirst     time.Duration // pause before a subject without a row is looked up again; default 1m
	RecheckLater     time.Duration // the pause once the subject is an hour old; default 1h

	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: metrics are not exported
}

const (
	defaultLockTimeout      = 5 * time.Second
	defaultStatementTimeout = time.Minute
)

func (o *Options) validate() error {
	switch {
	case o.Name == "" || o.Source == "":
		return errors.New("validating options: name and source are required")
	case o.Config == nil || o.Config.MySQL == nil:
		return fmt.Errorf("validating options: replica %s is not a MySQL or MariaDB replica", o.Name)
	case o.DB == nil || o.Seal == nil || o.Pseudonym == nil || o.Signer == nil:
		return fmt.Errorf("validating options: connections and keys of replica %s are required", o.Name)
	case len(o.Config.Person.CRMKey) == 0 && o.Config.Find == nil:
		return fmt.Errorf("validating options: replica %s has neither person.crm_key nor find: nobody could be found in it", o.Name)
	case o.Config.Find != nil && o.Match == nil:
		return fmt.Errorf("validating options: match keys of replica %s are required: it finds people by them", o.Name)
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&o.StatementTimeout, defaultStatementTimeout},
		{&o.RecheckFirst, ledger.DefaultRecheckFirst},
		{&o.RecheckLater, ledger.DefaultRecheckLater},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if o.VerifyDB == nil {
		o.VerifyDB = o.DB
	}
	return nil
}

// Replica is one MySQL or MariaDB replica. It implements sinks.Replica. Its methods may be called from several goroutines;
// the rows of lethe_partition serialise whatever concerns the same partition, between processes too.
type Replica struct {
	opts    Options
	cfg     *config.Replica
	core    *ledger.Core
	ledger  ledgerTables
	decoder *schema.Decoder
	log     zerolog.Logger
	metrics *ledger.Metrics
	gauges  *ledger.Gauges

	chunk int // rows of one transaction of a scan

	// chores are what RunDue does, in this order.
	chores []ledger.Chore

	grown    ledger.Grown
	reseal   ledger.ResealRounds
	absences ledger.Absences

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
		ledger: ledgerTables{prefix: opts.Config.MySQL.Prefix},
		core: ledger.NewCore(ledger.Core{
			Name: opts.Name, Source: opts.Source, Config: opts.Config, Seal: opts.Seal, Pseudonym: opts.Pseudonym, Signer: opts.Signer, Match: opts.Match,
			MappingDigest: opts.MappingDigest, Version: opts.Version, RecheckFirst: opts.RecheckFirst, RecheckLater: opts.RecheckLater, Log: log,
		}),
		decoder: schema.NewDecoder(opts.Seal),
		log:     log,
		chunk:   scanChunk,
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
		r.checkWitness, r.applyDecisions, r.runParked, r.lookForRows, r.scanTables, r.recheckUnmatched, r.refoldGrown, r.refoldDue, r.runTouches, r.runPhase2, r.verifyErased, r.verifyFollowed,
		r.lookForAbsent, r.resealKeys, r.refreshGauges,
	}
	return r, nil
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
	if err := r.ledger.verifyTables(ctx, r.opts.DB, r.opts.Name, r.opts.Source, r.core.Digest()); err != nil {
		return nil, err
	}
	m, findings, err := compile(ctx, r.opts.DB, r.cfg)
	if err != nil {
		return nil, err
	}
	if err := ledger.ErrorOf(r.opts.Name, findings); err != nil {
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
	// Only what is missing is inserted: IGNORE alone would take locks on the rows of others, and wait for their batches.
	_, err := r.opts.DB.ExecContext(ctx, r.ledger.sql(`INSERT IGNORE INTO {p}partition (part)
		SELECT w.part FROM `+partsTable+` LEFT JOIN {p}partition p ON p.part = w.part WHERE p.part IS NULL`), jsonList(partitions))
	if err != nil {
		return nil, classify("creating partition rows", err)
	}
	places, err := r.places(ctx, r.opts.DB, partitions)
	if err == nil && len(places) != len(partitions) {
		return nil, &sinks.Error{Class: sinks.Transient, Op: "reading partition rows", Code: "rows_vanished"}
	}
	return places, err
}

// Places returns the durable position of every partition that this replica knows, for status.
func (r *Replica) Places(ctx context.Context) ([]sinks.Place, error) {
	return r.places(ctx, r.opts.DB, nil)
}

// places reads partition rows in their order; nil partitions means all.
func (r *Replica) places(ctx context.Context, q querier, partitions []int32) ([]sinks.Place, error) {
	const op = "reading partition rows"
	const columns = `SELECT p.part, p.next_offset, p.last_event_id, p.last_order, p.updated_at FROM `
	query, args := columns+`{p}partition p ORDER BY p.part`, []any(nil)
	if partitions != nil {
		query, args = columns+partsTable+` STRAIGHT_JOIN {p}partition p ON p.part = w.part ORDER BY p.part`, []any{jsonList(partitions)}
	}
	var out []sinks.Place
	err := eachRow(ctx, q, r.ledger.sql(query), args, func(rows *sql.Rows) error {
		var p sinks.Place
		var event, order []byte
		if err := rows.Scan(&p.Partition, &p.NextOffset, &event, &order, &p.UpdatedAt); err != nil {
			return err
		}
		copy(p.LastEventID[:], event)
		copy(p.LastOrder[:], order)
		out = append(out, p)
		return nil
	})
	return out, classify(op, err)
}

// tx is one transaction. now is the replica's clock when it began, of which `at` is our own; every time of the transaction
// is now, as in PostgreSQL.
type tx struct {
	*sql.Tx
	now   time.Time
	at    time.Time
	depth int // of savepoints
}

// exec runs a statement and returns how many rows it has changed.
func (t *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := t.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// insertSizes are how many rows one INSERT has: few sizes, so that a connection prepares few statements, and none so large
// that preparing it takes long. Two to four times as fast as rows that the server takes out of JSON.
var insertSizes = [...]int{250, 50, 10, 1}

// insert runs an INSERT that ends in VALUES, with a tail behind them, for rows of so many values each. It returns how many rows
// it has changed, as MySQL counts: one that is there already and is changed by the tail counts twice.
func (t *tx) insert(ctx context.Context, head string, width int, values []any, tail string) (changed int64, err error) {
	row := "(?" + strings.Repeat(", ?", width-1) + ")"
	for len(values) > 0 {
		n := insertSizes[slices.IndexFunc(insertSizes[:], func(n int) bool { return n*width <= len(values) })]
		one, err := t.exec(ctx, head+row+strings.Repeat(", "+row, n-1)+tail, values[:n*width]...)
		if err != nil {
			return 0, err
		}
		changed, values = changed+one, values[n*width:]
	}
	return changed, nil
}

// clock is what the replica's clock shows by now.
func (t *tx) clock() time.Time { return t.now.Add(time.Since(t.at)) }

// savepoint runs fn; what it has changed is rolled back where it returns an error, and the transaction goes on. A deadlock
// has ended the transaction as a whole, and the savepoint with it, which the next statement would not notice: fn's error must
// not be swallowed where it is Transient.
func (t *tx) savepoint(ctx context.Context, fn func() error) error {
	t.depth++ // a name that is used again takes the place of the outer one
	defer func() { t.depth-- }()
	name := "lethe_" + strconv.Itoa(t.depth)
	if _, err := t.ExecContext(ctx, "SAVEPOINT "+name); err != nil {
		return err
	}
	if err := fn(); err != nil {
		if _, back := t.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+name); back != nil && !transient(err) {
			return back
		}
		return err
	}
	_, err := t.ExecContext(ctx, "RELEASE SAVEPOINT "+name)
	return err
}

// transient reports whether the server's error is one that is tried again.
func transient(err error) bool {
	number := pii.MySQLNumber(err)
	class, _ := classOf(number, stateOf(err))
	return number != 0 && class == sinks.Transient
}

// inTx runs fn in one transaction. Whatever fn has begun is rolled back unless it returns nil and the commit succeeds. An
// unknown outcome of the commit is an error like any other: the caller reads the places again, and finds out.
func (r *Replica) inTx(ctx context.Context, op string, fn func(ctx context.Context, tx *tx) error) error {
	t, err := begin(ctx, r.opts.DB, nil)
	if err != nil {
		return r.reduced(op, err)
	}
	if err := fn(ctx, t); err != nil {
		_ = t.Rollback() // the error that matters is fn's
		return r.reduced(op, err)
	}
	return r.reduced(op, t.Commit())
}

// begin opens a transaction and reads the replica's clock.
func begin(ctx context.Context, db *sql.DB, options *sql.TxOptions) (*tx, error) {
	inner, err := db.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	t := &tx{Tx: inner}
	if err := inner.QueryRowContext(ctx, "SELECT UTC_TIMESTAMP(6)").Scan(&t.now); err != nil {
		_ = inner.Rollback() // the error that matters is the query's
		return nil, err
	}
	t.at = time.Now()
	return t, nil
}

// reduced classifies an error, and drops the compiled mapping where the error says that the catalog has changed.
func (r *Replica) reduced(op string, err error) error {
	if err == nil {
		return nil
	}
	var own *ledgerError
	if errors.As(err, &own) {
		number := pii.MySQLNumber(err)
		if class, _ := classOf(number, stateOf(err)); number != 0 && class == sinks.Poison {
			// No event is to blame for what the ledger refuses: it is not as it was read. It is read again.
			return &sinks.Error{
				Class: sinks.Transient, Op: op, Code: fmt.Sprintf("ledger_%d", number), Err: pii.DriverError(err),
				Hint: "does anybody but Lethe write into its tables?",
			}
		}
	}
	if number := pii.MySQLNumber(err); number != 0 {
		if class, _ := classOf(number, stateOf(err)); class == sinks.Permanent {
			r.forget()
		}
	}
	return classify(op, err)
}

// ledgerError marks the error of a statement that writes into Lethe's own tables only.
type ledgerError struct{ err error }

func (e *ledgerError) Error() string { return e.err.Error() }

func (e *ledgerError) Unwrap() error { return e.err }

// own marks an error as one of Lethe's own tables; nil stays nil.
func own(err error) error {
	if err == nil {
		return nil
	}
	return &ledgerError{err}
}

// lockPlaces takes the rows of the partitions, in their order, and compares them with where this worker left them.
// Every change of anything that belongs to a subject happens under the row of its partition, so that a worker that has
// lost a partition is stopped here, and two sessions never change one subject at once.
func (r *Replica) lockPlaces(ctx context.Context, tx *tx, places []sinks.Place) error {
	const op = "locking partitions"
	offsets := make(map[int32]int64, len(places))
	for _, p := range places {
		offsets[p.Partition] = p.NextOffset
	}
	n := 0
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT p.part, p.next_offset FROM `+partsTable+`
		STRAIGHT_JOIN {p}partition p FORCE INDEX (PRIMARY) ON p.part = w.part`+lockRows), []any{jsonList(sorted(ledger.PartsOf(places)))}, func(rows *sql.Rows) error {
		var part int32
		var next int64
		if err := rows.Scan(&part, &next); err != nil {
			return err
		}
		if offset, ok := offsets[part]; ok && offset == next {
			n++
		}
		return nil
	})
	if err != nil {
		return classify(op, err)
	}
	if n != len(places) {
		return fmt.Errorf("%s: %w", op, sinks.ErrFenced)
	}
	return nil
}
