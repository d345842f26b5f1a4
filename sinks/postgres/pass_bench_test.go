package postgres

import (
	"context"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"lethe/schema"
	"lethe/sinks"
)

// BenchmarkPassUnchanged applies a whole pass that says what is known of everybody, a thousand rows a batch, then looks for
// absent subjects behind it. by_column is the rate of the same batches with what a column of the table subject would cost
// instead of the table seen: an UPDATE of each subject's row.
func BenchmarkPassUnchanged(b *testing.B) {
	w := newBenchWorld(b)
	permitted := make([]bool, benchPeople)
	people := rand.Perm(benchPeople)
	for at := 0; at < benchPeople; at += benchBatch {
		w.benchApply(b, w.benchBatch(people[at:at+benchBatch], permitted))
	}
	w.exec(`ALTER TABLE lethe.subject ADD seen_run text`)
	w.exec(`GRANT UPDATE ON lethe.subject TO ` + w.role)
	w.exec(`VACUUM ANALYZE lethe.subject`)
	for run := 0; b.Loop(); run++ {
		id := "R" + strconv.Itoa(run)
		var seen, column, walk time.Duration
		w.benchMarker(b, id, true)
		for at := 0; at < benchPeople; at += benchBatch {
			batch := w.benchPass(id, people[at:at+benchBatch])
			took, refs := w.benchApply(b, batch)
			seen += took
			began := time.Now()
			if _, err := w.pool.Exec(w.ctx, `UPDATE lethe.subject SET seen_run = $2 WHERE ref = ANY ($1)`, refs, id); err != nil {
				b.Fatal(err)
			}
			column += took + time.Since(began)
		}
		w.benchMarker(b, id, false)
		began := time.Now()
		for {
			_, done, err := w.r.absences.Look(w.ctx, w.allPlaces(), absenceTables{w.r})
			if err != nil {
				b.Fatal(err)
			}
			if done != nil {
				if done.Absent != 0 {
					b.Fatalf("%d subjects are absent", done.Absent)
				}
				break
			}
		}
		walk = time.Since(began)
		b.ReportMetric(benchPeople/seen.Seconds(), "rows/s")
		b.ReportMetric(benchPeople/column.Seconds(), "by_column/s")
		b.ReportMetric(benchPeople/walk.Seconds(), "walked/s")
	}
}

// benchPass makes the rows of a pass that say what is known of some people: that they have consented.
func (w *world) benchPass(run string, who []int) *sinks.Batch {
	batch := w.benchBatch(who, make([]bool, benchPeople))
	for i := range batch.Records {
		ev := batch.Records[i].Event
		ev.Kind, ev.RunID = schema.KindSnapshot, run
	}
	return batch
}

// benchApply applies a batch, and returns the references of its subjects.
func (w *world) benchApply(b *testing.B, batch *sinks.Batch) (took time.Duration, refs [][]byte) {
	b.Helper()
	began := time.Now()
	out, err := w.r.Apply(w.ctx, batch)
	if err != nil {
		b.Fatal(err)
	}
	took = time.Since(began)
	for _, p := range out.Places {
		w.places[p.Partition] = p
	}
	for i := range batch.Records {
		ref := w.r.core.Ref(batch.Records[i].Event.SubjectRef)
		refs = append(refs, ref[:])
	}
	return took, refs
}

// benchMarker applies a marker of the pass to every partition.
func (w *world) benchMarker(b *testing.B, run string, begin bool) {
	b.Helper()
	w.number++
	ev := &schema.Event{
		Header: schema.Header{Kind: schema.KindSnapshot, RunID: run, Order: schema.NewOrder(0, 1, w.number, 0), Source: "crm"},
		Body:   &schema.PassMarker{Begin: begin, Full: true},
	}
	batch := &sinks.Batch{From: w.allPlaces()}
	for _, p := range batch.From {
		batch.Records = append(batch.Records, sinks.Record{Partition: p.Partition, Offset: p.NextOffset, Event: ev})
	}
	out, err := w.r.Apply(context.Background(), batch)
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range out.Places {
		w.places[p.Partition] = p
	}
}
