package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"lethe/capture"
)

// The messages of pgoutput, protocol version 1 (PostgreSQL manual, "Logical Replication Message Formats").
const (
	msgBegin    = 'B'
	msgCommit   = 'C'
	msgOrigin   = 'O'
	msgRelation = 'R'
	msgType     = 'Y'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
	msgMessage  = 'M'
	// msgStreamAbort belongs to protocol 2, yet PostgreSQL 18 sends it under protocol 1 for a transaction that it had not
	// sent anything of. There is nothing to abort: it is the one unknown message that may be passed over.
	msgStreamAbort = 'A'
)

// kind is what decode found.
type kind uint8

const (
	kindNothing  kind = iota // relation, type, origin, or a change of a table that is not mapped
	kindBegin                // decoder.begin
	kindCommit               // decoder.commit
	kindChange               // decoder.change
	kindTruncate             // decoder.truncated
	kindMessage              // decoder.message
)

type beginMessage struct {
	commitLSN   uint64
	committedAt int64 // microseconds since 2000
	xid         uint32
}

type commitMessage struct {
	commitLSN uint64
	endLSN    uint64
}

type logicalMessage struct {
	transactional bool
	prefix        []byte
	content       []byte
}

var (
	errShort    = errors.New("message ends early")
	errTrailing = errors.New("bytes left after the end of the message")
)

// decoder reads the messages of one connection. Everything that it hands out lies in the message or in scratch space of
// its own and is valid until the next call of decode; after the first changes of a table it allocates nothing.
type decoder struct {
	relations
	begin     beginMessage
	commit    commitMessage
	message   logicalMessage
	change    capture.Change
	truncated []*relation
	skipped   uint64 // row changes of tables that are not mapped
	oldRow    []capture.Value
	newRow    []capture.Value
}

func newDecoder(needs map[string]TableNeeds) *decoder {
	return &decoder{relations: newRelations(needs)}
}

// decode reads one message. Its errors carry no values, only what is wrong with the bytes.
func (d *decoder) decode(msg []byte) (kind, error) {
	if len(msg) == 0 {
		return kindNothing, errShort
	}
	body := msg[1:]
	switch msg[0] {
	case msgInsert, msgUpdate, msgDelete:
		return d.row(msg[0], body)
	case msgBegin:
		return kindBegin, d.readBegin(body)
	case msgCommit:
		return kindCommit, d.readCommit(body)
	case msgRelation:
		return kindNothing, d.readRelation(body)
	case msgType:
		return kindNothing, d.readType(body)
	case msgTruncate:
		return kindTruncate, d.readTruncate(body)
	case msgMessage:
		return kindMessage, d.readMessage(body)
	case msgOrigin, msgStreamAbort:
		return kindNothing, nil
	}
	return kindNothing, fmt.Errorf("unknown message type 0x%02x", msg[0])
}

// row reads an Insert, Update or Delete. The bytes of a table that is not mapped are not looked at.
func (d *decoder) row(op byte, b []byte) (kind, error) {
	if len(b) < 5 {
		return kindNothing, errShort
	}
	rel := d.find(binary.BigEndian.Uint32(b))
	if rel == nil {
		return kindNothing, fmt.Errorf("change of relation %d, which was not described", binary.BigEndian.Uint32(b))
	}
	if rel.table == nil {
		d.skipped++
		return kindNothing, nil
	}
	if rel.unfit != nil {
		return kindNothing, rel.unfit
	}
	b = b[4:]
	c := &d.change
	*c = capture.Change{Table: rel.table}
	var err error
	if tag := b[0]; tag == 'K' || tag == 'O' {
		if op == msgInsert {
			return kindNothing, errors.New("insert with an old row")
		}
		d.oldRow = sized(d.oldRow, len(rel.table.Columns))
		if b, err = readTuple(b[1:], d.oldRow); err != nil {
			return kindNothing, err
		}
		if tag == 'K' {
			maskKey(d.oldRow, rel.table.Columns)
		}
		c.Old = d.oldRow
	}
	switch op {
	case msgInsert:
		c.Op = capture.OpInsert
	case msgUpdate:
		c.Op = capture.OpUpdate
	case msgDelete:
		c.Op = capture.OpDelete
		if c.Old == nil {
			return kindNothing, errors.New("delete without an old row")
		}
		return kindChange, atEnd(b)
	}
	if len(b) == 0 {
		return kindNothing, errShort
	}
	if b[0] != 'N' {
		return kindNothing, fmt.Errorf("unknown row image 0x%02x", b[0])
	}
	d.newRow = sized(d.newRow, len(rel.table.Columns))
	if b, err = readTuple(b[1:], d.newRow); err != nil {
		return kindNothing, err
	}
	c.New = d.newRow
	if c.Old != nil {
		resolveUnchanged(c.New, c.Old)
	}
	return kindChange, atEnd(b)
}

// readTuple reads a row image into dst, whose length is the number of columns that the relation has.
func readTuple(b []byte, dst []capture.Value) ([]byte, error) {
	if len(b) < 2 {
		return nil, errShort
	}
	if n := int(binary.BigEndian.Uint16(b)); n != len(dst) {
		return nil, fmt.Errorf("row of %d columns in a table of %d", n, len(dst))
	}
	b = b[2:]
	for i := range dst {
		if len(b) == 0 {
			return nil, errShort
		}
		switch b[0] {
		case 't':
			if len(b) < 5 {
				return nil, errShort
			}
			n := uint64(binary.BigEndian.Uint32(b[1:5]))
			b = b[5:]
			if n > uint64(len(b)) {
				return nil, errShort
			}
			dst[i] = capture.Value{State: capture.Present, Text: b[:n:n]}
			b = b[n:]
		case 'n':
			dst[i] = capture.Value{State: capture.Null}
			b = b[1:]
		case 'u':
			dst[i] = capture.Value{State: capture.Unchanged}
			b = b[1:]
		default:
			return nil, fmt.Errorf("unknown kind of column 0x%02x", b[0])
		}
	}
	return b, nil
}

// maskKey makes the columns outside the key absent: a key image sends them as NULL, which they need not be.
func maskKey(row []capture.Value, columns []capture.Column) {
	for i := range row {
		if !columns[i].Key {
			row[i] = capture.Value{State: capture.Absent}
		}
	}
}

// resolveUnchanged takes the values that were not sent again (unchanged TOAST) from the old image where it has them: under
// identity FULL all of them, else those of the key.
func resolveUnchanged(row, old []capture.Value) {
	for i := range row {
		if row[i].State == capture.Unchanged && old[i].State == capture.Present {
			row[i] = old[i]
		}
	}
}

// sized returns row with n values; their content is undefined.
func sized(row []capture.Value, n int) []capture.Value {
	if cap(row) < n {
		return make([]capture.Value, n)
	}
	return row[:n]
}

func (d *decoder) readBegin(b []byte) error {
	c := cursor{b: b}
	d.begin = beginMessage{commitLSN: c.uint64(), committedAt: int64(c.uint64()), xid: c.uint32()} //nolint:gosec // two's complement on the wire
	return c.end()
}

func (d *decoder) readCommit(b []byte) error {
	c := cursor{b: b}
	c.byte() // flags, unused
	d.commit = commitMessage{commitLSN: c.uint64(), endLSN: c.uint64()}
	c.uint64() // commit time, as in Begin
	return c.end()
}

func (d *decoder) readTruncate(b []byte) error {
	c := cursor{b: b}
	n := c.uint32()
	c.byte() // CASCADE, RESTART IDENTITY
	if n == 0 || uint64(n)*4 != uint64(len(c.b)) {
		return errShort
	}
	d.truncated = d.truncated[:0]
	for range n {
		id := c.uint32()
		rel := d.find(id)
		if rel == nil {
			return fmt.Errorf("truncation of relation %d, which was not described", id)
		}
		if rel.table == nil {
			d.skipped++
			continue
		}
		d.truncated = append(d.truncated, rel)
	}
	return c.end()
}

func (d *decoder) readMessage(b []byte) error {
	c := cursor{b: b}
	flags := c.byte()
	c.uint64() // LSN of the message itself: positions are those of commits
	prefix := c.cstring()
	content := c.bytes(c.uint32())
	d.message = logicalMessage{transactional: flags&1 != 0, prefix: prefix, content: content}
	return c.end()
}

// cursor reads fields and remembers when the message ended too early; then all further fields are zero.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(c.b)) {
		c.b, c.short = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) byte() byte {
	if v := c.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if v := c.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if v := c.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if v := c.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// cstring returns the bytes up to a NUL, which it passes.
func (c *cursor) cstring() []byte {
	n := bytes.IndexByte(c.b, 0)
	if n < 0 {
		c.b, c.short = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n+1:]
	return v
}

func (c *cursor) end() error {
	if c.short {
		return errShort
	}
	return atEnd(c.b)
}

func atEnd(b []byte) error {
	if len(b) != 0 {
		return errTrailing
	}
	return nil
}

// epoch2000 is the zero of PostgreSQL's timestamps, in microseconds since 1970.
const epoch2000 = 946684800 * 1_000_000

func timeOf(microseconds int64) time.Time {
	return time.UnixMicro(microseconds + epoch2000).UTC()
}
