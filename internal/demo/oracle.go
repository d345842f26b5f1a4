package demo

import (
	"context"
	"fmt"
)

// wanted is what a replica must show of one customer, computed from the CRM alone.
type wanted struct {
	erased     bool
	frozen     bool
	newsletter bool
	offers     map[string]bool // by channel code of the CRM
}

const oracleCRM = `
select customer_id, status = 'E', coalesce(restricted_until > current_date, false), no_marketing from customer`

const oracleConsents = `
select customer_id, concat(purpose_code, channel_code), min(case when status = 'Y' and legal_basis = 'C' then 1 else 0 end) = 1
  from consent group by customer_id, purpose_code, channel_code`

// expectations reads the CRM.
func expectations(ctx context.Context, crm DB) (map[int64]wanted, error) {
	var (
		id                         int64
		erased, restricted, object bool
		kind                       string
		ok                         bool
	)
	consents := map[int64]map[string]bool{}
	err := crm.query(ctx, oracleConsents, nil, []any{&id, &kind, &ok}, func() error {
		if consents[id] == nil {
			consents[id] = map[string]bool{}
		}
		consents[id][kind] = ok
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the CRM for the oracle: %w", err)
	}
	out := map[int64]wanted{}
	err = crm.query(ctx, oracleCRM, nil, []any{&id, &erased, &restricted, &object}, func() error {
		may, given := !erased && !restricted && !object, consents[id]
		out[id] = wanted{
			erased: erased, frozen: restricted && !erased, newsletter: may && given["NLE"],
			offers: map[string]bool{"E": may && given["OFFE"], "S": may && given["OFFS"], "T": may && given["OFFT"]},
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the CRM for the oracle: %w", err)
	}
	return out, nil
}

// observed is how the oracle looks at a replica: the customer's key, then the properties in their order.
type observed struct {
	properties []string
	query      string
}

var oracleMarketing = observed{
	[]string{"newsletter", "email", "sms", "phone", "frozen", "blocked", "personal", "notes", "sent", "listed"}, `
select c.crm_id, newsletter_optin, offers_email, offers_sms, offers_phone, frozen, blocked,
       coalesce(firstname, lastname, mobile, city) is not null or profile is not null or coalesce(email not like 'e-%@erased.invalid', false),
       exists (select 1 from contact_note n where n.contact_id = c.contact_id),
       exists (select 1 from campaign_send s where s.contact_id = c.contact_id and s.address is not null),
       exists (select 1 from do_not_contact d where d.contact_id = c.contact_id)
  from contact c`,
}

var oracleReporting = observed{
	[]string{"contactable", "frozen", "usable", "personal", "answers"}, `
select c.customer_nk, contactable, frozen, usable,
       full_name is not null or birth_year is not null or gender is not null or coalesce(length(postcode) > 2, false),
       exists (select 1 from fact_survey s where s.customer_sk = c.customer_sk and s.answer is not null)
  from dim_customer c`,
}

// marketingWant is the marketing row that w asks for. An erased row may keep its frozen flag.
func (w wanted) marketing() map[string]bool {
	if w.erased {
		return map[string]bool{
			"newsletter": false, "email": false, "sms": false, "phone": false, "blocked": true, "personal": false, "notes": false,
			"sent": false, "listed": true,
		}
	}
	return map[string]bool{
		"newsletter": w.newsletter, "email": w.offers["E"], "sms": w.offers["S"], "phone": w.offers["T"], "frozen": w.frozen,
		"blocked": false, "personal": true, "listed": false,
	}
}

func (w wanted) reporting() map[string]bool {
	if w.erased {
		return map[string]bool{"contactable": false, "usable": false, "personal": false, "answers": false}
	}
	return map[string]bool{"contactable": w.offers["E"], "frozen": w.frozen, "usable": true, "personal": true}
}

// compare lists how a replica differs from what the CRM asks for; empty means that everything has followed. It names ids
// and properties, no values.
func compare(ctx context.Context, db DB, look observed, want map[int64]wanted, row func(wanted) map[string]bool) ([]string, error) {
	var (
		id   int64
		diff []string
		seen = map[int64]bool{}
		have = make([]bool, len(look.properties))
		dest = []any{&id}
	)
	for i := range have {
		dest = append(dest, &have[i])
	}
	err := db.query(ctx, look.query, nil, dest, func() error {
		seen[id] = true
		should := row(want[id])
		for i, name := range look.properties {
			if wantValue, asked := should[name]; asked && have[i] != wantValue {
				diff = append(diff, fmt.Sprintf("customer %d: %s is %t, want %t", id, name, have[i], wantValue))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading a replica for the oracle: %w", err)
	}
	for id := range want {
		if !seen[id] {
			diff = append(diff, fmt.Sprintf("customer %d: not in the replica", id))
		}
	}
	return diff, nil
}
