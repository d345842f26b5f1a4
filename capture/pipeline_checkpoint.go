package capture

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"lethe/internal/crashpoint"
	"lethe/schema"
)

// checkpoints writes what Kafka has acknowledged, at most once in CheckpointEvery. A failure is tried again at the next
// tick: publishing goes on meanwhile, only the source's log is held longer.
func (s *session) checkpoints(ctx context.Context) error {
	tick := time.NewTicker(s.p.o.CheckpointEvery)
	defer tick.Stop()
	healthy := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := s.saveAcked(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case IsPermanent(err), errors.Is(err, ErrSuperseded):
			return err
		case err != nil:
			s.p.totals.checkpointErrors.Add(1)
			if healthy {
				s.p.log.Warn().Err(err).Msg("checkpoint could not be written; tried again")
			}
		}
		healthy = err == nil
	}
}

// saveAcked writes the newest acknowledged commit, and only then tells the source, which may forget its log up to there.
func (s *session) saveAcked(ctx context.Context) error {
	select {
	case s.saving <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err() // one that is on its way may take longer than a stop has time
	}
	defer func() { <-s.saving }()
	s.ackMu.Lock()
	m, dirty := s.acked, s.dirty
	s.ackMu.Unlock()
	if !dirty {
		return nil
	}
	if s.reader != nil {
		if err := s.reader.flush(ctx); err != nil {
			return err
		}
	}
	next := s.current
	next.Source, next.Identity, next.Incarnation = s.p.o.Name, s.identity, s.incarnation
	next.Identity.Start = "" // from now on there is a position
	next.Position, next.XID, next.CommittedAt = m.position, m.xid, m.committedAt
	next.Gaps = mergeGaps(s.current.Gaps, m.gaps)
	next.WrittenAt = time.Now().UTC()
	if err := s.p.o.Checkpoints.Save(ctx, &next); err != nil {
		return fmt.Errorf("writing the checkpoint: %w", err)
	}
	crashpoint.Hit("capture.after_checkpoint")
	s.current = next
	s.ackMu.Lock()
	if s.acked.position == m.position {
		s.dirty, s.acked.gaps = false, nil
	}
	s.ackMu.Unlock()
	s.p.o.Source.Acknowledge(next.Position)
	crashpoint.Hit("capture.after_ack")
	s.p.update(func(st *Status) {
		st.Checkpoint, st.CheckpointAt, st.Gaps = next.Position, next.WrittenAt, next.Gaps
	})
	return nil
}

// KeepEpochs implements EpochKeeper: events of a new epoch leave only when the checkpoint knows it. It waits for a
// checkpoint that is on its way, and writes one more without moving the position.
func (s *session) KeepEpochs(epochs []Epoch) error {
	select {
	case s.saving <- struct{}{}:
	case <-s.work.Done():
		return s.work.Err()
	}
	defer func() { <-s.saving }()
	next := s.current
	next.Source, next.Identity, next.Incarnation = s.p.o.Name, s.identity, s.incarnation
	next.Epochs, next.WrittenAt = slices.Clone(epochs), time.Now().UTC()
	if err := s.p.o.Checkpoints.Save(s.work, &next); err != nil {
		return fmt.Errorf("writing a new epoch into the checkpoint: %w", err)
	}
	s.current = next
	crashpoint.Hit("capture.after_checkpoint")
	return nil
}

// startingPoint reads the checkpoint. The very first one is written before the first event: an events topic that holds
// something and no checkpoint therefore means that the checkpoint was lost.
func (p *Pipeline) startingPoint(ctx context.Context) (*Checkpoint, error) {
	c, err := p.o.Checkpoints.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the checkpoint: %w", err)
	}
	if c != nil {
		for _, g := range c.Gaps {
			if g.Blocks() {
				return nil, &GapError{Cause: g.Cause, Hint: resumeHint}
			}
		}
		return c, nil
	}
	_, written, err := p.o.Log.Newest(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking for earlier events: %w", err)
	}
	if written {
		return nil, &GapError{Cause: GapCheckpointLost, Hint: "the events topic has records and the checkpoints topic has none: " + resumeHint}
	}
	identity, err := p.o.Source.Identity(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking the source who it is: %w", err)
	}
	c = &Checkpoint{Source: p.o.Name, Identity: identity, Incarnation: 1, WrittenAt: time.Now().UTC()}
	if err := p.o.Checkpoints.Save(ctx, c); err != nil {
		return nil, fmt.Errorf("writing the first checkpoint: %w", err)
	}
	crashpoint.Hit("capture.after_first_checkpoint")
	p.log.Info().Msg("first start: checkpoint written")
	return c, nil
}

const resumeHint = "find out what was lost, then let capture go on with `lethe gap resume --accept-loss`"

// compareIdentity covers the checkpoint that has no position yet; with one the Source compares more closely itself. A
// checkpoint without a generation is older than its slot, so that nothing is lost.
func compareIdentity(c *Checkpoint, now Identity) error {
	then := c.Identity
	switch {
	case c.Position != (Position{}) || then.SlotGeneration == "" || then.Start != "":
		return nil
	case then.SystemID != now.SystemID:
		return &GapError{Cause: GapOtherSystem, Hint: "the source is another database system than before: " + resumeHint}
	case now.SlotGeneration == "":
		return &GapError{Cause: GapSlotMissing, Hint: "the replication slot is gone, and with it the log since it was made: make it again with " +
			"`lethe setup`; " + resumeHint}
	case then.Slot != now.Slot || then.SlotGeneration != now.SlotGeneration:
		return &GapError{Cause: GapSlotRecreated, Hint: "the replication slot is another one than before: " + resumeHint}
	}
	return nil
}

// standAtGap announces a gap to every partition and to the checkpoint, once, and returns when an operator has resumed it
// or ctx has ended.
func (p *Pipeline) standAtGap(ctx context.Context, gap *GapError) {
	p.setState(StateGap, gap.Cause, gap.Hint)
	blocks := OpenGap{Cause: gap.Cause}.Blocks()
	p.log.Error().Str("cause", gap.Cause).Str("hint", gap.Hint).Bool("capture_stands_still", blocks).Msg("gap in the source's log")
	retry := backoff.ExponentialBackOff{
		InitialInterval: firstRetry, RandomizationFactor: 0.2, Multiplier: 2, MaxInterval: longestWait,
	}
	retry.Reset()
	for {
		err := p.announce(ctx, gap)
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			p.log.Warn().Err(err).Msg("gap could not be announced; tried again")
		}
		if !sleep(ctx, retry.NextBackOff()) {
			return
		}
	}
	for blocks && sleep(ctx, p.o.ResumePoll) {
		c, err := p.o.Checkpoints.Load(ctx)
		if err == nil && c != nil && !standing(c) {
			p.log.Info().Uint32("incarnation", c.Incarnation).Msg("gap resumed by an operator")
			return
		}
	}
}

func standing(c *Checkpoint) bool {
	for _, g := range c.Gaps {
		if g.Blocks() {
			return true
		}
	}
	return false
}

// announce publishes the Gap event, then writes the checkpoint that holds the gap: a crash in between repeats the event
// with the same ids. A checkpoint that already stands at a gap needs nothing.
func (p *Pipeline) announce(ctx context.Context, gap *GapError) error {
	c, err := p.o.Checkpoints.Load(ctx)
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	if c == nil {
		newest, _, err := p.o.Log.Newest(ctx)
		if err != nil {
			return fmt.Errorf("looking for earlier events: %w", err)
		}
		c = &Checkpoint{Source: p.o.Name, Incarnation: max(newest.Incarnation(), 1)}
	}
	if standing(c) {
		p.update(func(st *Status) { st.Gaps, st.Incarnation = c.Gaps, c.Incarnation })
		return nil
	}
	id := p.nameGap(gap, c.Incarnation, c.Position)
	if slices.ContainsFunc(c.Gaps, func(g OpenGap) bool { return g.ID == id }) {
		p.update(func(st *Status) { st.Gaps, st.Incarnation = c.Gaps, c.Incarnation })
		return nil
	}
	now := time.Now().UTC()
	from := schema.NewOrder(c.Incarnation, c.Position.Epoch, c.Position.Commit, math.MaxUint32)
	open := OpenGap{
		ID: id, Cause: gap.Cause, From: from, OpenedAt: now,
	}
	if err := p.publishGap(ctx, c, open); err != nil {
		return err
	}
	crashpoint.Hit("capture.after_gap_event")
	next := *c
	next.Gaps = mergeGaps(c.Gaps, []OpenGap{open})
	next.WrittenAt = now
	if err := p.o.Checkpoints.Save(ctx, &next); err != nil {
		return fmt.Errorf("writing the gap into the checkpoint: %w", err)
	}
	p.update(func(st *Status) { st.Gaps, st.Incarnation = next.Gaps, next.Incarnation })
	return nil
}

func (p *Pipeline) publishGap(ctx context.Context, c *Checkpoint, open OpenGap) error {
	committed := c.CommittedAt
	if committed.IsZero() {
		committed = open.OpenedAt
	}
	rule := "gap." + open.Cause
	value, err := p.o.Encoder.Append(nil, &schema.Event{
		Header: schema.Header{
			EventID: p.o.IDs.EventID(schema.EventKey{
				Incarnation: c.Incarnation, Epoch: c.Position.Epoch, Number: c.Position.Commit,
				PK: []byte(open.ID), Op: uint8(OpMessage), Rule: rule,
			}),
			Order: open.From, Source: p.o.Name, CommittedAt: committed, DetectedAt: open.OpenedAt,
			Rule: rule, ConfigDigest: p.o.ConfigDigest,
		},
		Body: &schema.Gap{Opened: true, GapID: open.ID, From: open.From, Cause: open.Cause},
	})
	if err != nil {
		return fmt.Errorf("encoding the gap: %w", err)
	}
	if err := p.o.Publisher.Open(ctx); err != nil {
		return fmt.Errorf("opening the events topic: %w", err)
	}
	u := p.o.Publisher.NewUnit()
	if err := u.AppendAll(value); err != nil {
		return fmt.Errorf("adding the gap to a unit: %w", err)
	}
	if err := p.o.Publisher.Publish(ctx, u); err != nil {
		return fmt.Errorf("publishing the gap: %w", err)
	}
	p.totals.events[schema.TypeGap].Add(1)
	return nil
}

// Report tells of a gap that was found beside the stream, which does not know of it: a mapped table that was dropped, a
// publication that was edited. It is announced once, however often it is found, and capture goes on. Any goroutine may call
// it; it never blocks.
func (p *Pipeline) Report(gap *GapError) {
	if (OpenGap{Cause: gap.Cause}).Blocks() {
		return // the stream comes to that itself
	}
	st := p.Status()
	id := p.nameGap(gap, st.Incarnation, st.Checkpoint)
	if slices.ContainsFunc(st.Gaps, func(g OpenGap) bool { return g.ID == id }) {
		return
	}
	select {
	case p.reports <- gap:
	default: // one is enough to end the session; the next look finds the other again
	}
}

// nameGap names a gap. What Report is told of is the same gap wherever it is found.
func (p *Pipeline) nameGap(gap *GapError, incarnation uint32, at Position) string {
	if gap.Cause == GapDropped || gap.Cause == GapPublication {
		at = Position{}
	}
	return gapID(p.o.Name, incarnation, gap.Cause, at, gap.Object)
}

// gapID names a gap by what is the same at every start: no row is in it, so that it needs no key.
func gapID(source string, incarnation uint32, cause string, at Position, table string) string {
	h := sha256.Sum256(fmt.Appendf(nil, "lethe/gap/1\x00%s\x00%d\x00%s\x00%s\x00%s", source, incarnation, cause, at, table))
	return strings.ToLower(base32.StdEncoding.EncodeToString(h[:10]))
}

// Identifier is the part of a Source that ResumeGap needs.
type Identifier interface {
	Identity(ctx context.Context) (Identity, error)
}

// ResumeGap lets capture go on from where the slot stands although a part of the log is lost (`lethe gap resume`). The gap
// stays open until a pass has made good for it. The incarnation is raised, so that everything captured from now on is
// newer than what the lost history may have published. A running Pipeline sees it within Options.ResumePoll.
func ResumeGap(ctx context.Context, store Checkpoints, source Identifier) (*Checkpoint, error) {
	c, err := store.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the checkpoint: %w", err)
	}
	if c == nil || !standing(c) {
		return nil, fmt.Errorf("resuming the gap: capture does not stand at one; a gap that Lethe only noticed must be announced by `lethe run` first")
	}
	identity, err := source.Identity(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking the source who it is: %w", err)
	}
	if identity.SlotGeneration == "" {
		return nil, errors.New("resuming the gap: the source has no such slot: make it with `lethe setup`, then say this again")
	}
	next := *c
	next.Identity = identity
	next.Incarnation++
	next.Position, next.XID, next.Epochs = Position{}, 0, nil
	next.Gaps = append([]OpenGap(nil), c.Gaps...)
	for i := range next.Gaps {
		next.Gaps[i].Resumed = next.Gaps[i].Resumed || next.Gaps[i].Blocks()
	}
	next.WrittenAt = time.Now().UTC()
	if err := store.Save(ctx, &next); err != nil {
		return nil, fmt.Errorf("writing the checkpoint: %w", err)
	}
	return &next, nil
}
