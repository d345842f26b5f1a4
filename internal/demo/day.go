package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Counts is what the day's player did to the CRM.
type Counts struct {
	Transactions int `json:"transactions"`
	Consents     int `json:"consents"`
	Objections   int `json:"objections"`
	Restrictions int `json:"restrictions"`
	Erasures     int `json:"erasures"`
	Late         int `json:"late"` // rows that the ETL brought after the event
}

// day plays the publisher's staff and customers on the CRM, and the ETL on the replicas. It is used by one goroutine.
type day struct {
	r      *rand.Rand
	fill   *fill
	on     Databases
	erased map[int64]bool
	late   []int64
	counts Counts
	// onErased is told of each erasure right after its first COMMIT has returned.
	onErased func(id int64, at time.Time)
}

func newDay(f *fill, on Databases, onErased func(int64, time.Time)) *day {
	d := &day{
		r:    rand.New(rand.NewPCG(seed, 2)),
		fill: f, on: on, erased: map[int64]bool{}, onErased: onErased,
	}
	for i := range f.people {
		if f.late[f.people[i].id] {
			d.late = append(d.late, f.people[i].id)
		}
	}
	return d
}

// someone picks a customer who is still one.
func (d *day) someone() int64 {
	for {
		if id := 1 + d.r.Int64N(int64(len(d.fill.people))); !d.erased[id] {
			return id
		}
	}
}

// step does one thing of the day.
func (d *day) step(ctx context.Context) error {
	switch n := d.r.IntN(1000); {
	case n < 20 && len(d.erased) < len(d.fill.people)/4: // a publisher keeps most of its customers
		return d.erase(ctx, d.someone())
	case n < 25:
		return d.etl(ctx)
	case n < 45:
		return d.objection(ctx)
	case n < 60:
		return d.restriction(ctx)
	case n < 260:
		return d.consent(ctx)
	default:
		return d.ordinary(ctx)
	}
}

func (d *day) exec(ctx context.Context, what, sql string, args ...any) error {
	if err := d.on.CRM.exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("playing the day: %s: %w", what, err)
	}
	d.counts.Transactions++
	return nil
}

// ordinary is what a CRM writes all day, and what Lethe has nothing to say about.
func (d *day) ordinary(ctx context.Context) error {
	id := d.someone()
	switch d.r.IntN(5) {
	case 0:
		return d.exec(ctx, "order", "insert into order_service (customer_id, magazine) values ($1, $2)", id, magazines[d.r.IntN(len(magazines))])
	case 1:
		return d.exec(ctx, "invoice", "insert into invoice (customer_id, invoiced_on, amount, balance_due) values ($1, current_date, $2, 0)", id, 12.5)
	case 2:
		return d.exec(ctx, "note", "insert into customer_note (customer_id, note_code, body) values ($1, 'CALL', 'A rappelé, satisfaite.')", id)
	case 3:
		p := &d.fill.people[id-1]
		return d.exec(ctx, "address", "update customer_address set line1 = $1 where customer_id = $2", p.oldStreet, id)
	default:
		return d.exec(ctx, "contact", "update customer set last_contact = now() where customer_id = $1", id)
	}
}

// consent is one answer on the preference page, or the page that sets all to no and then some to yes in one transaction.
func (d *day) consent(ctx context.Context) error {
	id := d.someone()
	d.counts.Consents++
	switch d.r.IntN(4) {
	case 0:
		return d.exec(ctx, "withdrawal", "update consent set status = 'N' where customer_id = $1 and purpose_code = 'NL'", id)
	case 1:
		return d.exec(ctx, "consent", `insert into consent (customer_id, purpose_code, channel_code, contact_id, status, legal_basis, document_id)
			values ($1, 'OFF', 'S', $1, 'Y', 'C', 'WEB') `+
			d.on.CRM.dialect().keepFirst("customer_id", "purpose_code", "channel_code", "contact_id"), id)
	case 2:
		return d.exec(ctx, "refusal", "update consent set status = 'R' where customer_id = $1 and purpose_code = 'OFF'", id)
	default:
		err := inTransaction(ctx, d.on.CRM, func() error {
			if err := d.on.CRM.exec(ctx, "update consent set status = 'N' where customer_id = $1", id); err != nil {
				return err
			}
			return d.on.CRM.exec(ctx, "update consent set status = 'Y' where customer_id = $1 and purpose_code = 'NL'", id)
		})
		if err != nil {
			return fmt.Errorf("playing the day: preference page: %w", err)
		}
		d.counts.Transactions++
		return nil
	}
}

func (d *day) objection(ctx context.Context) error {
	d.counts.Objections++
	return d.exec(ctx, "objection", "update customer set no_marketing = not no_marketing, ok_for_promo = false where customer_id = $1", d.someone())
}

func (d *day) restriction(ctx context.Context) error {
	d.counts.Restrictions++
	return d.exec(ctx, "restriction", `update customer set restricted_until = case when restricted_until is null then current_date + interval '30' day end
		where customer_id = $1`, d.someone())
}

// erase runs the CRM's procedure, now in one transaction, now in two.
func (d *day) erase(ctx context.Context, id int64) error {
	d.erased[id] = true
	d.counts.Erasures++
	if d.r.IntN(2) == 0 {
		err := inTransaction(ctx, d.on.CRM, func() error {
			if err := d.on.CRM.exec(ctx, "call gdpr_erase_identity($1)", id); err != nil {
				return err
			}
			return d.on.CRM.exec(ctx, "call gdpr_erase_traces($1)", id)
		})
		if err != nil {
			return fmt.Errorf("playing the day: erasure: %w", err)
		}
		d.counts.Transactions++
		d.onErased(id, time.Now())
		return nil
	}
	if err := d.exec(ctx, "erasure, identity", "call gdpr_erase_identity($1)", id); err != nil {
		return err
	}
	d.onErased(id, time.Now())
	return d.exec(ctx, "erasure, traces", "call gdpr_erase_traces($1)", id)
}

// etl brings a late customer into both replicas with the values of last night, whatever the customer has said since.
func (d *day) etl(ctx context.Context) error {
	if len(d.late) == 0 {
		return nil
	}
	at := d.r.IntN(len(d.late))
	id := d.late[at]
	d.late[at] = d.late[len(d.late)-1]
	d.late = d.late[:len(d.late)-1]
	if d.r.IntN(3) == 0 && !d.erased[id] {
		if err := d.erase(ctx, id); err != nil {
			return err
		}
	}
	d.counts.Late++
	p := &d.fill.people[id-1]
	if err := insertRow(ctx, d.on.Marketing, "contact", marketingColumns, marketingRow(p)); err != nil {
		return err
	}
	return insertRow(ctx, d.on.Reporting, "dim_customer", reportingColumns, reportingRow(p))
}

// finishETL brings all that are still missing, so that every customer has a copy when the day ends.
func (d *day) finishETL(ctx context.Context) error {
	for len(d.late) > 0 {
		if err := d.etl(ctx); err != nil {
			return err
		}
	}
	return nil
}

func insertRow(ctx context.Context, db DB, table string, columns []string, row []any) error {
	if err := db.insert(ctx, table, columns, [][]any{row}); err != nil {
		return fmt.Errorf("playing the ETL into %s: %w", table, err)
	}
	return nil
}
