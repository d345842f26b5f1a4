package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
	"lethe/sinks/match"
)

// findTable is a table with columns by which persons are found where the CRM key is missing: the person's own, or one that
// erase.tables or hold joins to it.
type findTable struct {
	join
	key     []*column // tells its rows apart: the primary key; of the person's own table person.key where there is none
	columns []findColumn
	changed *column // grows when a row changes; nil: the whole table is read each time
	held    bool    // its rows are held instead of erased: they go on saying who the person is
}

// findColumn is one column that says something of a person.
type findColumn struct {
	*column
	kind string // ledger.FindEmail …
}

// longestText bounds the characters that are read of a column: what is longer is no address, number or name.
const longestText = 1024

// longestRowKey bounds the bytes of a row's key in Lethe's own table.
const longestRowKey = 1024

// rowRef is one row of a findTable as the replica's own keys name it.
type rowRef struct {
	key    []string // parts of its key, in the form of keyText
	person string   // person.key in text form
	place  int      // of the person in the list that was asked for
	crm    []string // the CRM key that it carries, where that was asked for; nil: none
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

// keyText is the SQL of a key part in the form that beyond and equals read back. An ENUM or SET is ordered by its number,
// not by its label.
func (c *column) keyText(expression string) string {
	if c.ordinal() {
		return "CAST(" + expression + " + 0 AS CHAR CHARACTER SET utf8mb4) COLLATE utf8mb4_bin"
	}
	return c.text(expression)
}

// ordinal reports whether the column's order is that of a number that its text does not show.
func (c *column) ordinal() bool { return c.base == "enum" || c.base == "set" || c.base == "bit" }

// keyArg is a parameter that stands for a key part, and the SQL that makes a value of the column of it.
func (c *column) keyArg(text string) (sqlText string, arg any, err error) {
	switch {
	case c.ordinal():
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return "", nil, errRowKey()
		}
		return "?", n, nil
	case c.comparesAsKey():
		value, err := c.keyValue(text)
		if err != nil || value == nil {
			return "", nil, errRowKey()
		}
		if c.base == "decimal" {
			return "CAST(? AS " + c.keyType() + ")", value, nil
		}
		return c.fromKey("?"), value, nil
	case c.base == "float" || c.base == "double":
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return "", nil, errRowKey()
		}
		return "?", n, nil
	}
	return c.fromText("?"), text, nil
}

// errRowKey says that the key of a row in Lethe's own table is none of the mapped table's: its key has another type by now.
func errRowKey() error {
	return &sinks.Error{
		Class: sinks.Transient, Op: "reading rows by key", Code: "row_key_type",
		Hint: "the key of a mapped table has changed its type: the table is read anew",
	}
}

// beyond is the condition that a row (alias t) comes behind one in the order of the table's key. Spelled out, because the
// servers use an index for that, and not for the comparison of lists.
func beyond(columns []*column, after []string) (part, error) {
	var out part
	first, arg, err := columns[0].keyArg(after[0])
	if err != nil {
		return part{}, err
	}
	own := "t." + columns[0].sql()
	if len(columns) == 1 {
		return part{own + " > " + first, []any{arg}}, nil
	}
	rest, err := beyond(columns[1:], after[1:])
	if err != nil {
		return part{}, err
	}
	out.sql = own + " >= " + first + " AND (" + own + " > " + first + " OR " + own + " = " + first + " AND (" + rest.sql + "))"
	out.args = append([]any{arg, arg, arg}, rest.args...)
	return out, nil
}

// ordered is the order of the table's key.
func ordered(columns []*column) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = "t." + c.sql()
	}
	return strings.Join(names, ", ")
}

// selected are the columns that rowOf reads: the row's key, then what says something of the person.
func (ft *findTable) selected() string {
	var parts []string
	for _, c := range ft.key {
		parts = append(parts, c.keyText("t."+c.sql()))
	}
	for _, c := range ft.columns {
		own := "t." + c.sql()
		if c.category == categoryDate && c.base != "time" {
			own = "DATE(" + own + ")"
			parts = append(parts, "CAST("+own+" AS CHAR CHARACTER SET utf8mb4)")
			continue
		}
		text := c.text(own)
		if c.length > longestText {
			text = "LEFT(" + text + ", " + strconv.Itoa(longestText) + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// rowReader reads rows of selected, behind other columns of the caller's.
type rowReader struct {
	ft   *findTable
	raw  []sql.NullString
	into []any
}

func newRowReader(ft *findTable, before ...any) *rowReader {
	r := &rowReader{ft: ft, raw: make([]sql.NullString, len(ft.key)+len(ft.columns)), into: before}
	for i := range r.raw {
		r.into = append(r.into, &r.raw[i])
	}
	return r
}

// scan reads one row. Its texts are personal: they become keys, and go nowhere else.
func (r *rowReader) scan(rows *sql.Rows, out *rowRef) error {
	if err := rows.Scan(r.into...); err != nil {
		return err
	}
	out.key = make([]string, len(r.ft.key))
	for i := range out.key {
		out.key[i] = r.raw[i].String
	}
	for i, c := range r.ft.columns {
		if v := r.raw[len(r.ft.key)+i]; v.Valid && v.String != "" {
			out.values.Add(c.kind, v.String)
		}
	}
	return nil
}

// readPersons reads the rows of some persons (person.key in text form) in a table as they are now. With lock nobody changes
// them before the end of the transaction. crm are columns of a CRM key to be read too.
func (m *Mapping) readPersons(ctx context.Context, q querier, ft *findTable, persons []string, crm []*column, lock bool) ([]rowRef, error) {
	if len(persons) == 0 {
		return nil, nil
	}
	places := make([]int32, len(persons))
	for i := range places {
		places[i] = int32(i)
	}
	w, err := m.personsTable(places, persons)
	if err != nil {
		return nil, err
	}
	selected := []string{"w.i"}
	var place int
	key := make([]sql.NullString, len(crm))
	before := []any{&place}
	for k, c := range crm {
		selected, before = append(selected, c.text("t."+c.sql())), append(before, &key[k])
	}
	if said := ft.selected(); said != "" {
		selected = append(selected, said)
	}
	query := "SELECT " + strings.Join(selected, ", ") + " FROM " + w.sql + " STRAIGHT_JOIN " + ft.table.sql() + " AS t WHERE " + m.owns(ft.join)
	if lock {
		query += m.lock()
	}
	var out []rowRef
	reader := newRowReader(ft, before...)
	err = eachRow(ctx, q, query, w.args, func(rows *sql.Rows) error {
		var r rowRef
		if err := reader.scan(rows, &r); err != nil {
			return err
		}
		r.place, r.person, r.crm = place, persons[place], crmKeyOf(key)
		out = append(out, r)
		return nil
	})
	return out, err
}

// crmKeyOf returns the CRM key that a row carries; nil where it has none.
func crmKeyOf(parts []sql.NullString) []string {
	var key []string
	for _, p := range parts {
		if p.String == "" {
			return nil
		}
		key = append(key, p.String)
	}
	return key
}

// rowKey is one row of Lethe's table row_key, but for the name of its table.
type rowKey struct {
	pk     string // rowRef.id
	kind   int16  // of match.Keys
	value  [32]byte
	person string
}

func (k *rowKey) compare(o *rowKey) int {
	return cmp.Or(strings.Compare(k.pk, o.pk), cmp.Compare(k.kind, o.kind), slices.Compare(k.value[:], o.value[:]))
}

// keysOf are the keys that some rows should have, in the order of row_key's own key. Numbers take microseconds each to read:
// every processor has its part.
func (r *Replica) keysOf(list []rowRef) []rowKey {
	parts := make([][]rowKey, runtime.GOMAXPROCS(0))
	var wait sync.WaitGroup
	for n := range parts {
		share := list[n*len(list)/len(parts) : (n+1)*len(list)/len(parts)]
		wait.Go(func() {
			keys := make([]rowKey, 0, 2*len(share))
			for i := range share {
				pk := string(share[i].id())
				for _, k := range r.core.IndexKeys(&share[i].values) {
					keys = append(keys, rowKey{pk: pk, kind: match.KeyOf(k.Type).Number(), value: k.Value, person: share[i].person})
				}
			}
			parts[n] = keys
		})
	}
	wait.Wait()
	out := slices.Concat(parts...)
	slices.SortFunc(out, func(a, b rowKey) int { return a.compare(&b) })
	return slices.CompactFunc(out, func(a, b rowKey) bool { return a.compare(&b) == 0 })
}

// pksTable is a list of row keys as a table v(pk), in hexadecimal digits.
const pksTable = `JSON_TABLE(?, '$[*]' COLUMNS (pk VARCHAR(2048) CHARACTER SET ascii COLLATE ascii_bin PATH '$')) AS v`

func pksOf(list []rowRef) [][]byte {
	out := make([][]byte, len(list))
	for i := range list {
		out[i] = list[i].id()
	}
	return out
}

// storedKeys reads the keys that row_key has of some rows.
func (r *Replica) storedKeys(ctx context.Context, tx *tx, table string, pks [][]byte) ([]rowKey, error) {
	var out []rowKey
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT k.pk, k.type, k.value, k.person FROM `+pksTable+`
		STRAIGHT_JOIN {p}row_key k ON k.tbl = ? AND k.pk = UNHEX(v.pk)`), []any{refsJSON(pks), table}, func(rows *sql.Rows) error {
		var pk, value sql.RawBytes
		var k rowKey
		if err := rows.Scan(&pk, &k.kind, &value, &k.person); err != nil {
			return err
		}
		k.pk = string(pk)
		copy(k.value[:], value)
		out = append(out, k)
		return nil
	})
	return out, err
}

// setKeys makes row_key hold what it should of some rows, and returns the keys that have come up. fresh says that it holds none
// of them yet.
func (r *Replica) setKeys(ctx context.Context, tx *tx, table string, pks [][]byte, want []rowKey, fresh bool) ([]rowKey, error) {
	var gone []rowKey
	if !fresh {
		have, err := r.storedKeys(ctx, tx, table, pks)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(have, func(a, b rowKey) int { return a.compare(&b) })
		want, gone = keyChanges(have, want)
	}
	if len(gone) > 0 {
		rows := rowsOf("pk", "VARCHAR(2048) CHARACTER SET ascii COLLATE ascii_bin", "type", typeInt, "value", typeKey)
		for i := range gone {
			rows.add([]byte(gone[i].pk), int64(gone[i].kind), gone[i].value[:])
		}
		_, err := r.write(ctx, tx, `DELETE k FROM `+rows.table()+` STRAIGHT_JOIN {p}row_key k
			ON k.tbl = ? AND k.pk = UNHEX(v.pk) AND k.type = v.type AND k.value = UNHEX(v.value)`, rows.arg(), table)
		if err != nil {
			return nil, err
		}
	}
	const width = 5
	values := make([]any, 0, width*len(want))
	for i := range want {
		k := &want[i]
		values = append(values, table, []byte(k.pk), k.kind, k.value[:], k.person)
	}
	_, err := tx.insert(ctx, r.ledger.sql(`INSERT INTO {p}row_key (tbl, pk, type, value, person) VALUES `), width, values,
		` ON DUPLICATE KEY UPDATE person = VALUES(person)`)
	return want, own(err)
}

// keyChanges compares two lists in the order of rowKey.compare: what is to be written, and what is to go. A key whose row
// belongs to another person by now is written.
func keyChanges(have, want []rowKey) (put, gone []rowKey) {
	for len(have) > 0 || len(want) > 0 {
		var order int
		switch {
		case len(have) == 0:
			order = 1
		case len(want) == 0:
			order = -1
		default:
			order = have[0].compare(&want[0])
		}
		switch {
		case order < 0:
			gone, have = append(gone, have[0]), have[1:]
		case order > 0:
			put, want = append(put, want[0]), want[1:]
		default:
			if have[0].person != want[0].person {
				put = append(put, want[0])
			}
			have, want = have[1:], want[1:]
		}
	}
	return put, gone
}
