package postgres

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"github.com/jackc/pgx/v5"

	"lethe/schema"
)

// Reasons that a receipt may state.
const (
	reasonNoRow    = "no_row_yet"   // the subject is looked up again until the replica's recheck ends
	reasonObserve  = "mode_observe" // what would have been done
	reasonRowFound = "row_found"    // the row came later than the event
)

const matchCRMKey = "crm_key"

// storedReceipt is a receipt on its way into lethe.receipt.
type storedReceipt struct {
	schema.Receipt
	ref  []byte // of the subject; nil for a receipt of many
	part int32
}

// queueReceipts writes the receipts of a unit: one each for erasures, objections and restrictions that took effect, one
// for everything else together, because a signature costs as much as two events.
func (u *unit) queueReceipts(b *pgx.Batch) error {
	var others []*result
	for i := range u.results {
		x := &u.results[i]
		if x.subject == nil {
			continue
		}
		state, ok := u.ownReceipt(x)
		if !ok {
			others = append(others, x)
			continue
		}
		if err := u.r.queueReceipt(b, u.receiptOf(x, state)); err != nil {
			return err
		}
	}
	if len(others) == 0 {
		return nil
	}
	return u.r.queueReceipt(b, u.batchReceipt(others))
}

// ownReceipt reports whether a record gets a receipt of its own, and its state: erasures that opened a case, objections
// and restrictions that became facts.
func (u *unit) ownReceipt(x *result) (schema.ReceiptState, bool) {
	if !x.own {
		return 0, false
	}
	switch x.outcome {
	case outcomeNoMatch:
		return schema.ReceiptNoMatch, true
	case outcomeObserved:
		return schema.ReceiptPlanned, true
	case outcomeApplied, outcomeUnchanged:
		if x.event.Body.Type() == schema.TypeSubjectErasure {
			return schema.ReceiptSuppressed, true
		}
		return schema.ReceiptApplied, true
	}
	return 0, false
}

func (u *unit) receiptOf(x *result, state schema.ReceiptState) *storedReceipt {
	rc := u.r.newReceipt(x.event.EventID, x.event.Body.Type(), state, 0)
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest = x.event.CaseID, x.event.CommittedAt, x.event.ConfigDigest
	rc.Rows, rc.MadeAt, rc.Gaps = x.subject.effect.rows, u.now, u.openGaps()
	rc.ref, rc.part = x.subject.ref[:], x.subject.part
	switch state {
	case schema.ReceiptNoMatch:
		rc.Reason, rc.Evidence = reasonNoRow, schema.EvidenceAttempted
	case schema.ReceiptPlanned:
		rc.Reason, rc.Evidence = reasonObserve, schema.EvidenceAttempted
	default:
		rc.Evidence = schema.EvidenceApplied
	}
	return rc
}

// batchReceipt lists events with their outcomes. Its attempt is the offset of the first record: the same event delivered
// again lies at another offset, and so its receipt is another one. A replayed event was at its offset already, in the
// receipt that called it parked.
func (u *unit) batchReceipt(list []*result) *storedReceipt {
	first := list[0]
	attempt := uint32(first.record.Offset & 0xffffffff)
	if u.replaying {
		attempt = replayAttempt
	}
	state, evidence := schema.ReceiptApplied, schema.EvidenceApplied
	if u.r.cfg.Mode == modeObserve {
		state, evidence = schema.ReceiptPlanned, schema.EvidenceAttempted
	}
	rc := u.r.newReceipt(first.event.EventID, schema.TypeConsentChange, state, attempt)
	rc.CommittedAt, rc.ConfigDigest = first.event.CommittedAt, first.event.ConfigDigest
	rc.MadeAt, rc.Gaps, rc.Evidence = u.now, u.openGaps(), evidence
	rc.part = first.record.Partition
	rc.Events = make([]schema.EventOutcome, len(list))
	for i, x := range list {
		rc.Events[i] = schema.EventOutcome{EventID: x.event.EventID, Outcome: x.outcome}
	}
	rc.Rows = u.consentRows()
	return rc
}

// consentRows counts the rows of subjects that have no receipt of their own.
func (u *unit) consentRows() []schema.TableRows {
	own := map[*subject]bool{}
	for _, x := range append(slices.Clone(u.cases), u.readback...) {
		own[x.subject] = true
	}
	var total effect
	for _, s := range u.set.list {
		if own[s] {
			continue
		}
		for _, row := range s.effect.rows {
			total.changed(row.Table, row.Action, row.Changed)
		}
	}
	return total.rows
}

func (u *unit) openGaps() []string {
	ids := make([]string, 0, len(u.gaps))
	for id := range u.gaps {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// newReceipt fills in what every receipt of this replica says.
func (r *Replica) newReceipt(event schema.EventID, typ schema.Type, state schema.ReceiptState, attempt uint32) *storedReceipt {
	return &storedReceipt{Receipt: schema.Receipt{
		ReceiptID: r.ids.ReceiptID(event, r.opts.Name, state, attempt), EventID: event, EventType: typ,
		Source: r.opts.Source, Replica: r.opts.Name, Recipient: r.cfg.Recipient.Name, State: state, Attempt: attempt,
		MatchMethod: matchCRMKey, MappingDigest: r.opts.MappingDigest, Version: r.opts.Version,
	}}
}

// queueReceipt signs a receipt and queues its row: it is stored as signed, so that what is sent later, and again, is the
// same to the byte.
func (r *Replica) queueReceipt(b *pgx.Batch, rc *storedReceipt) error {
	body, err := schema.SignReceipt(r.opts.Signer, &rc.Receipt)
	if err != nil {
		return fmt.Errorf("signing receipt: %w", err)
	}
	var caseID []byte
	if !rc.CaseID.IsZero() {
		caseID = rc.CaseID[:]
	}
	b.Queue(r.ledger.sql(`
		INSERT INTO {s}.receipt (receipt_id, event_id, case_id, ref, part, state, attempt, body)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`),
		rc.ReceiptID[:], rc.EventID[:], caseID, rc.ref, rc.part, rc.State.String(), int64(rc.Attempt), body)
	return nil
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
