// Package postgres reads the changes of a PostgreSQL primary through logical replication (pgoutput, protocol 1).
//
// The promise: committed transactions only, whole, in the order of their commits, each change as the log has it; nothing
// is skipped silently; the slot is told only what was acknowledged; nothing of a row is ever written to disk or put into
// an error. The server is never changed here: publication, slot, identities and grants are made by Setup alone, with the
// owner's login.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/config"
)

// MessagePrefix is the prefix of Lethe's own logical messages. Messages with another one are not looked at.
const MessagePrefix = "lethe"

// Options are what New needs.
type Options struct {
	// DSN is a URL or key=value string without password; several hosts with target_session_attrs=primary follow a failover.
	DSN      string
	Password config.Secret
	Slot     string
	// Publication has to exist, with every table of Needs.
	Publication string
	// Needs says what is read, by schema.table. Changes of other tables are skipped undecoded.
	Needs map[string]TableNeeds
	// MaxRetainedWAL is the alarm on log held back for the slot, in bytes; 0: none.
	MaxRetainedWAL int64
	// Liveness is how long the server may be silent before the connection is taken for dead. It is asked to answer after
	// a third of it. Default 60 s.
	Liveness time.Duration
	Log      zerolog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

const defaultLiveness = 60 * time.Second

// slotName is what PostgreSQL allows (ReplicationSlotValidateName).
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

func (o *Options) validate() error {
	if o.DSN == "" {
		return errors.New("opening a PostgreSQL source: no DSN")
	}
	if !slotName.MatchString(o.Slot) {
		return fmt.Errorf("opening a PostgreSQL source: %q is no name of a slot: lower-case letters, digits and _ only, 63 at most", o.Slot)
	}
	if err := validIdentifier(o.Publication); err != nil {
		return fmt.Errorf("opening a PostgreSQL source: publication: %w", err)
	}
	if o.Liveness == 0 {
		o.Liveness = defaultLiveness
	}
	return nil
}

// Source reads one primary database. Acknowledge, Identity, Watch and EmitHeartbeat may be called by any goroutine while
// Run runs; Run by one at a time.
type Source struct {
	o       Options
	metrics *metrics
	acked   atomic.Uint64

	running atomic.Bool

	mu  sync.Mutex // guards what follows: one ordinary connection for everything but the stream
	sql *pgx.Conn
	// published is the publication as it was when the first stream started.
	published *publication

	visible visibility
	readers readers
	walkMu  sync.Mutex
	walks   map[string]*walk // by table, as PassTable found them last
}

var _ capture.Source = (*Source)(nil)

// New wires a Source and opens nothing.
func New(o Options) (*Source, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	return &Source{o: o, metrics: m, readers: readers{o: o}, walks: map[string]*walk{}}, nil
}

// Run streams as capture.Source says. Its errors: *capture.GapError, *ColumnError, *IdentityError, *DecodeError and
// *SetupError need a person; whatever else there is (ErrSlotInUse and ErrNotPrimary among it) may go away by itself.
//
// After an error everything that was not acknowledged is read again by the next Run.
func (s *Source) Run(ctx context.Context, from *capture.Checkpoint, h capture.Handler) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("reading the source: this Source runs already")
	}
	defer s.running.Store(false)
	conn, err := s.connectReplication(ctx)
	if err != nil {
		return err
	}
	// A server that vanishes now is noticed as one that vanishes later.
	opening, cancel := context.WithTimeout(ctx, s.o.Liveness)
	st, err := s.open(opening, conn, from, h)
	cancel()
	if err != nil {
		closeConn(ctx, conn.PgConn)
		return err
	}
	defer st.close()
	return st.run(ctx)
}

// open makes the checks and starts replication.
func (s *Source) open(ctx context.Context, conn *replicationConn, from *capture.Checkpoint, h capture.Handler) (*stream, error) {
	start, err := s.prepare(ctx, conn.PgConn, from)
	if err != nil {
		return nil, err
	}
	if err := s.checkPublication(ctx); err != nil {
		return nil, err
	}
	return s.start(ctx, conn, start, h)
}

// Acknowledge tells that everything up to p is checkpointed; the slot is told with the next status message, a second later
// at most. What lies beyond the transactions that this Run handed over is ignored.
func (s *Source) Acknowledge(p capture.Position) {
	for {
		old := s.acked.Load()
		if p.End <= old || s.acked.CompareAndSwap(old, p.End) {
			return
		}
	}
}

// Close closes the ordinary connections. It does not end Run.
func (s *Source) Close(ctx context.Context) error {
	err := s.readers.close(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sql == nil {
		return err
	}
	err = errors.Join(err, s.sql.Close(ctx))
	s.sql = nil
	return err
}
