package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"lethe/sinks/ledger"
)

// queueReceipts writes the receipts of a unit.
func (u *unit) queueReceipts(b *pgx.Batch) error {
	rows, err := u.Receipts()
	for i := range rows {
		u.r.queueReceiptRow(b, &rows[i])
	}
	return err
}

// queueReceipt signs a receipt and queues its row.
func (r *Replica) queueReceipt(b *pgx.Batch, rc *ledger.Receipt) error {
	row, err := r.core.Sign(rc)
	if err != nil {
		return err
	}
	r.queueReceiptRow(b, &row)
	return nil
}

func (r *Replica) queueReceiptRow(b *pgx.Batch, row *ledger.ReceiptRow) {
	b.Queue(r.ledger.sql(`
		INSERT INTO {s}.receipt (receipt_id, event_id, case_id, ref, part, state, attempt, body)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`),
		row.ID[:], row.EventID[:], row.CaseID, row.Ref, row.Part, row.State, row.Attempt, row.Body)
}

// readOpenGaps lists the ids of the gaps that are open for this replica, for a receipt made outside a batch.
func (r *Replica) readOpenGaps(ctx context.Context, q querier) ([]string, error) {
	rows, err := q.Query(ctx, r.ledger.sql(`SELECT DISTINCT gap_id FROM {s}.gap WHERE closed_at IS NULL ORDER BY 1`))
	if err != nil {
		return nil, classify("reading gaps", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, classify("reading gaps", err)
}
