package mysql

import (
	"fmt"
	"testing"
)

// A version of the match key is needed as long as somebody can be found, or a withdrawal stands, by it alone.
func TestMatchKeysInUseAreFound(t *testing.T) {
	bothWorlds(t, func(w *world) {
		desk := NewDesk(w.cfg, w.run)
		want := func(what string, contacts, blocks int) {
			w.Helper()
			if c, b, err := desk.MatchedUnder(w.ctx, 7, 8); err != nil || c != contacts || b != blocks {
				w.Errorf("%s: %d contact points, %d withdrawals, %v", what, c, b, err)
			}
		}
		key := func(ref, contact, value string, id int, standing string) {
			w.exec(fmt.Sprintf(`INSERT INTO lethe_contact_key (ref, contact_ref, value, type, key_id, norm_version, standing)
				VALUES ('%s', '%s', '%s', 'email_strict', %d, 1, '%s')`, ref, contact, value, id, standing))
		}
		block := func(ref, value string) {
			w.exec(fmt.Sprintf(`INSERT INTO lethe_contact_block (value, scope, ref, ord, state, event_id) VALUES ('%s', 's', '%s', 'o', 'withdrawn', 'e')`, value, ref))
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
	})
}
