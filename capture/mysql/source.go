// Package mysql reads the changes of a MySQL or MariaDB primary through its binary log.
//
// The promise: committed transactions only, whole, in the order of the log, each mapped row as the log has it; nothing is
// skipped silently; a position is always that of a commit; nothing of a row is ever written to disk, to a log or into an
// error, whatever the library below says. The server is never changed here: the heartbeat's table and the grants are made
// by Setup alone, with the owner's login.
package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/internal/crashpoint"
	"lethe/internal/mysqlconn"
)

// Options are what New needs.
type Options struct {
	// Name is the source's, as in the config: the named lock on the server is "lethe:" and this, cut to what servers allow.
	Name string
	// Login leads to the primary. Which of MySQL and MariaDB it is, is seen when it connects.
	Login mysqlconn.Login
	// ServerID is what we call ourselves among the server's replicas; 0: derived from Name and the server, and checked.
	ServerID uint32
	// Heartbeat is the table (database.table) whose one row EmitHeartbeat changes; Setup makes it. Empty: none.
	Heartbeat string
	// RequireGTID refuses a MySQL without gtid_mode=ON. Without it one server only is followed, and any other is a gap.
	RequireGTID bool
	// MaxBinlogLag is the alarm on log that is not acknowledged, in bytes; 0: none.
	MaxBinlogLag int64
	// Needs says what is read, by database.table. Rows of other tables are skipped undecoded.
	Needs map[string]TableNeeds
	// Liveness is how long the server may be silent before the connection is taken for dead. It is asked for a sign of life
	// three times as often. Default 30 s.
	Liveness time.Duration
	Log      zerolog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

const defaultLiveness = 30 * time.Second

func (o *Options) validate() error {
	if o.Login.DSN == "" {
		return errors.New("opening a MySQL source: no DSN")
	}
	if o.Name == "" {
		return errors.New("opening a MySQL source: no name")
	}
	if o.Heartbeat != "" {
		if _, _, err := splitTable(o.Heartbeat); err != nil {
			return fmt.Errorf("opening a MySQL source: heartbeat table: %w", err)
		}
	}
	if o.Liveness <= 0 {
		o.Liveness = defaultLiveness
	}
	return nil
}

// Source reads one primary. Acknowledge, Identity, Watch and EmitHeartbeat may be called by any goroutine while Run runs;
// Run by one at a time.
type Source struct {
	o       Options
	metrics *metrics
	running atomic.Bool
	// Shorter in tests than the constants of these names.
	holeWithin, attendEvery, settleWithin time.Duration

	mu    sync.Mutex // guards what follows
	sql   *sql.DB    // one ordinary connection for everything but the stream and the lock
	acked capture.Position
	// place is where the stream stands in the server's files; empty while none runs.
	place filePlace
	read  string // position of the last commit that was handed over
	// streams names the server that is streamed; empty while none is.
	streams string
	reading *reading             // the connections that read tables; nil: not opened yet
	visible visible              // MariaDB
	walks   map[string]*toldWalk // by table
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
	return &Source{
		o: o, metrics: m, holeWithin: holeWithin, attendEvery: attendEvery, settleWithin: settleWithin, walks: map[string]*toldWalk{},
	}, nil
}

// Run streams as capture.Source says, holding the named lock as long as it runs. Its errors: *capture.GapError, *SetupError,
// *DecodeError and those of the row decoder (*ColumnError, *ImageError, *MetadataError, *ColumnTypeError, *RowError) need a
// person; whatever else there is (capture.ErrSlotInUse and ErrNotPrimary among it) may go away by itself.
//
// After an error everything that was not acknowledged is read again by the next Run.
func (s *Source) Run(ctx context.Context, from *capture.Checkpoint, h capture.Handler) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("reading the source: this Source runs already")
	}
	defer s.running.Store(false)
	return s.run(ctx, from, h)
}

// Acknowledge tells that everything up to p is checkpointed. The server keeps no position of ours: it is used by Watch alone,
// which a command may give the checkpoint's position in this way. The crash points have the names of the PostgreSQL source's,
// so that the crash tests need not know of which kind the source is.
func (s *Source) Acknowledge(p capture.Position) {
	crashpoint.Hit("capture.before_slot_ack")
	s.mu.Lock()
	s.acked = p
	s.mu.Unlock()
	crashpoint.Hit("capture.after_slot_ack")
}

// begin forgets what was acknowledged of another history, as it was before an operator resumed a gap: epochs that seem to lie
// before it would be forgotten too.
func (s *Source) begin(from *capture.Checkpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = capture.Position{}
	if from != nil {
		s.acked = from.Position
	}
}

// Close closes the ordinary connections and those that read tables. It does not end Run.
func (s *Source) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.sql != nil {
		err = s.sql.Close()
		s.sql = nil
	}
	if s.reading != nil {
		err = errors.Join(err, s.reading.db.Close())
		s.reading = nil
	}
	return err
}
