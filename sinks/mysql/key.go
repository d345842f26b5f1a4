package mysql

import (
	"encoding/hex"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"lethe/sinks"
)

// longestKey bounds the characters of a key in text: it is a column of the statement's own table of subjects.
const longestKey = 512

// CodeKeyType is the code of a key that the CRM key's columns could not hold.
const CodeKeyType = "crm_key_type"

// isInteger reports whether the column holds whole numbers.
func (c *column) isInteger() bool {
	switch c.base {
	case "tinyint", "smallint", "mediumint", "int", "bigint":
		return true
	}
	return false
}

// comparesAsKey reports whether keys in the column can be told apart exactly: a rounded number or a time cannot.
func (c *column) comparesAsKey() bool {
	return c.isInteger() || c.base == "decimal" || c.category == categoryText || c.base == "binary" || c.base == "varbinary" ||
		c.base == "uuid" || c.base == "enum"
}

// keyType is the type in which a statement gets keys of this column.
func (c *column) keyType() string {
	switch {
	case c.isInteger() && c.unsigned:
		return "BIGINT UNSIGNED"
	case c.isInteger():
		return "BIGINT"
	case c.base == "decimal":
		return "DECIMAL(" + strconv.Itoa(c.precision) + ", " + strconv.Itoa(c.scale) + ")"
	case c.category == categoryBinary:
		return "VARCHAR(" + strconv.Itoa(2*min(max(c.length, 1), longestKey)) + ") CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
	}
	return "VARCHAR(" + strconv.Itoa(longestKey) + ") CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// keyValue is a key, given in text form, as a value for a column of keyType: nil where no row can hold it, because it is
// longer than the column. A text that is no value of the type at all is a Poison error, and the event's fault. The server
// is never asked to convert: it would take abc for 0, and cut what is too large down to the largest number.
func (c *column) keyValue(text string) (any, error) {
	switch {
	case c.isInteger() && c.unsigned:
		n, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(text), "+"), 10, 64)
		if err != nil {
			return nil, errKeyType()
		}
		return n, nil
	case c.isInteger():
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return nil, errKeyType()
		}
		return n, nil
	case c.base == "decimal":
		return c.decimalKey(strings.TrimSpace(text))
	case c.category == categoryBinary:
		return c.binaryKey(text)
	case c.base == "uuid":
		if !uuidForm.MatchString(text) {
			return nil, errKeyType()
		}
		return text, nil
	}
	if c.base == "char" {
		text = strings.TrimRight(text, " ") // the column keeps none
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return nil, errKeyType()
	}
	if n := utf8.RuneCountInString(text); n > longestKey || c.base != "enum" && n > c.length {
		return nil, nil
	}
	return text, nil
}

func errKeyType() error {
	return &sinks.Error{
		Class: sinks.Poison, Op: "reading CRM key", Code: CodeKeyType,
		Hint: "the key is no value of the column that person.crm_key names: `lethe dead-letters list` shows the event",
	}
}

var decimalForm = regexp.MustCompile(`^[+-]?[0-9]+(\.[0-9]*)?$`)

// decimalKey returns the number with the column's digits; one with more of them is in no row.
func (c *column) decimalKey(text string) (any, error) {
	r, ok := new(big.Rat).SetString(text)
	if !ok || !decimalForm.MatchString(text) {
		return nil, errKeyType()
	}
	exact := r.FloatString(c.scale)
	back, _ := new(big.Rat).SetString(exact)
	whole, _, _ := strings.Cut(strings.TrimPrefix(exact, "-"), ".")
	if back.Cmp(r) != 0 || whole != "0" && len(whole) > c.precision-c.scale {
		return nil, nil
	}
	return exact, nil
}

// binaryKey returns the bytes in hexadecimal digits: from the text form of bytes, \x…, else those of the text itself.
func (c *column) binaryKey(text string) (any, error) {
	raw := []byte(text)
	if digits, ok := strings.CutPrefix(text, `\x`); ok {
		var err error
		if raw, err = hex.DecodeString(digits); err != nil {
			return nil, errKeyType()
		}
	}
	if len(raw) > c.length || len(raw) > longestKey {
		return nil, nil
	}
	if c.base == "binary" {
		raw = append(raw, make([]byte, c.length-len(raw))...)
	}
	return hex.EncodeToString(raw), nil
}

// is returns the condition that an expression of the column is exactly the key v, of keyType. It begins with a comparison
// under the column's own collation, for which an index is used, and goes on with one of the bytes: capitals, accents and
// blanks at the end tell people apart, whatever the collation says.
func (c *column) is(expression, v string) string {
	condition := c.resembles(expression, v)
	if c.charset != "" {
		condition += " AND " + exact(c.charset, expression) + " = CAST(" + v + " AS BINARY)"
	}
	return condition
}

// resembles returns the condition that an expression of the column is the key v under the column's own collation.
func (c *column) resembles(expression, v string) string { return expression + " = " + c.fromKey(v) }

// fromKey returns the key v, of keyType, as a value of the column.
func (c *column) fromKey(v string) string {
	switch {
	case c.category == categoryBinary:
		return "UNHEX(" + v + ")"
	case c.charset == "":
		return v
	}
	return collated(v, c)
}

// collated converts text to the character set and collation of a column.
func collated(v string, c *column) string {
	if c.charset != "utf8mb4" {
		v = "CONVERT(" + v + " USING " + c.charset + ")"
	}
	return v + " COLLATE " + c.collation
}

// exact returns the bytes of a text in UTF-8, which are equal for equal texts and no other.
func exact(charset, expression string) string {
	if charset != "utf8mb4" {
		expression = "CONVERT(" + expression + " USING utf8mb4)"
	}
	return "CAST(" + expression + " AS BINARY)"
}

// text returns the text form of an expression of the column, in utf8mb4_bin: keyValue reads it back, and so does a SET
// of the column.
func (c *column) text(expression string) string {
	switch {
	case c.category == categoryBinary:
		expression = `CONCAT(CHAR(92, 120 USING utf8mb4), LOWER(HEX(` + expression + `)))`
	case c.base == "bit":
		expression = "CAST(" + expression + " + 0 AS CHAR CHARACTER SET utf8mb4)"
	case c.base == "float": // of its own it prints six digits, which are not all
		expression = "CAST(" + expression + " + 0e0 AS CHAR CHARACTER SET utf8mb4)"
	case c.charset == "":
		expression = "CAST(" + expression + " AS CHAR CHARACTER SET utf8mb4)"
	default:
		expression = "CONVERT(" + expression + " USING utf8mb4)"
	}
	return expression + " COLLATE utf8mb4_bin"
}

// fromText returns what an assignment makes of a parameter that holds a value in text form.
func (c *column) fromText(parameter string) string {
	switch {
	case c.category == categoryBinary:
		return "UNHEX(SUBSTR(" + parameter + ", 3))"
	case c.base == "bit":
		return "CAST(CAST(" + parameter + " AS CHAR) AS UNSIGNED)" // MySQL takes a parameter of its own for a signed number
	}
	return parameter
}

// refersTo reports whether the column can be compared with the key that it refers to, and no number is taken for a text.
func (c *column) refersTo(key *column) bool {
	number := func(x *column) bool { return x.isInteger() || x.base == "decimal" }
	return number(c) && number(key) || c.charset != "" && key.charset != "" || c.category == categoryBinary && key.category == categoryBinary ||
		c.base == "uuid" && key.base == "uuid"
}

// refers returns the condition that an expression of the column refers to one of key. Under one collation key's unique
// index says that no two persons resemble each other, and MySQL's own foreign keys compare so; under two it is bytes that count.
func (c *column) refers(expression string, key *column, of string) string {
	if c.charset == "" || c.collation == key.collation {
		return expression + " = " + of
	}
	if key.charset != "utf8mb4" {
		of = "CONVERT(" + of + " USING utf8mb4)"
	}
	return expression + " = " + collated(of, c) + " AND " + exact(c.charset, expression) + " = CAST(" + of + " AS BINARY)"
}

// matches returns the condition that the person row (alias) is that of v, whose columns k1… are the parts of the CRM key (or
// person.key, see who) in their keyType.
func (m *Mapping) matches(alias string) string { return matchesBy(m.by, alias) }

// matchesBy is matches with the columns that the keys are of.
func matchesBy(key []*column, alias string) string {
	parts := make([]string, len(key))
	for k, c := range key {
		parts[k] = c.is(alias+"."+c.sql(), "v.k"+strconv.Itoa(k+1))
	}
	return strings.Join(parts, " AND ")
}

// reach returns what joins the rows of a table (alias t) with v: what stands in FROM between the two, the condition, and
// the expression of the person's key.
func (m *Mapping) reach(j join) (from, where, key string) {
	if j.by == nil {
		return "", m.matches("t"), "t." + m.key.sql()
	}
	key = "p." + m.key.sql()
	return " STRAIGHT_JOIN " + m.person.sql() + " AS p", m.matches("p") + " AND " + j.by.refers("t."+j.by.sql(), m.key, key), key
}

// owns returns the condition that a row of a table (alias t) belongs to a person of w, whose column k is person.key in its
// keyType.
func (m *Mapping) owns(j join) string {
	switch {
	case j.by == nil:
		return m.key.is("t."+m.key.sql(), "w.k")
	case j.by.collation == m.key.collation:
		return j.by.resembles("t."+j.by.sql(), "w.k")
	}
	return j.by.is("t."+j.by.sql(), "w.k")
}

// audienceOf returns the audience query as a table a(k), for FROM. The first half of the union gives the column its name,
// which MariaDB does not take behind the alias.
func (m *Mapping) audienceOf() string {
	return "(SELECT NULL AS k FROM DUAL WHERE FALSE UNION ALL SELECT * FROM (" + m.audience + "\n) AS q) AS a"
}

// inAudience returns the condition that a person of w is in the audience. As a list that is looked into, and not as a join:
// the server then runs the query once and makes an index of it. Texts are compared under the key's collation, as those that
// refer to it are: the query may read them from a table whose foreign key spells them otherwise, and no two persons have keys
// that resemble each other, because a unique index says so.
func (m *Mapping) inAudience() string {
	of := " FROM " + m.audienceOf() + ")"
	switch {
	case m.key.isInteger() && m.key.unsigned:
		return "w.k IN (SELECT CAST(a.k AS UNSIGNED)" + of
	case m.key.isInteger():
		return "w.k IN (SELECT CAST(a.k AS SIGNED)" + of
	case m.key.base == "decimal":
		return "w.k IN (SELECT CAST(a.k AS " + m.key.keyType() + ")" + of
	case m.key.category == categoryBinary:
		return "UNHEX(w.k) IN (SELECT a.k" + of
	case m.key.charset == "":
		return "w.k IN (SELECT CONVERT(a.k USING utf8mb4) COLLATE utf8mb4_bin" + of
	}
	return collated("w.k", m.key) + " IN (SELECT CONVERT(a.k USING " + m.key.charset + ") COLLATE " + m.key.collation + of
}
