package checkpoint

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"lethe/capture"
)

func samplePass(run string) *capture.Pass {
	at := time.Date(2026, 5, 4, 3, 2, 1, 500e6, time.UTC)
	return &capture.Pass{
		Source: "crm", RunID: run, State: capture.PassReading, Incarnation: 3, Epoch: 2, Gaps: []string{"g1"}, Full: true, Ordinal: 1<<31 + 7,
		Request: capture.PassRequest{ID: "q1", Tables: []string{"public.a"}, Replicas: []string{"m"}, Gaps: []string{"g1"}, Cause: capture.PassGap, RequestedAt: at},
		Tables: []capture.PassedTable{
			{Name: "public.a", State: capture.TableReading, Rows: 1 << 60, Estimate: -1, Restarts: 2, Walk: "id int8", After: []byte{0, 1, 255}},
			{Name: "public.b", State: capture.TableRefused, Cause: capture.RefusedNoKey, Hint: "give it one"},
		},
		Restarts: 1, StartedAt: at, UpdatedAt: at.Add(time.Second), EndedAt: at.Add(time.Minute), Waiting: "a standby", Closed: []string{"g0"},
		LastFull: capture.FullPass{RunID: "r0", StartedAt: at, EndedAt: at, Tables: []string{"public.a"}, Replicas: []string{"m"}},
	}
}

func TestPassesAndRequestsLieBesideTheCheckpoint(t *testing.T) {
	_, conn := fake(t)
	ctx := t.Context()
	o := Options{Conn: conn, Source: "crm"}
	command, running := NewPasses(o), NewPasses(o)
	book, err := running.Load(ctx)
	if err != nil || book.Pass != nil || book.Requests != nil {
		t.Fatalf("an empty topic gave %+v, %v", book, err)
	}
	store := New(o)
	if err := store.Save(ctx, sample(100)); err != nil {
		t.Fatal(err)
	}
	first := capture.PassRequest{ID: "z", Cause: capture.PassAsked, RequestedAt: time.Unix(1, 0).UTC()}
	second := capture.PassRequest{ID: "a", Tables: []string{"t"}, Replicas: []string{"r"}, Gaps: []string{"g"}, Cause: capture.PassGap, RequestedAt: time.Unix(2, 0).UTC()}
	for _, r := range []capture.PassRequest{second, first} {
		if err := command.Ask(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := running.Save(ctx, samplePass("r1")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := running.Save(ctx, samplePass("r2")); err != nil {
			t.Fatal(err)
		}
	}
	want := &capture.PassBook{Pass: samplePass("r2"), Requests: []capture.PassRequest{first, second}}
	for name, p := range map[string]*Passes{"running": running, "command": command, "new": NewPasses(o)} {
		book, err := p.Load(ctx)
		if diff := cmp.Diff(want, book); diff != "" || err != nil {
			t.Errorf("%s: %v, %s", name, err, diff)
		}
	}
	second.Cancelled = true
	if err := command.Ask(ctx, second); err != nil {
		t.Fatal(err)
	}
	if err := running.Answered(ctx, "z"); err != nil {
		t.Fatal(err)
	}
	if book, err := running.Load(ctx); err != nil || !cmp.Equal(book.Requests, []capture.PassRequest{second}) {
		t.Errorf("%+v, %v", book, err)
	}
	// Neither disturbs the other.
	if c, err := store.Load(ctx); err != nil || c.Position.Commit != 100 {
		t.Errorf("the checkpoint is %+v, %v", c, err)
	}
	if err := store.Save(ctx, sample(101)); err != nil {
		t.Error(err)
	}
}

func TestFrozenProcessDoesNotWriteOverAPass(t *testing.T) {
	c, conn := fake(t)
	o := Options{Conn: conn, Source: "crm"}
	frozen, standby := NewPasses(o), NewPasses(o)
	for _, p := range []*Passes{frozen, standby} {
		if _, err := p.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut})
	if err := frozen.Save(t.Context(), samplePass("r1")); err == nil {
		t.Fatal("the fault did not show")
	}
	for i := range 3 {
		if err := frozen.Save(t.Context(), samplePass(fmt.Sprint("r", i))); err != nil {
			t.Fatalf("after a lost acknowledgement: %v", err)
		}
	}
	if _, err := standby.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Save(t.Context(), samplePass("s")); err != nil {
		t.Fatal(err)
	}
	if err := frozen.Save(t.Context(), samplePass("r9")); !errors.Is(err, capture.ErrSuperseded) {
		t.Fatalf("got %v", err)
	}
	book, err := frozen.Load(t.Context())
	if err != nil || book.Pass.RunID != "s" {
		t.Fatalf("%+v, %v", book, err)
	}
	if err := frozen.Save(t.Context(), samplePass("r10")); err != nil {
		t.Fatalf("when it has read the standby's: %v", err)
	}
}

func TestUnreadablePassIsRefused(t *testing.T) {
	pass, err := encodePass(samplePass("r"))
	if err != nil {
		t.Fatal(err)
	}
	for name, record := range map[string][2]string{
		"garbage":       {"crm/pass", "\x00"},
		"later version": {"crm/pass", `{"version":2}`},
		"no run":        {"crm/pass", `{"version":1,"source":"crm","incarnation":1}`},
		"unknown field": {"crm/pass", string(pass[:len(pass)-1]) + `,"more":1}`},
		"request":       {"crm/pass/request/x", `{"version":1,"id":"y","cause":"command","requested_at":"2026-01-01T00:00:00Z"}`},
	} {
		t.Run(name, func(t *testing.T) {
			_, conn := fake(t)
			res, err := conn.Client().Produce(t.Context(), &kgo.ProduceRequest{
				Topic: conn.CheckpointsTopic(), RequiredAcks: kgo.RequireAll,
				Records: kgo.NewRecordReader(kgo.Record{Key: kgo.NewBytes([]byte(record[0])), Value: kgo.NewBytes([]byte(record[1]))}),
			})
			if err != nil || res.Error != nil {
				t.Fatal(err, res.Error)
			}
			if book, err := NewPasses(Options{Conn: conn, Source: "crm"}).Load(t.Context()); !capture.IsPermanent(err) {
				t.Fatalf("got %+v, %v; want a refusal", book, err)
			}
			if book, err := NewPasses(Options{Conn: conn, Source: "shop"}).Load(t.Context()); err != nil || book.Pass != nil {
				t.Fatalf("another source: %+v, %v", book, err)
			}
		})
	}
}

func FuzzDecodePass(f *testing.F) {
	good, err := encodePass(samplePass("r"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePass("crm", b)
		if err != nil {
			return
		}
		again, err := encodePass(p)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodePass("crm", again); err != nil || back.RunID != p.RunID || len(back.Tables) != len(p.Tables) {
			t.Fatalf("round trip: %v", err)
		}
	})
}
