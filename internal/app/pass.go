package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lethe/capture"
	"lethe/capture/checkpoint"
	"lethe/config"
	"lethe/internal/kafkaconn"
)

// passTables are the tables that a pass reads: the subjects' first, so that who is erased is known before what else is said
// of them. optional are those of them that not every installation has.
func passTables(cfg *config.Config) (tables, optional []string, err error) {
	needs, err := sourceNeeds(&cfg.Source)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		n := needs[name]
		if !n.ReadsRows {
			continue
		}
		tables = append(tables, name)
		if n.optional {
			optional = append(optional, name)
		}
	}
	own := cfg.Source.Subject.Table
	slices.SortStableFunc(tables, func(a, b string) int {
		return cmp.Compare(truth(b == own), truth(a == own))
	})
	return tables, optional, nil
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// PassInfo is a pass as it stands in the topic of the checkpoints. Nothing in it is personal.
type PassInfo struct {
	RunID     string          `json:"run_id"`
	RequestID string          `json:"request_id"`
	Cause     string          `json:"cause"`
	State     string          `json:"state"`
	Full      bool            `json:"full"` // it reads every table that rules read
	Rows      uint64          `json:"rows"`
	Estimate  int64           `json:"rows_estimate"` // -1: unknown
	Tables    []PassTableInfo `json:"tables"`
	Replicas  []string        `json:"replicas,omitempty"` // none: all
	Waiting   string          `json:"waiting_for,omitempty"`
	Restarts  uint32          `json:"restarts,omitempty"`
	Closes    []string        `json:"closes_gaps,omitempty"`
	Closed    []string        `json:"gaps_closed,omitempty"`
	StartedAt time.Time       `json:"started_at"`
	UpdatedAt time.Time       `json:"updated_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	LastFull  time.Time       `json:"last_full_ended_at,omitzero"`
	Live      bool            `json:"running"`
}

// PassTableInfo is one table of a pass.
type PassTableInfo struct {
	Name     string `json:"table"`
	State    string `json:"state"`
	Rows     uint64 `json:"rows"`
	Estimate int64  `json:"rows_estimate"`
	Cause    string `json:"cause,omitempty"`
	Hint     string `json:"hint,omitempty"`
}

// PassRequestInfo is a request that no pass has answered yet.
type PassRequestInfo struct {
	ID          string    `json:"id"`
	Cause       string    `json:"cause"`
	Tables      []string  `json:"tables,omitempty"`   // none: every table
	Replicas    []string  `json:"replicas,omitempty"` // none: all
	Gaps        []string  `json:"closes_gaps,omitempty"`
	RequestedAt time.Time `json:"requested_at"`
	Cancelled   bool      `json:"cancelled,omitempty"`
}

// PassReport is what is known of passes: the one that is being made, or was last, and what waits behind it.
type PassReport struct {
	Pass    *PassInfo         `json:"pass,omitempty"`
	Waiting []PassRequestInfo `json:"waiting"`
}

func passReport(book *capture.PassBook) *PassReport {
	r := &PassReport{Waiting: []PassRequestInfo{}}
	if p := book.Pass; p != nil {
		rows, estimate := p.Rows()
		r.Pass = &PassInfo{
			RunID: p.RunID, RequestID: p.Request.ID, Cause: p.Request.Cause, State: string(p.State), Full: p.Full, Rows: rows, Estimate: estimate,
			Replicas: p.Request.Replicas, Waiting: p.Waiting, Restarts: p.Restarts, Closes: p.Request.Gaps, Closed: p.Closed,
			StartedAt: p.StartedAt, UpdatedAt: p.UpdatedAt, EndedAt: p.EndedAt, LastFull: p.LastFull.EndedAt, Live: p.Live(),
			Tables: []PassTableInfo{},
		}
		for _, t := range p.Tables {
			r.Pass.Tables = append(r.Pass.Tables, PassTableInfo{
				Name: t.Name, State: string(t.State), Rows: t.Rows, Estimate: t.Estimate, Cause: t.Cause, Hint: t.Hint,
			})
		}
	}
	for _, q := range book.Requests {
		if book.Pass != nil && book.Pass.Request.ID == q.ID {
			continue // the pass shows it
		}
		r.Waiting = append(r.Waiting, PassRequestInfo{
			ID: q.ID, Cause: q.Cause, Tables: q.Tables, Replicas: q.Replicas, Gaps: q.Gaps, RequestedAt: q.RequestedAt, Cancelled: q.Cancelled,
		})
	}
	return r
}

// PassDesk asks for passes and tells how far they are, without asking any process. Close it.
type PassDesk struct {
	cfg    *config.Config
	conn   *kafkaconn.Conn
	passes *checkpoint.Passes
}

// OpenPasses connects to Kafka.
func OpenPasses(ctx context.Context, cfg *config.Config) (*PassDesk, error) {
	conn, err := connectKafka(cfg)
	if err != nil {
		return nil, err
	}
	if err := conn.CheckConnect(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return &PassDesk{cfg: cfg, conn: conn, passes: checkpoint.NewPasses(checkpoint.Options{Conn: conn, Source: cfg.Name})}, nil
}

// Close closes the connections.
func (d *PassDesk) Close() { d.conn.Close() }

func (d *PassDesk) load(ctx context.Context) (book *capture.PassBook, err error) {
	err = settled(ctx, func() error {
		book, err = d.passes.Load(ctx)
		return err
	})
	return book, err
}

// Report tells how far passes are. It may be called again and again.
func (d *PassDesk) Report(ctx context.Context) (*PassReport, error) {
	book, err := d.load(ctx)
	if err != nil {
		return nil, err
	}
	return passReport(book), nil
}

// Ask asks for a pass over some tables, or every one, for some replicas, or all; capture takes it up within seconds, or when
// it starts. It returns the request's id.
func (d *PassDesk) Ask(ctx context.Context, tables, replicas []string) (string, error) {
	known, _, err := passTables(d.cfg)
	if err != nil {
		return "", err
	}
	for _, t := range tables {
		if !slices.Contains(known, t) {
			return "", &UsageError{fmt.Errorf("no rule reads rows of table %q; those that rules read are %s", t, strings.Join(known, ", "))}
		}
	}
	for _, name := range replicas {
		if d.cfg.Replicas[name] == nil {
			return "", &UsageError{fmt.Errorf("the config has no replica %q", name)}
		}
	}
	return d.ask(ctx, capture.PassRequest{Tables: tables, Replicas: replicas, Cause: capture.PassAsked})
}

func (d *PassDesk) ask(ctx context.Context, r capture.PassRequest) (string, error) {
	r.ID, r.RequestedAt = strings.ToLower(rand.Text()[:12]), time.Now().UTC()
	if err := d.passes.Ask(ctx, r); err != nil {
		return "", err
	}
	return r.ID, nil
}

// Cancel takes a request back; empty: of the pass that is being made. What it has published stays published.
func (d *PassDesk) Cancel(ctx context.Context, id string) (string, error) {
	book, err := d.load(ctx)
	if err != nil {
		return "", err
	}
	var found *capture.PassRequest
	if p := book.Pass; p.Live() && (id == "" || id == p.Request.ID || id == p.RunID) {
		found = &p.Request
	}
	for i := range book.Requests {
		if found == nil && id != "" && book.Requests[i].ID == id {
			found = &book.Requests[i]
		}
	}
	switch {
	case found == nil && id == "":
		return "", &UsageError{errors.New("no pass is being made; name a request that waits: `lethe snapshot status` lists them")}
	case found == nil:
		return "", &UsageError{fmt.Errorf("no pass and no request is called %q: `lethe snapshot status` lists them", id)}
	}
	r := *found
	r.Cancelled = true
	return r.ID, d.passes.Ask(ctx, r)
}

// CloseGaps asks for the pass that closes gaps: all that are open where none is named. A gap at which capture stands still has
// to be resumed first. It returns the request's id and the gaps.
func (d *PassDesk) CloseGaps(ctx context.Context, ids []string) (request string, gaps []string, err error) {
	c, err := loadCheckpoint(ctx, d.cfg, d.conn)
	if err != nil {
		return "", nil, err
	}
	var open []capture.OpenGap
	if c != nil {
		open = c.Gaps
	}
	for _, id := range ids {
		if !slices.ContainsFunc(open, func(g capture.OpenGap) bool { return g.ID == id }) {
			return "", nil, &UsageError{fmt.Errorf("capture knows no open gap %q: `lethe gap list` shows them", id)}
		}
	}
	for _, g := range open {
		if len(ids) > 0 && !slices.Contains(ids, g.ID) {
			continue
		}
		if g.Blocks() {
			return "", nil, &UsageError{fmt.Errorf("capture stands still at gap %s (%s): `lethe gap resume --accept-loss` first, then this again", g.ID, g.Cause)}
		}
		gaps = append(gaps, g.ID)
	}
	if len(gaps) == 0 {
		return "", nil, nil
	}
	if err := d.readable(ctx); err != nil {
		return "", nil, err
	}
	request, err = d.ask(ctx, capture.PassRequest{Gaps: gaps, Cause: capture.PassGap})
	return request, gaps, err
}

// readable looks whether a pass can read every table: only such a one closes a gap.
func (d *PassDesk) readable(ctx context.Context) error {
	tables, optional, err := passTables(d.cfg)
	if err != nil {
		return err
	}
	s, err := openSource(d.cfg)
	if err != nil {
		return err
	}
	defer func() {
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = s.Close(bound) // nothing of ours is in it
	}()
	reader, ok := capture.Source(s).(capture.Snapshotter)
	if !ok {
		return nil
	}
	var faults []error
	for _, t := range tables {
		_, err := reader.PassTable(ctx, t)
		var refused *capture.TableRefusedError
		switch {
		case errors.As(err, &refused) && refused.Cause == capture.RefusedMissing && slices.Contains(optional, t):
		case errors.As(err, &refused):
			faults = append(faults, err)
		case err != nil:
			return err
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("only a pass over every table closes a gap: %w", errors.Join(faults...))
	}
	return nil
}
