package kafka

import (
	"context"
	"errors"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"lethe/internal/kafkaconn"
	"lethe/sinks"
)

// Receipts implements sinks.ReceiptSender: it publishes to <prefix>.receipts with acks=all. Receipts are copies for tools,
// at least once; the originals are in the replica. Safe for concurrent use.
type Receipts struct{ w *kafkago.Writer }

// receiptBytes is the largest batch of receipts: below the broker's default max.message.bytes.
const receiptBytes = 900 << 10

// receiptCount is more receipts than the worker gives to one call. kafka-go makes room for so many messages in every
// batch, whatever it gets.
const receiptCount = 1000

// NewReceipts wires a sender; it opens nothing until it is used.
func NewReceipts(conn *kafkaconn.Conn) *Receipts {
	return &Receipts{w: &kafkago.Writer{
		Addr: conn.Addr(), Topic: conn.ReceiptsTopic(), Transport: conn.Transport(),
		Balancer: kafkago.Murmur2Balancer{Consistent: true}, RequiredAcks: kafkago.RequireAll,
		// A whole call is one batch per partition: kafka-go retries batches each alone, and would reorder several.
		BatchSize: receiptCount, BatchBytes: receiptBytes, BatchTimeout: time.Millisecond,
		MaxAttempts: 3, WriteTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
	}}
}

// Send implements sinks.ReceiptSender. On any error the whole call is to be sent again, in order.
func (r *Receipts) Send(ctx context.Context, receipts []sinks.OutboxReceipt) error {
	msgs := make([]kafkago.Message, len(receipts))
	for i := range receipts {
		key := receipts[i].CaseID.String()
		if receipts[i].CaseID.IsZero() {
			key = receipts[i].ID.String() // consents belong to no case
		}
		msgs[i] = kafkago.Message{Key: []byte(key), Value: receipts[i].Body}
	}
	err := r.w.WriteMessages(ctx, msgs...)
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return troubleOf("publishing receipts", err)
}

// Close flushes nothing: Send leaves nothing behind.
func (r *Receipts) Close() error { return r.w.Close() }
