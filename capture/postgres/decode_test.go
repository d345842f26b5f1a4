package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"

	"lethe/capture"
)

// msg writes pgoutput messages for tests.
type msg []byte

func (m msg) u8(v byte) msg    { return append(m, v) }
func (m msg) u16(v uint16) msg { return binary.BigEndian.AppendUint16(m, v) }
func (m msg) u32(v uint32) msg { return binary.BigEndian.AppendUint32(m, v) }
func (m msg) u64(v uint64) msg { return binary.BigEndian.AppendUint64(m, v) }
func (m msg) str(s string) msg { return append(append(m, s...), 0) }

// row writes a row image; "\x00" stands for NULL and "\x01" for an unchanged TOAST value.
func (m msg) row(values ...string) msg {
	m = m.u16(uint16(len(values)))
	for _, v := range values {
		switch v {
		case "\x00":
			m = m.u8('n')
		case "\x01":
			m = m.u8('u')
		default:
			m = append(m.u8('t').u32(uint32(len(v))), v...)
		}
	}
	return m
}

func describe(id uint32, identity byte, name string, keys int, columns ...string) msg {
	m := msg{'R'}.u32(id).str("public").str(name).u8(identity).u16(uint16(len(columns)))
	for i, c := range columns {
		flag := byte(0)
		if i < keys {
			flag = 1
		}
		m = m.u8(flag).str(c).u32(25).u32(0xffffffff)
	}
	return m
}

func begin(lsn uint64, xid uint32) msg { return msg{'B'}.u64(lsn).u64(1).u32(xid) }

func testDecoder(t testing.TB, descriptions ...msg) *decoder {
	t.Helper()
	d := newDecoder(map[string]TableNeeds{"public.a": {}, "public.f": {}})
	for _, m := range descriptions {
		if k, err := d.decode(m); err != nil || k != kindNothing {
			t.Fatalf("describing a table gives %v, %v", k, err)
		}
	}
	return d
}

func TestDecodeRows(t *testing.T) {
	d := testDecoder(t, describe(1, 'd', "a", 1, "id", "v", "doc"), describe(2, 'f', "f", 3, "id", "v", "doc"), describe(3, 'd', "other", 1, "id"))
	present := func(s string) capture.Value { return capture.Value{State: capture.Present, Text: []byte(s)} }
	null, absent, unchanged := capture.Value{State: capture.Null}, capture.Value{}, capture.Value{State: capture.Unchanged}
	for name, test := range map[string]struct {
		m        msg
		op       capture.Op
		old, new []capture.Value
	}{
		"insert": {
			msg{'I'}.u32(1).u8('N').row("1", "", "\x00"), capture.OpInsert,
			nil,
			[]capture.Value{present("1"), present(""), null},
		},
		"update without old row": {
			msg{'U'}.u32(1).u8('N').row("1", "b", "\x01"), capture.OpUpdate,
			nil,
			[]capture.Value{present("1"), present("b"), unchanged},
		},
		"update of the key": {
			msg{'U'}.u32(1).u8('K').row("1", "\x00", "\x00").u8('N').row("2", "b", "\x01"), capture.OpUpdate,
			[]capture.Value{present("1"), absent, absent},
			[]capture.Value{present("2"), present("b"), unchanged},
		},
		"update under identity full": {
			msg{'U'}.u32(2).u8('O').row("1", "\x00", "long").u8('N').row("1", "b", "\x01"), capture.OpUpdate,
			[]capture.Value{present("1"), null, present("long")},
			[]capture.Value{present("1"), present("b"), present("long")},
		},
		"delete": {
			msg{'D'}.u32(1).u8('K').row("1", "\x00", "\x00"), capture.OpDelete,
			[]capture.Value{present("1"), absent, absent},
			nil,
		},
	} {
		k, err := d.decode(test.m)
		if err != nil || k != kindChange || d.change.Op != test.op {
			t.Errorf("%s: %v, %v, %v", name, k, d.change.Op, err)
			continue
		}
		if !reflect.DeepEqual(d.change.Old, test.old) || !reflect.DeepEqual(d.change.New, test.new) {
			t.Errorf("%s: old %v, new %v", name, d.change.Old, d.change.New)
		}
	}
	if k, err := d.decode(msg{'I'}.u32(3).u8('N').row("broken beyond", "repair")); err != nil || k != kindNothing || d.skipped != 1 {
		t.Errorf("a row of a table that is not mapped: %v, %v, %d skipped", k, err, d.skipped)
	}
}

func TestDecodeRefuses(t *testing.T) {
	d := testDecoder(t, describe(1, 'd', "a", 1, "id", "v"))
	for name, m := range map[string]msg{
		"nothing":                {},
		"unknown type":           {'S', 1},
		"prepared transaction":   {'P'},
		"unknown relation":       msg{'I'}.u32(9).u8('N').row("1", "2"),
		"unknown relation's end": msg{'T'}.u32(1).u8(0).u32(9),
		"too few columns":        msg{'I'}.u32(1).u8('N').row("1"),
		"too many columns":       msg{'I'}.u32(1).u8('N').row("1", "2", "3"),
		"bytes left":             msg{'I'}.u32(1).u8('N').row("1", "2").u8(0),
		"binary value":           msg{'I'}.u32(1).u8('N').u16(2).u8('b').u32(1).u8(1).u8('n'),
		"value beyond the end":   msg{'I'}.u32(1).u8('N').u16(2).u8('t').u32(0xffffffff).u8('1'),
		"insert with old row":    msg{'I'}.u32(1).u8('K').row("1", "2").u8('N').row("1", "2"),
		"delete without old row": msg{'D'}.u32(1).u8('N').row("1", "2"),
		"update without new row": msg{'U'}.u32(1).u8('K').row("1", "2"),
		"unknown identity":       describe(4, 'x', "a", 1, "id"),
		"truncated list":         msg{'T'}.u32(0x40000000).u8(0),
	} {
		if k, err := d.decode(m); err == nil {
			t.Errorf("%s gives %v and no error", name, k)
		}
	}
	if k, err := d.decode(msg{'A'}.u32(1).u32(1)); err != nil || k != kindNothing {
		t.Errorf("PostgreSQL 18's stray StreamAbort gives %v, %v", k, err)
	}
}

// TestDecodeErrorsCarryNoValues: an error may be logged.
func TestDecodeErrorsCarryNoValues(t *testing.T) {
	d := testDecoder(t, describe(1, 'd', "a", 1, "id", "v"))
	whole := []byte(msg{'U'}.u32(1).u8('K').row("Marguerite", "\x00").u8('N').row("Marguerite", "Yourcenar"))
	for n := range whole {
		if _, err := d.decode(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are accepted", n, len(whole))
		} else if strings.Contains(err.Error(), "Margue") {
			t.Errorf("error has a value in it: %v", err)
		}
	}
}

func TestDecodeShapes(t *testing.T) {
	d := newDecoder(map[string]TableNeeds{"public.a": {
		Columns: []string{"id", "customer"}, SubjectColumns: []string{"customer"}, ReadsDelete: true,
	}})
	insert := msg{'I'}.u32(1).u8('N').row("1", "2")
	decode := func(m msg) error { _, err := d.decode(m); return err }
	if err := errors.Join(decode(describe(1, 'i', "a", 2, "id", "customer")), decode(insert)); err != nil {
		t.Fatal(err)
	}
	first := d.change.Table
	if err := errors.Join(decode(describe(7, 'i', "a", 2, "id", "customer")), decode(describe(1, 'i', "a", 2, "id", "customer")), decode(insert)); err != nil {
		t.Fatal(err)
	}
	if d.change.Table != first {
		t.Error("the same shape has two pointers")
	}
	if err := errors.Join(decode(describe(1, 'f', "a", 2, "id", "customer")), decode(insert)); err != nil {
		t.Fatal(err)
	}
	if d.change.Table == first || first.OldRow != capture.OldRowKey || d.change.Table.OldRow != capture.OldRowFull {
		t.Error("another identity has the same pointer")
	}
	var column *ColumnError
	if err := errors.Join(decode(describe(1, 'i', "a", 2, "id", "renamed")), decode(insert)); !errors.As(err, &column) || column.Column != "customer" {
		t.Errorf("a mapped column that is gone: %v", err)
	}
	for name, m := range map[string]msg{
		"back to the primary key": describe(1, 'd', "a", 1, "id", "customer"),
		"no identity":             describe(1, 'n', "a", 0, "id", "customer"),
		"key dropped":             describe(1, 'd', "a", 0, "id", "customer"),
	} {
		var identity *IdentityError
		if err := errors.Join(decode(m), decode(insert)); !errors.As(err, &identity) || !reflect.DeepEqual(identity.Columns, []string{"customer"}) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeTypes(t *testing.T) {
	d := newDecoder(map[string]TableNeeds{"public.a": {}})
	m := msg{'R'}.u32(1).str("public").str("a").u8('d').u16(3).
		u8(1).str("id").u32(1184).u32(0).u8(0).str("mood").u32(16400).u32(0).u8(0).str("x").u32(99999).u32(0)
	for _, m := range []msg{msg{'Y'}.u32(16400).str("public").str("mood"), m, msg{'I'}.u32(1).u8('N').row("a", "b", "c")} {
		if _, err := d.decode(m); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"timestamptz", "public.mood", "oid:99999"} {
		if got := d.change.Table.Columns[i].Type; got != want {
			t.Errorf("type %s instead of %s", got, want)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	d := testDecoder(t, describe(1, 'f', "a", 3, "id", "v", "doc"), describe(3, 'd', "other", 1, "id"))
	messages := []msg{
		begin(1, 1), msg{'O'}.u64(1).str("origin"),
		msg{'I'}.u32(1).u8('N').row("1", "some text", "\x00"), msg{'I'}.u32(3).u8('N').row("1"),
		msg{'U'}.u32(1).u8('O').row("1", "b", "long").u8('N').row("1", "b", "\x01"), msg{'D'}.u32(1).u8('O').row("1", "b", "c"),
		msg{'M'}.u8(1).u64(1).str("lethe").u32(1).u8('1'), msg{'T'}.u32(1).u8(0).u32(1), msg{'C'}.u8(0).u64(1).u64(2).u64(3),
	}
	allocs := testing.AllocsPerRun(100, func() {
		for _, m := range messages {
			if _, err := d.decode(m); err != nil {
				t.Fatal(err)
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// FuzzDecode: our decoder never panics, never reads what pglogrepl would not read, and agrees with it wherever it accepts
// a message.
func FuzzDecode(f *testing.F) {
	for _, m := range []msg{
		begin(0x1234567890, 77),
		{'C', 0},
		msg{'C'}.u8(0).u64(1).u64(2).u64(3),
		msg{'I'}.u32(1).u8('N').row("1", "some text", "\x00"), msg{'U'}.u32(1).u8('N').row("1", "b", "\x01"),
		msg{'U'}.u32(1).u8('K').row("1", "\x00", "\x00").u8('N').row("2", "b", "\x01"),
		msg{'U'}.u32(2).u8('O').row("1", "a", "long").u8('N').row("2", "b", "\x01"),
		msg{'D'}.u32(1).u8('K').row("1", "\x00", "\x00"), msg{'D'}.u32(2).u8('O').row("1", "x", "y"),
		msg{'T'}.u32(2).u8(3).u32(1).u32(2), msg{'M'}.u8(1).u64(7).str("lethe").u32(3).u8('a').u8('b').u8('c'),
		describe(5, 'i', "a", 2, "id", "customer"), msg{'Y'}.u32(16400).str("public").str("mood"),
		msg{'O'}.u64(1).str("origin"),
		{'A', 0, 0, 0, 1, 0, 0, 0, 1},
		{'S'},
		{},
	} {
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := testDecoder(t, describe(1, 'd', "a", 1, "id", "v", "doc"), describe(2, 'f', "f", 3, "id", "v", "doc"))
		k, err := d.decode(bytes.Clone(b))
		if err != nil || len(b) > 0 && (b[0] == 'A' || b[0] == 'O') {
			return
		}
		compare(t, d, k, b, oracle(t, b))
	})
}

// oracle reads a message with pglogrepl, which panics on malformed ones: that it must not get, once we accepted it.
func oracle(t *testing.T, b []byte) (m pglogrepl.Message) {
	t.Helper()
	defer func() {
		if v := recover(); v != nil {
			t.Fatalf("we accept %x, pglogrepl panics: %v", b, v)
		}
	}()
	m, err := pglogrepl.Parse(b)
	if err != nil {
		t.Fatalf("we accept %x, pglogrepl does not: %v", b, err)
	}
	return m
}

func compare(t *testing.T, d *decoder, k kind, b []byte, m pglogrepl.Message) {
	t.Helper()
	same := true
	switch m := m.(type) {
	case *pglogrepl.BeginMessage:
		same = k == kindBegin && d.begin.commitLSN == uint64(m.FinalLSN) && d.begin.xid == m.Xid
		if at := d.begin.committedAt; at > -1<<52 && at < 1<<52 { // beyond, pglogrepl's nanoseconds overflow
			same = same && timeOf(at).UnixMicro() == m.CommitTime.UnixMicro()
		}
	case *pglogrepl.CommitMessage:
		same = k == kindCommit && d.commit.commitLSN == uint64(m.CommitLSN) && d.commit.endLSN == uint64(m.TransactionEndLSN)
	case *pglogrepl.InsertMessage:
		same = k == kindChange && d.change.Op == capture.OpInsert && sameRow(d.change.New, m.Tuple, nil)
	case *pglogrepl.UpdateMessage:
		same = k == kindChange && d.change.Op == capture.OpUpdate && sameOld(&d.change, m.OldTuple, m.OldTupleType) &&
			sameRow(d.change.New, m.NewTuple, d.change.Old)
	case *pglogrepl.DeleteMessage:
		same = k == kindChange && d.change.Op == capture.OpDelete && sameOld(&d.change, m.OldTuple, m.OldTupleType)
	case *pglogrepl.TruncateMessage:
		same = k == kindTruncate && len(d.truncated) == len(m.RelationIDs)
	case *pglogrepl.LogicalDecodingMessage:
		same = k == kindMessage && (b[1] > 1 || d.message.transactional == m.Transactional) && // further flags: pglogrepl compares the whole byte
			string(d.message.prefix) == m.Prefix && bytes.Equal(d.message.content, m.Content)
	case *pglogrepl.RelationMessage:
		same = k == kindNothing && sameTable(d.byID[m.RelationID].table, m)
	case *pglogrepl.TypeMessage:
		same = k == kindNothing && (d.types[m.DataType] == m.Name || strings.HasSuffix(d.types[m.DataType], "."+m.Name))
	default:
		t.Fatalf("we accept a message that is a %T", m)
	}
	if !same {
		t.Fatalf("%x: %+v, pglogrepl has %+v", b, d, m)
	}
}

func sameTable(table *capture.Table, m *pglogrepl.RelationMessage) bool {
	if table == nil {
		return m.RelationName != "a" && m.RelationName != "f" || m.Namespace != "public"
	}
	if len(table.Columns) != len(m.Columns) || !strings.HasSuffix(table.Name, "."+m.RelationName) {
		return false
	}
	for i, c := range m.Columns {
		if c.Name != table.Columns[i].Name || table.Columns[i].Key != (c.Flags&1 != 0) {
			return false
		}
	}
	return true
}

func sameOld(c *capture.Change, old *pglogrepl.TupleData, kind uint8) bool {
	if old == nil || c.Old == nil {
		return (old == nil) == (c.Old == nil)
	}
	if kind == 'K' {
		for i := range c.Old {
			if !c.Table.Columns[i].Key {
				if c.Old[i].State != capture.Absent {
					return false
				}
				c.Old[i].State = capture.Null // as it stands in the message, or whatever did
				old.Columns[i].DataType = 'n'
			}
		}
	}
	return sameRow(c.Old, old, nil)
}

func sameRow(row []capture.Value, m *pglogrepl.TupleData, old []capture.Value) bool {
	if len(row) != len(m.Columns) {
		return false
	}
	for i, c := range m.Columns {
		switch c.DataType {
		case 'n':
			if row[i].State != capture.Null {
				return false
			}
		case 'u':
			resolved := old != nil && old[i].State == capture.Present && bytes.Equal(old[i].Text, row[i].Text)
			if row[i].State != capture.Unchanged && !resolved {
				return false
			}
		case 't':
			if row[i].State != capture.Present || !bytes.Equal(row[i].Text, c.Data) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func BenchmarkDecode(b *testing.B) {
	d := newDecoder(map[string]TableNeeds{"public.a": {}})
	if _, err := d.decode(describe(1, 'd', "a", 1, "1", "2", "3", "4", "5", "6", "7", "8", "9", "10")); err != nil {
		b.Fatal(err)
	}
	row := []string{"12345", "some name", "another name", "2024-01-01", "t", "\x00", "a street with a number", "75001", "Paris", "2024-01-01 00:00:00+00"}
	m := msg{'U'}.u32(1).u8('N').row(row...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.decode(m); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTimelines(t *testing.T) {
	h, err := parseTimelines(4, []byte("1\t0/3000060\tno recovery target specified\n\n# a comment\n2\t0/5000000\treason\n3\t1/0\tafter\n"))
	if err != nil {
		t.Fatal(err)
	}
	for lsn, want := range map[uint64]uint32{0: 1, 0x300005f: 1, 0x3000060: 2, 0x4ffffff: 2, 0x5000000: 3, 0xffffffff: 3, 1 << 32: 4, 1 << 60: 4} {
		if got := h.at(lsn); got != want {
			t.Errorf("%x is of timeline %d instead of %d", lsn, got, want)
		}
	}
	for _, broken := range []string{"x\t0/0\tr", "1", "1\tnonsense\tr"} {
		if _, err := parseTimelines(2, []byte(broken)); err == nil {
			t.Errorf("%q is accepted", broken)
		}
	}
}
