package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"lethe/capture"
)

// passDocument is the JSON form of a pass. It holds names of tables and counts; the key of a row only sealed.
type passDocument struct {
	Version     int             `json:"version"`
	Source      string          `json:"source"`
	Request     requestDocument `json:"request"`
	RunID       string          `json:"run_id"`
	State       string          `json:"state"`
	Incarnation uint32          `json:"incarnation"`
	Epoch       uint32          `json:"epoch,omitempty"`
	Gaps        []string        `json:"gaps,omitempty"`
	Tables      []tableDocument `json:"tables,omitempty"`
	Full        bool            `json:"full,omitempty"`
	Ordinal     uint32          `json:"ordinal,omitempty"`
	Restarts    uint32          `json:"restarts,omitempty"`
	StartedAt   time.Time       `json:"started_at,omitzero"`
	UpdatedAt   time.Time       `json:"updated_at,omitzero"`
	EndedAt     time.Time       `json:"ended_at,omitzero"`
	Waiting     string          `json:"waiting,omitempty"`
	Closed      []string        `json:"gaps_closed,omitempty"`
	LastFull    *fullDocument   `json:"last_full,omitempty"`
}

type requestDocument struct {
	Version     int       `json:"version"`
	ID          string    `json:"id"`
	Tables      []string  `json:"tables,omitempty"`
	Replicas    []string  `json:"replicas,omitempty"`
	Gaps        []string  `json:"gaps,omitempty"`
	Cause       string    `json:"cause"`
	RequestedAt time.Time `json:"requested_at"`
	Cancelled   bool      `json:"cancelled,omitempty"`
}

type tableDocument struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Cause    string `json:"cause,omitempty"`
	Hint     string `json:"hint,omitempty"`
	Rows     uint64 `json:"rows,string,omitempty"`
	Estimate int64  `json:"estimate,string,omitempty"`
	Restarts uint32 `json:"restarts,omitempty"`
	Walk     string `json:"walk,omitempty"`
	After    []byte `json:"after,omitempty"`
}

type fullDocument struct {
	RunID     string    `json:"run_id"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
	Tables    []string  `json:"tables,omitempty"`
	Replicas  []string  `json:"replicas,omitempty"`
}

func encodePass(p *capture.Pass) ([]byte, error) {
	d := passDocument{
		Version: version, Source: p.Source, Request: requestForm(&p.Request), RunID: p.RunID, State: string(p.State),
		Incarnation: p.Incarnation, Epoch: p.Epoch, Gaps: p.Gaps, Full: p.Full, Ordinal: p.Ordinal, Restarts: p.Restarts,
		StartedAt: utc(p.StartedAt), UpdatedAt: utc(p.UpdatedAt), EndedAt: utc(p.EndedAt), Waiting: p.Waiting, Closed: p.Closed,
	}
	for _, t := range p.Tables {
		d.Tables = append(d.Tables, tableDocument{
			Name: t.Name, State: string(t.State), Cause: t.Cause, Hint: t.Hint, Rows: t.Rows, Estimate: t.Estimate,
			Restarts: t.Restarts, Walk: t.Walk, After: t.After,
		})
	}
	if f := p.LastFull; f.RunID != "" {
		d.LastFull = &fullDocument{RunID: f.RunID, StartedAt: utc(f.StartedAt), EndedAt: utc(f.EndedAt), Tables: f.Tables, Replicas: f.Replicas}
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding a pass: %w", err)
	}
	return b, nil
}

func decodePass(source string, b []byte) (*capture.Pass, error) {
	var d passDocument
	if err := decodeStrictly(b, &d); err != nil {
		return nil, err
	}
	if d.Source != source {
		return nil, errSource
	}
	if d.RunID == "" || d.Incarnation == 0 {
		return nil, fmt.Errorf("%w: a pass without a run", errForm)
	}
	p := &capture.Pass{
		Source: d.Source, Request: *d.Request.request(), RunID: d.RunID, State: capture.PassState(d.State),
		Incarnation: d.Incarnation, Epoch: d.Epoch, Gaps: d.Gaps, Full: d.Full, Ordinal: d.Ordinal, Restarts: d.Restarts,
		StartedAt: d.StartedAt, UpdatedAt: d.UpdatedAt, EndedAt: d.EndedAt, Waiting: d.Waiting, Closed: d.Closed,
	}
	for _, t := range d.Tables {
		p.Tables = append(p.Tables, capture.PassedTable{
			Name: t.Name, State: capture.TableState(t.State), Cause: t.Cause, Hint: t.Hint, Rows: t.Rows, Estimate: t.Estimate,
			Restarts: t.Restarts, Walk: t.Walk, After: t.After,
		})
	}
	if f := d.LastFull; f != nil {
		p.LastFull = capture.FullPass{RunID: f.RunID, StartedAt: f.StartedAt, EndedAt: f.EndedAt, Tables: f.Tables, Replicas: f.Replicas}
	}
	return p, nil
}

func requestForm(r *capture.PassRequest) requestDocument {
	return requestDocument{
		Version: version, ID: r.ID, Tables: r.Tables, Replicas: r.Replicas, Gaps: r.Gaps, Cause: r.Cause,
		RequestedAt: utc(r.RequestedAt), Cancelled: r.Cancelled,
	}
}

func (d *requestDocument) request() *capture.PassRequest {
	return &capture.PassRequest{
		ID: d.ID, Tables: d.Tables, Replicas: d.Replicas, Gaps: d.Gaps, Cause: d.Cause, RequestedAt: d.RequestedAt, Cancelled: d.Cancelled,
	}
}

func encodeRequest(r *capture.PassRequest) ([]byte, error) {
	b, err := json.Marshal(requestForm(r))
	if err != nil {
		return nil, fmt.Errorf("encoding a request for a pass: %w", err)
	}
	return b, nil
}

func decodeRequest(b []byte) (*capture.PassRequest, error) {
	var d requestDocument
	if err := decodeStrictly(b, &d); err != nil {
		return nil, err
	}
	return d.request(), nil
}

// decodeStrictly refuses another version before it looks at what that may have added.
func decodeStrictly(b []byte, into any) error {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return errForm
	}
	if head.Version != version {
		return fmt.Errorf("%w: %d, this Lethe knows %d", errVersion, head.Version, version)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return errForm
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errForm
	}
	return nil
}
