package capture

import "lethe/schema"

// Draft is what a rule made of a change: the body and what identifies it. Identifiers, order and sealing are added by the
// Pipeline. PK, SubjectKey, ContactPK and Body are valid only until the next call of Ruler.Apply.
type Draft struct {
	Rule       string
	PK         []byte // canonical primary key of the row (its identity columns)
	SubjectKey []byte // canonical CRM key; nil for Gap and Heartbeat
	Body       schema.Body
	// ContactTable and ContactPK name the row of the contact point that a ConsentChange or a ContactPoint is about; the
	// Pipeline makes Body's ContactRef of them. Empty: bound to none.
	ContactTable string
	ContactPK    []byte
	// Absorbed are the canonical CRM keys of the subjects that a SubjectMerged joins into SubjectKey; the Pipeline makes Body's references of them.
	Absorbed [][]byte
	// ID names the event where no change does; nil: the change.
	ID *schema.EventKey
}

// Ruler says which change means which event (capture/rules). It sees the changes and their commits, never the clock. One
// goroutine calls it, in the order of the log.
type Ruler interface {
	// Begin is called before the source is read, at first or again after an error: what a Ruler remembers of the log is
	// void then, because the changes that it has seen may come again and may never have been published.
	Begin()
	// Apply appends to out what c means and returns the extended slice; nothing is appended for a change that means nothing.
	// An error is permanent: the same change gives it again, so the Pipeline stops with its position.
	Apply(tx *Transaction, c *Change, out []Draft) ([]Draft, error)
}
