package capturetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"lethe/capture"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/testenv"
	"lethe/schema"
)

// system is everything around a Pipeline but the source: a topic, checkpoints and passes in memory. What is stored goes through
// bytes, as in Kafka.
type system struct {
	cfg         *config.Config
	keys        *testKeys
	topic       *topic
	checkpoints *checkpoints
	passes      *passes
	readbacks   *readbacks
}

func newSystem(tb testing.TB, text string) *system {
	tb.Helper()
	cfg, err := config.Parse([]byte(text), "capturetest.yaml")
	if err != nil {
		tb.Fatal(err)
	}
	keys, err := newTestKeys()
	if err != nil {
		tb.Fatal(err)
	}
	return &system{cfg: cfg, keys: keys, topic: &topic{}, checkpoints: &checkpoints{}, passes: &passes{}, readbacks: &readbacks{kept: map[schema.CaseID][]byte{}}}
}

// needs are the tables that the rules read.
func (s *system) needs(tb testing.TB) (list []Need) {
	tb.Helper()
	all, err := rules.Needs(&s.cfg.Source)
	if err != nil {
		tb.Fatal(err)
	}
	for table, n := range all {
		list = append(list, Need{Table: table, Columns: n.Columns, Old: n.OldColumns})
	}
	return list
}

// running is a Pipeline that runs.
type running struct {
	cancel context.CancelFunc
	done   chan error
}

// start runs a Pipeline on a new Source until stop.
func (s *system) start(tb testing.TB, env *Env, pass capture.PassOptions, change ...func(*capture.Options)) *running {
	tb.Helper()
	engine, err := rules.New(&s.cfg.Source, rules.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	pass.Passes, pass.Rules, pass.Encoder, pass.Seal, pass.Poll = s.passes, engine.Beside(), eventText{}, s.keys, 20*time.Millisecond
	for _, n := range s.needs(tb) {
		pass.Tables = append(pass.Tables, n.Table)
	}
	slices.Sort(pass.Tables)
	source := env.Source(tb)
	heart, ok := source.(interface{ EmitHeartbeat(context.Context) error })
	if !ok {
		tb.Fatalf("%T has no heart", source)
	}
	o := capture.Options{
		Name: "crm", Source: source, Heart: heart.EmitHeartbeat, Heartbeat: 100 * time.Millisecond, Rules: engine, IDs: schema.NewIdentifiers(s.keys, "crm"), Encoder: eventText{},
		Publisher: s.topic, Log: s.topic, Checkpoints: s.checkpoints, CheckpointEvery: 20 * time.Millisecond, Pass: pass, Logger: zerolog.New(zerolog.NewTestWriter(tb)).Level(zerolog.WarnLevel),
	}
	for _, f := range change {
		f(&o)
	}
	p, err := capture.NewPipeline(o)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- p.Run(ctx) }()
	tb.Cleanup(func() { r.stop(tb) })
	return r
}

// stop ends the Pipeline in order; again does nothing.
func (r *running) stop(tb testing.TB) {
	tb.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil && !errors.Is(err, context.Canceled) {
			tb.Errorf("the pipeline ended with %v", err)
		}
		r.done <- nil
	case <-time.After(within):
		tb.Error("the pipeline did not end")
	}
}

// ended waits until the newest pass has ended and nothing is asked for.
func (s *system) ended(tb testing.TB) *capture.Pass {
	tb.Helper()
	var p *capture.Pass
	testenv.Eventually(tb, within, func() error {
		book, err := s.passes.Load(context.Background())
		switch {
		case err != nil:
			return err
		case book.Pass == nil || book.Pass.Live() || len(book.Requests) > 0:
			return fmt.Errorf("%d requests, the pass is %+v", len(book.Requests), book.Pass)
		}
		p = book.Pass
		return nil
	})
	return p
}

// facts is what a sink would know: by subject and scope the newest state.
func (s *system) facts() map[string]string {
	newest := map[string]Published{}
	for _, e := range s.topic.events() {
		if e.Key == "" {
			continue
		}
		at := fmt.Sprintf("%s %s %s", e.Key, e.Type, e.Scope)
		if known, ok := newest[at]; !ok || bytes.Compare(e.Order, known.Order) > 0 {
			newest[at] = e
		}
	}
	facts := map[string]string{}
	for at, e := range newest {
		facts[at] = e.State
	}
	return facts
}
