package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/internal/pii"
	"lethe/sinks/ledger"
)

// sqlReviews counts the open reviews, and those of them that are overdue.
const sqlReviews = `(SELECT count(*) FROM {s}.review WHERE decided_at IS NULL), (SELECT count(*) FROM {s}.review WHERE decided_at IS NULL AND due_at < now())`

const reviewColumns = `r.id, r.kind, p.case_id, r.person, r.evidence, r.opened_at, r.due_at, r.decided_at, coalesce(r.decided_by, ''), coalesce(r.decision, '')`

func scanReview(row pgx.CollectableRow, extra ...any) (r ledger.Review, err error) {
	var id []byte
	var decided *time.Time
	into := append([]any{&r.ID, &r.Kind, &id, &r.Person, &r.Evidence, &r.OpenedAt, &r.DueAt, &decided, &r.DecidedBy, &r.Decision}, extra...)
	err = row.Scan(into...)
	copy(r.CaseID[:], id)
	if decided != nil {
		r.DecidedAt = *decided
	}
	r.Agreeing = strings.Count(r.Evidence, "+") + 1
	return r, err
}

// Reviews lists the rows of which a person has to say whether they are a subject, those with the most keys that agree first; open
// leaves out those that are decided.
func (d *Desk) Reviews(ctx context.Context, open bool, limit int) ([]ledger.Review, error) {
	const op = "listing reviews"
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT `+reviewColumns+` FROM {s}.review r LEFT JOIN {s}.pending p ON p.ref = r.ref WHERE r.decided_at IS NULL OR NOT $1
		ORDER BY r.decided_at DESC NULLS FIRST, cardinality(string_to_array(r.evidence, '+')) DESC, r.due_at, r.id LIMIT $2`), open, limit)
	if err != nil {
		return nil, classify(op, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ledger.Review, error) { return scanReview(row) })
	return out, classify(op, err)
}

// ReviewCase returns one review with what the replica says of the row now: for whoever decides, and for nothing else.
func (d *Desk) ReviewCase(ctx context.Context, id string) (*ledger.ReviewDetail, error) {
	const op = "reading the review"
	rows, err := d.r.opts.Pool.Query(ctx, d.r.ledger.sql(`
		SELECT `+reviewColumns+`, r.ref, s.sealed_key, (SELECT count(DISTINCT o.ref) FROM {s}.contact_key k
			JOIN {s}.contact_key o ON o.value = k.value AND o.ref <> k.ref AND o.standing <> 'revived'
			WHERE k.ref = r.ref AND k.standing <> 'revived' AND k.type <> 'name')
		FROM {s}.review r LEFT JOIN {s}.pending p ON p.ref = r.ref LEFT JOIN {s}.subject s ON s.ref = r.ref WHERE r.id = $1`), id)
	if err != nil {
		return nil, classify(op, err)
	}
	out, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (*ledger.ReviewDetail, error) {
		var ref []byte
		x := &ledger.ReviewDetail{}
		var err error
		if x.Review, err = scanReview(row, &ref, &x.Sealed, &x.Rivals); err != nil {
			return nil, err
		}
		x.Ref = ledger.Ref(ref)
		return x, nil
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ledger.ErrNoReview(id, false)
	}
	if err != nil {
		return nil, classify(op, err)
	}
	err = d.r.readTx(ctx, op, func(tx pgx.Tx) error {
		m, findings, err := compile(ctx, tx, d.r.cfg)
		if err != nil {
			return err
		}
		if err := ledger.ErrorOf(d.r.opts.Name, findings); err != nil {
			return err
		}
		for i := range m.finds {
			said, err := m.finds[i].show(ctx, tx, m, out.Person)
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
func (ft *findTable) show(ctx context.Context, tx pgx.Tx, m *Mapping, person string) ([]ledger.ReviewRow, error) {
	var names, selected []string
	for i := range ft.columns {
		if c := &ft.columns[i]; !slices.Contains(names, c.name) {
			names, selected = append(names, c.name), append(selected, c.said("t"))
		}
	}
	owner := ft.owner(m)
	rows, err := tx.Query(ctx, "SELECT "+strings.Join(selected, ", ")+" FROM "+ft.table.sql()+" AS t WHERE t."+owner.sql()+" = $1::text::"+owner.typ, person)
	if err != nil {
		return nil, err
	}
	raw := make([]pgtype.Text, len(names))
	into := make([]any, len(names))
	for i := range raw {
		into[i] = &raw[i]
	}
	var out []ledger.ReviewRow
	_, err = pgx.ForEachRow(rows, into, func() error {
		r := ledger.ReviewRow{Table: ft.table.config, Columns: names, Values: make([]pii.Value, len(names))}
		for i, v := range raw {
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
	return d.r.inTx(ctx, "deciding review "+id, func(ctx context.Context, tx pgx.Tx) error {
		var ref []byte
		var part int32
		var person string
		err := tx.QueryRow(ctx, d.r.ledger.sql(`UPDATE {s}.review SET decided_at = now(), decided_by = $2, decision = $3
			WHERE id = $1 AND decided_at IS NULL RETURNING ref, part, person`), id, by, decision).Scan(&ref, &part, &person)
		if errors.Is(err, pgx.ErrNoRows) {
			var known bool
			if err := tx.QueryRow(ctx, d.r.ledger.sql(`SELECT EXISTS (SELECT FROM {s}.review WHERE id = $1)`), id).Scan(&known); err != nil {
				return err
			}
			return ledger.ErrNoReview(id, known)
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, d.r.ledger.sql(`INSERT INTO {s}.match_pair (ref, person, decision, decided_by) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`),
			ref, person, decision, by)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, d.r.ledger.sql(`INSERT INTO {s}.touch (ref, part, reason) VALUES ($1, $2, $3)`), ref, part, ledger.TouchRow)
		return err
	})
}
