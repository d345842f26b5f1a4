package checkpoint

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"lethe/capture"
	"lethe/schema"
)

// version of the format. A reader refuses any other: a position that it does not understand is worse than none.
const version = 1

// document is the JSON form. It holds nothing of any row. Numbers of 64 bits are text, because other tools read the
// topic too, and JavaScript's numbers end at 2^53.
type document struct {
	Version     int       `json:"version"`
	Source      string    `json:"source"`
	SystemID    string    `json:"system_id,omitempty"`
	Timeline    uint32    `json:"timeline,omitempty"`
	Slot        string    `json:"slot,omitempty"`
	Generation  string    `json:"slot_generation,omitempty"`
	Start       string    `json:"start,omitempty"`
	Incarnation uint32    `json:"incarnation"`
	Epoch       uint32    `json:"epoch,omitempty"`
	Commit      uint64    `json:"commit,string,omitempty"`
	End         uint64    `json:"end,string,omitempty"`
	GTID        string    `json:"gtid,omitempty"`
	Before      string    `json:"gtid_before,omitempty"`
	XID         uint32    `json:"xid,omitempty"`
	CommittedAt time.Time `json:"committed_at,omitzero"`
	WrittenAt   time.Time `json:"written_at,omitzero"`
	Gaps        []gap     `json:"gaps,omitempty"`
	Epochs      []epoch   `json:"epochs,omitempty"`
}

type epoch struct {
	Number uint32 `json:"number"`
	Origin string `json:"origin"`
	From   uint64 `json:"from,string"`
}

type gap struct {
	ID       string    `json:"id"`
	Cause    string    `json:"cause"`
	From     string    `json:"from"` // the order, hexadecimal
	OpenedAt time.Time `json:"opened_at"`
	Resumed  bool      `json:"resumed,omitempty"`
}

func encode(c *capture.Checkpoint) ([]byte, error) {
	d := document{
		Version: version, Source: c.Source,
		SystemID: c.Identity.SystemID, Timeline: c.Identity.Epoch, Slot: c.Identity.Slot, Generation: c.Identity.SlotGeneration,
		Start:       c.Identity.Start,
		Incarnation: c.Incarnation, Epoch: c.Position.Epoch, Commit: c.Position.Commit, End: c.Position.End, GTID: c.Position.GTID,
		Before: c.Position.Before,
		XID:    c.XID, CommittedAt: utc(c.CommittedAt), WrittenAt: utc(c.WrittenAt),
	}
	for _, g := range c.Gaps {
		d.Gaps = append(d.Gaps, gap{
			ID: g.ID, Cause: g.Cause, From: hex.EncodeToString(g.From[:]), OpenedAt: utc(g.OpenedAt), Resumed: g.Resumed,
		})
	}
	for _, e := range c.Epochs {
		d.Epochs = append(d.Epochs, epoch(e))
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding the checkpoint: %w", err)
	}
	return b, nil
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

// The ways of being unreadable.
var (
	errVersion = errors.New("the checkpoint's version is not known")
	errSource  = errors.New("the checkpoint names another source than its key")
	errForm    = errors.New("the checkpoint is not in the expected form")
)

func decode(source string, b []byte) (*capture.Checkpoint, error) {
	var d document
	if err := decodeStrictly(b, &d); err != nil {
		return nil, err
	}
	if d.Source != source {
		return nil, errSource
	}
	if d.Incarnation == 0 {
		return nil, fmt.Errorf("%w: incarnation 0", errForm)
	}
	c := &capture.Checkpoint{
		Source:      d.Source,
		Identity:    capture.Identity{SystemID: d.SystemID, Epoch: d.Timeline, Slot: d.Slot, SlotGeneration: d.Generation, Start: d.Start},
		Incarnation: d.Incarnation,
		Position:    capture.Position{Epoch: d.Epoch, Commit: d.Commit, End: d.End, GTID: d.GTID, Before: d.Before},
		XID:         d.XID, CommittedAt: d.CommittedAt, WrittenAt: d.WrittenAt,
	}
	for _, g := range d.Gaps {
		open := capture.OpenGap{ID: g.ID, Cause: g.Cause, OpenedAt: g.OpenedAt, Resumed: g.Resumed}
		from, err := hex.DecodeString(g.From)
		if err != nil || len(from) != len(schema.Order{}) {
			return nil, fmt.Errorf("%w: a gap's order", errForm)
		}
		copy(open.From[:], from)
		c.Gaps = append(c.Gaps, open)
	}
	for _, e := range d.Epochs {
		c.Epochs = append(c.Epochs, capture.Epoch(e))
	}
	return c, nil
}

func clone(c *capture.Checkpoint) *capture.Checkpoint {
	d := *c
	d.Gaps, d.Epochs = slices.Clone(c.Gaps), slices.Clone(c.Epochs)
	return &d
}
