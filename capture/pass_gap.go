package capture

import (
	"context"
	"fmt"
	"slices"
	"time"

	"lethe/internal/crashpoint"
	"lethe/schema"
)

// gapIDs are the gaps of the checkpoint.
func (p *Pipeline) gapIDs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make([]string, 0, len(p.status.Gaps))
	for _, g := range p.status.Gaps {
		ids = append(ids, g.ID)
	}
	return ids
}

// closeGaps closes the gaps that the pass was asked for. Each of them was open and resumed when the pass began, and the pass
// has shown everything that there is: what the log lacks is made good. The events come behind the end marker in every
// partition, and the checkpoint forgets a gap only when they are acknowledged: a kill in between tells of it once more.
func (x *passer) closeGaps(ctx context.Context, at seenCommit) error {
	x.mu.Lock()
	p := x.pass.clone()
	x.mu.Unlock()
	if len(p.Request.Gaps) == 0 || !p.Full {
		return nil
	}
	var drafts []Draft
	var closed []string
	for _, g := range x.s.p.Status().Gaps {
		if !slices.Contains(p.Request.Gaps, g.ID) || !slices.Contains(p.Gaps, g.ID) || g.Blocks() {
			continue
		}
		closed = append(closed, g.ID)
		drafts = append(drafts, Draft{Rule: "gap.closed", PK: []byte(g.ID), Body: &schema.Gap{GapID: g.ID, From: g.From, Cause: g.Cause}})
	}
	if len(drafts) == 0 {
		return nil
	}
	if err := x.publish(ctx, at, drafts...); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_gap_closed")
	if err := x.s.forgetGaps(ctx, closed); err != nil {
		return err
	}
	crashpoint.Hit("pass.after_gap_forgotten")
	x.change(func(p *Pass) { p.Closed = append(p.Closed, closed...) })
	return nil
}

// forgetGaps takes gaps out of the checkpoint without moving its position.
func (s *session) forgetGaps(ctx context.Context, ids []string) error {
	select {
	case s.saving <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.saving }()
	next := s.current
	next.Gaps = slices.DeleteFunc(slices.Clone(s.current.Gaps), func(g OpenGap) bool { return slices.Contains(ids, g.ID) })
	next.WrittenAt = time.Now().UTC()
	if err := s.p.o.Checkpoints.Save(ctx, &next); err != nil {
		return fmt.Errorf("taking closed gaps out of the checkpoint: %w", err)
	}
	s.current = next
	s.p.update(func(st *Status) { st.Gaps = next.Gaps })
	return nil
}
