package postgres

import "testing"

// A version of the match key is needed as long as somebody can be found, or a withdrawal stands, by it alone.
func TestMatchKeysInUseAreFound(t *testing.T) {
	w := newWorld(t, 15)
	desk := NewDesk(w.cfg, w.pool)
	want := func(what string, contacts, blocks int) {
		t.Helper()
		if c, b, err := desk.MatchedUnder(w.ctx, 7, 8); err != nil || c != contacts || b != blocks {
			t.Errorf("%s: %d contact points, %d withdrawals, %v", what, c, b, err)
		}
	}
	key := func(ref, contact, value string, id int, standing string) {
		w.exec(`INSERT INTO lethe.contact_key (ref, contact_ref, value, type, key_id, norm_version, standing) VALUES ($1, $2, $3, 'email_strict', $4, 1, $5)`,
			[]byte(ref), []byte(contact), []byte(value), id, standing)
	}
	block := func(ref, value string) {
		w.exec(`INSERT INTO lethe.contact_block (value, scope, ref, ord, state, event_id) VALUES ($1, 's', $2, 'o', 'withdrawn', 'e')`, []byte(value), []byte(ref))
	}
	want("nothing is stored", 0, 0)
	key("r", "c", "old", 7, "live")
	block("r", "old")
	want("under the old key alone", 1, 1)
	key("r", "c", "new", 8, "live")
	want("keyed again", 0, 1)
	block("r", "new")
	want("the withdrawal, too", 0, 0)
	key("r", "c", "before", 7, "past")
	want("a past value", 1, 0)
	key("s", "c", "after", 7, "revived")
	want("what came up again", 1, 0)
	if c, b, err := desk.MatchedUnder(w.ctx, 6, 8); err != nil || c != 0 || b != 0 {
		t.Errorf("a key that nothing uses: %d, %d, %v", c, b, err)
	}
}
