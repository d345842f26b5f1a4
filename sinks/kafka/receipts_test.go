package kafka

import (
	"runtime"
	"testing"

	"lethe/schema"
	"lethe/sinks"
)

// TestFewReceiptsTakeLittleMemory: kafka-go makes room for BatchSize messages in every batch.
func TestFewReceiptsTakeLittleMemory(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		conn := w.conn("a")
		defer conn.Close()
		r := NewReceipts(conn)
		send := func() {
			if err := r.Send(t.Context(), []sinks.OutboxReceipt{{ID: schema.ReceiptID{1}, Body: []byte("receipt")}}); err != nil {
				t.Fatal(err)
			}
		}
		send()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 10 {
			send()
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / 10; each > 2<<20 {
			t.Errorf("sending one receipt takes %d bytes", each)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}
