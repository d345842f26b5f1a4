package mysql

import (
	"context"
	"database/sql"
	"slices"
	"strconv"

	"lethe/sinks/ledger"
)

// finding is what a search for persons reads through.
type finding struct {
	r      *Replica
	m      *Mapping
	own    querier // sees Lethe's own tables
	mapped querier // sees the mapped ones: who reads back may see those only
	// lock keeps the rows as they are until the end of the transaction, so that nothing is done to somebody who has taken a row
	// meanwhile.
	lock bool
	// leftOnly leaves out tables whose rows are held instead of erased: what they say is there to stay.
	leftOnly bool
}

// find finds the rows that some subjects are, of what the rows say now: see ledger.Search. known adds rows of which it is known
// already whose they are.
func (f *finding) find(ctx context.Context, list []*ledger.Subject, known func(*ledger.Search)) ([]*ledger.Target, error) {
	s := f.r.core.NewSearch(list)
	if len(list) == 0 {
		return nil, nil
	}
	owners, err := f.byCRMKey(ctx, list)
	if err != nil {
		return nil, err
	}
	for person, place := range owners {
		s.Candidate(place, person)
	}
	if err := f.candidates(ctx, s); err != nil {
		return nil, err
	}
	if known != nil {
		known(s)
	}
	if err := f.readRows(ctx, s, list, owners); err != nil {
		return nil, err
	}
	if err := f.readHolders(ctx, s); err != nil {
		return nil, err
	}
	if refs := s.Strangers(); len(refs) > 0 {
		set, err := f.r.load(ctx, f.own, refs)
		if err != nil {
			return nil, err
		}
		for _, x := range set.List {
			s.Rival(x)
		}
	}
	return s.Targets(), nil
}

// locking ends a SELECT of mapped rows (t).
func (f *finding) locking() string {
	if f.lock {
		return f.m.lock()
	}
	return ""
}

// byCRMKey finds persons by the CRM key, with the place of the subject that has it. What the server calls equal counts: the
// key may be spelled otherwise there.
func (f *finding) byCRMKey(ctx context.Context, list []*ledger.Subject) (map[string]int, error) {
	m, out := f.m, map[string]int{}
	if len(m.crm) == 0 {
		return out, nil
	}
	place := make(map[*ledger.Subject]int, len(list))
	for i, s := range list {
		place[s] = i
	}
	err := m.eachPerson(ctx, f.mapped, list, f.locking(), func(s *ledger.Subject, person string) { out[person] = place[s] })
	return out, err
}

// valuesTable is a list of keys as a table v(i, value): i is a place, value in hexadecimal digits.
const valuesTable = `JSON_TABLE(?, '$[*]' COLUMNS (i INT PATH '$[0]', value CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]')) AS v`

func valuesJSON(places []int32, values [][]byte) string {
	out := make([]byte, 0, 80*len(values)+2)
	for n, v := range values {
		place := int32(n)
		if places != nil {
			place = places[n]
		}
		out = strconv.AppendInt(append(out, separator(n)+"["...), int64(place), 10)
		out = append(appendHex(append(out, ','), v), ']')
	}
	return string(closeList(out))
}

// candidates asks the index which rows the subjects may be, and what was decided about them.
func (f *finding) candidates(ctx context.Context, s *ledger.Search) error {
	if err := f.readPairs(ctx, s); err != nil {
		return err
	}
	places, values := s.Lookups()
	persons, all, err := f.leadsTo(ctx, values)
	if err == nil && !all {
		if persons, err = f.leadsToFew(ctx, values); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	crowded := 0
	for n, list := range persons {
		if len(list) > ledger.MaxRows {
			crowded++
			continue
		}
		for _, person := range list {
			s.Candidate(int(places[n]), person)
		}
	}
	if crowded > 0 {
		f.r.log.Warn().Int("keys", crowded).Int("rows", ledger.MaxRows).
			Msg("contact points that more rows have than one person's lead nowhere: are they placeholders? add them to ignore")
	}
	return nil
}

// enough is how many rows one question to an index may answer with, beside one for each key: of a key that half the table has
// some are read, and then it is asked for in another way.
const enough = 20 * ledger.MaxRows

// leadsTo asks which rows keys lead to: the persons, by the key's place. all is false where there are too many to be read.
func (f *finding) leadsTo(ctx context.Context, values [][]byte) (persons [][]string, all bool, err error) {
	persons = make([][]string, len(values))
	if len(values) == 0 {
		return persons, true, nil
	}
	limit, rows := len(values)+enough, 0
	err = eachRow(ctx, f.own, f.r.ledger.sql(`SELECT v.i, k.person FROM `+valuesTable+`
		STRAIGHT_JOIN {p}row_key k FORCE INDEX (by_value) ON k.value = UNHEX(v.value) LIMIT ?`), []any{valuesJSON(nil, values), limit}, func(row *sql.Rows) error {
		var n int
		var person string
		if err := row.Scan(&n, &person); err != nil {
			return err
		}
		rows++
		persons[n] = append(persons[n], person)
		return nil
	})
	return persons, rows < limit, err
}

// leadsToFew is leadsTo, key by key, with one person more than anybody can be meant by. A key that leads to too many is nobody's
// address, and a batch must not read half a table because of it.
func (f *finding) leadsToFew(ctx context.Context, values [][]byte) ([][]string, error) {
	persons := make([][]string, len(values))
	for n, v := range values {
		list, err := column1[string](ctx, f.own, f.r.ledger.sql(`SELECT k.person FROM {p}row_key k FORCE INDEX (by_value) WHERE k.value = ? LIMIT ?`),
			v, ledger.MaxRows+1)
		if err != nil {
			return nil, err
		}
		persons[n] = list
	}
	return persons, nil
}

// readRows reads what the candidates say now, the person's own table first.
func (f *finding) readRows(ctx context.Context, s *ledger.Search, list []*ledger.Subject, owners map[string]int) error {
	persons := s.Persons()
	slices.Sort(persons) // rows are locked in one order
	if len(persons) == 0 {
		return nil
	}
	own := &findTable{join: join{table: f.m.person}}
	for i := range f.m.finds {
		if ft := &f.m.finds[i]; ft.by == nil && (!f.leftOnly || !ft.held) {
			own = ft
		}
	}
	there := make(map[string]bool, len(persons))
	found, err := f.m.readPersons(ctx, f.mapped, own, persons, f.m.crm, f.lock)
	if err != nil {
		return err
	}
	for k := range found {
		row := &found[k]
		there[row.person] = true
		if place, ours := owners[row.person]; ours {
			row.crm = list[place].Key // what the server calls equal counts
		}
		s.Row(row.person, row.crm, &row.values)
	}
	for i := range f.m.finds {
		ft := &f.m.finds[i]
		if ft == own || f.leftOnly && ft.held {
			continue
		}
		found, err := f.m.readPersons(ctx, f.mapped, ft, persons, nil, f.lock)
		if err != nil {
			return err
		}
		for k := range found {
			if row := &found[k]; there[row.person] {
				s.Row(row.person, nil, &row.values)
			}
		}
	}
	return nil
}

// readPairs reads what was decided about the subjects.
func (f *finding) readPairs(ctx context.Context, s *ledger.Search) error {
	return eachRow(ctx, f.own, f.r.ledger.sql(`SELECT m.ref, m.person, m.decision FROM `+refsTable+` STRAIGHT_JOIN {p}match_pair m ON m.ref = UNHEX(v.ref)`),
		[]any{refsJSON(s.Refs())}, func(rows *sql.Rows) error {
			var ref sql.RawBytes
			var person, decision string
			if err := rows.Scan(&ref, &person, &decision); err != nil {
				return err
			}
			s.Pair(ledger.Ref(ref), person, decision)
			return nil
		})
}

// heldTable is a list of keys as a table v(i, value, ours), with a subject of which it is known that it holds the key.
const heldTable = `JSON_TABLE(?, '$[*]' COLUMNS (i INT PATH '$[0]', value CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]',
	ours CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[2]')) AS v`

// readHolders reads which other subjects hold what the rows say. Of a key that many hold some are enough: it is shared.
func (f *finding) readHolders(ctx context.Context, s *ledger.Search) error {
	values, ours := s.HeldBy()
	if len(values) == 0 {
		return nil
	}
	list := make([]byte, 0, 160*len(values))
	for n := range values {
		list = strconv.AppendInt(append(list, separator(len(list))+"["...), int64(n), 10)
		list = append(appendHex(append(appendHex(append(list, ','), values[n]), ','), ours[n]), ']')
	}
	tell := func(rows *sql.Rows) error {
		var value, ref sql.RawBytes
		if err := rows.Scan(&value, &ref); err != nil {
			return err
		}
		s.Holder(value, ledger.Ref(ref))
		return nil
	}
	limit, n := len(values)+enough, 0
	err := eachRow(ctx, f.own, f.r.ledger.sql(`SELECT k.value, k.ref FROM `+heldTable+` STRAIGHT_JOIN {p}contact_key k FORCE INDEX (by_value)
		ON k.value = UNHEX(v.value) AND k.ref <> UNHEX(v.ours) WHERE k.standing <> 'revived' LIMIT ?`), []any{string(closeList(list)), limit},
		func(rows *sql.Rows) error {
			n++
			return tell(rows)
		})
	if err != nil || n < limit {
		return err
	}
	for n := range values {
		err := eachRow(ctx, f.own, f.r.ledger.sql(`SELECT k.value, k.ref FROM {p}contact_key k FORCE INDEX (by_value)
			WHERE k.value = ? AND k.ref <> ? AND k.standing <> 'revived' LIMIT `+strconv.Itoa(ledger.MaxRivals)), []any{values[n], ours[n]}, tell)
		if err != nil {
			return err
		}
	}
	return nil
}
