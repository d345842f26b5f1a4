package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/pii"
	"lethe/sinks/ledger"
)

// eachReviewed is eachDesk for replicas that find people by match keys; one that is named without doing so is an error.
func eachReviewed(ctx context.Context, cfg *config.Config, name string, f func(replica string, d desk) error) error {
	return eachDesk(ctx, cfg, name, func(replica string, d desk) error {
		switch {
		case cfg.Replicas[replica].Find != nil:
			return f(replica, d)
		case name == "":
			return nil
		}
		return &UsageError{errors.New("the replica has no find: nobody is asked whether a row is a person")}
	})
}

// ReviewInfo is a row of a replica of which a person has to say whether it is a subject. It holds nothing personal.
type ReviewInfo struct {
	Replica   string    `json:"replica"`
	ID        string    `json:"id"`
	Case      string    `json:"case,omitempty"`
	Kind      string    `json:"kind"`     // erasure or permission
	Person    string    `json:"person"`   // key of the row in the replica
	Evidence  string    `json:"evidence"` // the types of keys that agree
	OpenedAt  time.Time `json:"opened_at"`
	DueAt     time.Time `json:"due_at"`
	Overdue   bool      `json:"overdue"`
	DecidedAt time.Time `json:"decided_at,omitzero"`
	DecidedBy string    `json:"decided_by,omitempty"`
	Decision  string    `json:"decision,omitempty"` // same, different or obsolete
}

// ReviewSide is what one row of the source or of the replica says. It is for the eyes of whoever decides: its values print as a
// placeholder wherever they are not revealed on purpose.
type ReviewSide struct {
	Table   string
	Columns []string
	Values  []pii.Value
}

// ReviewShown is a review with both sides as they are now.
type ReviewShown struct {
	ReviewInfo
	// Rivals is how many other subjects hold one of the keys that agree.
	Rivals int
	Source []ReviewSide
	Found  []ReviewSide // in the replica
}

func reviewInfo(replica string, r *ledger.Review) ReviewInfo {
	out := ReviewInfo{
		Replica: replica, ID: r.ID, Kind: r.Kind, Person: r.Person, Evidence: r.Evidence, OpenedAt: r.OpenedAt.UTC(), DueAt: r.DueAt.UTC(),
		Overdue: r.Overdue(time.Now()), DecidedBy: r.DecidedBy, Decision: r.Decision,
	}
	if !r.DecidedAt.IsZero() {
		out.DecidedAt = r.DecidedAt.UTC()
	}
	if !r.CaseID.IsZero() {
		out.Case = r.CaseID.String()
	}
	return out
}

// Reviews lists what a person has to decide, by replica, the rows with the most keys that agree first; all includes what is
// decided. What could be read is returned with an error too.
func Reviews(ctx context.Context, cfg *config.Config, replica string, all bool, limit int) ([]ReviewInfo, error) {
	out := []ReviewInfo{}
	err := eachReviewed(ctx, cfg, replica, func(name string, d desk) error {
		list, err := d.Reviews(ctx, !all, limit)
		for i := range list {
			out = append(out, reviewInfo(name, &list[i]))
		}
		return err
	})
	return out, err
}

// ReviewCase reads a review and what both databases say of the two people now. It needs the operator's keys. Nothing of the
// values is kept.
func ReviewCase(ctx context.Context, cfg *config.Config, replica, id string) (*ReviewShown, error) {
	if cfg.Replicas[replica] == nil {
		return nil, errNoReplica(cfg, replica)
	}
	ring, err := keys.Open(cfg.Keys.Dir, keys.RoleOperator)
	if err != nil {
		return nil, err
	}
	var detail *ledger.ReviewDetail
	err = eachReviewed(ctx, cfg, replica, func(_ string, d desk) (err error) {
		detail, err = d.ReviewCase(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &ReviewShown{ReviewInfo: reviewInfo(replica, &detail.Review), Rivals: detail.Rivals}
	for _, r := range detail.Rows {
		out.Found = append(out.Found, ReviewSide(r))
	}
	key, err := ledger.OpenKey(ring.Seal(), detail.Ref[:], detail.Sealed)
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", replica, err)
	}
	if out.Source, err = readSourceSide(ctx, cfg, key); err != nil {
		return out, fmt.Errorf("source: %w", err)
	}
	return out, nil
}

// DecideReview records that a row of a replica is a subject, or that it is somebody else's, under by, a role or a pseudonym. The
// replica's sink acts on it within seconds.
func DecideReview(ctx context.Context, cfg *config.Config, replica, id string, same bool, by string) error {
	if err := CheckActor(by); err != nil {
		return err
	}
	if cfg.Replicas[replica] == nil {
		return errNoReplica(cfg, replica)
	}
	return eachReviewed(ctx, cfg, replica, func(_ string, d desk) error { return d.DecideReview(ctx, id, same, by) })
}

// sideQuery reads what one table of the source says of a subject.
type sideQuery struct {
	table   string
	columns []string
	subject []string // columns that hold the CRM key
}

// sideQueries are the tables of the source that say who a subject is: its own row, and its contact points.
func sideQueries(s *config.Source) []sideQuery {
	var out []sideQuery
	for _, name := range sortedTables(s) {
		t := s.Tables[name]
		q := sideQuery{table: name, subject: t.Subject}
		if len(q.subject) == 0 {
			q.subject = s.Subject.Key
		}
		if t.Identity != nil {
			q.columns = append(q.columns, t.Identity.Name...)
			if t.Identity.BirthDate != "" {
				q.columns = append(q.columns, t.Identity.BirthDate)
			}
		}
		if t.ContactPoint != nil {
			q.columns = append(q.columns, t.ContactPoint.Value...)
		}
		if len(q.columns) > 0 {
			out = append(out, q)
		}
	}
	return out
}

func sortedTables(s *config.Source) []string {
	names := make([]string, 0, len(s.Tables))
	for name := range s.Tables {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// sql is the query in a dialect: quote quotes a name, text makes an expression a text, and param is the n-th parameter.
func (q *sideQuery) sql(quote, text func(string) string, param func(n int) string) string {
	selected, equal := make([]string, len(q.columns)), make([]string, len(q.subject))
	for i, c := range q.columns {
		selected[i] = text(quote(c))
	}
	for i, c := range q.subject {
		equal[i] = quote(c) + " = " + param(i+1)
	}
	var table []string
	for _, segment := range strings.Split(q.table, ".") {
		table = append(table, quote(segment))
	}
	return "SELECT " + strings.Join(selected, ", ") + " FROM " + strings.Join(table, ".") + " WHERE " + strings.Join(equal, " AND ")
}

// side makes one row of a query; nil: NULL.
func (q *sideQuery) side(raw []*string) ReviewSide {
	out := ReviewSide{Table: q.table, Columns: q.columns, Values: make([]pii.Value, len(raw))}
	for i, v := range raw {
		if v != nil {
			out.Values[i] = pii.New(*v)
		}
	}
	return out
}

// readSourceSide reads what the source says of a subject, through its own login.
func readSourceSide(ctx context.Context, cfg *config.Config, key []string) ([]ReviewSide, error) {
	if cfg.Source.MySQL != nil {
		return readMySQLSource(ctx, &cfg.Source, key)
	}
	return readPostgresSource(ctx, &cfg.Source, key)
}
