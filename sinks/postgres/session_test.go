package postgres

import "testing"

// A role of the ledger schema's name finds Lethe's tables before its own: what the mapping calls contact has to stay the replica's.
func TestLedgerDoesNotShadowTheReplica(t *testing.T) {
	w := newWorld(t, 15)
	w.exec("CREATE TABLE public.finding ()")
	conn, err := w.pool.Acquire(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	visible := func() (schema string) {
		err := conn.QueryRow(w.ctx, `SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('finding')`).Scan(&schema)
		if err != nil {
			t.Fatal(err)
		}
		return schema
	}
	if _, err := conn.Exec(w.ctx, `SET search_path = lethe, public`); err != nil {
		t.Fatal(err)
	}
	if got := visible(); got != "lethe" {
		t.Fatalf("finding is that of %s: the test shows nothing", got)
	}
	if err := HideLedger(w.ctx, conn.Conn(), "lethe"); err != nil {
		t.Fatal(err)
	}
	if got := visible(); got != "public" {
		t.Errorf("finding is that of %s", got)
	}
}
