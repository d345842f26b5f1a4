package mysql

import (
	"errors"
	"fmt"
	"strings"
)

// The errors of the row decoder name the table, the column and what is wrong, never a value. All are permanent: the same
// event gives the same error again. At is the transaction that they were met in, which placed fills in.

// ColumnError says that a table no longer has a column that the mapping reads.
type ColumnError struct {
	Table  string
	Column string
	At     string
}

func (e *ColumnError) Error() string {
	return fmt.Sprintf("table %s has no column %s as of %s: it was renamed or dropped; correct the mapping and start again, nothing is skipped",
		e.Table, e.Column, place(e.At))
}

// Permanent marks the error for capture.IsPermanent.
func (e *ColumnError) Permanent() bool { return true }

// ImageError says that a row event lacks columns that the mapping reads: a session wrote it with another binlog_row_image.
type ImageError struct {
	Table   string
	Columns []string
	At      string
}

func (e *ImageError) Error() string {
	return fmt.Sprintf("a row of table %s came without %s at %s, because the session that wrote it has binlog_row_image other than FULL: "+
		"SET GLOBAL binlog_row_image = 'FULL' and end that session (the variable can be set per session); what is missing comes from nowhere, "+
		"and LetheCaptureStopped in docs/OPERATIONS.md says how capture gets behind it",
		e.Table, strings.Join(e.Columns, ", "), place(e.At))
}

// Permanent marks the error for capture.IsPermanent.
func (e *ImageError) Permanent() bool { return true }

// MetadataError says that the log does not name the columns of a mapped table.
type MetadataError struct {
	Table string
	At    string
}

func (e *MetadataError) Error() string {
	return fmt.Sprintf("the log does not name the columns of table %s at %s: SET GLOBAL binlog_row_metadata = 'FULL' (and in the server's "+
		"option file); what was written before that cannot be read, and LetheCaptureStopped in docs/OPERATIONS.md says how capture gets behind it", e.Table, place(e.At))
}

// Permanent marks the error for capture.IsPermanent.
func (e *MetadataError) Permanent() bool { return true }

// ColumnTypeError says that a mapped column is of a type or charset that cannot be read.
type ColumnTypeError struct {
	Table  string
	Column string
	Reason string
	At     string
}

func (e *ColumnTypeError) Error() string {
	return fmt.Sprintf("column %s of table %s %s (met at %s)", e.Column, e.Table, e.Reason, place(e.At))
}

// Permanent marks the error for capture.IsPermanent.
func (e *ColumnTypeError) Permanent() bool { return true }

// RowError says that a table map or a row could not be understood. Capture stops there: nothing is skipped.
type RowError struct {
	Table string // empty where it is not known
	At    string
	Err   error
}

func (e *RowError) Error() string {
	of := ""
	if e.Table != "" {
		of = " of table " + e.Table
	}
	return fmt.Sprintf("decoding a row event%s at %s: %v; nothing was skipped, please report this with the server's version", of, place(e.At), e.Err)
}

// Permanent marks the error for capture.IsPermanent.
func (e *RowError) Permanent() bool { return true }

// Unwrap returns what was wrong with the bytes.
func (e *RowError) Unwrap() error { return e.Err }

// placed gives an error of the row decoder the place that it was met at, a GTID or a binlog position. Any other error is
// returned as it is.
func placed(err error, at string) error {
	var column *ColumnError
	var image *ImageError
	var metadata *MetadataError
	var columnType *ColumnTypeError
	var row *RowError
	switch {
	case errors.As(err, &column):
		return &ColumnError{Table: column.Table, Column: column.Column, At: at}
	case errors.As(err, &image):
		return &ImageError{Table: image.Table, Columns: image.Columns, At: at}
	case errors.As(err, &metadata):
		return &MetadataError{Table: metadata.Table, At: at}
	case errors.As(err, &columnType):
		return &ColumnTypeError{Table: columnType.Table, Column: columnType.Column, Reason: columnType.Reason, At: at}
	case errors.As(err, &row):
		return &RowError{Table: row.Table, At: at, Err: row.Err}
	}
	return err
}

func place(at string) string {
	if at == "" {
		return "(unknown)"
	}
	return at
}
