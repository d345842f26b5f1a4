package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
	"lethe/sinks"
)

// Unsent implements sinks.Outbox: stored receipts that Kafka has not acknowledged yet, in the order in which they were
// made.
func (r *Replica) Unsent(ctx context.Context, partitions []int32, limit int) ([]sinks.OutboxReceipt, error) {
	rows, err := r.opts.Pool.Query(ctx, r.ledger.sql(`
		SELECT receipt_id, case_id, body FROM {s}.receipt WHERE sent_at IS NULL AND part = ANY ($1)
		ORDER BY made_at, receipt_id LIMIT $2`), partitions, limit)
	if err != nil {
		return nil, classify("reading unsent receipts", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o sinks.OutboxReceipt, err error) {
		var id, caseID []byte
		err = row.Scan(&id, &caseID, &o.Body)
		copy(o.ID[:], id)
		copy(o.CaseID[:], caseID)
		return o, err
	})
	return out, classify("reading unsent receipts", err)
}

// MarkSent implements sinks.Outbox. Receipts sent twice are the same to the byte.
func (r *Replica) MarkSent(ctx context.Context, ids []schema.ReceiptID) error {
	list := make([][]byte, len(ids))
	for i := range ids {
		list[i] = ids[i][:]
	}
	_, err := r.opts.Pool.Exec(ctx, r.ledger.sql(`UPDATE {s}.receipt SET sent_at = now() WHERE receipt_id = ANY ($1) AND sent_at IS NULL`), list)
	return classify("marking receipts as sent", err)
}
