package capture

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lethe/internal/crashpoint"
)

// newRunID names a run or a request. It is random: a run has nothing that another could be told from it by.
func newRunID() string { return strings.ToLower(rand.Text()[:16]) }

// filed reports whether somebody wrote the request; the schedule does not.
func (r *PassRequest) filed() bool { return r.Cause == PassAsked || r.Cause == PassGap }

// validate fills in the defaults.
func (o *PassOptions) validate() error {
	if o.Passes == nil {
		return nil
	}
	for _, part := range []struct {
		name    string
		missing bool
	}{{"Rules", o.Rules == nil}, {"Encoder", o.Encoder == nil}, {"Seal", o.Seal == nil}} {
		if part.missing {
			return fmt.Errorf("making the capture pipeline: Pass.%s is missing", part.name)
		}
	}
	if o.Chunk <= 0 {
		o.Chunk = 1000
	}
	if o.Parallel <= 0 {
		o.Parallel = 2
	}
	setDefault(&o.Poll, 5*time.Second)
	return nil
}

// takeUp finds what to do: the pass that was being made, the oldest request, or what the schedule asks for.
func (x *passer) takeUp(ctx context.Context, book *PassBook) (*Pass, error) {
	last := book.Pass
	x.ordinal = ordinalBehind(last)
	x.given.Store(x.ordinal)
	if last.Live() {
		p := last.clone()
		if i := slices.IndexFunc(book.Requests, func(r PassRequest) bool { return r.ID == p.Request.ID }); i >= 0 {
			p.Request.Cancelled = book.Requests[i].Cancelled
		}
		return p, nil
	}
	for _, r := range book.Requests {
		if r.Cancelled || last != nil && last.Request.ID == r.ID {
			if err := x.o.Passes.Answered(ctx, r.ID); err != nil {
				return nil, fmt.Errorf("taking a request for a pass away: %w", err)
			}
			continue
		}
		return x.file(ctx, r, last)
	}
	if cause := x.due(last); cause != "" {
		return x.file(ctx, PassRequest{ID: newRunID(), Cause: cause, RequestedAt: time.Now().UTC()}, last)
	}
	return nil, nil //nolint:nilnil // nothing is due
}

// ordinalBehind is the first ordinal that no pass has given.
func ordinalBehind(last *Pass) uint32 {
	if last == nil || last.Ordinal < firstPassOrdinal || last.Ordinal > 1<<32-1-2*resumedOrdinals {
		return firstPassOrdinal
	}
	return last.Ordinal + resumedOrdinals
}

// file makes the pass of a request, durably and before anything of it is published.
func (x *passer) file(ctx context.Context, r PassRequest, last *Pass) (*Pass, error) {
	p := &Pass{
		Source: x.s.p.o.Name, Request: r, RunID: newRunID(), State: PassBeginning, Incarnation: x.s.incarnation,
		StartedAt: time.Now().UTC(),
	}
	p.UpdatedAt = p.StartedAt
	if last != nil {
		p.LastFull, p.Ordinal = last.LastFull, last.Ordinal
	}
	if err := x.o.Passes.Save(ctx, p); err != nil {
		return nil, fmt.Errorf("writing a new pass: %w", err)
	}
	crashpoint.Hit("pass.after_filed")
	return p, nil
}

// due returns the cause for which the schedule asks for a pass over every table; empty: for none.
func (x *passer) due(last *Pass) string {
	if x.o.Every <= 0 || len(x.o.Tables) == 0 {
		return ""
	}
	if last == nil {
		return PassFirst
	}
	if (len(last.Refused()) > 0 || last.State == PassCancelled) && time.Since(last.StartedAt) < min(x.o.Every, retryFull) {
		return "" // one that a person has to see to is not repeated at once for ever
	}
	full := &last.LastFull
	missing := func(known []string) func(string) bool {
		return func(name string) bool { return !slices.Contains(known, name) }
	}
	switch {
	case full.RunID == "":
		return PassFirst
	case slices.ContainsFunc(x.o.Tables, missing(full.Tables)):
		return PassNewTable
	case slices.ContainsFunc(x.o.Replicas, missing(full.Replicas)):
		return PassNewReplica
	case time.Since(full.StartedAt) >= x.o.Every:
		return PassScheduled
	}
	return ""
}

// covered are the replicas that have been shown every table by now.
func (x *passer) covered(p *Pass) []string {
	if len(p.Request.Replicas) == 0 {
		return slices.Clone(x.o.Replicas)
	}
	list := append(slices.Clone(p.LastFull.Replicas), p.Request.Replicas...)
	slices.Sort(list)
	return slices.Compact(list)
}

// plan asks the source how each table of the pass is read.
func (x *passer) plan(ctx context.Context) ([]PassedTable, error) {
	names := x.pass.Request.Tables
	if len(names) == 0 {
		names = x.o.Tables
	}
	tables := make([]PassedTable, 0, len(names))
	for _, name := range names {
		t := PassedTable{Name: name, State: TableWaiting}
		if err := x.ask(ctx, &t); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// ask asks the source how a table is read. One that is refused is marked so; the error is one that may go away by itself.
func (x *passer) ask(ctx context.Context, t *PassedTable) error {
	how, err := x.source.PassTable(ctx, t.Name)
	var refused *TableRefusedError
	switch {
	case errors.As(err, &refused) && refused.Cause == RefusedMissing && slices.Contains(x.o.Optional, t.Name):
		t.State = TableDone // this installation does not have it
		return nil
	case errors.As(err, &refused):
		x.refuse(t, refused.Cause, refused.Hint)
		return nil
	case err != nil:
		return fmt.Errorf("asking how %s is read: %w", t.Name, err)
	}
	if t.Walk != how.Walk {
		t.After, t.Rows = nil, 0
	}
	t.Walk, t.Estimate = how.Walk, how.Rows
	return nil
}

func (x *passer) refuse(t *PassedTable, cause, hint string) {
	t.State, t.Cause, t.Hint = TableRefused, cause, hint
	x.s.p.log.Error().Str("table", t.Name).Str("cause", cause).Str("hint", hint).Msg("the pass goes on without a table")
}

// sealedKey hides the key of a row; name and walk of its table are bound to it.
func (x *passer) sealedKey(t *PassedTable, key [][]byte) ([]byte, error) {
	var plain []byte
	for _, v := range key {
		plain = binary.AppendUvarint(plain, uint64(len(v)))
		plain = append(plain, v...)
	}
	return x.o.Seal.AppendSeal(nil, plain, x.keyContext(t))
}

func (x *passer) keyContext(t *PassedTable) []byte {
	return fmt.Appendf(nil, "lethe/pass/1\x00%s\x00%s\x00%s", x.s.p.o.Name, t.Name, t.Walk)
}

// openKey returns nil for a key that cannot be read, for example because its seal key was retired: the table is read again
// from its start, which costs time only.
func (x *passer) openKey(t *PassedTable) [][]byte {
	if t.After == nil {
		return nil
	}
	plain, err := x.o.Seal.Open(t.After, x.keyContext(t))
	if err != nil {
		return nil
	}
	var key [][]byte
	for len(plain) > 0 {
		n, size := binary.Uvarint(plain)
		if size <= 0 || n > uint64(len(plain)-size) { //nolint:gosec // a size
			return nil
		}
		plain = plain[size:]
		key, plain = append(key, plain[:n:n]), plain[n:]
	}
	return key
}
