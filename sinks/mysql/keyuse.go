package mysql

import "context"

// MatchedUnder counts what of this replica needs one version of the match key: contact points that are known by no key of the primary version, and
// withdrawals about one that stand under none. What came up again after an erasure finds nobody, and needs none.
func (d *Desk) MatchedUnder(ctx context.Context, id, primary uint32) (contacts, blocks int, err error) {
	const op = "looking for contact points under the key"
	err = d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT COUNT(*) FROM (
			SELECT 1 FROM {p}contact_key WHERE key_id IN (?, ?) AND standing <> 'revived'
			GROUP BY ref, contact_ref, type, standing HAVING SUM(key_id = ?) > SUM(key_id = ?)) alone`), id, primary, id, primary).Scan(&contacts)
	if err != nil {
		return 0, 0, classify(op, err)
	}
	err = d.r.opts.DB.QueryRowContext(ctx, d.r.ledger.sql(`SELECT COUNT(*) FROM {p}contact_block b
		JOIN {p}contact_key k ON k.value = b.value AND k.ref = b.ref WHERE k.key_id = ? AND NOT EXISTS (
			SELECT 1 FROM {p}contact_key k2 JOIN {p}contact_block b2 ON b2.value = k2.value AND b2.ref = k2.ref
			WHERE k2.ref = k.ref AND k2.contact_ref = k.contact_ref AND k2.key_id = ? AND b2.scope = b.scope)`), id, primary).Scan(&blocks)
	return contacts, blocks, classify(op, err)
}
