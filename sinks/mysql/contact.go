package mysql

import (
	"context"
	"database/sql"

	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/ledger"
)

// sqlContacts and sqlContactKeys read the contact points of subjects, and the values that they have and had.
const (
	sqlContacts = `SELECT c.ref, c.contact_ref, c.kind, c.past, c.removed, c.revived, c.ord, c.event_id, c.since_ord, c.void_ord, c.void_at,
		c.void_event FROM ` + refsTable + ` STRAIGHT_JOIN {p}contact c ON c.ref = UNHEX(v.ref)`
	sqlContactKeys = `SELECT k.ref, k.contact_ref, k.value, k.type, k.key_id, k.norm_version, k.standing
		FROM ` + refsTable + ` STRAIGHT_JOIN {p}contact_key k FORCE INDEX (PRIMARY) ON k.ref = UNHEX(v.ref)`
)

// readContacts reads the contact points of a set's subjects, which must have been read.
func (r *Replica) readContacts(ctx context.Context, q querier, set *ledger.Set) error {
	if len(set.List) == 0 {
		return nil
	}
	set.NeedContacts = true
	refs := refsJSON(set.Refs())
	err := eachRow(ctx, q, r.ledger.sql(sqlContacts), []any{refs}, func(rows *sql.Rows) error {
		var ref, contact, order, event, since, void, cause sql.RawBytes
		var kind string
		var voidAt sql.NullTime
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
		return nil
	})
	if err != nil {
		return classify("reading contact points", err)
	}
	err = eachRow(ctx, q, r.ledger.sql(sqlContactKeys), []any{refs}, func(rows *sql.Rows) error {
		var ref, contact, value sql.RawBytes
		var standing string
		k := ledger.StoredKey{}
		if err := rows.Scan(&ref, &contact, &value, &k.Type, &k.KeyID, &k.NormVersion, &standing); err != nil {
			return err
		}
		copy(k.Value[:], value)
		k.SetStanding(standing)
		if s := set.ByRef[ledger.Ref(ref)]; s != nil {
			s.AddKey(schema.ContactRef(contact), k)
		}
		return nil
	})
	return classify("reading contact points", err)
}

// meet has the unit know what stands elsewhere about some values.
func (r *Replica) meet(ctx context.Context, tx *tx, u *ledger.Unit, values [][32]byte) error {
	if len(values) == 0 {
		return nil
	}
	list := make([][]byte, len(values))
	for i := range values {
		list[i] = values[i][:]
	}
	var blocks []ledger.Block
	var holders []ledger.Holder
	doc := refsJSON(list)
	err := eachRow(ctx, tx, r.ledger.sql(`SELECT b.value, b.scope, b.ref, b.ord, b.as_of, b.state, b.event_id
		FROM `+refsTable+` STRAIGHT_JOIN {p}contact_block b ON b.value = UNHEX(v.ref)`), []any{doc}, func(rows *sql.Rows) error {
		var b ledger.Block
		var value, ref, order, event sql.RawBytes
		var state string
		var asOf sql.NullTime
		err := rows.Scan(&value, &b.Scope, &ref, &order, &asOf, &state, &event)
		b.State, b.AsOf = sinks.State(state), asOf.Time
		copy(b.Value[:], value)
		copy(b.Ref[:], ref)
		copy(b.Order[:], order)
		copy(b.EventID[:], event)
		blocks = append(blocks, b)
		return err
	})
	if err != nil {
		return own(err)
	}
	err = eachRow(ctx, tx, r.ledger.sql(`SELECT k.value, k.ref, s.erased_order
		FROM `+refsTable+` STRAIGHT_JOIN {p}contact_key k FORCE INDEX (by_value) ON k.value = UNHEX(v.ref)
		STRAIGHT_JOIN {p}subject s ON s.ref = k.ref WHERE s.state <> 'live' AND k.standing <> 'revived'`), []any{doc}, func(rows *sql.Rows) error {
		var h ledger.Holder
		var value, ref, order sql.RawBytes
		err := rows.Scan(&value, &ref, &order)
		copy(h.Value[:], value)
		copy(h.Ref[:], ref)
		h.ErasedOrder = cloneRaw(order)
		holders = append(holders, h)
		return err
	})
	u.Meet(blocks, holders)
	return own(err)
}

// writeContacts writes the contact points and values that have changed.
func (r *Replica) writeContacts(ctx context.Context, tx *tx, list []*ledger.Subject) error {
	var contacts, keys []any
	for _, s := range list {
		for i := range s.Contacts {
			c := &s.Contacts[i]
			if c.Dirty {
				void, cause := c.VoidColumns()
				contacts = append(contacts, s.Ref[:], c.Ref[:], c.Kind.String(), s.Part, c.Past, c.Removed, c.Revived, c.Order[:], c.EventID[:], c.Since[:],
					void, timeArg(c.VoidAt), cause)
			}
			for k := range c.Keys {
				if key := &c.Keys[k]; key.Dirty {
					keys = append(keys, s.Ref[:], c.Ref[:], key.Value[:], key.Type, key.KeyID, key.NormVersion, key.Standing())
				}
			}
		}
	}
	_, err := tx.insert(ctx, r.ledger.sql(`INSERT INTO {p}contact (ref, contact_ref, kind, part, past, removed, revived, ord, event_id, since_ord,
		void_ord, void_at, void_event) VALUES `), 13, contacts, ` ON DUPLICATE KEY UPDATE past = VALUES(past), removed = VALUES(removed),
		revived = VALUES(revived), ord = VALUES(ord), event_id = VALUES(event_id), since_ord = VALUES(since_ord), void_ord = VALUES(void_ord),
		void_at = VALUES(void_at), void_event = VALUES(void_event)`)
	if err != nil {
		return own(err)
	}
	_, err = tx.insert(ctx, r.ledger.sql(`INSERT INTO {p}contact_key (ref, contact_ref, value, type, key_id, norm_version, standing) VALUES `), 7, keys,
		` ON DUPLICATE KEY UPDATE standing = VALUES(standing)`)
	return own(err)
}

// writeLife writes what the unit's records mean beyond their facts.
func (r *Replica) writeLife(ctx context.Context, tx *tx, u *ledger.Unit) (err error) {
	insert := func(head string, width int, values []any, tail string) {
		if err == nil {
			_, err = tx.insert(ctx, r.ledger.sql(head), width, values, r.ledger.sql(tail))
		}
	}
	remove := func(statement string, args ...any) {
		if err == nil {
			_, err = tx.exec(ctx, r.ledger.sql(statement), args...)
		}
	}
	life := &u.Life
	if len(life.Unblocks) > 0 {
		rows := rowsOf("value", typeKey, "scope", typeWord, "ref", typeKey)
		for i := range life.Unblocks {
			rows.add(life.Unblocks[i].Value[:], life.Unblocks[i].Scope, life.Unblocks[i].Ref[:])
		}
		remove(`DELETE b FROM `+rows.table()+` STRAIGHT_JOIN {p}contact_block b ON b.value = UNHEX(v.value) AND b.scope = v.scope AND b.ref = UNHEX(v.ref)`,
			rows.arg())
	}
	if len(life.Mended) > 0 {
		rows := rowsOf("ref", typeKey, "kind", typeWord, "scope", typeWord)
		for i := range life.Mended {
			rows.add(life.Mended[i].Ref[:], life.Mended[i].Kind, life.Mended[i].Scope)
		}
		remove(`DELETE f FROM `+rows.table()+` STRAIGHT_JOIN {p}finding f ON f.ref = UNHEX(v.ref) AND f.kind = v.kind AND f.scope = v.scope`, rows.arg())
	}
	var blocks, aliases, touches, findings []any
	for i := range life.Blocks {
		x := &life.Blocks[i]
		blocks = append(blocks, x.Value[:], x.Scope, x.Ref[:], x.Order[:], timeArg(x.AsOf), string(x.State), x.EventID[:])
	}
	for i := range life.Aliases {
		x := &life.Aliases[i]
		aliases = append(aliases, x.Ref[:], x.Absorbed[:], x.Order[:], x.EventID[:], x.Committed)
	}
	for i := range life.Touches {
		touches = append(touches, life.Touches[i].Ref[:], life.Touches[i].Part, life.Touches[i].Reason, tx.now)
	}
	for i := range life.Findings {
		x := &life.Findings[i]
		findings = append(findings, x.Ref[:], x.Kind, x.Scope, x.Part, x.Event[:], tx.now, tx.now)
	}
	insert(`INSERT INTO {p}contact_block (value, scope, ref, ord, as_of, state, event_id) VALUES `, 7, blocks,
		` ON DUPLICATE KEY UPDATE ord = VALUES(ord), as_of = VALUES(as_of), state = VALUES(state), event_id = VALUES(event_id)`)
	insert(`INSERT INTO {p}alias (ref, absorbed, ord, event_id, committed_at) VALUES `, 5, aliases, ` ON DUPLICATE KEY UPDATE ref = {p}alias.ref`)
	insert(`INSERT INTO {p}touch (ref, part, reason, at) VALUES `, 4, touches, "")
	insert(`INSERT INTO {p}finding (ref, kind, scope, part, event_id, first_at, last_at) VALUES `, 7, findings,
		` ON DUPLICATE KEY UPDATE times = {p}finding.times + ({p}finding.event_id <> VALUES(event_id)),
			last_at = CASE WHEN {p}finding.event_id <> VALUES(event_id) THEN VALUES(last_at) ELSE {p}finding.last_at END, event_id = VALUES(event_id)`)
	return own(err)
}

// leaveTombstones leaves of the contact points of proven erasures (refsJSON) their values, keyed as they are: whoever comes up with one of them
// is known by it. What the person withdrew for them goes too; it has reached whoever shares them.
func (r *Replica) leaveTombstones(ctx context.Context, tx *tx, refs string) error {
	if _, err := r.write(ctx, tx, `DELETE c FROM `+refsTable+` STRAIGHT_JOIN {p}contact c ON c.ref = UNHEX(v.ref)`, refs); err != nil {
		return err
	}
	_, err := r.write(ctx, tx, `DELETE b FROM `+refsTable+` STRAIGHT_JOIN {p}contact_block b ON b.ref = UNHEX(v.ref)`, refs)
	return err
}
