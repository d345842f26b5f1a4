package mysql

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
)

// rowDecoder reads the table maps and row events of one stream. go-mysql's own decoder reads every column of every row,
// puts row data into its errors and panics on bytes that it does not expect; this one reads mapped columns only, passes
// over the others by their length, and hands out values that lie in the event or in scratch space of its own, valid until
// the next call. After the first event of a table's shape it allocates nothing. One goroutine uses it.
type rowDecoder struct {
	needs    map[string]TableNeeds
	charsets charsets
	mariadb  bool

	byID map[uint64]*shape
	// shapes keeps the shape of each mapped table that was met last, so that a table map that changes nothing, under
	// whatever id, gives the same *capture.Table.
	shapes map[string]*shape
	// done is set when the last rows of a statement were read: the ids mapped so far may be forgotten.
	done bool
	name []byte

	change  capture.Change
	scratch []byte
	zip     inflater

	// skipped counts the row events of tables that are not mapped.
	skipped uint64
}

// rowOptions configure a rowDecoder.
type rowOptions struct {
	// Needs are the mapped tables by schema.table.
	Needs map[string]TableNeeds
	// Charsets maps collation ids to the names of their charsets, as readCharsets reads them from the server.
	Charsets charsets
	// MariaDB is set where the stream comes from one: table maps differ slightly.
	MariaDB bool
}

func newRowDecoder(o rowOptions) *rowDecoder {
	return &rowDecoder{
		needs: o.Needs, charsets: o.Charsets, mariadb: o.MariaDB, byID: map[uint64]*shape{}, shapes: map[string]*shape{},
	}
}

// maxTableIDs bounds the ids remembered between statements: a server gives a new one whenever a table is opened again.
const maxTableIDs = 1024

// stmtEnd is the flag of the last row event of a statement.
const stmtEnd = 0x01

var (
	errShort    = errors.New("event ends early")
	errTrailing = errors.New("bytes left after the end of the event")
)

// reset forgets the table ids: they belong to one server's open tables, so a new connection begins without any.
func (d *rowDecoder) reset() {
	clear(d.byID)
	d.done = false
}

// tableMap reads the body of a TABLE_MAP event: what follows the common header, without the checksum. It keeps nothing of
// body. A table whose shape does not fit the mapping is no error here, but at its first row: a transaction that was
// handled already may be passed over whatever its tables looked like then. Errors are *RowError.
func (d *rowDecoder) tableMap(body []byte) error {
	if len(body) < 8 {
		return &RowError{Err: errShort}
	}
	if d.done && len(d.byID) > maxTableIDs {
		clear(d.byID)
	}
	d.done = false
	id := tableID(body)
	body = body[6:]
	if s := d.byID[id]; s != nil && s.sameMap(body) {
		return nil
	}
	s, err := d.readTableMap(body)
	if err != nil {
		return &RowError{Table: string(d.name), Err: err}
	}
	d.byID[id] = s
	return nil
}

func tableID(b []byte) uint64 {
	return uint64(binary.LittleEndian.Uint32(b)) | uint64(binary.LittleEndian.Uint16(b[4:]))<<32
}

// table returns the table that a row event's body is of; nil for one that is not mapped or not described.
func (d *rowDecoder) table(body []byte) *capture.Table {
	if len(body) < 6 {
		return nil
	}
	if s := d.byID[tableID(body)]; s != nil {
		return s.table
	}
	return nil
}

// rows reads the body of a row event (what follows the common header, without the checksum) and calls fn for each row of
// a mapped table. An error of fn ends the event and is returned as it is; all others are *ColumnError, *ImageError,
// *MetadataError, *ColumnTypeError or *RowError, which placed gives their position. The Change is valid until fn returns.
func (d *rowDecoder) rows(t replication.EventType, body []byte, fn func(*capture.Change) error) error {
	form, ok := formOf(t)
	if !ok {
		return &RowError{Err: fmt.Errorf("row event of unknown type %d", t)}
	}
	if len(body) < 8 {
		return &RowError{Err: errShort}
	}
	d.done = binary.LittleEndian.Uint16(body[6:])&stmtEnd != 0
	s := d.byID[tableID(body)]
	switch {
	case s == nil:
		return &RowError{Err: errors.New("rows of a table that was not described")}
	case s.table == nil:
		d.skipped++
		return nil
	case s.unfit != nil:
		return s.unfit
	}
	return d.readRows(s, form, body[8:], fn)
}

// rowForm is how a type of row event is laid out.
type rowForm struct {
	op         capture.Op
	extra      bool // version 2: extra data before the columns
	compressed bool // MariaDB: the rows are deflated
	partial    bool // the new image may hold JSON as differences
}

func formOf(t replication.EventType) (rowForm, bool) {
	switch t { //nolint:exhaustive // the others are no row events, or of servers before 5.1
	case replication.WRITE_ROWS_EVENTv1:
		return rowForm{op: capture.OpInsert}, true
	case replication.UPDATE_ROWS_EVENTv1:
		return rowForm{op: capture.OpUpdate}, true
	case replication.DELETE_ROWS_EVENTv1:
		return rowForm{op: capture.OpDelete}, true
	case replication.WRITE_ROWS_EVENTv2:
		return rowForm{op: capture.OpInsert, extra: true}, true
	case replication.UPDATE_ROWS_EVENTv2:
		return rowForm{op: capture.OpUpdate, extra: true}, true
	case replication.DELETE_ROWS_EVENTv2:
		return rowForm{op: capture.OpDelete, extra: true}, true
	case replication.PARTIAL_UPDATE_ROWS_EVENT:
		return rowForm{op: capture.OpUpdate, extra: true, partial: true}, true
	case replication.MARIADB_WRITE_ROWS_COMPRESSED_EVENT_V1:
		return rowForm{op: capture.OpInsert, compressed: true}, true
	case replication.MARIADB_UPDATE_ROWS_COMPRESSED_EVENT_V1:
		return rowForm{op: capture.OpUpdate, compressed: true}, true
	case replication.MARIADB_DELETE_ROWS_COMPRESSED_EVENT_V1:
		return rowForm{op: capture.OpDelete, compressed: true}, true
	}
	return rowForm{}, false
}
