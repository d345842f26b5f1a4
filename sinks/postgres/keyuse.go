package postgres

import "context"

// MatchedUnder counts what of this replica needs one version of the match key: contact points that are known by no key of the primary version, and
// withdrawals about one that stand under none. What came up again after an erasure finds nobody, and needs none.
func (d *Desk) MatchedUnder(ctx context.Context, id, primary uint32) (contacts, blocks int, err error) {
	err = d.r.opts.Pool.QueryRow(ctx, d.r.ledger.sql(`SELECT
		(SELECT count(*) FROM (SELECT FROM {s}.contact_key WHERE key_id IN ($1, $2) AND standing <> 'revived'
			GROUP BY ref, contact_ref, type, standing
			HAVING count(*) FILTER (WHERE key_id = $1) > count(*) FILTER (WHERE key_id = $2)) alone),
		(SELECT count(*) FROM {s}.contact_block b JOIN {s}.contact_key k ON k.value = b.value AND k.ref = b.ref WHERE k.key_id = $1 AND NOT EXISTS (
			SELECT FROM {s}.contact_key k2 JOIN {s}.contact_block b2 ON b2.value = k2.value AND b2.ref = k2.ref
			WHERE k2.ref = k.ref AND k2.contact_ref = k.contact_ref AND k2.key_id = $2 AND b2.scope = b.scope))`),
		int64(id), int64(primary)).Scan(&contacts, &blocks)
	return contacts, blocks, classify("looking for contact points under the key", err)
}
