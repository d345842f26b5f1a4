package mysql

// TableNeeds says what the mapping reads of one table.
type TableNeeds struct {
	// Columns are all the columns that rules read, those below included. Only they are decoded.
	Columns []string
	// OldColumns are those read as old.x. The log carries whole old rows, so they are there like all others.
	OldColumns []string
	// SubjectColumns hold the CRM key.
	SubjectColumns []string
	// ReadsDelete is set where a DELETE means an event.
	ReadsDelete bool
	// Mapped are columns that the mapping names besides: they need not be read from the log, but a name that does not exist
	// is a slip that Check tells.
	Mapped []string
	// Optional is set for a table that not every installation has.
	Optional bool
}
