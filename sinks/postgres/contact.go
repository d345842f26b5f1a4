package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// sqlContacts and sqlContactKeys read the contact points of subjects, and the values that they have and had.
const (
	sqlContacts = `
	SELECT c.ref, c.contact_ref, c.kind, c.past, c.removed, c.revived, c.ord, c.event_id, c.since_ord, c.void_ord, c.void_at, c.void_event
	FROM unnest($1::bytea[]) AS v(ref) CROSS JOIN LATERAL (SELECT * FROM {s}.contact c WHERE c.ref = v.ref OFFSET 0) c`
	sqlContactKeys = `
	SELECT k.ref, k.contact_ref, k.value, k.type, k.key_id, k.norm_version, k.standing
	FROM unnest($1::bytea[]) AS v(ref) CROSS JOIN LATERAL (SELECT * FROM {s}.contact_key k WHERE k.ref = v.ref OFFSET 0) k`
)

// queueContacts queues the reading of the contact points of a set's subjects, which must have been read.
func (l ledgerTables) queueContacts(b *pgx.Batch, set *ledger.Set) {
	refs := set.Refs()
	b.Queue(l.sql(sqlContacts), refs).Query(func(rows pgx.Rows) error { return scanContacts(rows, set) })
	b.Queue(l.sql(sqlContactKeys), refs).Query(func(rows pgx.Rows) error { return scanContactKeys(rows, set) })
}

func scanContacts(rows pgx.Rows, set *ledger.Set) error {
	var ref, contact, order, event, since, void, cause []byte
	var kind string
	var voidAt pgtype.Timestamptz
	for rows.Next() {
		c := ledger.Contact{Stored: true}
		if err := rows.Scan(&ref, &contact, &kind, &c.Past, &c.Removed, &c.Revived, &order, &event, &since, &void, &voidAt, &cause); err != nil {
			return err
		}
		var err error
		if c.Kind, err = schema.ParseContactKind(kind); err != nil {
			return err
		}
		copy(c.Ref[:], contact)
		copy(c.Order[:], order)
		copy(c.EventID[:], event)
		copy(c.Since[:], since)
		copy(c.VoidOrder[:], void)
		copy(c.VoidEvent[:], cause)
		c.VoidAt = voidAt.Time
		if s := set.ByRef[ledger.Ref(ref)]; s != nil {
			s.Contacts = append(s.Contacts, c)
		}
	}
	return rows.Err()
}

func scanContactKeys(rows pgx.Rows, set *ledger.Set) error {
	var ref, contact, value []byte
	var standing string
	for rows.Next() {
		k := ledger.StoredKey{}
		if err := rows.Scan(&ref, &contact, &value, &k.Type, &k.KeyID, &k.NormVersion, &standing); err != nil {
			return err
		}
		copy(k.Value[:], value)
		k.SetStanding(standing)
		if s := set.ByRef[ledger.Ref(ref)]; s != nil {
			s.AddKey(schema.ContactRef(contact), k)
		}
	}
	return rows.Err()
}

// meet has the unit know what stands elsewhere about the values that its contact points bring.
func (u *unit) meet(ctx context.Context, tx batcher) error {
	return u.meetValues(ctx, tx, u.Wanted())
}

func (u *unit) meetValues(ctx context.Context, tx batcher, values [][32]byte) error {
	if len(values) == 0 {
		return nil
	}
	var blocks []ledger.Block
	var holders []ledger.Holder
	b := &pgx.Batch{}
	b.Queue(u.r.ledger.sql(`SELECT b.value, b.scope, b.ref, b.ord, b.as_of, b.state, b.event_id
		FROM unnest($1::bytea[]) AS v(value) CROSS JOIN LATERAL (SELECT * FROM {s}.contact_block b WHERE b.value = v.value OFFSET 0) b`),
		valueArray(values)).Query(func(rows pgx.Rows) (err error) {
		blocks, err = pgx.CollectRows(rows, scanBlock)
		return err
	})
	b.Queue(u.r.ledger.sql(`SELECT k.value, k.ref, s.erased_order
		FROM unnest($1::bytea[]) AS v(value) CROSS JOIN LATERAL (SELECT * FROM {s}.contact_key k WHERE k.value = v.value OFFSET 0) k
		CROSS JOIN LATERAL (SELECT * FROM {s}.subject s WHERE s.ref = k.ref OFFSET 0) s WHERE s.state <> 'live' AND k.standing <> 'revived'`),
		valueArray(values)).Query(func(rows pgx.Rows) (err error) {
		holders, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (h ledger.Holder, err error) {
			var value, ref []byte
			err = row.Scan(&value, &ref, &h.ErasedOrder)
			copy(h.Value[:], value)
			copy(h.Ref[:], ref)
			return h, err
		})
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	u.Meet(blocks, holders)
	return nil
}

func scanBlock(row pgx.CollectableRow) (b ledger.Block, err error) {
	var value, ref, order, event []byte
	var state string
	var asOf pgtype.Timestamptz
	err = row.Scan(&value, &b.Scope, &ref, &order, &asOf, &state, &event)
	b.State, b.AsOf = sinks.State(state), asOf.Time
	copy(b.Value[:], value)
	copy(b.Ref[:], ref)
	copy(b.Order[:], order)
	copy(b.EventID[:], event)
	return b, err
}

func valueArray(values [][32]byte) byteArray {
	out := make(byteArray, len(values))
	for i := range values {
		out[i] = values[i][:]
	}
	return out
}

// queueContactRows writes the contact points and values that have changed.
func (r *Replica) queueContactRows(b *pgx.Batch, list []*ledger.Subject) {
	var refs, contacts, orders, events, since, voids, causes byteArray
	var kinds textArray
	var parts pgtype.FlatArray[int32]
	var past, removed, revived pgtype.FlatArray[bool]
	var voidAt pgtype.FlatArray[*time.Time]
	var keyRefs, keyContacts, values byteArray
	var types, standings textArray
	var ids, norms pgtype.FlatArray[int64]
	for _, s := range list {
		for i := range s.Contacts {
			c := &s.Contacts[i]
			if c.Dirty {
				refs, contacts, kinds, parts = append(refs, s.Ref[:]), append(contacts, c.Ref[:]), append(kinds, c.Kind.String()), append(parts, s.Part)
				past, removed, revived = append(past, c.Past), append(removed, c.Removed), append(revived, c.Revived)
				orders, events, since = append(orders, c.Order[:]), append(events, c.EventID[:]), append(since, c.Since[:])
				void, cause := c.VoidColumns()
				voids, voidAt, causes = append(voids, void), append(voidAt, timeOrNull(c.VoidAt)), append(causes, cause)
			}
			for k := range c.Keys {
				key := &c.Keys[k]
				if !key.Dirty {
					continue
				}
				keyRefs, keyContacts, values = append(keyRefs, s.Ref[:]), append(keyContacts, c.Ref[:]), append(values, key.Value[:])
				types, standings = append(types, key.Type), append(standings, key.Standing())
				ids, norms = append(ids, int64(key.KeyID)), append(norms, int64(key.NormVersion))
			}
		}
	}
	if len(refs) > 0 {
		b.Queue(r.ledger.sql(`
			INSERT INTO {s}.contact (ref, contact_ref, kind, part, past, removed, revived, ord, event_id, since_ord, void_ord, void_at, void_event)
			SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::int[], $5::bool[], $6::bool[], $7::bool[], $8::bytea[], $9::bytea[],
				$10::bytea[], $11::bytea[], $12::timestamptz[], $13::bytea[])
			ON CONFLICT (ref, contact_ref, kind) DO UPDATE SET past = excluded.past, removed = excluded.removed, revived = excluded.revived,
				ord = excluded.ord, event_id = excluded.event_id, since_ord = excluded.since_ord, void_ord = excluded.void_ord,
				void_at = excluded.void_at, void_event = excluded.void_event`),
			refs, contacts, kinds, parts, past, removed, revived, orders, events, since, voids, voidAt, causes)
	}
	if len(keyRefs) > 0 {
		b.Queue(r.ledger.sql(`
			INSERT INTO {s}.contact_key (ref, contact_ref, value, type, key_id, norm_version, standing)
			SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
			ON CONFLICT (ref, contact_ref, value) DO UPDATE SET standing = excluded.standing`),
			keyRefs, keyContacts, values, types, ids, norms, standings)
	}
}

// queueLife writes what the unit's records mean beyond their facts.
func (u *unit) queueLife(b *pgx.Batch) {
	l, life := u.r.ledger, &u.Life
	if n := len(life.Unblocks); n > 0 {
		values, scopes, refs := make(byteArray, n), make(textArray, n), make(byteArray, n)
		for i := range life.Unblocks {
			values[i], scopes[i], refs[i] = life.Unblocks[i].Value[:], life.Unblocks[i].Scope, life.Unblocks[i].Ref[:]
		}
		b.Queue(l.sql(`DELETE FROM {s}.contact_block b USING unnest($1::bytea[], $2::text[], $3::bytea[]) AS v(value, scope, ref)
			WHERE b.value = v.value AND b.scope = v.scope AND b.ref = v.ref`), values, scopes, refs)
	}
	u.queueBlocks(b)
	for i := range life.Aliases {
		x := &life.Aliases[i]
		b.Queue(l.sql(`
			INSERT INTO {s}.alias (ref, absorbed, ord, event_id, committed_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`),
			x.Ref[:], x.Absorbed[:], x.Order[:], x.EventID[:], x.Committed)
	}
	if n := len(life.Touches); n > 0 {
		refs, parts, reasons := make(byteArray, n), make(pgtype.FlatArray[int32], n), make(textArray, n)
		for i := range life.Touches {
			refs[i], parts[i], reasons[i] = life.Touches[i].Ref[:], life.Touches[i].Part, life.Touches[i].Reason
		}
		b.Queue(l.sql(`INSERT INTO {s}.touch (ref, part, reason) SELECT * FROM unnest($1::bytea[], $2::int[], $3::text[])`), refs, parts, reasons)
	}
	for i := range life.Mended {
		x := &life.Mended[i]
		b.Queue(l.sql(`DELETE FROM {s}.finding WHERE ref = $1 AND kind = $2 AND scope = $3`), x.Ref[:], x.Kind, x.Scope)
	}
	if n := len(life.Findings); n > 0 {
		refs, kinds, scopes := make(byteArray, n), make(textArray, n), make(textArray, n)
		parts, events := make(pgtype.FlatArray[int32], n), make(byteArray, n)
		for i := range life.Findings {
			x := &life.Findings[i]
			refs[i], kinds[i], scopes[i], parts[i], events[i] = x.Ref[:], x.Kind, x.Scope, x.Part, x.Event[:]
		}
		b.Queue(l.sql(`
			INSERT INTO {s}.finding AS f (ref, kind, scope, part, event_id)
			SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::int[], $5::bytea[])
			ON CONFLICT (ref, kind, scope) DO UPDATE SET event_id = excluded.event_id, times = f.times + 1, last_at = now()
			WHERE f.event_id <> excluded.event_id`), refs, kinds, scopes, parts, events)
	}
}

func (u *unit) queueBlocks(b *pgx.Batch) {
	n := len(u.Life.Blocks)
	if n == 0 {
		return
	}
	values, scopes, refs, orders := make(byteArray, n), make(textArray, n), make(byteArray, n), make(byteArray, n)
	asOf, states, events := make(pgtype.FlatArray[*time.Time], n), make(textArray, n), make(byteArray, n)
	for i := range u.Life.Blocks {
		x := &u.Life.Blocks[i]
		values[i], scopes[i], refs[i], orders[i] = x.Value[:], x.Scope, x.Ref[:], x.Order[:]
		asOf[i], states[i], events[i] = timeOrNull(x.AsOf), string(x.State), x.EventID[:]
	}
	b.Queue(u.r.ledger.sql(`
		INSERT INTO {s}.contact_block (value, scope, ref, ord, as_of, state, event_id)
		SELECT * FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::bytea[], $5::timestamptz[], $6::text[], $7::bytea[])
		ON CONFLICT (value, scope, ref) DO UPDATE SET ord = excluded.ord, as_of = excluded.as_of, state = excluded.state, event_id = excluded.event_id`),
		values, scopes, refs, orders, asOf, states, events)
}

// loadWithContacts is load with the contact points of the subjects.
func (r *Replica) loadWithContacts(ctx context.Context, tx runner, refs [][]byte) (*ledger.Set, error) {
	set, err := r.loadFacts(ctx, tx, refs)
	if err != nil {
		return nil, err
	}
	return set, r.addContacts(ctx, tx, set)
}

// addContacts reads the contact points of subjects that were read without.
func (r *Replica) addContacts(ctx context.Context, tx batcher, set *ledger.Set) error {
	if len(set.List) == 0 {
		return nil
	}
	set.NeedContacts = true
	b := &pgx.Batch{}
	r.ledger.queueContacts(b, set)
	return classify("reading contact points", tx.SendBatch(ctx, b).Close())
}

// queueTombstones leaves of the contact points of proven erasures their values, keyed as they are: whoever comes up with one of them is known
// by it. What the person withdrew for them goes too; it has reached whoever shares them.
func (r *Replica) queueTombstones(b *pgx.Batch, refs [][]byte) {
	b.Queue(r.ledger.sql(`DELETE FROM {s}.contact WHERE ref = ANY ($1)`), refs)
	b.Queue(r.ledger.sql(`DELETE FROM {s}.contact_block WHERE ref = ANY ($1)`), refs)
}
