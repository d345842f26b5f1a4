package capture

import (
	"context"
	"fmt"
	"slices"

	"lethe/internal/crashpoint"
)

// chunk is a number of rows of one table on their way: read, published, acknowledged. One is reused for many.
type chunk struct {
	commit seenCommit
	table  *Table
	text   []byte
	fields []chunkField
	rows   int
	last   [][]byte
	done   bool
	err    error // instead of rows
}

// chunkField is a value of a chunk; its text ends at end, and begins where the one before ends.
type chunkField struct {
	end   int
	state ValueState
}

// flight is a chunk that was published and may not be acknowledged yet.
type flight struct {
	note  <-chan struct{}
	rows  int
	after []byte // sealed
}

// inFlight is how many chunks of a table may be on their way to Kafka: one in the unit that is being sent, and one in the unit
// that gathers. More would only make the stream's own events wait.
const inFlight = 2

// chunks reads a table from where the pass is in it. While one chunk is published the next is read, never more: so two of
// them are in memory.
func (x *passer) chunks(ctx context.Context, i int, t *PassedTable) error {
	after := x.openKey(t)
	if after == nil && t.Rows > 0 {
		x.change(func(p *Pass) { p.Tables[i].Rows, p.Tables[i].After = 0, nil })
	}
	ctx, stop := context.WithCancel(ctx)
	read, empty := make(chan *chunk), make(chan *chunk, 2)
	empty <- &chunk{}
	empty <- &chunk{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		x.fetch(ctx, t.Name, after, empty, read)
	}()
	defer func() { stop(); <-ended }()
	var flights []flight
	for {
		var c *chunk
		select {
		case c = <-read:
		case <-ctx.Done():
			return ctx.Err()
		}
		if c.err != nil {
			return c.err
		}
		for len(flights) >= inFlight {
			if err := x.land(ctx, i, flights[0]); err != nil {
				return err
			}
			flights = slices.Delete(flights, 0, 1)
		}
		if c.rows > 0 {
			f, err := x.send(ctx, t, c)
			if err != nil {
				return err
			}
			flights = append(flights, f)
		}
		if c.done {
			break
		}
		empty <- c // there is room for both
	}
	for _, f := range flights {
		if err := x.land(ctx, i, f); err != nil {
			return err
		}
	}
	return nil
}

// fetch reads chunk after chunk, each into one that is empty, until the last one or an error.
func (x *passer) fetch(ctx context.Context, table string, after [][]byte, empty <-chan *chunk, read chan<- *chunk) {
	for {
		var c *chunk
		select {
		case c = <-empty:
		case <-ctx.Done():
			return
		}
		c.err = contained(x.s.p, "reading a chunk", nil, func() error { return x.fill(ctx, c, table, after) })
		over, rows := c.err != nil || c.done, c.rows
		after = c.last
		select {
		case read <- c:
		case <-ctx.Done():
			return
		}
		if over || x.pace.take(ctx, rows) != nil {
			return
		}
	}
}

// fill reads one chunk into c.
func (x *passer) fill(ctx context.Context, c *chunk, table string, after [][]byte) (err error) {
	c.text, c.fields, c.rows = c.text[:0], c.fields[:0], 0
	if c.commit, err = x.sight(ctx); err != nil {
		return err
	}
	if c.commit.position.Epoch != x.pass.Epoch {
		return errPassVoid
	}
	request := ChunkRequest{Table: table, After: after, Limit: x.o.Chunk, Seen: c.commit.position, Waits: x.waits}
	c.last, c.done, err = x.source.ReadChunk(ctx, request, func(row *Change) error {
		c.table = row.Table
		for _, v := range row.New {
			c.text = append(c.text, v.Text...)
			c.fields = append(c.fields, chunkField{len(c.text), v.State})
		}
		c.rows++
		return nil
	})
	if c.last == nil {
		c.last = after
	}
	return err
}

// send makes the events of a chunk's rows.
func (x *passer) send(ctx context.Context, t *PassedTable, c *chunk) (flight, error) {
	if err := x.yield(ctx); err != nil {
		return flight{}, err
	}
	row := Change{Op: OpRead, Table: c.table, New: make([]Value, len(c.table.Columns))}
	start, fields := 0, c.fields
	for range c.rows {
		for k := range row.New {
			f := fields[k]
			row.New[k] = Value{State: f.state}
			if f.state == Present {
				row.New[k].Text = c.text[start:f.end:f.end]
			}
			start = f.end
		}
		fields = fields[len(row.New):]
		if err := x.row(ctx, c.commit, &row); err != nil {
			return flight{}, err
		}
	}
	after, err := x.sealedKey(t, c.last)
	if err != nil {
		return flight{}, fmt.Errorf("sealing how far the pass is: %w", err)
	}
	x.s.p.totals.passRows.Add(uint64(c.rows)) //nolint:gosec // a count
	return flight{note: x.s.note(), rows: c.rows, after: after}, nil
}

// land waits until a chunk is acknowledged, and notes it in the pass.
func (x *passer) land(ctx context.Context, i int, f flight) error {
	if err := x.acknowledged(ctx, f.note); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_chunk")
	x.change(func(p *Pass) {
		t := &p.Tables[i]
		t.Rows += uint64(f.rows) //nolint:gosec // a count
		t.After, p.Waiting = f.after, ""
	})
	return nil
}
