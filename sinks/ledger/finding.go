package ledger

import (
	"strings"

	"lethe/sinks"
)

// Severity says what a Finding means for run.
type Severity string

// The severities. run refuses an error; a warning says what will be slow or incomplete; info tells what was seen.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
	SeverityInfo    Severity = "info"
)

// The codes of findings.
const (
	CodeLedger           = "ledger"                 // tables of Lethe's own are missing, too old or too new
	CodeTableMissing     = "table_missing"          // a mapped table does not exist
	CodeColumnMissing    = "column_missing"         // a mapped column does not exist
	CodeColumnType       = "column_type"            // a column cannot hold the mapped value
	CodeColumnFixed      = "column_generated"       // a generated or always-identity column
	CodeNotNull          = "column_not_null"        // NOT NULL, and null is mapped
	CodeUnique           = "column_unique"          // UNIQUE, and one value is mapped for everybody
	CodeKeyNotUnique     = "person_key_not_unique"  // person.key has no unique index
	CodeKeyNotIndexed    = "crm_key_not_indexed"    // a crm_key or by column has no index
	CodeNoJoin           = "table_not_joined"       // a table besides the person's, and no erase.tables.TABLE.by
	CodeNoKey            = "insert_without_key"     // a suppress insert that names no person
	CodeNoUndoKey        = "no_primary_key"         // a table that suppress writes to, and a cancel must find rows in
	CodePrivilege        = "privilege_missing"      // the login lacks a privilege
	CodeForeignKeyBlocks = "foreign_key_blocks"     // a table that is not mapped forbids the delete
	CodeForeignKeyDrags  = "foreign_key_cascades"   // a delete takes rows of a table that is not mapped
	CodeForeignKeyCycle  = "foreign_key_cycle"      // no order of deletes satisfies the foreign keys
	CodeAudience         = "audience"               // the audience query does not run, or returns no person key
	CodeUnmapped         = "unmapped_personal_data" // a column that looks personal and is not mapped
	CodeFoundAgain       = "found_again"            // a person would be found by a column after phase 2
	CodeTrigger          = "trigger"                // a trigger fires on what Lethe writes
	CodeUnsupported      = "value_not_supported"    // a value that has no meaning here
)

// Finding is one thing that Check saw.
type Finding struct {
	Code     string
	Severity Severity
	Object   string // schema.table or schema.table.column; never a value
	Message  string
	FixSQL   string // the statement that mends it, for the owner to run; empty where there is none
}

// ErrorOf makes one Permanent error of all findings that run refuses; nil where there is none.
func ErrorOf(replica string, findings []Finding) error {
	var parts []string
	code := ""
	for _, f := range findings {
		if f.Severity != SeverityError {
			continue
		}
		if code == "" {
			code = f.Code
		}
		text := f.Object + ": " + f.Message
		if f.FixSQL != "" {
			text += " (" + f.FixSQL + ")"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return nil
	}
	return &sinks.Error{
		Class: sinks.Permanent, Op: "comparing mapping of replica " + replica + " with its tables", Code: code,
		Hint: strings.Join(parts, "; "),
	}
}
