package rules

import "testing"

// TestStateIsRestatedOnlyOnceARun: without old values each UPDATE restates objection and restriction. Within a run only
// what is news is drafted; after Begin, when what was read may never have been published, everything is again.
func TestStateIsRestatedOnlyOnceARun(t *testing.T) {
	s := testScript(t)
	e := mustEngine(t, testSource)
	const (
		plain     = "update public.customer customer_id=1 last_name=a status=A no_marketing=f restricted_until=null"
		objecting = "update public.customer customer_id=1 last_name=a status=A no_marketing=t restricted_until=null"
		other     = "update public.customer customer_id=2 last_name=a status=A no_marketing=f restricted_until=null"
		until     = "update public.customer customer_id=1 last_name=a status=A no_marketing=t restricted_until=2027-01-01"
		longer    = "update public.customer customer_id=1 last_name=a status=A no_marketing=t restricted_until=2027-06-01"
	)
	for i, step := range []struct {
		line   string
		begin  bool
		drafts int
	}{
		{plain, false, 2},
		{plain, false, 0},
		{objecting, false, 1},
		{objecting, false, 0},
		{other, false, 2},
		{plain, false, 1},
		{until, false, 2},
		{longer, false, 1},
		{longer, false, 0},
		{longer, true, 2},
		{longer, false, 0},
		{"insert public.customer customer_id=3 last_name=a status=A no_marketing=f restricted_until=null", false, 0},
		{"update public.customer customer_id=3 last_name=b status=A no_marketing=f restricted_until=null", false, 0},
		{"update public.customer customer_id=3 last_name=b status=A no_marketing=t restricted_until=null", false, 1},
		// The row comes again without its objection: nothing is lifted by that, but by the next word on it.
		{"delete public.customer customer_id=3", false, 1},
		{"insert public.customer customer_id=3 last_name=c status=A no_marketing=f restricted_until=null", false, 0},
		{"update public.customer customer_id=3 last_name=d status=A no_marketing=f restricted_until=null", false, 1},
		{"update public.customer customer_id=3 last_name=e status=A no_marketing=f restricted_until=null", false, 0},
	} {
		if step.begin {
			e.Begin()
		}
		out, err := e.Apply(s.tx, s.must(t, step.line), nil)
		if err != nil || len(out) != step.drafts {
			t.Errorf("step %d: %d drafts, %v; want %d", i, len(out), err, step.drafts)
		}
	}
}

// TestMemoryKeepsScopesAndRowsApart: what one table says of a subject must not silence what another one, or another row
// of the same table, says.
func TestMemoryKeepsScopesAndRowsApart(t *testing.T) {
	const source = `source:
  subject: {table: public.customer, key: customer_id, on_delete: alert}
  erased: {when: 'status == "E"'}
  tables:
    public.customer:
      objection: {when: no_marketing, scope: direct_marketing}
    public.preference:
      subject: customer_id
      objection: {when: 'code == "NOPROFILE" && active', scope: profiling}
`
	s := newScript()
	s.must(t, "table public.customer key *customer_id:int8 status:text no_marketing:bool")
	s.must(t, "table public.preference key *preference_id:int8 *customer_id:int8 code:text active:bool")
	e := mustEngine(t, source)
	for i, step := range []struct {
		line   string
		drafts int
	}{
		{"update public.customer customer_id=1 status=A no_marketing=t", 1},
		{"update public.preference preference_id=1 customer_id=1 code=NOPROFILE active=t", 1},
		{"insert public.preference preference_id=2 customer_id=1 code=NOPHONE active=t", 0},
		{"update public.preference preference_id=1 customer_id=1 code=NOPROFILE active=f", 1},
	} {
		out, err := e.Apply(s.tx, s.must(t, step.line), nil)
		if err != nil || len(out) != step.drafts {
			t.Errorf("step %d: %d drafts, %v; want %d", i, len(out), err, step.drafts)
		}
	}
}

// TestMemoryOnlyForgets: more subjects than there is room for are forgotten, never taken for one another.
func TestMemoryOnlyForgets(t *testing.T) {
	var m memory
	key := make([]byte, 4)
	const subjects = 2 * memorySets * memoryWays
	for i := range subjects {
		key[0], key[1], key[2], key[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		if m.know("objection", key, 1) {
			t.Fatalf("subject %d is known before anything was said of it", i)
		}
	}
	known := 0
	for i := range subjects {
		key[0], key[1], key[2], key[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		if m.know("objection", key, 0) {
			t.Fatalf("subject %d is known with a state that nobody said", i)
		}
		if m.know("objection", key, 0) {
			known++
		}
	}
	if known != subjects {
		t.Errorf("%d of %d subjects are known right after they were noted", known, subjects)
	}
}
