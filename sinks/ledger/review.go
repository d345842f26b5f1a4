package ledger

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"lethe/config"
	"lethe/internal/pii"
	"lethe/schema"
	"lethe/sinks"
	"lethe/sinks/match"
)

// What a review is about: whether a row may be erased, or whether a permission applies to it. The kind of a review that is
// open is raised to erasure where it comes to that.
const (
	ReviewErasure    = "erasure"
	ReviewPermission = "permission"
)

// The decisions on a review. A row that is gone, or says nothing any more that the subject holds, closes its review by itself.
const (
	ReviewSame      = "same"
	ReviewDifferent = "different"
	ReviewObsolete  = "obsolete"
)

// ReasonAmbiguous is the reason of receipts and the error code of cases of which a person has to decide about a row;
// OutcomeAmbiguous is what became of a record that only such rows were found for.
const (
	ReasonAmbiguous  = "ambiguous"
	OutcomeAmbiguous = "ambiguous"
)

// ReviewByLethe is who closed a review that closed by itself.
const ReviewByLethe = "lethe"

// defaultReviewDue is how soon a review has to be decided where the config does not say it.
const defaultReviewDue = 7 * 24 * time.Hour

// Review is one row of a replica of which a person has to say whether it is a subject. Nothing in it is personal: what the
// two sides say is read live for whoever decides, and is stored nowhere.
type Review struct {
	ID        string
	Kind      string // ReviewErasure or ReviewPermission
	CaseID    schema.CaseID
	Person    string // person.key of the row, in text form
	Evidence  string // the types of keys that agree: email_strict+name
	Agreeing  int    // how many they are: the list is ranked by it
	OpenedAt  time.Time
	DueAt     time.Time
	DecidedAt time.Time // zero: open
	DecidedBy string    // a pseudonym or a role, as whoever decided gave it
	Decision  string    // ReviewSame, ReviewDifferent or ReviewObsolete; empty: open
}

// Overdue reports whether an open review should have been decided. It counts like an erasure that is overdue: an undecided
// row is no reason not to erase.
func (r *Review) Overdue(now time.Time) bool { return r.DecidedAt.IsZero() && now.After(r.DueAt) }

// ReviewDetail is a review with what is needed to decide it.
type ReviewDetail struct {
	Review
	Ref    Ref
	Sealed []byte // the subject's CRM key; see OpenKey. Its row in the source is the other side
	// Rivals is how many other subjects hold one of the keys that agree.
	Rivals int
	Rows   []ReviewRow // of the person, in the tables of `find`, as they are now; none: the row is gone
}

// ReviewRow is what one row says of a person. The values are printed for whoever decides, and go nowhere else.
type ReviewRow struct {
	Table   string
	Columns []string
	Values  []pii.Value // by column; empty where NULL
}

// ReviewID names the review of a subject and a row.
func (c *Core) ReviewID(ref Ref, person string) string {
	var out [32]byte
	c.Pseudonym.Compute(&out, fmt.Appendf(nil, "review|%x|%s", ref[:], person))
	return hex.EncodeToString(out[:6])
}

// ReviewRowOf is a review to be opened for the table review.
type ReviewRowOf struct {
	ID       string
	Ref      Ref
	Part     int32
	Kind     string
	Person   string
	Evidence string
	Due      time.Duration
}

// Reviews are the reviews that targets open. One that is there already stays, and is raised where it comes to an erasure.
func (c *Core) Reviews(targets []*Target) []ReviewRowOf {
	var out []ReviewRowOf
	for _, t := range targets {
		if !t.Review || t.Rival {
			continue
		}
		kind := ReviewPermission
		if t.Subject.Erased() {
			kind = ReviewErasure
		}
		out = append(out, ReviewRowOf{
			ID: c.ReviewID(t.Subject.Ref, t.Person), Ref: t.Subject.Ref, Part: t.Subject.Part, Kind: kind, Person: t.Person,
			Evidence: t.By.String(), Due: ReviewDue(c.Config),
		})
	}
	return out
}

// Dismiss takes what phase 1 did to some rows out of a case's undo: they are somebody else's. It returns what to restore, and
// what stays.
func Dismiss(undo []UndoEntry, persons []string) (restore, kept []UndoEntry) {
	for _, u := range undo {
		if u.Person != "" && slices.Contains(persons, u.Person) {
			restore = append(restore, u)
		} else {
			kept = append(kept, u)
		}
	}
	return restore, kept
}

// DoubtfulReceipt is the receipt of a case of which no row is certain: ambiguous, or, once a person has decided, without a match.
func (c *Core) DoubtfulReceipt(s *Subject, o OpenCase, state schema.ReceiptState, reason string, gaps []string, now time.Time) *Receipt {
	rc := c.NewReceipt(o.Event, schema.TypeSubjectErasure, state, uint32(o.Attempts)) //nolint:gosec // attempts are few
	rc.CaseID, rc.CommittedAt, rc.ConfigDigest, rc.MadeAt = o.CaseID, o.Committed, o.Digest, now
	rc.Reason, rc.Rows, rc.Gaps, rc.Evidence, rc.MatchMethod = reason, s.Effect.Rows, gaps, schema.EvidenceApplied, s.Effect.MatchMethod()
	rc.Ref, rc.Part = s.Ref[:], s.Part
	return rc
}

// ReviewDue is how soon a review has to be decided.
func ReviewDue(cfg *config.Replica) time.Duration {
	if cfg.Review.Due > 0 {
		return cfg.Review.Due
	}
	return defaultReviewDue
}

// ErrNoReview is the error of a review that is not there, or is decided.
func ErrNoReview(id string, decided bool) error {
	e := &sinks.Error{Class: sinks.Permanent, Op: "deciding review " + id, Code: "no_review", Hint: "`lethe review list` shows what is open"}
	if decided {
		e.Code, e.Hint = "review_decided", "it is decided: `lethe review list --all` shows by whom"
	}
	return e
}

// PairOf is what the table match_pair says in the words of match.
func PairOf(decision string) match.Pair {
	switch decision {
	case ReviewSame:
		return match.Same
	case ReviewDifferent:
		return match.Different
	}
	return match.Undecided
}

// MatchMethod is how receipts call the way in which a subject was found: by the CRM key, or by types of keys.
func (e *Effect) MatchMethod() string {
	switch {
	case e.By == 0:
		return MatchCRMKey
	case e.ByCRMKey:
		return MatchCRMKey + "+" + e.By.String()
	}
	return e.By.String()
}
