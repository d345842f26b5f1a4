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
	who, err := whoBy(m.crm, list)
	if err != nil {
		return nil, err
	}
	query := "SELECT v.i, " + m.key.text("t."+m.key.sql()) + " FROM " + m.tablesOf(who, join{table: m.person}, "") + " WHERE " + matchesBy(m.crm, "t") + f.locking()
	err = eachRow(ctx, f.mapped, query, who.args, func(rows *sql.Rows) error {
		var i int
		var person string
		if err := rows.Scan(&i, &person); err != nil {
			return err
		}
		out[person] = i
		return nil
	})
	return out, err
}

// valuesTable is a list of keys as a table v(i, value): i is a place, value in hexadecimal digits.
const valuesTable = `JSON_TABLE(?, '$[*]' COLUMNS (i INT PATH '$[0]', value CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]')) AS v`

func valuesJSON(places []int32, values [][]byte) string {
	out := make([]byte, 0, 80*len(values)+2)
	for n, v := range values {
		place := int32(n) //nolint:gosec // as many as a batch has keys
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
	places, values, err := f.leading(ctx, places, values)
	if err != nil || len(values) == 0 {
		return err
	}
	return eachRow(ctx, f.own, f.r.ledger.sql(`SELECT DISTINCT v.i, k.person FROM `+valuesTable+` STRAIGHT_JOIN {p}row_key k FORCE INDEX (by_value) ON k.value = UNHEX(v.value)`),
		[]any{valuesJSON(places, values)}, func(rows *sql.Rows) error {
			var i int
			var person string
			if err := rows.Scan(&i, &person); err != nil {
				return err
			}
			s.Candidate(i, person)
			return nil
		})
}

// leading drops keys that lead to more rows than one person has: nobody's address, and a batch must not read half a table
// because of it.
func (f *finding) leading(ctx context.Context, places []int32, values [][]byte) ([]int32, [][]byte, error) {
	if len(values) == 0 {
		return nil, nil, nil
	}
	crowded := map[int]bool{}
	err := eachPlace(ctx, f.own, f.r.ledger.sql(`SELECT v.i FROM `+valuesTable+` WHERE
		(SELECT 1 FROM {p}row_key k FORCE INDEX (by_value) WHERE k.value = UNHEX(v.value) LIMIT 1 OFFSET `+strconv.Itoa(ledger.MaxRows)+`) IS NOT NULL`),
		[]any{valuesJSON(nil, values)}, func(n int) { crowded[n] = true })
	if err != nil || len(crowded) == 0 {
		return places, values, err
	}
	f.r.log.Warn().Int("keys", len(crowded)).Int("rows", ledger.MaxRows).
		Msg("contact points that more rows have than one person's lead nowhere: are they placeholders? add them to ignore")
	var p []int32
	var v [][]byte
	for n := range values {
		if !crowded[n] {
			p, v = append(p, places[n]), append(v, values[n])
		}
	}
	return p, v, nil
}

// readRows reads what the candidates say now, the person's own table first.
func (f *finding) readRows(ctx context.Context, s *ledger.Search, list []*ledger.Subject, owners map[string]int) error {
	persons := s.Persons()
	slices.Sort(persons) // rows are locked in one order
	if len(persons) == 0 {
		return nil
	}
	crm, err := f.readCRMKeys(ctx, persons)
	if err != nil {
		return err
	}
	for person, key := range crm {
		if place, ours := owners[person]; ours {
			key = list[place].Key // what the server calls equal counts
		}
		s.Row(person, key, nil)
	}
	for i := range f.m.finds {
		ft := &f.m.finds[i]
		if f.leftOnly && ft.held {
			continue
		}
		found, err := f.m.readPersons(ctx, f.mapped, ft, persons, f.lock)
		if err != nil {
			return err
		}
		for k := range found {
			if row := &found[k]; there(crm, row.person) {
				s.Row(row.person, nil, &row.values)
			}
		}
	}
	return nil
}

func there(persons map[string][]string, person string) bool {
	_, ok := persons[person]
	return ok
}

// readCRMKeys reads which of some persons there are, and the CRM key that each carries; nil where it has none.
func (f *finding) readCRMKeys(ctx context.Context, persons []string) (map[string][]string, error) {
	m := f.m
	places := make([]int32, len(persons))
	for i := range places {
		places[i] = int32(i) //nolint:gosec // as many as a batch has candidates
	}
	w, err := m.personsTable(places, persons)
	if err != nil {
		return nil, err
	}
	var place int
	values := make([]sql.NullString, len(m.crm))
	into := []any{&place}
	selected := "SELECT w.i"
	for k, c := range m.crm {
		selected += ", " + c.text("t."+c.sql())
		into = append(into, &values[k])
	}
	query := selected + " FROM " + w.sql + " STRAIGHT_JOIN " + m.person.sql() + " AS t WHERE " + m.owns(join{table: m.person}) + f.locking()
	out := make(map[string][]string, len(persons))
	err = eachRow(ctx, f.mapped, query, w.args, func(rows *sql.Rows) error {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		var key []string
		for _, v := range values {
			if v.String == "" {
				key = nil
				break
			}
			key = append(key, v.String)
		}
		out[persons[place]] = key
		return nil
	})
	return out, err
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
	list := func(keep func(n int) bool) string {
		out := make([]byte, 0, 160*len(values))
		for n := range values {
			if !keep(n) {
				continue
			}
			out = strconv.AppendInt(append(out, separator(len(out))+"["...), int64(n), 10)
			out = appendHex(append(appendHex(append(out, ','), values[n]), ','), ours[n])
			out = append(out, ']')
		}
		return string(closeList(out))
	}
	const held = `{p}contact_key k FORCE INDEX (by_value) WHERE k.standing <> 'revived' AND k.value = `
	crowded := map[int]bool{}
	err := eachPlace(ctx, f.own, f.r.ledger.sql(`SELECT v.i FROM `+heldTable+` WHERE (SELECT 1 FROM `+held+`UNHEX(v.value)
		LIMIT 1 OFFSET `+strconv.Itoa(ledger.MaxRivals)+`) IS NOT NULL`), []any{list(func(int) bool { return true })}, func(n int) { crowded[n] = true })
	if err != nil {
		return err
	}
	tell := func(rows *sql.Rows) error {
		var value, ref sql.RawBytes
		if err := rows.Scan(&value, &ref); err != nil {
			return err
		}
		s.Holder(value, ledger.Ref(ref))
		return nil
	}
	for n := range crowded {
		err := eachRow(ctx, f.own, f.r.ledger.sql(`SELECT k.value, k.ref FROM `+held+`? AND k.ref <> ? LIMIT `+strconv.Itoa(ledger.MaxRivals)),
			[]any{values[n], ours[n]}, tell)
		if err != nil {
			return err
		}
	}
	return eachRow(ctx, f.own, f.r.ledger.sql(`SELECT k.value, k.ref FROM `+heldTable+` STRAIGHT_JOIN {p}contact_key k FORCE INDEX (by_value)
		ON k.value = UNHEX(v.value) AND k.ref <> UNHEX(v.ours) WHERE k.standing <> 'revived'`), []any{list(func(n int) bool { return !crowded[n] })}, tell)
}
