package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// fill is the state of the three databases at the start of the day: the CRM and what the ETL has copied of it so far.
type fill struct {
	people []person
	// late are customers that the ETL brings into the replicas only during the day.
	late map[int64]bool
}

// lateEvery says that each so-manieth customer is not in the replicas yet when the day begins.
const lateEvery = 50

// seed makes the same publisher in every run.
const seed = 20_260_811

// newFill makes n customers.
func newFill(n int) fill {
	r := rand.New(rand.NewPCG(seed, uint64(n))) //nolint:gosec // reproducible, not secret
	f := fill{people: make([]person, n), late: map[int64]bool{}}
	for i := range f.people {
		id := int64(i + 1)
		f.people[i] = newPerson(r, id)
		if id%lateEvery == 7 {
			f.late[id] = true
		}
	}
	return f
}

// rows makes a row of each person.
func (f *fill) rows(row func(p *person) []any) [][]any {
	out := make([][]any, len(f.people))
	for i := range f.people {
		out[i] = row(&f.people[i])
	}
	return out
}

// present is rows for those that the ETL has copied.
func (f *fill) present(row func(p *person) []any) [][]any {
	var out [][]any
	for i := range f.people {
		if !f.late[f.people[i].id] {
			out = append(out, row(&f.people[i]))
		}
	}
	return out
}

type insertJob struct {
	table   string
	columns []string
	rows    [][]any
}

func insertAll(ctx context.Context, db DB, jobs []insertJob) error {
	for _, j := range jobs {
		if err := db.insert(ctx, j.table, j.columns, j.rows); err != nil {
			return fmt.Errorf("filling %s: %w", j.table, err)
		}
	}
	return nil
}

// crm fills the primary database.
func (f *fill) crm(ctx context.Context, db DB) error {
	yesterday := time.Now().UTC().AddDate(0, 0, -1)
	err := insertAll(ctx, db, []insertJob{
		{
			"customer",
			[]string{"customer_id", "last_name", "first_name", "national_id", "birth_date", "gender", "qualifier_1", "qualifier_2"},
			f.rows(func(p *person) []any {
				return []any{p.id, p.last, p.first, p.nationalID, p.born, p.gender, p.hobby, p.household}
			}),
		},
		{
			"customer_address",
			[]string{"customer_id", "line1", "postal_code", "city"},
			f.rows(func(p *person) []any { return []any{p.id, p.street, p.postal, p.city} }),
		},
		{
			"customer_email",
			[]string{"email_id", "customer_id", "email"},
			f.rows(func(p *person) []any { return []any{p.id, p.id, p.email} }),
		},
		{
			"customer_phone",
			[]string{"phone_id", "customer_id", "number"},
			f.rows(func(p *person) []any { return []any{p.id, p.id, p.phone} }),
		},
		{
			"email_history",
			[]string{"customer_id", "email", "until"},
			f.rows(func(p *person) []any { return []any{p.id, p.oldEmail, yesterday} }),
		},
		{
			"address_history",
			[]string{"customer_id", "line1", "postal_code", "city"},
			f.rows(func(p *person) []any { return []any{p.id, p.oldStreet, p.postal, p.city} }),
		},
		{
			"auth_record",
			[]string{"customer_id", "login", "secret_hash"},
			f.rows(func(p *person) []any { return []any{p.id, p.login, p.token} }),
		},
		{
			"epayment",
			[]string{"customer_id", "token", "holder_name", "iban"},
			f.rows(func(p *person) []any { return []any{p.id, p.token, p.holder, p.iban} }),
		},
		{
			"questionnaire_answer",
			[]string{"customer_id", "question", "answer_text"},
			f.rows(func(p *person) []any { return []any{p.id, "Parlez-nous de vous", p.answer} }),
		},
		{
			"vendor",
			[]string{"customer_id", "name", "contact", "email"},
			f.rows(func(p *person) []any { return []any{p.id, p.last + " SARL", p.holder, p.email} }),
		},
		{
			"customer_note",
			[]string{"customer_id", "note_code", "body"},
			f.rows(func(p *person) []any { return []any{p.id, "WELCOME", "Courrier de bienvenue à " + p.holder} }),
		},
		{
			"order_service",
			[]string{"customer_id", "magazine"},
			f.rows(func(p *person) []any { return []any{p.id, p.magazine} }),
		},
		{
			"invoice",
			[]string{"customer_id", "invoiced_on", "amount"},
			f.rows(func(p *person) []any { return []any{p.id, yesterday, float64(p.id%90) + 9.5} }),
		},
		{
			"consent",
			[]string{"customer_id", "purpose_code", "channel_code", "contact_id", "status", "legal_basis", "document_id"},
			f.consents(),
		},
	})
	if err != nil {
		return err
	}
	return moveSequences(ctx, db)
}

// moveSequences makes the application go on behind the ids that the filling has given.
func moveSequences(ctx context.Context, db DB) error {
	if !db.dialect().sequences {
		return nil
	}
	for _, table := range []string{"customer.customer_id", "customer_email.email_id", "customer_phone.phone_id"} {
		name, column, _ := strings.Cut(table, ".")
		sql := fmt.Sprintf("select setval(pg_get_serial_sequence('%s', '%s'), (select max(%s) from %s))", name, column, column, name)
		if err := db.exec(ctx, sql); err != nil {
			return fmt.Errorf("moving the sequence of %s: %w", table, err)
		}
	}
	return nil
}

// consents: everybody has the newsletter, most have offers by e-mail, some by telephone.
func (f *fill) consents() [][]any {
	var out [][]any
	for i := range f.people {
		id := f.people[i].id
		doc := fmt.Sprintf("DOC-%d", id)
		out = append(out, []any{id, "NL", "E", id, "Y", "C", doc})
		if id%3 != 0 {
			out = append(out, []any{id, "OFF", "E", id, "Y", "C", doc})
		}
		if id%4 == 0 {
			out = append(out, []any{id, "OFF", "S", id, "Y", "C", doc}, []any{id, "OFF", "T", id, "R", "C", doc})
		}
	}
	return out
}

var marketingColumns = []string{
	"crm_id", "firstname", "lastname", "email", "mobile", "city", "profile", "newsletter_optin", "offers_email",
	"offers_sms",
}

func marketingRow(p *person) []any {
	return []any{
		p.id, p.first, p.last, p.email, p.phone, p.city,
		fmt.Sprintf(`{"hobby": %q, "born": %d}`, p.hobby, p.born.Year()),
		true, p.id%3 != 0,
		p.id%4 == 0,
	}
}

var reportingColumns = []string{"customer_nk", "full_name", "birth_year", "gender", "postcode", "contactable"}

func reportingRow(p *person) []any {
	return []any{p.id, p.first + " " + p.last, p.born.Year(), p.gender, p.postal, p.id%3 != 0}
}

// marketing fills the marketing replica as the ETL of last night did.
func (f *fill) marketing(ctx context.Context, db DB) error {
	if err := insertAll(ctx, db, []insertJob{{"contact", marketingColumns, f.present(marketingRow)}}); err != nil {
		return err
	}
	return execAll(ctx, db, "filling the marketing replica",
		"insert into contact_note (contact_id, body) select contact_id, concat('Rappeler ', firstname, ' ', lastname) from contact",
		"insert into campaign_send (contact_id, campaign, address) select contact_id, 'rentrée', email from contact",
		db.dialect().analyze("contact", "contact_note", "campaign_send"))
}

// reporting fills the reporting replica.
func (f *fill) reporting(ctx context.Context, db DB) error {
	if err := insertAll(ctx, db, []insertJob{{"dim_customer", reportingColumns, f.present(reportingRow)}}); err != nil {
		return err
	}
	return execAll(ctx, db, "filling the reporting replica",
		"insert into fact_invoice (customer_sk, invoiced_on, amount) select customer_sk, current_date - interval '1' day, 9.5 from dim_customer",
		`insert into fact_survey (customer_sk, question, answer)
			select customer_sk, 'Parlez-nous de vous', concat(full_name, ' lit le soir') from dim_customer`,
		db.dialect().analyze("dim_customer", "fact_invoice", "fact_survey"))
}

// execAll runs statements, and says for what when one fails.
func execAll(ctx context.Context, db DB, what string, statements ...string) error {
	for _, statement := range statements {
		if err := db.exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}
