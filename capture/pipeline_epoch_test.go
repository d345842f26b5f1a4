package capture

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// epochSource is a world whose script changes its epoch before some transactions.
type epochSource struct {
	*world
	begins []int // indexes into the script
	seen   [][]Epoch
}

func (s *epochSource) Run(ctx context.Context, from *Checkpoint, h Handler) error {
	keeper, ok := h.(EpochKeeper)
	if !ok {
		return errors.New("the pipeline keeps no epochs")
	}
	var epochs []Epoch
	if from != nil {
		epochs = slices.Clone(from.Epochs)
	}
	s.seen = append(s.seen, slices.Clone(epochs))
	w := s.world
	w.mu.Lock()
	w.from = append(w.from, from)
	w.mu.Unlock()
	table := &Table{Name: "public.customer"}
	for i := range w.script {
		tx := w.script[i].tx
		if from != nil && tx.Position.End <= from.Position.End {
			continue
		}
		if n := slices.Index(s.begins, i); n >= 0 && len(epochs) <= n {
			epochs = append(epochs, Epoch{Number: uint32(n + 1), Origin: "u", From: tx.Position.Commit})
			if err := keeper.KeepEpochs(epochs); err != nil {
				return err
			}
			w.mu.Lock()
			if w.saved == nil || !slices.Equal(w.saved.Epochs, epochs) {
				w.problem("an epoch was kept and is not in the checkpoint")
			}
			w.mu.Unlock()
		}
		if err := h.Begin(&tx); err != nil {
			return err
		}
		if err := h.Change(&Change{Op: OpUpdate, Table: table, Message: []byte("s")}); err != nil {
			return err
		}
		if err := h.Commit(&tx); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// TestEpochsAreDurableBeforeTheirEvents: also when the checkpoint cannot be written at first, and no position has moved yet.
func TestEpochsAreDurableBeforeTheirEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 6 {
			w.add("s")
		}
		w.identity.Start = "place 1"
		w.saveErr = func(n int) error {
			if n == 2 {
				return errors.New("connection lost")
			}
			return nil
		}
		src := &epochSource{world: w, begins: []int{0, 3}}
		p := w.pipeline(func(o *Options) { o.Source = src })
		stop := w.run(p)
		w.until("the failed session is over", func() bool { return len(w.from) == 2 })
		w.mu.Lock()
		w.identity.Start = "place 2" // the log has gone on
		w.mu.Unlock()
		w.until("everything acknowledged", func() bool { return w.acked == w.last() })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if from := w.from[1]; from == nil || from.Identity.Start != "place 1" || from.Position != (Position{}) {
			t.Errorf("started again from %+v", from)
		}
		if len(src.seen[1]) != 0 {
			t.Errorf("an epoch that was not durable came back: %v", src.seen[1])
		}
		if n := len(w.saved.Epochs); n != 2 || w.saved.Identity.Start != "" {
			t.Errorf("the checkpoint is %+v", w.saved)
		}

		// A later process starts from the position with the epochs.
		p = w.pipeline(func(o *Options) { o.Source = src })
		stop = w.run(p)
		w.until("a third session", func() bool { return len(w.from) == 3 })
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if from := w.from[2]; from.Position != w.last() || len(from.Epochs) != 2 {
			t.Errorf("started from %+v", from)
		}
	})
}

// TestResumedGapStartsAnew: the place and the epochs of the history that was lost are of no use.
func TestResumedGapStartsAnew(t *testing.T) {
	w := newWorld(t)
	w.add("s")
	w.identity.Start = "now"
	w.saved = &Checkpoint{
		Source: "crm", Incarnation: 3, Position: w.last(), Identity: Identity{SystemID: "1", Start: "then"},
		Epochs: []Epoch{{Number: 2, Origin: "u", From: 1}}, Gaps: []OpenGap{{ID: "g", Cause: GapPurged}},
	}
	w.have = map[string]int{}
	c := *w.saved
	w.script = nil
	got, err := ResumeGap(t.Context(), w, w)
	if err != nil {
		t.Fatal(err)
	}
	if got.Position != (Position{}) || got.Identity.Start != "now" || got.Epochs != nil || got.Incarnation != c.Incarnation+1 || !got.Gaps[0].Resumed {
		t.Errorf("resumed at %+v", got)
	}
}

// TestGapsOfOneTableDoNotBlock is the list that Report and the operator rely on.
func TestGapsOfOneTableDoNotBlock(t *testing.T) {
	for _, cause := range []string{GapTruncate, GapDropped, GapStatement, GapXA} {
		if (OpenGap{Cause: cause}).Blocks() {
			t.Errorf("%s blocks", cause)
		}
	}
	for _, cause := range []string{GapPurged, GapHole, GapModeChanged, GapSecondDomain, GapIncident, GapRolledBack, GapForkedHistory} {
		if !(OpenGap{Cause: cause}).Blocks() {
			t.Errorf("%s does not block", cause)
		}
	}
}

func TestPositionsAreTold(t *testing.T) {
	for _, test := range []struct {
		p    Position
		want string
	}{
		{Position{Epoch: 2, Commit: 0x1_0000_000A}, "2:1/A"},
		{Position{Epoch: 2, Commit: 10, Before: "0-1-9"}, "2:10"},
		{Position{Epoch: 2, Commit: 10, Before: "0-1-9", GTID: "0-1-10"}, "0-1-10"},
	} {
		if got := test.p.String(); got != test.want {
			t.Errorf("%+v is told as %s", test.p, got)
		}
	}
}
