package sinks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"lethe/internal/crashpoint"
	"lethe/schema"
)

// applyPending applies everything that was admitted.
func (s *session) applyPending(ctx context.Context) error {
	recs := s.pending
	slices.SortStableFunc(recs, func(a, b Record) int { return int(a.Partition) - int(b.Partition) })
	if err := s.applyRange(ctx, recs); err != nil {
		return err
	}
	clear(recs)
	s.pending, s.work, s.lastCommit = recs[:0], false, time.Now()
	for _, p := range s.parts {
		p.oldest = time.Time{}
		if p.state == PartitionRestored && p.place.NextOffset >= p.bounds.Hinted {
			p.state = PartitionRunning
			s.w.log.Info().Int32("partition", p.place.Partition).Msg("the restored replica has caught up with what it had committed")
		}
	}
	return nil
}

// applyRange applies records by partition, then offset. Ranges that follow each other keep the order of each partition,
// so a range may be cut anywhere: at records that could not be decoded, and in halves around a poison event.
func (s *session) applyRange(ctx context.Context, recs []Record) error {
	for i := range recs {
		if recs[i].Event != nil {
			continue
		}
		if err := s.applyRange(ctx, recs[:i]); err != nil {
			return err
		}
		if err := s.putAside(ctx, &recs[i]); err != nil {
			return err
		}
		return s.applyRange(ctx, recs[i+1:])
	}
	err := s.applyBatch(ctx, recs)
	if Classify(err) != Poison {
		return err
	}
	if recs = s.todo(recs); len(recs) == 1 {
		return s.park(ctx, &recs[0], CodeOf(err))
	}
	half := len(recs) / 2
	if err := s.applyRange(ctx, recs[:half]); err != nil {
		return err
	}
	return s.applyRange(ctx, recs[half:])
}

// putAside parks a record that could not be decoded. Where it is this process that lacks the key, and not the record that is
// damaged, its partition stops instead: everything that follows would be parked too, prohibitions with it, and each would
// have to be replayed by hand. After a restart with the key it is read as if nothing had been.
func (s *session) putAside(ctx context.Context, r *Record) error {
	if errors.Is(r.Err, schema.ErrUnknownKey) && s.parts[r.Partition].wants(r.Offset) {
		s.stopPartition(r.Partition, r.Offset, PartitionStopped, "unknown_key", schema.ErrUnknownKey.Error())
		return nil
	}
	return s.park(ctx, r, "undecodable")
}

// todo returns those of recs that are not applied yet and are to be. It does not change recs.
func (s *session) todo(recs []Record) []Record {
	keep := func(r *Record) bool { return s.parts[r.Partition].wants(r.Offset) }
	for i := range recs {
		if keep(&recs[i]) {
			continue
		}
		left := slices.Clone(recs[:i])
		for j := i + 1; j < len(recs); j++ {
			if keep(&recs[j]) {
				left = append(left, recs[j])
			}
		}
		return left
	}
	return recs
}

// applyBatch brings one batch into the replica, however often it takes. It returns nil when every record is behind the
// places, a Poison error when the replica refuses the batch as it is, and ends with the generation.
func (s *session) applyBatch(ctx context.Context, recs []Record) error {
	return s.persist(ctx, "applying batch", func(ctx context.Context) error {
		if recs = s.todo(recs); len(recs) == 0 {
			return nil
		}
		b := &Batch{From: s.from(recs), Records: recs}
		began := time.Now()
		out, err := s.w.o.Replica.Apply(ctx, b)
		if err != nil {
			return err
		}
		crashpoint.Hit("sink.after_apply")
		s.w.metrics.applied(&out, len(recs), time.Since(began))
		return s.advance(recs, out.Places)
	})
}

// from returns the places in front of recs.
func (s *session) from(recs []Record) []Place {
	var places []Place
	for i := range recs {
		if i == 0 || recs[i].Partition != recs[i-1].Partition {
			places = append(places, s.parts[recs[i].Partition].place)
		}
	}
	return places
}

// advance takes over the places after a commit, tells them to Kafka, and wakes what the batch may have given work to.
func (s *session) advance(recs []Record, places []Place) error {
	for i := range recs {
		last := i+1 == len(recs) || recs[i+1].Partition != recs[i].Partition
		if !last {
			continue
		}
		j := slices.IndexFunc(places, func(p Place) bool { return p.Partition == recs[i].Partition })
		if j < 0 || places[j].NextOffset != recs[i].Offset+1 {
			return &Error{
				Class: Fenced, Op: "applying batch", Code: "place_unexpected",
				Err: fmt.Errorf("partition %d did not come to offset %d", recs[i].Partition, recs[i].Offset+1),
			}
		}
		s.parts[recs[i].Partition].place = places[j]
	}
	s.g.Committed(places)
	if slices.ContainsFunc(recs, func(r Record) bool { return wakesChores(&r) }) {
		s.nextChore = time.Now()
	}
	s.wakeOutbox()
	return nil
}

// wakesChores reports whether something may be due at once after this record: phase 2 without a cool-off, a verification.
func wakesChores(r *Record) bool {
	if r.Event == nil {
		return true
	}
	if body, ok := r.Event.Body.(*schema.SourceReport); ok && body.Aspect == schema.AspectPresent {
		return false // a pass has as many as there are people
	}
	switch r.Event.Body.Type() {
	case schema.TypeHeartbeat, schema.TypeConsentChange, schema.TypeContactPoint:
		return false
	case schema.TypeSubjectErasure, schema.TypeCaseDecision, schema.TypeObjection, schema.TypeProcessingRestriction,
		schema.TypeSubjectMerged, schema.TypeGap, schema.TypePassMarker, schema.TypeSourceReport:
	}
	return true
}

func speaksOfSubject(r *Record) bool {
	_, err := schema.ParseSubjectRef(string(r.Key))
	return err == nil
}

// park puts one event aside and goes on behind it. Its subject is blocked: its prohibitions pass, its permissions wait.
// Without a key there is no subject to block, and nobody would ever learn what is missing: the partition stops.
func (s *session) park(ctx context.Context, r *Record, code string) error {
	if !s.parts[r.Partition].wants(r.Offset) {
		return nil
	}
	if !speaksOfSubject(r) {
		s.stopPartition(r.Partition, r.Offset, PartitionStopped, "poison_without_subject",
			fmt.Sprintf("the record at offset %d belongs to no subject and cannot be applied (%s): check the keys directory and the "+
				"versions of capture and sink, then restart this sink", r.Offset, code))
		return nil
	}
	return s.persist(ctx, "parking event", func(ctx context.Context) error {
		p := s.parts[r.Partition]
		if p.place.NextOffset > r.Offset {
			return nil
		}
		place, err := s.w.o.Replica.Park(ctx, p.place, r, code)
		if err != nil {
			if Classify(err) == Poison {
				// It cannot be put aside either: nothing but a person helps.
				return &Error{Class: Permanent, Op: "parking event", Code: CodeOf(err), Hint: HintOf(err), Err: err}
			}
			return err
		}
		s.w.metrics.outcomes.WithLabelValues("parked").Inc()
		s.w.log.Error().Int32("partition", r.Partition).Int64("offset", r.Offset).Str("code", code).
			Msg("event parked and its subject blocked: `lethe dead-letters list` shows it")
		return s.advance([]Record{*r}, []Place{place})
	})
}

// persist runs op until it succeeds, fails with Poison or Fenced, or the generation ends. Between two tries the places are
// read again. op runs under the finishing context, so that what was begun may end.
func (s *session) persist(ctx context.Context, doing string, op func(context.Context) error) error {
	r := newRetry(&s.w.o)
	taken := len(s.parts) > 0
	troubled := false
	for {
		answered := s.w.asks(s.w.o.Silence)
		err := op(s.finish) //nolint:contextcheck // what was begun outlives ctx, within StopTimeout
		answered()
		if err == nil {
			if troubled {
				s.stoodStill()
				s.w.log.Info().Str("op", doing).Msg("replica works again")
				s.w.setState(StateRunning, "", "")
			}
			return nil
		}
		for {
			class := Classify(err)
			s.w.metrics.results.WithLabelValues(class.String()).Inc()
			if class == Poison || class == Fenced {
				return err
			}
			if ctx.Err() != nil {
				return errors.Join(errOver, ctx.Err())
			}
			troubled = true
			wait := r.next(class)
			if CodeOf(err) == CodePaused {
				wait = s.w.o.PauseCheck
			}
			s.trouble(doing, err, wait)
			if !pause(ctx, wait) {
				return errOver
			}
			if !taken {
				break
			}
			if err = s.reread(s.finish); err == nil { //nolint:contextcheck // as above
				break
			}
		}
	}
}

// trouble makes an error visible at every try, in the log and in Status.
func (s *session) trouble(doing string, err error, wait time.Duration) {
	class := Classify(err)
	state := StateRetrying
	level := zerolog.WarnLevel
	switch {
	case CodeOf(err) == CodePaused:
		state = StatePaused
	case class == Permanent:
		state, level = StateHalted, zerolog.ErrorLevel
	}
	s.w.log.WithLevel(level).Str("op", doing).Str("class", class.String()).Str("code", CodeOf(err)).Str("hint", HintOf(err)).Dur("retry_in", wait).
		Msg("replica refuses work")
	s.w.setState(state, CodeOf(err), HintOf(err))
	s.publishStatus()
}
