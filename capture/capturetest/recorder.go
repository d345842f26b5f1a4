package capturetest

import (
	"fmt"
	"strings"
	"sync"

	"lethe/capture"
)

// Row is a row change as it was handed over, with its values copied and named.
type Row struct {
	Op      capture.Op
	Table   string
	Old     map[string]string // nil where there was no old image; absent columns are left out
	New     map[string]string
	Message string
	Lost    string // of an OpTruncate
	Shape   *capture.Table
}

// The states of a value that are not a text, as they stand in Row.
const (
	Null      = "‹null›"
	Unchanged = "‹unchanged›"
)

// Tx is a transaction as it was handed over.
type Tx struct {
	capture.Transaction
	Rows []Row
}

// Own reports whether tx holds nothing but messages of Lethe itself, or nothing at all.
func (t *Tx) Own() bool {
	for i := range t.Rows {
		if t.Rows[i].Op != capture.OpMessage {
			return false
		}
	}
	return true
}

// String shows operations and tables, for failed tests.
func (t *Tx) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%x/%d:", t.Position.Commit, t.XID)
	for i := range t.Rows {
		fmt.Fprintf(&b, " %s %s", t.Rows[i].Op, t.Rows[i].Table)
	}
	return b.String()
}

// Recorder is a Handler that keeps copies of all it gets, and says at once what a Source does against the contract. Its
// other methods may be called while a Source runs.
type Recorder struct {
	// OnCommit is called after each transaction, in the Source's goroutine; nil: nothing. An error goes back to the Source.
	OnCommit func(*Tx) error
	// CountOnly keeps no rows.
	CountOnly bool

	mu      sync.Mutex
	open    *Tx
	last    capture.Position
	txs     []*Tx
	rows    int
	partial int // rows of transactions that never ended
}

var _ capture.Handler = (*Recorder)(nil)

// Begin opens a transaction.
func (r *Recorder) Begin(tx *capture.Transaction) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.open != nil:
		return fmt.Errorf("begin of %x inside of %x", tx.Position.Commit, r.open.Position.Commit)
	case tx.Position.Epoch < r.last.Epoch || tx.Position.Epoch == r.last.Epoch && tx.Position.Commit <= r.last.Commit:
		return fmt.Errorf("begin of %d:%x after %d:%x", tx.Position.Epoch, tx.Position.Commit, r.last.Epoch, r.last.Commit)
	case tx.CommittedAt.IsZero():
		return fmt.Errorf("begin of %x without commit time", tx.Position.Commit)
	}
	r.open = &Tx{Transaction: *tx}
	return nil
}

// Change copies a change.
func (r *Recorder) Change(c *capture.Change) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		return fmt.Errorf("%s outside of a transaction", c.Op)
	}
	r.rows++
	r.partial++
	if r.CountOnly {
		return nil
	}
	row := Row{Op: c.Op, Message: string(c.Message), Lost: c.Lost, Shape: c.Table}
	if c.Table != nil {
		row.Table = c.Table.Name
		var err error
		if row.Old, err = image(c.Table, c.Old); err != nil {
			return err
		}
		if row.New, err = image(c.Table, c.New); err != nil {
			return err
		}
	}
	r.open.Rows = append(r.open.Rows, row)
	return nil
}

func image(t *capture.Table, values []capture.Value) (map[string]string, error) {
	if values == nil {
		return nil, nil //nolint:nilnil // no image is an answer here
	}
	if len(values) != len(t.Columns) {
		return nil, fmt.Errorf("image of %d values for %d columns of %s", len(values), len(t.Columns), t.Name)
	}
	m := make(map[string]string, len(values))
	for i, v := range values {
		switch v.State {
		case capture.Absent:
		case capture.Null:
			m[t.Columns[i].Name] = Null
		case capture.Unchanged:
			m[t.Columns[i].Name] = Unchanged
		case capture.Present:
			m[t.Columns[i].Name] = string(v.Text)
		}
	}
	return m, nil
}

// Commit closes a transaction.
func (r *Recorder) Commit(tx *capture.Transaction) error {
	t, err := r.commit(tx)
	if err == nil && r.OnCommit != nil {
		err = r.OnCommit(t)
	}
	return err
}

func (r *Recorder) commit(tx *capture.Transaction) (*Tx, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.open == nil || r.open.Position.Commit != tx.Position.Commit || r.open.XID != tx.XID:
		return nil, fmt.Errorf("commit of %x, which was not begun", tx.Position.Commit)
	case tx.Position.End <= tx.Position.Commit:
		return nil, fmt.Errorf("commit of %x ends at %x", tx.Position.Commit, tx.Position.End)
	}
	t := r.open
	t.Transaction = *tx
	r.open, r.partial, r.last = nil, 0, tx.Position
	r.txs = append(r.txs, t)
	return t, nil
}

// Txs returns the transactions that ended, without those that hold nothing for rules to see.
func (r *Recorder) Txs() []*Tx {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*Tx
	for _, t := range r.txs {
		if !t.Own() || r.CountOnly {
			list = append(list, t)
		}
	}
	return list
}

// All returns all transactions that ended.
func (r *Recorder) All() []*Tx {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*Tx(nil), r.txs...)
}

// Rows returns how many changes came, those of unfinished transactions included.
func (r *Recorder) Rows() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rows
}

// Partial returns how many changes came of a transaction that has not ended.
func (r *Recorder) Partial() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.partial
}
