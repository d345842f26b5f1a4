package sinks

import (
	"context"
	"fmt"
)

// take reads the places of the generation's partitions, opens the log there and compares the two. A partition whose log
// does not continue its place is in a gap from the start.
func (s *session) take(ctx context.Context) error {
	var places []Place
	err := s.persist(ctx, "reading places", func(ctx context.Context) (err error) {
		places, err = s.w.o.Replica.Assign(ctx, s.order)
		return err
	})
	if err != nil {
		return err
	}
	var bounds []Bounds
	err = s.persist(ctx, "opening partitions", func(context.Context) (err error) {
		bounds, err = s.g.Open(ctx, places)
		return err
	})
	if err != nil {
		return err
	}
	if len(bounds) != len(places) {
		return fmt.Errorf("opening %d partitions gave %d: %w", len(places), len(bounds), errOver)
	}
	for i, pl := range places {
		p := &part{place: pl, seen: pl.NextOffset, bounds: bounds[i], state: PartitionRunning}
		s.parts[pl.Partition] = p
		if pl.NextOffset == 0 && bounds[i].Hinted <= 0 {
			p.seen = bounds[i].Start // nothing was ever applied: a new replica begins where the log does
		}
		switch cause, hint := continues(pl, bounds[i]); {
		case cause != "":
			s.stopPartition(pl.Partition, pl.NextOffset, PartitionGap, cause, hint)
		case pl.NextOffset < bounds[i].Hinted:
			p.state = PartitionRestored
			s.w.log.Warn().Int32("partition", pl.Partition).Int64("next_offset", pl.NextOffset).Int64("hinted", bounds[i].Hinted).
				Msg("the replica is behind what it had committed: it was restored; everything since is applied again before it counts")
		}
	}
	s.w.log.Info().Ints32("partitions", s.order).Msg("partitions taken")
	s.publishStatus()
	return nil
}

// continues reports why the log does not continue a place; an empty cause: it does.
//
// Each check catches a loss that kafka-go would pass over in silence: retention (or DeleteRecords) moved the start beyond
// the place; the topic was made anew, or its leader lost records, and is shorter than the place; it was made anew and has
// grown beyond the place since, which only the event in front of it tells.
func continues(pl Place, b Bounds) (cause, hint string) {
	known := pl.NextOffset > 0 || b.Hinted > 0
	switch {
	case known && b.Start > pl.NextOffset:
		return "retention_passed", fmt.Sprintf("the log starts at offset %d, this replica needs %d: %s", b.Start, pl.NextOffset, gapHint(nil))
	case b.End < pl.NextOffset, b.End < b.Hinted:
		return "log_shorter", fmt.Sprintf("the log ends at offset %d, this replica is at %d: the topic was made anew or lost records: %s",
			b.End, max(pl.NextOffset, b.Hinted), gapHint(nil))
	case b.Before == nil || b.Before.Event == nil || pl.LastEventID == [16]byte{}:
		return "", "" // nothing to compare with: expired, or parked because it could not be decoded
	case b.Before.Offset != pl.NextOffset-1 || b.Before.Event.EventID != pl.LastEventID:
		return "topic_recreated", "the record in front of this replica's place is another one than it has applied: the topic was made anew: " + gapHint(nil)
	}
	return "", ""
}

// reread asks the replica where it stands, after an error that may have hidden a commit. Records that turn out to be
// applied are dropped by todo. It fails with ErrFenced when the places are where only another worker can have brought them,
// or back where a restore has put them.
func (s *session) reread(ctx context.Context) error {
	places, err := s.w.o.Replica.Assign(ctx, s.order)
	if err != nil {
		return err
	}
	for _, pl := range places {
		p := s.parts[pl.Partition]
		switch {
		case p == nil || pl.NextOffset == p.place.NextOffset:
		case pl.NextOffset < p.place.NextOffset || pl.NextOffset > p.seen:
			return &Error{Class: Fenced, Op: "reading places", Code: "place_moved", Err: ErrFenced}
		default:
			p.place = pl
		}
	}
	return nil
}
