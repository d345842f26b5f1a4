package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// wanted is what a replica must show of one customer, computed from the CRM alone.
type wanted struct {
	erased     bool
	frozen     bool
	newsletter bool
	offers     map[string]bool // by channel code of the CRM
}

const oracleCRM = `
select c.customer_id,
       c.status = 'E',
       coalesce(c.restricted_until > current_date, false),
       c.no_marketing,
       coalesce((select jsonb_object_agg(k, ok) from (
           select purpose_code || channel_code as k, bool_and(status = 'Y' and legal_basis = 'C') as ok
             from consent where consent.customer_id = c.customer_id group by 1) s), '{}')
  from customer c`

// expectations reads the CRM.
func expectations(ctx context.Context, crm *pgx.Conn) (map[int64]wanted, error) {
	rows, err := crm.Query(ctx, oracleCRM)
	if err != nil {
		return nil, fmt.Errorf("reading the CRM for the oracle: %w", err)
	}
	out := map[int64]wanted{}
	var (
		id                         int64
		erased, restricted, object bool
		consents                   map[string]bool
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &erased, &restricted, &object, &consents}, func() error {
		may := !erased && !restricted && !object
		out[id] = wanted{
			erased: erased, frozen: restricted && !erased, newsletter: may && consents["NLE"],
			offers: map[string]bool{"E": may && consents["OFFE"], "S": may && consents["OFFS"], "T": may && consents["OFFT"]},
		}
		consents = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the CRM for the oracle: %w", err)
	}
	return out, nil
}

const oracleMarketing = `
select c.crm_id,
       jsonb_build_object(
           'newsletter', newsletter_optin, 'email', offers_email, 'sms', offers_sms, 'phone', offers_phone, 'frozen', frozen,
           'blocked', blocked,
           'personal', num_nonnulls(firstname, lastname, mobile, city, profile) > 0 or email not like 'e-%@erased.invalid',
           'notes', exists (select 1 from contact_note n where n.contact_id = c.contact_id),
           'sent', exists (select 1 from campaign_send s where s.contact_id = c.contact_id and s.address is not null),
           'listed', exists (select 1 from do_not_contact d where d.contact_id = c.contact_id))
  from contact c`

const oracleReporting = `
select c.customer_nk,
       jsonb_build_object(
           'contactable', contactable, 'frozen', frozen, 'usable', usable,
           'personal', num_nonnulls(full_name, birth_year, gender) > 0 or length(postcode) > 2,
           'answers', exists (select 1 from fact_survey s where s.customer_sk = c.customer_sk and s.answer is not null))
  from dim_customer c`

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
func compare(ctx context.Context, conn *pgx.Conn, query string, want map[int64]wanted, row func(wanted) map[string]bool) ([]string, error) {
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("reading a replica for the oracle: %w", err)
	}
	var (
		id   int64
		have map[string]bool
		diff []string
		seen = map[int64]bool{}
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &have}, func() error {
		seen[id] = true
		for _, name := range slices.Sorted(maps.Keys(row(want[id]))) {
			if wantValue := row(want[id])[name]; have[name] != wantValue {
				diff = append(diff, fmt.Sprintf("customer %d: %s is %t, want %t", id, name, have[name], wantValue))
			}
		}
		have = nil
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

// differences compares both replicas with the CRM.
func differences(ctx context.Context, crm, market, report *pgx.Conn) ([]string, error) {
	want, err := expectations(ctx, crm)
	if err != nil {
		return nil, err
	}
	marketing, err := compare(ctx, market, oracleMarketing, want, wanted.marketing)
	if err != nil {
		return nil, err
	}
	reporting, err := compare(ctx, report, oracleReporting, want, wanted.reporting)
	return slices.Concat(marketing, reporting), err
}
