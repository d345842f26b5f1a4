package postgres

import (
	"bytes"
	"cmp"
	"context"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/schema"
	"lethe/sinks/ledger"
	"lethe/sinks/match"
)

// longestText bounds the characters that are read of a column: what is longer is no address, number or name.
const longestText = 1024

// rowRef is one row of a findTable as the replica's own keys name it.
type rowRef struct {
	key    []string // parts of its key, as text
	person string   // person.key in text form; empty: nobody's
	values ledger.RowTexts
}

// id is the row's key as Lethe's own table holds it.
func (r *rowRef) id() []byte {
	parts := make([][]byte, len(r.key))
	for i, p := range r.key {
		parts[i] = []byte(p)
	}
	return schema.CanonicalKey(nil, parts...)
}

// said is the SQL of what a column of a row (alias) says, as text.
func (c *findColumn) said(alias string) string {
	own := alias + "." + c.sql()
	if c.kind == ledger.FindBirthDate && c.category == 'D' {
		return "to_char(" + own + ", 'YYYY-MM-DD')"
	}
	return "left(" + own + "::text, " + strconv.Itoa(longestText) + ")"
}

// selected are the columns that rowReader reads of a row (alias t): its key, its person, then what it says.
func (ft *findTable) selected(m *Mapping) string {
	parts := make([]string, 0, len(ft.key)+len(ft.columns)+1)
	for _, c := range ft.key {
		parts = append(parts, "t."+c.sql()+"::text")
	}
	parts = append(parts, "t."+ft.owner(m).sql()+"::text")
	for i := range ft.columns {
		parts = append(parts, ft.columns[i].said("t"))
	}
	return strings.Join(parts, ", ")
}

// owner is the column that says whose a row is.
func (ft *findTable) owner(m *Mapping) *column {
	if ft.by != nil {
		return ft.by
	}
	return m.key
}

// rowReader reads rows of selected, behind other columns of the caller's.
type rowReader struct {
	ft   *findTable
	raw  []pgtype.Text
	into []any
}

func newRowReader(ft *findTable, before ...any) *rowReader {
	r := &rowReader{ft: ft, raw: make([]pgtype.Text, len(ft.key)+1+len(ft.columns)), into: before}
	for i := range r.raw {
		r.into = append(r.into, &r.raw[i])
	}
	return r
}

// scan reads one row. Its texts are personal: they become keys, and go nowhere else.
func (r *rowReader) scan(rows pgx.Rows, out *rowRef) error {
	if err := rows.Scan(r.into...); err != nil {
		return err
	}
	n := len(r.ft.key)
	out.key = make([]string, n)
	for i := range out.key {
		out.key[i] = r.raw[i].String
	}
	out.person = r.raw[n].String
	for i := range r.ft.columns {
		if v := &r.raw[n+1+i]; v.Valid && v.String != "" {
			out.values.Add(r.ft.columns[i].kind, v.String)
		}
	}
	return nil
}

// rowKey is one row of Lethe's table row_key, but for the name of its table.
type rowKey struct {
	pk     []byte
	typ    int16 // match.Keys.Number
	value  [32]byte
	person string
}

func (k *rowKey) compare(o *rowKey) int {
	return cmp.Or(bytes.Compare(k.pk, o.pk), cmp.Compare(k.typ, o.typ), bytes.Compare(k.value[:], o.value[:]), strings.Compare(k.person, o.person))
}

// keysOf are the keys that some rows, whose own keys are pks, should have in row_key. Numbers take microseconds each to read: every
// processor has its part.
func (r *Replica) keysOf(list []rowRef, pks byteArray) []rowKey {
	parts := make([][]rowKey, runtime.GOMAXPROCS(0))
	var wait sync.WaitGroup
	for n := range parts {
		from, to := n*len(list)/len(parts), (n+1)*len(list)/len(parts)
		wait.Go(func() {
			keys := make([]rowKey, 0, 2*(to-from))
			for i := from; i < to; i++ {
				keys = r.appendKeys(keys, &list[i], pks[i])
			}
			parts[n] = keys
		})
	}
	wait.Wait()
	return slices.Concat(parts...)
}

// appendKeys adds the keys that a row should have in row_key.
func (r *Replica) appendKeys(out []rowKey, row *rowRef, pk []byte) []rowKey {
	if row.person == "" {
		return out
	}
	keys, first := r.core.IndexKeys(&row.values), len(out)
	for i := range keys {
		k := rowKey{pk: pk, typ: match.KeyOf(keys[i].Type).Number(), value: keys[i].Value, person: row.person}
		if !slices.ContainsFunc(out[first:], func(o rowKey) bool { return o.compare(&k) == 0 }) {
			out = append(out, k)
		}
	}
	return out
}

// storedKeys reads the keys that row_key has of some rows.
func (r *Replica) storedKeys(ctx context.Context, tx pgx.Tx, table string, pks byteArray) ([]rowKey, error) {
	rows, err := tx.Query(ctx, r.ledger.sql(`SELECT pk, type, value, person FROM {s}.row_key WHERE tbl = $1 AND pk = ANY ($2)`), table, pks)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []rowKey
	for rows.Next() {
		var k rowKey
		var value []byte
		if err := rows.Scan(&k.pk, &k.typ, &value, &k.person); err != nil {
			return nil, err
		}
		copy(k.value[:], value)
		out = append(out, k)
	}
	return out, rows.Err()
}

// setKeys makes row_key hold what it should of some rows, and returns the keys that are new. fresh says that it holds none of
// them yet.
func (r *Replica) setKeys(ctx context.Context, tx pgx.Tx, table string, pks byteArray, want []rowKey, fresh bool) (added []rowKey, err error) {
	if !fresh {
		have, err := r.storedKeys(ctx, tx, table, pks)
		if err != nil {
			return nil, err
		}
		var gone []rowKey
		want, gone = keyChanges(have, want)
		if err := r.dropKeys(ctx, tx, table, gone); err != nil {
			return nil, err
		}
	}
	if len(want) == 0 {
		return nil, nil
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{r.ledger.schema, "row_key"}, []string{"tbl", "pk", "type", "value", "person"}, &keyRows{table: table, keys: want})
	return want, err
}

// keyRows hands keys to COPY.
type keyRows struct {
	table string
	keys  []rowKey
	next  int
	row   [5]any
}

// Next implements pgx.CopyFromSource.
func (k *keyRows) Next() bool {
	k.next++
	return k.next <= len(k.keys)
}

// Values implements pgx.CopyFromSource.
func (k *keyRows) Values() ([]any, error) {
	one := &k.keys[k.next-1]
	k.row = [5]any{k.table, one.pk, one.typ, one.value[:], one.person}
	return k.row[:], nil
}

// Err implements pgx.CopyFromSource.
func (k *keyRows) Err() error { return nil }

// dropKeys takes keys away.
func (r *Replica) dropKeys(ctx context.Context, tx pgx.Tx, table string, gone []rowKey) error {
	if len(gone) == 0 {
		return nil
	}
	pks, values := make(byteArray, len(gone)), make(byteArray, len(gone))
	types, persons := make(pgtype.FlatArray[int16], len(gone)), make(textArray, len(gone))
	for i := range gone {
		pks[i], types[i], values[i], persons[i] = gone[i].pk, gone[i].typ, gone[i].value[:], gone[i].person
	}
	_, err := tx.Exec(ctx, r.ledger.sql(`
		DELETE FROM {s}.row_key k USING unnest($2::bytea[], $3::smallint[], $4::bytea[], $5::text[]) AS v(pk, type, value, person)
		WHERE k.tbl = $1 AND k.pk = v.pk AND k.type = v.type AND k.value = v.value AND k.person = v.person`), table, pks, types, values, persons)
	return err
}

// keyChanges compares what row_key has with what it should have: what is to be written, and what is to go.
func keyChanges(have, want []rowKey) (put, gone []rowKey) {
	order := func(a, b rowKey) int { return a.compare(&b) }
	slices.SortFunc(have, order)
	slices.SortFunc(want, order)
	for len(have) > 0 || len(want) > 0 {
		switch {
		case len(have) == 0:
			return append(put, want...), gone
		case len(want) == 0:
			return put, append(gone, have...)
		}
		switch c := have[0].compare(&want[0]); {
		case c < 0:
			gone, have = append(gone, have[0]), have[1:]
		case c > 0:
			put, want = append(put, want[0]), want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return put, gone
}
