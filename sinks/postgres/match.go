package postgres

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/sinks/ledger"
)

// runner is a transaction or a connection.
type runner interface {
	querier
	batcher
}

// finding is what a search for persons reads through.
type finding struct {
	r      *Replica
	m      *Mapping
	own    runner // sees Lethe's own tables
	mapped runner // sees the mapped ones: who reads back may see those only
	// lock keeps the rows as they are until the end of the transaction, so that nothing is done to somebody who has taken a row
	// meanwhile.
	lock bool
	// leftOnly leaves out tables whose rows are held instead of erased: what they say is there to stay.
	leftOnly bool
}

// find finds the rows that some subjects are, of what the rows say now: see ledger.Search. known adds rows of which it is known
// already whose they are.
func (f *finding) find(ctx context.Context, list []*ledger.Subject, known func(*ledger.Search)) ([]*ledger.Target, error) {
	targets, _, err := f.search(ctx, list, known)
	return targets, err
}

func (f *finding) search(ctx context.Context, list []*ledger.Subject, known func(*ledger.Search)) ([]*ledger.Target, *ledger.Search, error) {
	s := f.r.core.NewSearch(list)
	if len(list) == 0 {
		return nil, s, nil
	}
	owners, err := f.candidates(ctx, s, list)
	if err != nil {
		return nil, nil, err
	}
	if known != nil {
		known(s)
	}
	if err := f.readRows(ctx, s, list, owners); err != nil {
		return nil, nil, err
	}
	if err := f.readHolders(ctx, s); err != nil {
		return nil, nil, err
	}
	if refs := s.Strangers(); len(refs) > 0 {
		set, err := f.r.loadWithContacts(ctx, f.own, refs)
		if err != nil {
			return nil, nil, err
		}
		for _, x := range set.List {
			s.Rival(x)
		}
	}
	return s.Targets(), s, nil
}

// sqlLeadsTo asks the index which rows keys lead to: of each key one more than anybody can be meant by.
var sqlLeadsTo = `
	SELECT v.n, k.person FROM unnest($1::bytea[]) WITH ORDINALITY AS v(value, n)
	CROSS JOIN LATERAL (SELECT k.person FROM {s}.row_key k WHERE k.value = v.value LIMIT ` + strconv.Itoa(ledger.MaxRows+1) + `) k`

const sqlPairs = `SELECT ref, person, decision FROM {s}.match_pair WHERE ref = ANY ($1)`

// candidates asks the index, the CRM key where the replica has it, and what was decided. It returns the places of the subjects
// whose CRM key a row carries, by person.
func (f *finding) candidates(ctx context.Context, s *ledger.Search, list []*ledger.Subject) (owners map[string]int, err error) {
	own := &pgx.Batch{}
	if places, values := s.Lookups(); len(values) > 0 {
		own.Queue(f.r.ledger.sql(sqlLeadsTo), byteArray(values)).Query(func(rows pgx.Rows) error { return f.lead(rows, s, places) })
	}
	own.Queue(f.r.ledger.sql(sqlPairs), byteArray(s.Refs())).Query(func(rows pgx.Rows) error {
		var ref []byte
		var person, decision string
		_, err := pgx.ForEachRow(rows, []any{&ref, &person, &decision}, func() error {
			s.Pair(ledger.Ref(ref), person, decision)
			return nil
		})
		return err
	})
	if err := f.own.SendBatch(ctx, own).Close(); err != nil || len(f.m.crm) == 0 {
		return nil, err
	}
	q := &statement{}
	who := q.whoBy(len(f.m.crm), list)
	q.WriteString("SELECT v.i, t." + f.m.key.sql() + "::text FROM " + who + ", " + f.m.person.sql() + " AS t WHERE " + matchesBy(f.m.crm, "t"))
	rows, err := f.mapped.Query(ctx, q.String(), q.args...)
	if err != nil {
		return nil, err
	}
	owners = make(map[string]int, len(list))
	var place int32
	var person string
	_, err = pgx.ForEachRow(rows, []any{&place, &person}, func() error {
		owners[person] = int(place)
		s.Candidate(int(place), person)
		return nil
	})
	return owners, err
}

// lead reads the rows of sqlLeadsTo. A key that leads to too many is nobody's address, and a batch must not read half a table
// because of it.
func (f *finding) lead(rows pgx.Rows, s *ledger.Search, places []int32) error {
	var n int64
	var person string
	last, persons, crowded := int64(0), make([]string, 0, ledger.MaxRows+1), 0
	flush := func() {
		if len(persons) > ledger.MaxRows {
			crowded++
		} else {
			for _, p := range persons {
				s.Candidate(int(places[last-1]), p)
			}
		}
		persons = persons[:0]
	}
	for rows.Next() {
		if err := rows.Scan(&n, &person); err != nil {
			return err
		}
		if n != last {
			flush()
			last = n
		}
		persons = append(persons, person)
	}
	flush()
	if crowded > 0 {
		f.r.log.Warn().Int("keys", crowded).Int("rows", ledger.MaxRows).
			Msg("contact points that more rows have than one person's lead nowhere: are they placeholders? add them to ignore")
	}
	return rows.Err()
}

// readRows reads what the candidates say now, the person's own table first.
func (f *finding) readRows(ctx context.Context, s *ledger.Search, list []*ledger.Subject, owners map[string]int) error {
	persons := s.Persons()
	if len(persons) == 0 {
		return nil
	}
	slices.Sort(persons) // rows are locked in one order
	b := &pgx.Batch{}
	own := &findTable{join: join{table: f.m.person}}
	for i := range f.m.finds {
		if ft := &f.m.finds[i]; ft.table.oid == f.m.person.oid && ft.by == nil {
			own = ft
		}
	}
	there := make(map[string]bool, len(persons))
	f.queueRead(b, own, persons, f.m.crm, func(person string, crm []string, said *ledger.RowTexts) {
		there[person] = true
		if place, ours := owners[person]; ours {
			crm = list[place].Key // what the server calls equal counts
		}
		s.Row(person, crm, said)
	})
	for i := range f.m.finds {
		if ft := &f.m.finds[i]; ft != own && (!f.leftOnly || !ft.held) {
			f.queueRead(b, ft, persons, nil, func(person string, _ []string, said *ledger.RowTexts) {
				if there[person] {
					s.Row(person, nil, said)
				}
			})
		}
	}
	return f.mapped.SendBatch(ctx, b).Close()
}

// queueRead queues the reading of the rows of some persons in one table.
func (f *finding) queueRead(b *pgx.Batch, ft *findTable, persons []string, crm []*column, tell func(person string, crm []string, said *ledger.RowTexts)) {
	q := &statement{}
	selected := []string{"w.k"}
	for _, c := range crm {
		selected = append(selected, "t."+c.sql()+"::text")
	}
	columns := ft.columns
	if f.leftOnly && ft.held {
		columns = nil
	}
	for i := range columns {
		selected = append(selected, columns[i].said("t"))
	}
	owner := ft.owner(f.m)
	q.WriteString("SELECT " + strings.Join(selected, ", ") + " FROM unnest(" + q.arg(textArray(persons)) + "::text[]) AS w(k), " + ft.table.sql() +
		" AS t WHERE t." + owner.sql() + " = w.k::" + owner.typ)
	if f.lock {
		q.WriteString(" FOR NO KEY UPDATE OF t")
	}
	b.Queue(q.String(), q.args...).Query(func(rows pgx.Rows) error {
		var person string
		raw := make([]pgtype.Text, len(crm)+len(columns))
		into := []any{&person}
		for i := range raw {
			into = append(into, &raw[i])
		}
		_, err := pgx.ForEachRow(rows, into, func() error {
			var said ledger.RowTexts
			for i := range columns {
				if v := &raw[len(crm)+i]; v.Valid && v.String != "" {
					said.Add(columns[i].kind, v.String)
				}
			}
			tell(person, crmKeyOf(raw[:len(crm)]), &said)
			return nil
		})
		return err
	})
}

// crmKeyOf returns the CRM key that a row carries; nil where it has none.
func crmKeyOf(raw []pgtype.Text) []string {
	var key []string
	for i := range raw {
		if raw[i].String == "" {
			return nil
		}
		key = append(key, raw[i].String)
	}
	return key
}

// sqlHolders reads which other subjects hold what the rows say. Of a key that many hold some are enough: it is shared.
var sqlHolders = `
	SELECT v.value, k.ref FROM unnest($1::bytea[], $2::bytea[]) AS v(value, ours)
	CROSS JOIN LATERAL (SELECT k.ref FROM {s}.contact_key k WHERE k.value = v.value AND k.ref <> v.ours AND k.standing <> 'revived'
		LIMIT ` + strconv.Itoa(ledger.MaxRivals) + `) k`

func (f *finding) readHolders(ctx context.Context, s *ledger.Search) error {
	values, ours := s.HeldBy()
	if len(values) == 0 {
		return nil
	}
	rows, err := f.own.Query(ctx, f.r.ledger.sql(sqlHolders), byteArray(values), byteArray(ours))
	if err != nil {
		return err
	}
	var value, ref []byte
	_, err = pgx.ForEachRow(rows, []any{&value, &ref}, func() error {
		s.Holder(value, ledger.Ref(ref))
		return nil
	})
	return err
}

// sqlTouchHolders asks for a look at whoever holds keys that have come up, if there is anything to be applied to a row of theirs.
const sqlTouchHolders = `
	INSERT INTO {s}.touch (ref, part, reason)
	SELECT DISTINCT s.ref, s.part, $2 FROM unnest($1::bytea[]) AS v(value)
	CROSS JOIN LATERAL (SELECT k.ref FROM {s}.contact_key k WHERE k.value = v.value AND k.standing <> 'revived' LIMIT 200) k
	JOIN {s}.subject s ON s.ref = k.ref
	WHERE s.state <> 'erased' AND (s.state <> 'live' OR s.recheck_at IS NOT NULL OR EXISTS (SELECT FROM {s}.fact f WHERE f.ref = s.ref))`
