package mysql

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/internal/pii"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// rowSet is a set of rows on its way into a ledger table: one JSON parameter, and the table that the server makes of it.
type rowSet struct {
	columns string // of JSON_TABLE
	doc     []byte
	n       int
}

// The types of columns of a rowSet. Byte strings come in hexadecimal digits. None is LONGTEXT: in a temporary table MariaDB
// makes nothing of UNHEX of one.
const (
	typeHex  = "MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin"
	typeText = "MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
	typeWord = "VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
	typeKey  = "VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin"
	typeTime = "DATETIME(6)"
	typeInt  = "BIGINT"
)

// rowsOf begins a rowSet; columns alternate names and types.
func rowsOf(columns ...string) *rowSet {
	var b strings.Builder
	n := 0
	for column := range slices.Chunk(columns, 2) {
		if n > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strings.Join(column, " ") + " PATH '$[" + strconv.Itoa(n) + "]'")
		n++
	}
	return &rowSet{columns: b.String()}
}

// table is the rows as a table v.
func (r *rowSet) table() string { return "JSON_TABLE(?, '$[*]' COLUMNS (" + r.columns + ")) AS v" }

func (r *rowSet) arg() string { return string(closeList(r.doc)) }

// add appends one row of ready values: []byte (hexadecimal digits), string, int64, bool, time.Time; a nil []byte, a zero time
// and a nil are null.
func (r *rowSet) add(values ...any) {
	r.doc = append(r.doc, separator(r.n)+"["...)
	r.n++
	for i, v := range values {
		if i > 0 {
			r.doc = append(r.doc, ',')
		}
		switch v := v.(type) {
		case []byte:
			r.doc = appendHex(r.doc, v)
		case string:
			r.doc = appendText(r.doc, v)
		case int32:
			r.doc = strconv.AppendInt(r.doc, int64(v), 10)
		case int64:
			r.doc = strconv.AppendInt(r.doc, v, 10)
		case bool:
			r.doc = appendBool(r.doc, v)
		case time.Time:
			r.doc = appendTime(r.doc, v)
		default:
			r.doc = append(r.doc, "null"...)
		}
	}
	r.doc = append(r.doc, ']')
}

// writeAll writes everything that a unit leaves in the ledger tables.
func (r *Replica) writeAll(ctx context.Context, tx *tx, u *ledger.Unit) error {
	if err := r.writeSubjects(ctx, tx, u.Set.List); err != nil {
		return err
	}
	if err := r.writeFacts(ctx, tx, u.Set.List); err != nil {
		return err
	}
	if u.Set.NeedContacts {
		if err := r.writeContacts(ctx, tx, u.Set.List); err != nil {
			return err
		}
	}
	if err := r.writeLife(ctx, tx, u); err != nil {
		return err
	}
	if err := r.writeCases(ctx, tx, u); err != nil {
		return err
	}
	if err := r.writeReadback(ctx, tx, u); err != nil {
		return err
	}
	if err := r.writeReports(ctx, tx, u); err != nil {
		return err
	}
	if err := r.writeSingles(ctx, tx, u); err != nil {
		return err
	}
	if err := r.writePasses(ctx, tx, u); err != nil {
		return err
	}
	receipts, err := u.Receipts()
	if err != nil {
		return err
	}
	return r.writeReceipts(ctx, tx, receipts)
}

// writeSubjects writes the rows of subjects that are new, with the first fact of each, or have changed. An existing sealed
// key stays: rotation renews it, not every event. Whether a row exists is known, because the row of its partition has been
// ours since it was read; so nothing is upserted.
func (r *Replica) writeSubjects(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	inserts := &sparse{
		table: r.ledger.sql("{p}subject"),
		columns: []string{
			"ref", "part", "sealed_key", "state", "erased_order", "blocked",
			"scope", "contact_ref", "ord", "as_of", "fact_state", "valid_until", "event_id",
		},
	}
	updates := rowsOf("ref", typeKey, "sealed_key", typeHex, "state", typeWord, "erased_order", typeKey, "blocked", typeWord)
	for _, s := range list {
		if !s.Dirty {
			continue
		}
		key, err := r.core.NewKey(s)
		if err != nil {
			return err
		}
		switch {
		case s.Known:
			updates.add(s.Ref[:], key, s.State, s.ErasedOrder, textArg(s.Blocked))
		case len(s.Facts) == 0:
			inserts.add(s.Ref[:], s.Part, key, s.State, s.ErasedOrder, textArg(s.Blocked), nil, nil, nil, nil, nil, nil, nil)
		default:
			f := &s.Facts[0]
			inserts.add(s.Ref[:], s.Part, key, s.State, s.ErasedOrder, textArg(s.Blocked),
				f.Scope, ledger.ContactBytes(f), f.Order[:], timeArg(f.AsOf), string(f.State), timeArg(f.ValidUntil), f.EventID[:])
		}
	}
	if _, err := tx.insertSparse(ctx, inserts); err != nil {
		return own(err)
	}
	if updates.n > 0 {
		_, err := tx.exec(ctx, r.ledger.sql(`UPDATE `+updates.table()+` STRAIGHT_JOIN {p}subject s
			SET s.sealed_key = COALESCE(s.sealed_key, UNHEX(v.sealed_key)), s.state = v.state, s.erased_order = UNHEX(v.erased_order),
				s.blocked = v.blocked WHERE s.ref = UNHEX(v.ref)`), updates.arg())
		if err != nil {
			return own(err)
		}
	}
	return r.writeDue(ctx, tx, list)
}

// writeDue writes when subjects that are new or have changed are due, if ever.
func (r *Replica) writeDue(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	due := &sparse{table: r.ledger.sql("{p}due"), columns: []string{"ref", "part", "unmatched_since", "recheck_at", "next_change_at"}}
	var never [][]byte
	for _, s := range list {
		switch {
		case !s.Dirty:
		case !s.UnmatchedSince.IsZero() || !s.RecheckAt.IsZero() || !s.NextChange.IsZero():
			due.add(s.Ref[:], s.Part, timeArg(s.UnmatchedSince), timeArg(s.RecheckAt), timeArg(s.NextChange))
		case s.Known:
			never = append(never, s.Ref[:])
		}
	}
	if _, err := tx.insertSparse(ctx, due, "unmatched_since", "recheck_at", "next_change_at"); err != nil || len(never) == 0 {
		return own(err)
	}
	_, err := r.write(ctx, tx, `DELETE d FROM `+refsTable+` STRAIGHT_JOIN {p}due d ON d.ref = UNHEX(v.ref)`, refsJSON(never))
	return err
}

// writeFacts writes the facts that are new, but for those that have come with the rows of new subjects. The guard has been
// applied: nobody else can have written them since they were read, because the row of their partition is ours. A fact that
// takes the place of an older one changes its row, which counts twice: any other number says that the row has gone.
func (r *Replica) writeFacts(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	columns := []string{"ref", "scope", "contact_ref", "ord", "as_of", "state", "valid_until", "event_id"}
	inserts, updates := &sparse{table: r.ledger.sql("{p}fact"), columns: columns}, &sparse{table: r.ledger.sql("{p}fact"), columns: columns}
	inSubject := &sparse{
		table: r.ledger.sql("{p}subject"), columns: []string{"ref", "part", "ord", "as_of", "fact_state", "valid_until", "event_id"},
	}
	add := func(to *sparse, s *ledger.Subject, f *sinks.Fact) {
		to.add(s.Ref[:], f.Scope, ledger.ContactBytes(f), f.Order[:], timeArg(f.AsOf), string(f.State), timeArg(f.ValidUntil), f.EventID[:])
	}
	for _, s := range list {
		for _, i := range s.Fresh {
			f := &s.Facts[i]
			switch {
			case i >= len(s.Stored):
				if i > 0 || s.Known {
					add(inserts, s, f)
				}
			case s.Stored[i] == storedInSubject:
				inSubject.add(s.Ref[:], s.Part, f.Order[:], timeArg(f.AsOf), string(f.State), timeArg(f.ValidUntil), f.EventID[:])
			default:
				add(updates, s, f)
			}
		}
	}
	if _, err := tx.insertSparse(ctx, inserts); err != nil {
		return own(err)
	}
	changed, err := tx.insertSparse(ctx, updates, "ord", "as_of", "state", "valid_until", "event_id")
	if err != nil {
		return own(err)
	}
	more, err := tx.insertSparse(ctx, inSubject, "ord", "as_of", "fact_state", "valid_until", "event_id")
	if err != nil {
		return own(err)
	}
	if changed+more != 2*int64(updates.rows()+inSubject.rows()) {
		return ledger.ErrFactsMoved()
	}
	return nil
}

// writeCases opens cases for new erasures. The time at which phase 2 is due is the replica's, not ours.
func (r *Replica) writeCases(ctx context.Context, tx *tx, u *ledger.Unit) error {
	pending, err := u.PendingRows()
	if err != nil || len(pending) == 0 {
		return err
	}
	const width = 17
	values := make([]any, 0, width*len(pending))
	for i := range pending {
		p := &pending[i]
		values = append(values, p.Ref[:], p.CaseID[:], p.EventID[:], p.Part, ledger.PendingSuppressed, p.Wait, p.Snapshot, textArg(p.RunID), p.Matched, p.Observed,
			p.CommittedAt, p.ConfigDigest[:], tx.now, tx.now, tx.now.Add(p.CoolOff), jsonArg(p.Undo), textArg(p.Code))
	}
	_, err = tx.insert(ctx, r.ledger.sql(`
		INSERT INTO {p}pending (ref, case_id, event_id, part, state, wait, snapshot, run_id, matched, observed, committed_at, config_digest,
			opened_at, suppressed_at, due_at, prior, error_code) VALUES `), width, values, `
		ON DUPLICATE KEY UPDATE case_id = VALUES(case_id), event_id = VALUES(event_id), state = VALUES(state), wait = VALUES(wait), held = 0,
			released = 0, snapshot = VALUES(snapshot), run_id = VALUES(run_id), matched = VALUES(matched), observed = VALUES(observed),
			committed_at = VALUES(committed_at), config_digest = VALUES(config_digest), opened_at = VALUES(opened_at),
			suppressed_at = VALUES(suppressed_at), due_at = VALUES(due_at), applied_at = NULL, verified_at = NULL, prior = VALUES(prior),
			work = NULL, attempts = 0, error_code = VALUES(error_code), mapping_digest = NULL`)
	return own(err)
}

// writeReadback leaves the objections and restrictions that took effect to verification; those of a subject without a
// row wait for it.
func (r *Replica) writeReadback(ctx context.Context, tx *tx, u *ledger.Unit) error {
	list := u.ReadbackRows()
	if len(list) == 0 {
		return nil
	}
	rows := rowsOf("event_id", typeKey, "ref", typeKey, "part", typeInt, "kind", typeWord, "committed_at", typeTime, "config_digest", typeKey,
		"added_at", typeTime, "due", typeInt)
	for i := range list {
		b := &list[i]
		rows.add(b.EventID[:], b.Ref[:], b.Part, b.Kind, b.CommittedAt, b.ConfigDigest[:], tx.now, b.Due)
	}
	_, err := tx.exec(ctx, r.ledger.sql(`
		INSERT INTO {p}readback (event_id, ref, part, kind, committed_at, config_digest, added_at, due_at)
		SELECT UNHEX(v.event_id), UNHEX(v.ref), v.part, v.kind, v.committed_at, UNHEX(v.config_digest), v.added_at,
			CASE WHEN v.due THEN v.added_at ELSE '`+never+`' END
		FROM `+rows.table()+` ON DUPLICATE KEY UPDATE {p}readback.part = {p}readback.part`), rows.arg())
	return own(err)
}

// writeSingles writes what few records leave: decisions, gaps and records parked behind another.
func (r *Replica) writeSingles(ctx context.Context, tx *tx, u *ledger.Unit) (err error) {
	run := func(statement string, args ...any) {
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(statement), args...)
		}
	}
	stored := tx.now // their order, within a batch too: the last word of an operator holds
	u.Singles(func(p ledger.ParkedRow) {
		run(`INSERT INTO {p}parked (part, off, ref, event_id, bytes, error_code, parked_at) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON DUPLICATE KEY UPDATE part = {p}parked.part`, p.Part, p.Offset, p.Ref[:], p.EventID[:], p.Bytes, p.Code, tx.now)
	}, func(d ledger.DecisionRow) {
		checks, _ := json.Marshal(d.Checks) // strings: no error
		var done any
		if d.Outcome != "" {
			done = tx.now
		}
		run(`INSERT INTO {p}decision (event_id, ref, case_id, part, decision, reason, checks, decided_by, decided_at, stored_at, done_at, outcome)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON DUPLICATE KEY UPDATE part = {p}decision.part`,
			d.EventID[:], d.Ref[:], d.CaseID[:], d.Part, d.Decision, d.Reason, string(checks), d.DecidedBy, timeArg(d.DecidedAt), stored, done, textArg(d.Outcome))
		run(`INSERT INTO {p}touch (ref, part, reason, at) SELECT s.ref, s.part, ?, ? FROM {p}alias a STRAIGHT_JOIN {p}subject s ON s.ref = a.absorbed
			WHERE a.ref = ?`, ledger.TouchConsult, tx.now, d.Ref[:])
		stored = stored.Add(time.Microsecond)
	}, func(g ledger.GapRow) { r.writeGap(run, tx.now, g.Part, g.Gap) })
	return own(err)
}

// writeGap opens or closes a gap for one partition; see ledger.GapRow.
func (r *Replica) writeGap(run func(statement string, args ...any), now time.Time, part int32, g *schema.Gap) {
	if g.Opened {
		run(`INSERT INTO {p}gap (gap_id, part, cause, from_order, to_order, opened_at) VALUES (?, ?, ?, ?, ?, ?)
			ON DUPLICATE KEY UPDATE part = {p}gap.part`, g.GapID, part, g.Cause, g.From[:], g.To[:], now)
		return
	}
	run(`INSERT INTO {p}gap (gap_id, part, cause, from_order, to_order, opened_at, closed_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON DUPLICATE KEY UPDATE closed_at = COALESCE({p}gap.closed_at, VALUES(closed_at)), to_order = VALUES(to_order)`,
		g.GapID, part, g.Cause, g.From[:], g.To[:], now, now)
	r.lookAgain(run, now)
}

// writeReceipts stores receipts as signed. One that is there already, to the byte, stays. The run role may change nothing of
// a receipt but when it was sent, and MariaDB asks for more where INSERT is to meet a duplicate by itself; so those that are
// there are looked for, once one is met.
func (r *Replica) writeReceipts(ctx context.Context, tx *tx, receipts []ledger.ReceiptRow) error {
	err := r.insertReceipts(ctx, tx, receipts, nil)
	if pii.MySQLNumber(err) != duplicateEntry {
		return own(err)
	}
	known := make(map[schema.ReceiptID]bool, len(receipts))
	ids := make([][]byte, len(receipts))
	for i := range receipts {
		ids[i] = receipts[i].ID[:]
	}
	there, err := column1[[]byte](ctx, tx, r.ledger.sql(`SELECT r.receipt_id FROM `+refsTable+` STRAIGHT_JOIN {p}receipt r
		ON r.receipt_id = UNHEX(v.ref)`), refsJSON(ids))
	if err != nil {
		return err
	}
	for _, id := range there {
		known[schema.ReceiptID(id)] = true
	}
	return own(r.insertReceipts(ctx, tx, receipts, known))
}

// duplicateEntry is the server's error for a row whose key is there (ER_DUP_ENTRY).
const duplicateEntry = 1062

// insertReceipts stores receipts, but for those that are known.
func (r *Replica) insertReceipts(ctx context.Context, tx *tx, receipts []ledger.ReceiptRow, known map[schema.ReceiptID]bool) error {
	const width = 9
	values := make([]any, 0, width*len(receipts))
	for i := range receipts {
		rc := &receipts[i]
		if known[rc.ID] {
			continue
		}
		if known != nil {
			known[rc.ID] = true
		}
		values = append(values, rc.ID[:], rc.EventID[:], rc.CaseID, rc.Ref, rc.Part, rc.State, rc.Attempt, rc.Body, tx.now)
	}
	const at = "INSERT INTO {p}receipt (receipt_id, event_id, case_id, ref, part, state, attempt, body, made_at) VALUES "
	_, err := tx.insert(ctx, r.ledger.sql(at), width, values, "")
	return err
}

// signAndWrite stores receipts that are made outside a batch; nil ones are left away.
func (r *Replica) signAndWrite(ctx context.Context, tx *tx, receipts ...*ledger.Receipt) error {
	rows := make([]ledger.ReceiptRow, 0, len(receipts))
	for _, rc := range receipts {
		if rc == nil {
			continue
		}
		row, err := r.core.Sign(rc)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	return r.writeReceipts(ctx, tx, rows)
}

// readOpenGaps lists the ids of the gaps that are open for this replica, for a receipt made outside a batch.
func (r *Replica) readOpenGaps(ctx context.Context, q querier) ([]string, error) {
	ids, err := column1[string](ctx, q, r.ledger.sql(`SELECT DISTINCT gap_id FROM {p}gap WHERE closed_at IS NULL ORDER BY 1`))
	return ids, classify("reading gaps", err)
}
