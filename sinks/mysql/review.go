package mysql

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"lethe/internal/pii"
	"lethe/sinks/ledger"
)

const reviewColumns = `r.id, r.kind, p.case_id, r.person, r.evidence, r.opened_at, r.due_at, r.decided_at, COALESCE(r.decided_by, ''), COALESCE(r.decision, '')`

// scanReview reads a row of reviewColumns, and others behind them.
func scanReview(rows *sql.Rows, extra ...any) (r ledger.Review, err error) {
	var id []byte
	var decided sql.NullTime
	into := append([]any{&r.ID, &r.Kind, &id, &r.Person, &r.Evidence, &r.OpenedAt, &r.DueAt, &decided, &r.DecidedBy, &r.Decision}, extra...)
	err = rows.Scan(into...)
	copy(r.CaseID[:], id)
	r.DecidedAt = decided.Time
	r.Agreeing = strings.Count(r.Evidence, "+") + 1
	return r, err
}

// Reviews lists the rows of which a person has to say whether they are a subject, those with the most keys that agree first; open
// leaves out those that are decided.
func (d *Desk) Reviews(ctx context.Context, open bool, limit int) ([]ledger.Review, error) {
	var out []ledger.Review
	err := eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT `+reviewColumns+` FROM {p}review r LEFT JOIN {p}pending p ON p.ref = r.ref WHERE r.decided_at IS NULL OR NOT ?
		ORDER BY r.decided_at IS NOT NULL, r.decided_at DESC, CHAR_LENGTH(r.evidence) - CHAR_LENGTH(REPLACE(r.evidence, '+', '')) DESC, r.due_at, r.id LIMIT ?`),
		[]any{open, limit}, func(rows *sql.Rows) error {
			r, err := scanReview(rows)
			out = append(out, r)
			return err
		})
	return out, classify("listing reviews", err)
}

// ReviewCase returns one review with what the replica says of the row now: for whoever decides, and for nothing else.
func (d *Desk) ReviewCase(ctx context.Context, id string) (*ledger.ReviewDetail, error) {
	const op = "reading the review"
	var out *ledger.ReviewDetail
	err := eachRow(ctx, d.r.opts.DB, d.r.ledger.sql(`
		SELECT `+reviewColumns+`, r.ref, s.sealed_key, (SELECT COUNT(DISTINCT o.ref) FROM {p}contact_key k
			JOIN {p}contact_key o ON o.value = k.value AND o.ref <> k.ref AND o.standing <> 'revived'
			WHERE k.ref = r.ref AND k.standing <> 'revived' AND k.type <> 'name')
		FROM {p}review r LEFT JOIN {p}pending p ON p.ref = r.ref LEFT JOIN {p}subject s ON s.ref = r.ref WHERE r.id = ?`), []any{id}, func(rows *sql.Rows) error {
		var ref []byte
		x := &ledger.ReviewDetail{}
		var err error
		if x.Review, err = scanReview(rows, &ref, &x.Sealed, &x.Rivals); err != nil {
			return err
		}
		x.Ref, out = ledger.Ref(ref), x
		return nil
	})
	if err != nil {
		return nil, classify(op, err)
	}
	if out == nil {
		return nil, ledger.ErrNoReview(id, false)
	}
	err = d.r.readTx(ctx, op, func(tx *tx) error {
		m, findings, err := compile(ctx, tx, d.r.cfg)
		if err != nil {
			return err
		}
		if err := ledger.ErrorOf(d.r.opts.Name, findings); err != nil {
			return err
		}
		for i := range m.finds {
			said, err := m.show(ctx, tx, &m.finds[i], out.Person)
			if err != nil {
				return err
			}
			out.Rows = append(out.Rows, said...)
		}
		return nil
	})
	return out, err
}

// show reads what a table says of a person now.
func (m *Mapping) show(ctx context.Context, tx *tx, ft *findTable, person string) ([]ledger.ReviewRow, error) {
	w, err := m.personsTable([]int32{0}, []string{person})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range ft.columns {
		names = append(names, c.name)
	}
	var place int
	reader := newRowReader(ft, &place)
	var out []ledger.ReviewRow
	err = eachRow(ctx, tx, "SELECT w.i, "+ft.selected()+" FROM "+w.sql+" STRAIGHT_JOIN "+ft.table.sql()+" AS t WHERE "+m.owns(ft.join), w.args,
		func(rows *sql.Rows) error {
			if err := reader.scan(rows, &rowRef{}); err != nil {
				return err
			}
			r := ledger.ReviewRow{Table: ft.table.config, Columns: names, Values: make([]pii.Value, len(names))}
			for i, v := range reader.raw[len(ft.key):] {
				if v.Valid {
					r.Values[i] = pii.New(v.String)
				}
			}
			out = append(out, r)
			return nil
		})
	return out, err
}

// DecideReview records what a person has decided: the pair is remembered, and the owner of the subject's partition acts on it.
// by is a role or a pseudonym.
func (d *Desk) DecideReview(ctx context.Context, id string, same bool, by string) error {
	decision := ledger.ReviewDifferent
	if same {
		decision = ledger.ReviewSame
	}
	return d.r.inTx(ctx, "deciding review "+id, func(ctx context.Context, tx *tx) error {
		var ref []byte
		var part int32
		var person string
		var decided bool
		err := tx.QueryRowContext(ctx, d.r.ledger.sql(`SELECT ref, part, person, decided_at IS NOT NULL FROM {p}review WHERE id = ? FOR UPDATE`), id).
			Scan(&ref, &part, &person, &decided)
		if errors.Is(err, sql.ErrNoRows) || err == nil && decided {
			return ledger.ErrNoReview(id, decided)
		}
		if err != nil {
			return err
		}
		_, err = d.r.write(ctx, tx, `UPDATE {p}review r SET r.decided_at = ?, r.decided_by = ?, r.decision = ? WHERE r.id = ?`, tx.now, by, decision, id)
		if err != nil {
			return err
		}
		_, err = d.r.write(ctx, tx, `INSERT IGNORE INTO {p}match_pair (ref, person, decision, decided_by, decided_at) VALUES (?, ?, ?, ?, ?)`,
			ref, person, decision, by, tx.now)
		if err != nil {
			return err
		}
		_, err = d.r.write(ctx, tx, `INSERT INTO {p}touch (ref, part, reason, at) VALUES (?, ?, ?, ?)`, ref, part, ledger.TouchRow, tx.now)
		return err
	})
}
