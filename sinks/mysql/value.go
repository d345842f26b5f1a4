package mysql

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"lethe/config"
	"lethe/sinks/ledger"
)

// The marks in the SQL of an assignment. No identifier holds a control character: config refuses it, and so does compile.
const (
	markRow = "\x01" // the alias of the row that is written, or looked at
	markKey = "\x02" // the expression of the person's key
)

// assignment is a column and its new value.
type assignment struct {
	column *column
	kind   string
	set    fragment // the value
	held   fragment // the condition that a row has it; empty where nothing can be said
}

// fragment is SQL with marks, and the values of its question marks in their order.
type fragment struct {
	sql  string
	args []any
}

func (f fragment) of(row, key string) (sql string, args []any) {
	return strings.NewReplacer(markRow, row, markKey, key).Replace(f.sql), f.args
}

// value returns the SQL of the new value, and the values of its question marks. row is the alias of the row that is
// written, key the expression of the person's key.
func (a *assignment) value(row, key string) (sql string, args []any) { return a.set.of(row, key) }

// holds returns the condition that a row has what the assignment makes of it; empty where nothing can be said, as of $now.
// It is never NULL but for $key in a row that refers to nobody.
func (a *assignment) holds(row, key string) (sql string, args []any) { return a.held.of(row, key) }

// assign compiles one value for one column.
func (c *compiler) assign(t *table, name string, v config.Value) (assignment, bool) {
	col := c.writable(t, name)
	if col == nil {
		return assignment{}, false
	}
	object := t.label() + "." + name
	own := markRow + "." + col.sql()
	as := assignment{column: col, kind: v.Kind}
	switch v.Kind {
	case ledger.KindNull:
		as.set.sql, as.held.sql = "NULL", own+" IS NULL"
		if col.notNull {
			c.fault(ledger.CodeNotNull, object, "null is mapped: map a constant or a token, or allow NULL", "")
		}
	case ledger.KindConst:
		return c.assignConst(t, as, v.Const), true
	case ledger.KindToken:
		c.assignToken(object, &as, v.Token)
	case ledger.KindTruncate:
		n := strconv.Itoa(v.Truncate)
		as.set.sql, as.held.sql = "LEFT("+own+", "+n+")", "COALESCE(CHAR_LENGTH("+own+") <= "+n+", TRUE)"
		if col.category != categoryText {
			c.fault(ledger.CodeColumnType, object, "truncate keeps characters, the column is "+col.typ, "")
		}
	case ledger.KindGeneralise:
		c.generalise(object, &as, v.Generalise)
	case ledger.KindKey:
		as.set.sql = markKey
		if c.m.key.refersTo(col) {
			as.held.sql = col.refers(own, c.m.key, markKey) // as it is: rows are looked up by it
		}
	case ledger.KindNow:
		c.takesNow(object, col)
		as.set.sql = col.now()
	default:
		c.fault(ledger.CodeUnsupported, object, "$"+v.Kind+" follows from the fold: it belongs under consent, "+
			"objection or restricted", "")
		return assignment{}, false
	}
	return as, true
}

// takesNow reports a column that is not a time.
func (c *compiler) takesNow(object string, col *column) bool {
	if col.category != categoryDate {
		c.fault(ledger.CodeColumnType, object, "$now is a time, the column is "+col.typ, "")
	}
	return col.category == categoryDate
}

// now is the SQL of this moment, in UTC and with no more digits than the column has: the server would round up.
func (c *column) now() string {
	switch c.base {
	case "date":
		return "UTC_DATE()"
	case "time":
		return "UTC_TIME(" + strconv.Itoa(c.scale) + ")"
	}
	return "UTC_TIMESTAMP(" + strconv.Itoa(c.scale) + ")"
}

// The random part of a token: as many hexadecimal digits as fit the column, so many at most and at least.
const (
	tokenDigits    = 32
	tokenDigitsMin = 16
	tokenRandom    = "{random}"
)

func (c *compiler) assignToken(object string, as *assignment, token string) {
	before, after, _ := strings.Cut(token, tokenRandom)
	digits := min(tokenDigits, as.column.length-utf8.RuneCountInString(before+after))
	switch {
	case as.column.category != categoryText:
		c.fault(ledger.CodeColumnType, object, "a token is text, the column is "+as.column.typ, "")
	case digits < tokenDigitsMin:
		c.fault(ledger.CodeColumnType, object, fmt.Sprintf("the token does not fit %s: it needs %d characters beside its own %d to be of no second person",
			as.column.typ, tokenDigitsMin, utf8.RuneCountInString(before+after)), "")
	default:
		if fault := as.column.textFault(before + after); fault != "" {
			c.fault(ledger.CodeColumnType, object, fault, "")
		}
	}
	own := markRow + "." + as.column.sql()
	as.set = fragment{"CONCAT(?, LEFT(" + c.m.server.random() + ", " + strconv.Itoa(digits) + "), ?)", []any{before, after}}
	// A LIKE under the column's own collation would call a name written in capitals a token.
	like := strings.NewReplacer("|", "||", "%", "|%", "_", "|_")
	as.held = fragment{
		"COALESCE(CONVERT(" + own + " USING utf8mb4) COLLATE utf8mb4_bin LIKE ? ESCAPE '|', FALSE)",
		[]any{like.Replace(before) + strings.Repeat("_", max(digits, 0)) + like.Replace(after)},
	}
}

// random is the SQL of 32 random hexadecimal digits, other ones for each row.
func (s server) random() string {
	if s.mariadb && !s.since(10, 10, 0) {
		return "SHA2(CONCAT(UUID(), RAND(), RAND(), RAND()), 256)" // has no RANDOM_BYTES
	}
	return "LOWER(HEX(RANDOM_BYTES(16)))"
}

func (c *compiler) generalise(object string, as *assignment, to string) {
	col := as.column
	own := markRow + "." + col.sql()
	if to == "year" || to == "month" {
		form := map[string]string{"year": "%Y-01-01", "month": "%Y-%m-01"}[to]
		as.set = fragment{"CAST(DATE_FORMAT(" + own + ", ?) AS DATE)", []any{form}}
		as.held = fragment{own + " <=> " + as.set.sql, as.set.args}
		if col.category != categoryDate || col.base == "time" {
			c.fault(ledger.CodeColumnType, object, "generalise to "+to+" needs a date, the column is "+col.typ, "")
		}
		return
	}
	n, err := strconv.ParseInt(to, 10, 64)
	if err != nil || n < 1 || col.category != categoryNumber && col.category != categoryBool || col.base == "enum" || col.base == "bit" {
		c.fault(ledger.CodeColumnType, object, "generalise is year or month for dates, a number for numbers", "")
		return
	}
	// By remainders: a division rounds, and 0.99999 would become 1. The second one makes that of a negative number positive.
	rest := "MOD(MOD(" + own + ", ?) + ?, ?)"
	as.set = fragment{own + " - " + rest, []any{n, n, n}}
	as.held = fragment{"COALESCE(" + rest + " = 0, TRUE)", []any{n, n, n}}
}

// assignConst compiles a constant. Session and server are strict, so that nothing is cut or rounded silently; what would be
// refused then is found here, before any event.
func (c *compiler) assignConst(t *table, as assignment, v any) assignment {
	col := as.column
	object := t.label() + "." + col.name
	if t.isUnique(col.name) {
		c.fault(ledger.CodeUnique, object,
			`the column is UNIQUE and every person would get the same value: map a token with {random}`, "")
	}
	own := markRow + "." + col.sql()
	arg, fault := col.constant(v)
	if fault != "" {
		c.fault(ledger.CodeColumnType, object, fault, "")
		return as
	}
	as.set = fragment{"?", []any{arg}}
	as.held = fragment{own + " <=> ?", []any{arg}}
	switch {
	case col.base == "decimal":
		as.held.sql = own + " <=> CAST(? AS DECIMAL(" + strconv.Itoa(col.precision) + ", " + strconv.Itoa(col.scale) + "))"
	case col.base == "date":
		as.held.sql = own + " <=> CAST(? AS DATE)"
	case col.base == "time":
		as.held.sql = own + " <=> CAST(? AS TIME(6))"
	case col.category == categoryDate:
		as.held.sql = own + " <=> CAST(? AS DATETIME(6))"
	case col.base == "json":
		as.held.sql = c.m.server.sameJSON(own, "?")
	case col.charset != "":
		as.held.sql = exact(col.charset, own) + " <=> CAST(? AS BINARY)"
	}
	return as
}

// sameJSON returns the condition that two documents are equal. MariaDB keeps them as they were written: blanks are
// brought into one form, and the rest is compared by the letter.
func (s server) sameJSON(a, b string) string {
	if s.mariadb {
		return "CAST(JSON_COMPACT(" + a + ") AS BINARY) <=> CAST(JSON_COMPACT(" + b + ") AS BINARY)"
	}
	return a + " <=> CAST(" + b + " AS JSON)"
}

// assignJSON compiles the values for paths of one JSON column into one expression. A path that a row does not have stays
// away.
func (c *compiler) assignJSON(t *table, name string, paths map[string]config.Value) (assignment, bool) {
	col := c.writable(t, name)
	if col == nil {
		return assignment{}, false
	}
	object := t.label() + "." + name
	if col.base != "json" {
		c.fault(ledger.CodeColumnType, object, "json paths need a json column, it is "+col.typ, "")
		return assignment{}, false
	}
	own := markRow + "." + col.sql()
	as := assignment{column: col, kind: ledger.KindJSON, set: fragment{sql: own}}
	for _, path := range ledger.SortedKeys(paths) {
		text := "null"
		switch v := paths[path]; v.Kind {
		case ledger.KindNull:
		case ledger.KindConst:
			text = ledger.ConstJSON(v.Const)
		default:
			c.fault(ledger.CodeUnsupported, object, "a json path takes null or a constant", "")
		}
		at := jsonPath(own, path)
		as.set.sql = "JSON_REPLACE(" + as.set.sql + ", " + at.sql + ", JSON_EXTRACT(?, '$'))"
		as.set.args = append(append(as.set.args, at.args...), text)
	}
	as.held = fragment{own + " <=> " + as.set.sql, as.set.args}
	if c.m.server.mariadb {
		as.held.sql = c.m.server.sameJSON(own, as.set.sql)
	}
	return as, true
}

// jsonPath is the SQL of a path in a document. A number is the place in a list where there is one, else the name of a
// member: asked of anything but a list, the server would take the place 0 for the thing itself.
func jsonPath(document, path string) fragment {
	var f fragment
	steps := "$"
	flush := func() {
		switch {
		case f.sql == "":
			f = fragment{"?", []any{steps}}
		case steps != "":
			f = fragment{"CONCAT(" + f.sql + ", ?)", append(f.args, steps)}
		}
		steps = ""
	}
	for _, key := range strings.Split(path, ".") {
		member := "." + ledger.ConstJSON(key)
		if !digitsForm.MatchString(key) {
			steps += member
			continue
		}
		flush()
		parent := f
		f = fragment{
			"CONCAT(" + parent.sql + ", IF(JSON_TYPE(JSON_EXTRACT(" + document + ", " + parent.sql + ")) = 'ARRAY', ?, ?))",
			slices.Concat(parent.args, parent.args, []any{"[" + key + "]", member}),
		}
	}
	flush()
	return f
}

var digitsForm = regexp.MustCompile(`^[0-9]{1,9}$`)

// constant turns a constant of the config into what the driver sends for the column, or says why the column cannot hold it.
func (c *column) constant(v any) (arg any, fault string) {
	text := ledger.ConstText(v)
	yes, isBool := v.(bool)
	switch {
	case c.base == "enum" && c.category == categoryBool && isBool:
		label, no, _ := yesNo(c.labels)
		if !yes {
			label = no
		}
		return label, ""
	case c.category == categoryEnum, c.base == "enum":
		return c.label(text)
	case c.category == categoryBool, c.category == categoryNumber:
		if isBool {
			text = map[bool]string{true: "1", false: "0"}[yes]
		}
		return c.number(text)
	case c.category == categoryDate:
		return c.moment(text)
	case c.category == categoryText:
		return text, c.textFault(text)
	case c.category == categoryBinary:
		return c.bytes(text)
	case c.base == "json":
		if !json.Valid([]byte(text)) {
			return nil, "the constant is no JSON"
		}
		return text, ""
	}
	return nil, "a constant cannot be written into a column of type " + c.typ
}

// label finds the labels of an ENUM or SET in their own spelling.
func (c *column) label(text string) (arg any, fault string) {
	words := []string{text}
	if c.base == "set" {
		words = strings.Split(text, ",")
	}
	if c.base == "set" && text == "" {
		return "", ""
	}
	for i, w := range words {
		at := slices.IndexFunc(c.labels, func(l string) bool { return strings.EqualFold(l, w) })
		if at < 0 {
			return nil, "the constant is none of the labels of " + c.typ
		}
		words[i] = c.labels[at]
	}
	return strings.Join(words, ","), ""
}

// bits are the widths of the integers.
var bits = map[string]int{"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}

func (c *column) number(text string) (arg any, fault string) {
	fault = "the constant does not fit " + c.typ
	switch {
	case c.isInteger() && c.unsigned, c.base == "bit":
		width := c.precision
		if c.isInteger() {
			width = bits[c.base]
		}
		n, err := strconv.ParseUint(text, 10, min(max(width, 1), 64))
		if err != nil {
			return nil, fault
		}
		return n, ""
	case c.isInteger():
		n, err := strconv.ParseInt(text, 10, bits[c.base])
		if err != nil {
			return nil, fault
		}
		return n, ""
	case c.base == "year":
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n != 0 && (n < 1901 || n > 2155) {
			return nil, fault
		}
		return n, ""
	case c.base == "decimal":
		r, ok := new(big.Rat).SetString(text)
		if !ok {
			return nil, fault
		}
		if key, err := c.decimalKey(r.FloatString(c.scale)); err == nil && key != nil && (!c.unsigned || r.Sign() >= 0) {
			if back, _ := new(big.Rat).SetString(key.(string)); back.Cmp(r) == 0 {
				return key, ""
			}
		}
		return nil, fault
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(n, 0) || math.IsNaN(n) || c.unsigned && n < 0 || c.base == "float" && float64(float32(n)) != n {
		return nil, fault + ", or is rounded there"
	}
	return n, ""
}

// moments are the forms in which a constant may give a time, by type.
var moments = map[string][]string{
	"date":     {time.DateOnly},
	"datetime": {time.DateTime, time.DateOnly, time.RFC3339, "2006-01-02T15:04:05"}, "timestamp": {time.DateTime, time.DateOnly, time.RFC3339, "2006-01-02T15:04:05"},
	"time": {time.TimeOnly, "15:04"},
}

// moment reads a time; without a zone it is UTC's.
func (c *column) moment(text string) (arg any, fault string) {
	for _, form := range moments[c.base] {
		at, err := time.Parse(form, text)
		if err != nil {
			continue
		}
		at = at.UTC()
		switch {
		case c.base != "date" && at.Truncate(time.Second).Add(fraction(at, c.scale)) != at:
			return nil, "the constant has more digits of a second than " + c.typ
		case c.base == "date":
			return at.Format(time.DateOnly), ""
		case c.base == "time":
			return at.Format("15:04:05.999999"), ""
		case c.base == "timestamp" && (at.Unix() < 1 || at.Unix() > math.MaxInt32):
			return nil, "the constant is out of the range of " + c.typ
		}
		return at.Format("2006-01-02 15:04:05.999999"), ""
	}
	return nil, "the constant is no " + c.base + ": write 2006-01-02, or 2006-01-02 15:04:05"
}

// fraction is what a column with so many digits keeps of the fraction of a second.
func fraction(at time.Time, digits int) time.Duration {
	unit := time.Duration(math.Pow10(9 - min(digits, 6)))
	return time.Duration(at.Nanosecond()).Truncate(unit)
}

// windows1252 are the characters that MySQL's latin1 has beside those of ISO 8859-1.
const windows1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"

// textFault says why a column cannot hold a text; empty: it can.
func (c *column) textFault(text string) string {
	var largest rune
	for _, r := range text {
		if c.charset != "latin1" || !strings.ContainsRune(windows1252, r) {
			largest = max(largest, r)
		}
	}
	limit := map[string]rune{"ascii": 0x7f, "latin1": 0xff, "utf8": 0xffff, "utf8mb3": 0xffff, "ucs2": 0xffff}[c.charset]
	size := utf8.RuneCountInString(text)
	if strings.HasSuffix(c.base, "text") {
		size = len(text) // of such a column the length is counted in bytes
	}
	switch {
	case !utf8.ValidString(text):
		return "the constant is no UTF-8"
	case size > c.length:
		return fmt.Sprintf("the constant has %d characters, and %s does not hold them", size, c.typ)
	case c.base == "char" && strings.HasSuffix(text, " "):
		return "the constant ends in a blank, which " + c.typ + " does not keep"
	case limit != 0 && largest > limit:
		return "the constant has a character that " + c.charset + ", the column's character set, does not have"
	}
	return ""
}

// bytes reads \x… as bytes in hexadecimal digits, and any other text as its own bytes.
func (c *column) bytes(text string) (arg any, fault string) {
	raw := []byte(text)
	if digits, ok := strings.CutPrefix(text, `\x`); ok {
		var err error
		if raw, err = hex.DecodeString(digits); err != nil {
			return nil, `the constant is not \x and hexadecimal digits`
		}
	}
	if len(raw) > c.length {
		return nil, "the constant is too long for " + c.typ
	}
	if c.base == "binary" {
		raw = append(raw, make([]byte, c.length-len(raw))...)
	}
	return raw, ""
}
