package e2e

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"lethe/internal/app"
	"lethe/internal/testenv"
	"lethe/schema"
)

// record is one message of a topic.
type record struct {
	partition  int
	offset     int64
	key, value []byte
}

// topic reads a topic of this world from its beginning to its present end.
func (w *world) topic(suffix string) []record {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, soon)
	defer cancel()
	name, broker := w.name+"."+suffix, w.kafka.Brokers()[0]
	conn, err := kafka.DialContext(ctx, "tcp", broker)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	partitions, err := conn.ReadPartitions(name)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []record
	for _, p := range partitions {
		leader, err := kafka.DialLeader(ctx, "tcp", broker, name, p.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		first, end, err := leader.ReadOffsets()
		_ = leader.Close() // only read from
		if err != nil {
			w.t.Fatal(err)
		}
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, Topic: name, Partition: p.ID, MaxWait: 100 * time.Millisecond})
		for at := first; at < end; {
			if err := r.SetOffset(at); err != nil {
				w.t.Fatal(err)
			}
			for at < end {
				m, err := r.ReadMessage(ctx)
				if err != nil {
					w.t.Fatal(err)
				}
				at = m.Offset + 1
				out = append(out, record{partition: p.ID, offset: m.Offset, key: m.Key, value: m.Value})
			}
		}
		if err := r.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// events returns the events of the topic by their ids; delivered twice they are here once.
func (w *world) events() map[schema.EventID]*schema.Event {
	w.t.Helper()
	out := map[schema.EventID]*schema.Event{}
	dec := schema.NewDecoder(w.ring.Seal())
	for _, r := range w.topic("events") {
		if ev, err := dec.Decode(r.value); err == nil {
			out[ev.EventID] = ev
		}
	}
	return out
}

// decide puts an operator's decision on a customer's case into the log, as `lethe release|hold|cancel` does.
func (w *world) decide(id int64, d schema.Decision) {
	w.t.Helper()
	_, err := app.Decide(w.ctx, w.cfg, app.DecideOptions{Cases: []string{w.caseOf(id).String()}, Decision: d, By: "dpo", Reason: "e2e"})
	if err != nil {
		w.t.Fatal(err)
	}
}

// settleParked has all parked events of a code replayed or discarded, as `lethe dead-letters` does.
func (w *world) settleParked(replica, code string, discard bool) {
	w.t.Helper()
	letters, err := app.DeadLetters(w.ctx, w.cfg, replica, false, 100)
	if err != nil {
		w.t.Fatal(err)
	}
	var places []app.Place
	for _, l := range letters {
		if l.Code == code {
			places = append(places, app.Place{Partition: l.Partition, Offset: l.Offset})
		}
	}
	if len(places) == 0 {
		w.t.Fatalf("%s: nothing is parked with the code %s", replica, code)
	}
	if err := app.SettleDeadLetters(w.ctx, w.cfg, replica, places, discard, "dpo"); err != nil {
		w.t.Fatal(err)
	}
}

// passed waits until the pass of a request has ended, or the first one of all, which nobody has to ask for.
func (w *world) passed(request string) {
	w.t.Helper()
	desk, err := app.OpenPasses(w.ctx, w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	defer desk.Close()
	testenv.Eventually(w.t, soon, func() error {
		report, err := desk.Report(w.ctx)
		switch {
		case err != nil:
			return err
		case report.Pass == nil || request != "" && report.Pass.RequestID != request:
			return errors.New("the pass has not begun")
		case report.Pass.State != "ended" || !report.Pass.Full:
			return fmt.Errorf("the pass is %s, full %v", report.Pass.State, report.Pass.Full)
		}
		return nil
	})
}
