package checkpoint

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"lethe/capture"
	"lethe/schema"
)

func sampleCase(n byte) capture.Readback {
	at := time.Unix(1_800_000_000, 0).UTC()
	return capture.Readback{
		Case: schema.CaseID{n}, Subject: []byte{1, 2, n}, Incarnation: 2, Epoch: 3, Number: 1 << 60, OpenedAt: at, Marked: true, Again: true,
		Complete: capture.Asked{Attempts: 2, Told: "missing public.customer.last_name", Number: 1, NextAt: at.Add(time.Minute)},
		Gate:     capture.Asked{Done: true}, Request: capture.Asked{Attempts: 1, NextAt: at.Add(time.Hour)},
	}
}

func TestCasesLieBesideTheCheckpoint(t *testing.T) {
	_, conn := fake(t)
	ctx := t.Context()
	o := Options{Conn: conn, Source: "crm"}
	mine, other := NewReadbacks(o), NewReadbacks(Options{Conn: conn, Source: "shop"})
	if list, more, err := mine.Load(ctx, 10); err != nil || more || list != nil {
		t.Fatalf("an empty topic gave %v, %t, %v", list, more, err)
	}
	store := New(o)
	if err := store.Save(ctx, sample(100)); err != nil {
		t.Fatal(err)
	}
	first, second := sampleCase(1), sampleCase(2)
	if err := mine.Save(ctx, []capture.Readback{first, second}); err != nil {
		t.Fatal(err)
	}
	if err := other.Save(ctx, []capture.Readback{sampleCase(3)}); err != nil {
		t.Fatal(err)
	}
	first.Marked, first.Complete.Attempts = false, 3
	if err := mine.Save(ctx, []capture.Readback{first}); err != nil {
		t.Fatal(err)
	}
	list, more, err := NewReadbacks(o).Load(ctx, 10)
	if diff := cmp.Diff([]capture.Readback{first, second}, list); diff != "" || more || err != nil {
		t.Errorf("%t, %v, %s", more, err, diff)
	}
	if list, more, err := mine.Load(ctx, 1); err != nil || !more || len(list) != 1 {
		t.Errorf("one of two: %v, %t, %v", list, more, err)
	}
	// What has its last answer is forgotten, and makes room.
	list[0].Complete.Done, list[0].Request.Done = true, true
	if err := mine.Save(ctx, list[:1]); err != nil {
		t.Fatal(err)
	}
	if list, more, err := mine.Load(ctx, 1); err != nil || more || cmp.Diff([]capture.Readback{second}, list) != "" {
		t.Errorf("the other one: %+v, %t, %v", list, more, err)
	}
	if c, err := New(o).Load(ctx); err != nil || c == nil || c.Position.Commit != sample(100).Position.Commit {
		t.Errorf("the checkpoint beside them: %+v, %v", c, err)
	}
}

func TestUnreadableCaseIsRefused(t *testing.T) {
	for _, value := range []string{"{", `{"version":99}`, `{"version":1,"what":1}`, `{"version":1}`} {
		t.Run(value, func(t *testing.T) {
			_, conn := fake(t)
			_, err := conn.Client().Produce(t.Context(), &kafka.ProduceRequest{
				Topic: conn.CheckpointsTopic(), RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(kafka.Record{
					Key: kafka.NewBytes([]byte(fmt.Sprintf("crm/case/%s", schema.CaseID{1}))), Value: kafka.NewBytes([]byte(value)),
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			if list, _, err := NewReadbacks(Options{Conn: conn, Source: "crm"}).Load(t.Context(), 10); !capture.IsPermanent(err) {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
}
