package rules

import (
	"testing"

	"lethe/capture"
)

// The changes whose cost matters: nearly all of a busy CRM's are of the first kinds.
var speedLines = []struct {
	name, line string
	drafts     int
	allocs     float64 // at most
}{
	{"unmapped table", "update public.invoice invoice_id=1", 0, 0},
	{"mapped without rules", "insert public.customer_email email_id=1 customer_id=1", 0, 0},
	{"irrelevant update, old row unknown", "update public.customer_note note_id=1 customer_id=1 note_code=CALLED", 0, 0},
	{"irrelevant update, old row known", "update full.customer customer_id=1 last_name=b status=A no_marketing=f restricted_until=null | customer_id=1 last_name=a status=A no_marketing=f restricted_until=null", 0, 0},
	{"insert of an ordinary customer", "insert public.customer customer_id=1 last_name=a status=A no_marketing=f restricted_until=null", 0, 0},
	{"state sent again", "update public.customer customer_id=1 last_name=a status=A no_marketing=f restricted_until=null", 0, 0},
	{"erasure", "update public.customer customer_id=1 last_name=null status=E no_marketing=t restricted_until=null", 1, 0},
	{"consent insert", "insert public.consent consent_id=1 customer_id=7 purpose_code=NL channel_code=E contact_id=70 status=Y valid_until=2027-01-01 document_id=D", 1, 0},
	{"consent moved", "update public.consent consent_id=1 customer_id=7 purpose_code=OFF channel_code=E contact_id=70 status=Y valid_until=null document_id=D | consent_id=1 customer_id=7 purpose_code=NL channel_code=E contact_id=70", 2, 0},
}

func speedCases(t testing.TB, run func(name string, e *Engine, tx *capture.Transaction, c *capture.Change, drafts int, allocs float64)) {
	for _, l := range speedLines {
		s := testScript(t)
		for _, line := range []string{
			"table public.invoice key *invoice_id:int8",
			"table public.customer_email key *email_id:int8 customer_id:int8",
			"table full.customer full customer_id:int8 last_name:text status:bpchar no_marketing:bool restricted_until:date",
		} {
			if _, err := s.line(line); err != nil {
				t.Fatal(err)
			}
		}
		c := s.must(t, l.line)
		if c.Table.Name == "full.customer" {
			c.Table.Name = "public.customer"
		}
		run(l.name, mustEngine(t, testSource), s.tx, c, l.drafts, l.allocs)
	}
}

func TestAllocations(t *testing.T) {
	speedCases(t, func(name string, e *Engine, tx *capture.Transaction, c *capture.Change, drafts int, allocs float64) {
		out := make([]Draft, 0, 8)
		// The first time is news to the memory; the drafts counted are those of the second.
		if _, err := e.Apply(tx, c, out); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := testing.AllocsPerRun(100, func() {
			var err error
			if out, err = e.Apply(tx, c, out[:0]); err != nil || len(out) != drafts {
				t.Fatalf("%s: got %d drafts, %v; want %d", name, len(out), err, drafts)
			}
		})
		if got > allocs {
			t.Errorf("%s: %v allocations, want at most %v", name, got, allocs)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	speedCases(b, func(name string, e *Engine, tx *capture.Transaction, c *capture.Change, _ int, _ float64) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			out := make([]Draft, 0, 8)
			for b.Loop() {
				var err error
				if out, err = e.Apply(tx, c, out[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkPredicateMiss is the price of a condition over something that differs in every row.
func BenchmarkPredicateMiss(b *testing.B) {
	const source = `source:
  subject: {table: public.customer, key: customer_id, on_delete: erasure}
  erased: {when: 'balance < 0 && status == "E"'}
  tables:
    public.customer: {erase: [status]}
`
	e := mustEngine(b, source)
	table := newTable("public.customer", "key", "*customer_id:int8", "status:text", "balance:numeric")
	c := &capture.Change{Op: capture.OpInsert, Table: table, New: values(table, split("customer_id=1 status=E balance=1234567"))}
	balance := c.New[2].Text
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		for j, n := 0, i; j < len(balance); j, n = j+1, n/10 {
			balance[j] = '0' + byte(n%10)
		}
		if _, err := e.Apply(&capture.Transaction{}, c, nil); err != nil {
			b.Fatal(err)
		}
	}
}
