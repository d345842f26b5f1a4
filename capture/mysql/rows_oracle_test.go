package mysql

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"

	"lethe/capture"
)

// testCharsets are the ids that the recorded events use; both servers give them the same.
var testCharsets = charsets{
	8: "latin1", 9: "latin2", 11: "ascii", 13: "sjis", 28: "gbk", 33: "utf8mb3", 35: "ucs2", 45: "utf8mb4", 46: "utf8mb4", 51: "cp1251", 54: "utf16",
	56: "utf16le", 60: "utf32", 63: "binary", 255: "utf8mb4",
}

// binlogEvent is an event as the servers send it, without the checksum: a header of 19 bytes and the body.
func binlogEvent(t replication.EventType, body []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 1)
	b = append(b, byte(t))
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint32(b, uint32(replication.EventHeaderSize+len(body)))
	b = binary.LittleEndian.AppendUint32(b, 4)
	b = append(b, 0, 0)
	return append(b, body...)
}

// oracle is go-mysql's decoder.
type oracle struct {
	parser *replication.BinlogParser
	table  *replication.TableMapEvent
}

func newOracle(mariadb bool) (*oracle, error) {
	o := &oracle{parser: replication.NewBinlogParser()}
	o.parser.SetFlavor(gomysql.MySQLFlavor)
	if mariadb {
		o.parser.SetFlavor(gomysql.MariaDBFlavor)
	}
	o.parser.SetTimestampStringLocation(time.UTC)
	o.parser.SetRenderJSONAsMySQLText(true)
	format := binary.LittleEndian.AppendUint16(nil, 4)
	format = append(format, make([]byte, 50+4)...)
	copy(format[2:], "8.0.40")
	format = append(format, replication.EventHeaderSize)
	lengths := bytes.Repeat([]byte{8}, 175)
	format = append(format, lengths...)
	format = append(format, 0, 0, 0, 0, 0) // no checksum
	_, err := o.parser.Parse(binlogEvent(replication.FORMAT_DESCRIPTION_EVENT, format))
	return o, err
}

// rows decodes a table map and a row event of it. It returns false where the library gives up, as it does by a panic.
func (o *oracle) rows(tableMap []byte, t replication.EventType, rows []byte) (event *replication.RowsEvent, ok bool) {
	defer func() {
		if recover() != nil {
			event, ok = nil, false
		}
	}()
	parsed, err := o.parser.Parse(binlogEvent(replication.TABLE_MAP_EVENT, tableMap))
	if err != nil {
		return nil, false
	}
	o.table, ok = parsed.Event.(*replication.TableMapEvent)
	if !ok {
		return nil, false
	}
	parsed, err = o.parser.Parse(binlogEvent(t, rows))
	if err != nil {
		return nil, false
	}
	event, ok = parsed.Event.(*replication.RowsEvent)
	return event, ok
}

// agrees compares a value with what the library made of it.
func (o *oracle) agrees(c *column, got capture.Value, want any) error {
	if want == nil || got.State != capture.Present {
		if want != nil || got.State == capture.Present {
			return fmt.Errorf("one is NULL: got state %d, want %T", got.State, want)
		}
		return nil
	}
	text := string(got.Text)
	expect, same := o.expected(c, want), func(a, b string) bool { return a == b }
	switch c.form {
	case formTime:
		if strings.HasPrefix(text, "-") {
			return nil // the library reads the old form without its sign
		}
	case formTime2, formDatetime2, formTimestamp2:
		if _, fraction, _ := strings.Cut(strings.TrimSuffix(text, "+00"), "."); len(fraction) != c.scale {
			return nil // more than a second, which no server writes, and which the library carries over
		}
		same = func(a, b string) bool { return shortFraction(a) == shortFraction(b) }
	case formJSON:
		if strings.Contains(text, "00:00:00") || expect == "" {
			return nil // the library prints no fraction here, and nothing for an empty document or a difference that is none
		}
		same = sameJSON
	case formFloat:
		same = sameNumber
	}
	if !same(text, expect) {
		return fmt.Errorf("%s: got %q, go-mysql has %q", c.typeName(), text, expect)
	}
	return nil
}

func (o *oracle) expected(c *column, want any) string {
	switch v := want.(type) {
	case []byte:
		if c.form == formBytes {
			return `\x` + hex.EncodeToString(v)
		}
		return string(c.utf8(v))
	case string:
		switch c.form {
		case formBytes:
			if c.char {
				v += strings.Repeat("\x00", max(0, c.length-len(v)))
			}
			return `\x` + hex.EncodeToString([]byte(v))
		case formText:
			return string(c.utf8([]byte(v)))
		case formTimestamp, formTimestamp2:
			if !strings.HasPrefix(v, "0000") {
				v += "+00"
			}
		}
		return v
	case int64:
		switch c.form {
		case formEnum:
			if v == 0 || int(v) > len(c.labels) {
				return ""
			}
			return string(c.labels[v-1])
		case formSet:
			var labels []string
			for bit, label := range c.labels {
				if v&(1<<bit) != 0 {
					labels = append(labels, string(label))
				}
			}
			return strings.Join(labels, ",")
		case formBit:
			return strconv.FormatUint(uint64(v), 10)
		}
	case int:
		if c.form == formYear && v == 0 {
			return "0000"
		}
	}
	return fmt.Sprint(want)
}

func (c *column) utf8(b []byte) []byte {
	if c.transcode == nil {
		return b
	}
	return c.transcode(nil, b)
}

func shortFraction(s string) string {
	zone := strings.HasSuffix(s, "+00")
	s = strings.TrimSuffix(s, "+00")
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if zone {
		s += "+00"
	}
	return s
}

func sameJSON(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil {
		return false
	}
	return json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

func sameNumber(a, b string) bool {
	x, err1 := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err1 == nil && err2 == nil && (x == y || x != x && y != y) //nolint:gocritic // NaN
}

// decodeBoth decodes a row event with both decoders, every column mapped, and compares them where both can. It returns how
// many row images were compared.
func decodeBoth(t *testing.T, known charsets, mariadb bool, tableMap []byte, kind replication.EventType, rows []byte) int {
	t.Helper()
	d := newRowDecoder(rowOptions{Needs: allNeeds(tableMap, mariadb), Charsets: known, MariaDB: mariadb})
	if err := d.tableMap(tableMap); err != nil {
		return 0
	}
	type pair struct{ old, new []capture.Value }
	var got []pair
	err := d.rows(kind, rows, func(c *capture.Change) error {
		got = append(got, pair{cloneRow(c.Old), cloneRow(c.New)})
		return nil
	})
	if err != nil {
		return 0
	}
	// The library believes any length and would ask for all the memory there is: it gets what we could read.
	s := d.byID[tableID(tableMap)]
	if s.table == nil {
		return 0
	}
	o, err := newOracle(mariadb)
	if err != nil {
		t.Fatal(err)
	}
	event, ok := o.rows(tableMap, kind, rows)
	if !ok {
		return 0
	}
	var images [][]capture.Value
	for _, p := range got {
		if p.old != nil {
			images = append(images, p.old)
		}
		if p.new != nil {
			images = append(images, p.new)
		}
	}
	if len(images) != len(event.Rows) {
		t.Fatalf("%d images, go-mysql has %d", len(images), len(event.Rows))
	}
	for r := range images {
		for i := range s.columns {
			if err := o.agrees(&s.columns[i], images[r][i], event.Rows[r][i]); err != nil {
				t.Fatalf("image %d, column %d: %v", r, i, err)
			}
		}
	}
	return len(images)
}

func cloneRow(row []capture.Value) []capture.Value {
	if row == nil {
		return nil
	}
	out := make([]capture.Value, len(row))
	for i, v := range row {
		out[i] = capture.Value{State: v.State, Text: bytes.Clone(v.Text)}
	}
	return out
}

// allNeeds maps all columns of the table that a map describes.
func allNeeds(body []byte, mariadb bool) map[string]TableNeeds {
	if len(body) < 8 {
		return nil
	}
	c := cursor{b: body[8:]}
	schema := c.bytes(c.packed())
	c.bytes(1)
	table := c.bytes(c.packed())
	c.bytes(1)
	var m tableMap
	if m.read(&c, mariadb) != nil {
		return nil
	}
	return map[string]TableNeeds{string(schema) + "." + string(table): {Columns: m.names}}
}
