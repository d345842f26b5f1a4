package capture

import (
	"context"
	"slices"
	"time"

	"lethe/schema"
)

// PassRequest asks for a pass. Who asks writes it beside the checkpoint, and no process is asked: capture finds it there,
// now or when it starts.
type PassRequest struct {
	ID          string
	Tables      []string // empty: every table that rules read
	Replicas    []string // empty: all; the others take the events as they take any
	Gaps        []string // that it closes when it has read every table
	Cause       string   // one of the causes below
	RequestedAt time.Time
	// Cancelled takes the request back, also when its pass runs already.
	Cancelled bool
}

// The causes of a PassRequest.
const (
	PassAsked      = "command"
	PassGap        = "gap"
	PassScheduled  = "schedule"
	PassFirst      = "first"       // there was no pass over every table yet
	PassNewTable   = "new_table"   // the newest one over every table did not know one of them
	PassNewReplica = "new_replica" // …or was before this replica
)

// PassState is how far a pass is.
type PassState string

// The states. A pass in one of the first three is taken up again by the next session.
const (
	PassBeginning PassState = "beginning" // the begin marker may not be published yet
	PassReading   PassState = "reading"
	PassClosing   PassState = "closing" // every row is published; the end marker may not be
	PassEnded     PassState = "ended"
	PassCancelled PassState = "cancelled"
)

// TableState is how far a pass is in one table.
type TableState string

// The states of a table.
const (
	TableWaiting TableState = "waiting"
	TableReading TableState = "reading"
	TableDone    TableState = "done"
	TableRefused TableState = "refused" // Cause and Hint say why; the pass goes on without it and is not full
)

// PassedTable is one table of a Pass.
type PassedTable struct {
	Name     string
	State    TableState
	Cause    string // of the refusal, a code
	Hint     string // what the operator does next
	Rows     uint64 // read and, as far as they mean anything, acknowledged by Kafka
	Estimate int64  // of the rows, by the server; -1: unknown
	Restarts uint32 // because its key was changed under the reader
	Walk     string
	// After is the sealed key of the last of Rows; nil: none.
	After []byte
}

// Pass is one walk over the source's present state, as it is kept durably. Nothing in it is personal: After is sealed.
type Pass struct {
	Source  string
	Request PassRequest
	RunID   string
	State   PassState
	// Incarnation, Epoch and Gaps are those of the begin marker. When one of them becomes another the pass begins anew.
	Incarnation uint32
	Epoch       uint32
	Gaps        []string
	Tables      []PassedTable
	// Full: every table that rules read was read to its end.
	Full bool
	// Ordinal is the last one given; the next pass goes on behind it.
	Ordinal   uint32
	Restarts  uint32
	StartedAt time.Time
	UpdatedAt time.Time
	EndedAt   time.Time
	// Waiting says what the pass waits for; empty: nothing.
	Waiting string
	// Closed are the gaps that it closed.
	Closed []string
	// LastFull is the newest pass over every table that has ended.
	LastFull FullPass
}

// FullPass is what is remembered of a pass over every table.
type FullPass struct {
	RunID     string
	StartedAt time.Time
	EndedAt   time.Time
	Tables    []string
	Replicas  []string // that the config knew then, or that it was for
}

// Live reports whether the pass is to be taken up again.
func (p *Pass) Live() bool {
	return p != nil && (p.State == PassBeginning || p.State == PassReading || p.State == PassClosing)
}

// Rows returns how many rows were read, and how many there may be (-1: unknown).
func (p *Pass) Rows() (read uint64, estimate int64) {
	for i := range p.Tables {
		t := &p.Tables[i]
		read += t.Rows
		switch {
		case t.State == TableDone || t.State == TableRefused:
			estimate = addRows(estimate, int64(t.Rows)) //nolint:gosec // far below 2^63
		case t.Estimate < 0:
			estimate = -1
		default:
			estimate = addRows(estimate, max(t.Estimate, int64(t.Rows))) //nolint:gosec // far below 2^63
		}
	}
	return read, estimate
}

// addRows keeps -1, which is unknown.
func addRows(sum, rows int64) int64 {
	if sum < 0 {
		return sum
	}
	return sum + rows
}

// Refused are the tables that could not be read.
func (p *Pass) Refused() []PassedTable {
	var list []PassedTable
	for i := range p.Tables {
		if p.Tables[i].State == TableRefused {
			list = append(list, p.Tables[i])
		}
	}
	return list
}

// clone copies what a saver and a worker would share.
func (p *Pass) clone() *Pass {
	c := *p
	c.Tables, c.Gaps, c.Closed = slices.Clone(p.Tables), slices.Clone(p.Gaps), slices.Clone(p.Closed)
	return &c
}

// PassBook is what is kept of passes: the newest one, and the requests that none has answered, oldest first.
type PassBook struct {
	Pass     *Pass // nil: there never was one
	Requests []PassRequest
}

// Passes keeps passes durably beside the checkpoint (capture/checkpoint). Safe for concurrent use.
type Passes interface {
	// Load returns what is there now.
	Load(ctx context.Context) (*PassBook, error)
	// Save returns when p is durable. Only capture saves; ErrSuperseded refuses to write over a pass that another process has
	// saved since Load or Save saw it last.
	Save(ctx context.Context, p *Pass) error
	// Ask adds a request, or replaces the one of the same ID. Any process may.
	Ask(ctx context.Context, r PassRequest) error
	// Answered takes a request away: a saved Pass has it.
	Answered(ctx context.Context, id string) error
}

// PassOptions are what a Pipeline needs for passes.
type PassOptions struct {
	// Passes; nil: the Pipeline makes no passes, and neither does it for a Source that is no Snapshotter.
	Passes Passes
	// Rules and Encoder are used by the pass alone, beside those of the stream.
	Rules   Ruler
	Encoder Encoder
	// Seal hides the keys of rows in a Pass.
	Seal schema.AEAD
	// Tables are those that rules read; Optional those of them that not every installation has.
	Tables   []string
	Optional []string
	// Replicas are the config's.
	Replicas []string
	// Every is the time between two passes over every table, from begin to begin; 0: only those that are asked for.
	Every time.Duration
	// Chunk is the number of rows that are read at once; default 1000.
	Chunk int
	// RowsPerSecond bounds all tables together; 0: no bound but the stream's own pace.
	RowsPerSecond int
	// Parallel is how many tables are read side by side, each on a connection of its own; default 2.
	Parallel int
	// Poll is how often requests are looked for; default 5 s.
	Poll time.Duration
}
