package mysql

import (
	"context"
	"database/sql"

	"lethe/schema"
	"lethe/sinks"
)

// Unsent implements sinks.Outbox: stored receipts that Kafka has not acknowledged yet, in the order in which they were
// made.
func (r *Replica) Unsent(ctx context.Context, partitions []int32, limit int) ([]sinks.OutboxReceipt, error) {
	var out []sinks.OutboxReceipt
	err := eachRow(ctx, r.opts.DB, r.ledger.sql(`
		SELECT r.receipt_id, r.case_id, r.body FROM `+partsTable+` STRAIGHT_JOIN {p}receipt r ON r.part = w.part AND r.sent_at IS NULL
		ORDER BY r.made_at, r.receipt_id LIMIT ?`), []any{jsonList(partitions), limit}, func(rows *sql.Rows) error {
		var o sinks.OutboxReceipt
		var id, caseID []byte
		if err := rows.Scan(&id, &caseID, &o.Body); err != nil {
			return err
		}
		copy(o.ID[:], id)
		copy(o.CaseID[:], caseID)
		out = append(out, o)
		return nil
	})
	return out, classify("reading unsent receipts", err)
}

// MarkSent implements sinks.Outbox. Receipts sent twice are the same to the byte.
func (r *Replica) MarkSent(ctx context.Context, ids []schema.ReceiptID) error {
	list := make([][]byte, len(ids))
	for i := range ids {
		list[i] = ids[i][:]
	}
	_, err := r.opts.DB.ExecContext(ctx, r.ledger.sql(`
		UPDATE `+refsTable+` STRAIGHT_JOIN {p}receipt r ON r.receipt_id = UNHEX(v.ref) SET r.sent_at = UTC_TIMESTAMP(6) WHERE r.sent_at IS NULL`),
		refsJSON(list))
	return classify("marking receipts as sent", err)
}
