package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"lethe/schema"
)

// asker asks one question of the source about one subject. Every question has a snapshot, a connection and a deadline of its
// own: none holds anything back on the primary for longer than that, and one that fails spoils no other.
type asker struct {
	source Snapshotter
	o      *ReadbackOptions
	seen   Position
	key    []string
}

// errAsked is wrapped by the errors of a question that the server has refused or not answered in time: the connection worked.
var errAsked = errors.New("the source does not answer")

func (a *asker) ask(ctx context.Context, sql string, args []any, each func([]Value) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.o.Within)
	defer cancel()
	var refused error
	err := a.source.At(ctx, a.seen, func(ctx context.Context, q Querier) error {
		refused = q.Query(ctx, each, sql, args...)
		return refused
	})
	if refused != nil {
		return fmt.Errorf("%w: %w", errAsked, refused)
	}
	return err
}

// leftIn returns the columns of a table that still say something of the subject: its name alone where the row should be gone.
func (a *asker) leftIn(ctx context.Context, t *ErasedTable) (left []string, err error) {
	columns := slices.Clone(t.Columns)
	states := make([]string, 0, len(t.State))
	for name := range t.State {
		states = append(states, name)
	}
	slices.Sort(states)
	sql, args := selectOf(a.o.SQL, t.Name, columns, states, t.Subject, a.key)
	found := map[string]bool{}
	err = a.ask(ctx, sql, args, func(row []Value) error {
		if t.Row {
			found[t.Name] = true
			return nil
		}
		if len(row) != 1+len(columns)+len(states) {
			return errors.New("the answer has another number of columns")
		}
		for i, name := range columns {
			if !isErased(row[1+i], t.Values) {
				found[t.Name+"."+name] = true
			}
		}
		for i, name := range states {
			if !isState(row[1+len(columns)+i], t.State[name]) {
				found[t.Name+"."+name] = true
			}
		}
		return nil
	})
	for name := range found {
		left = append(left, name)
	}
	slices.Sort(left)
	return left, err
}

// complete returns what is left of the subject in the source. A table that cannot be read counts as one that is not erased.
func (a *asker) complete(ctx context.Context) (missing []string, err error) {
	for i := range a.o.Tables {
		t := &a.o.Tables[i]
		left, err := a.leftIn(ctx, t)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errAsked):
			missing = append(missing, unreadable+t.Name)
		case err != nil:
			return nil, err
		}
		missing = append(missing, left...)
	}
	return missing, nil
}

// gate returns the checks that do not hold. One that cannot be asked does not hold.
func (a *asker) gate(ctx context.Context) (failed []string, err error) {
	broken := false
	for i := range a.o.Checks {
		c := &a.o.Checks[i]
		holds := false
		sql, args, err := gateQuery(a.o.SQL, c.SQL, a.key)
		if err == nil {
			err = a.ask(ctx, sql, args, func(row []Value) error {
				holds = len(row) == 1 && row[0].State == Present && string(row[0].Text) == "1"
				return nil
			})
		} else {
			err = fmt.Errorf("%w: %w", errAsked, err)
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errAsked):
			broken, holds = true, false
		case err != nil:
			return nil, err
		}
		if !holds {
			failed = append(failed, c.Name)
		}
	}
	slices.Sort(failed)
	if broken {
		failed = append(failed, CheckError)
	}
	return failed, nil
}

// request looks for the oldest request of the subject.
func (a *asker) request(ctx context.Context) (found bool, receivedAt time.Time, err error) {
	r := a.o.Request
	t, err := a.shape(ctx, r.Name, r.Columns)
	if err != nil {
		return false, time.Time{}, err
	}
	sql, args := selectOf(a.o.SQL, r.Name, nil, r.Columns, r.Subject, a.key)
	err = a.ask(ctx, sql, args, func(row []Value) error {
		if len(row) != 1+len(r.Columns) {
			return errors.New("the answer has another number of columns")
		}
		asked, at, err := r.Read(t, row[1:])
		if err != nil || !asked {
			return err
		}
		if !found || at.Before(receivedAt) {
			receivedAt = at
		}
		found = true
		return nil
	})
	return found, receivedAt, err
}

// shape asks for the types of columns; the rules that read a row need them.
func (a *asker) shape(ctx context.Context, table string, columns []string) (*Table, error) {
	types := map[string]string{}
	sql, args := shapeQuery(a.o.SQL, table)
	err := a.ask(ctx, sql, args, func(row []Value) error {
		if len(row) == 2 {
			types[string(row[0].Text)] = string(row[1].Text)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t := &Table{Name: table}
	for _, name := range columns {
		typ, known := types[name]
		if !known {
			return nil, fmt.Errorf("%w: %s has no column %s that this login may read", errAsked, table, name)
		}
		t.Columns = append(t.Columns, Column{Name: name, Type: typ})
	}
	return t, nil
}

// erasedPrefix is how much of a column is read to see whether something is in it, in characters: a value of the config that means erased is shorter.
const erasedPrefix = 256

// mostRows bounds how many rows of one subject are looked at in one table.
const mostRows = 1000

// selectOf reads the rows of a subject: a one, the beginnings of some columns, and others whole.
func selectOf(form SQLForm, table string, beginnings, whole, subject, key []string) (sql string, args []any) {
	var b strings.Builder
	b.WriteString("SELECT 1")
	for _, name := range beginnings {
		b.WriteString(", LEFT(" + quoteName(form, name))
		if form == PostgresSQL {
			b.WriteString("::text")
		}
		b.WriteString(", " + strconv.Itoa(erasedPrefix) + ")")
	}
	for _, name := range whole {
		b.WriteString(", " + quoteName(form, name))
	}
	b.WriteString(" FROM " + quoteTable(form, table))
	for i, name := range subject {
		word := " AND "
		if i == 0 {
			word = " WHERE "
		}
		b.WriteString(word + quoteName(form, name) + " = " + placeholder(form, i+1))
		args = append(args, key[i])
	}
	b.WriteString(" LIMIT " + strconv.Itoa(mostRows))
	return b.String(), args
}

func placeholder(form SQLForm, n int) string {
	if form == MySQLSQL {
		return "?"
	}
	return "$" + strconv.Itoa(n)
}

func quoteName(form SQLForm, name string) string {
	mark := `"`
	if form == MySQLSQL {
		mark = "`"
	}
	return mark + strings.ReplaceAll(name, mark, mark+mark) + mark
}

func quoteTable(form SQLForm, table string) string {
	schemaName, name, ok := strings.Cut(table, ".")
	if !ok {
		return quoteName(form, table)
	}
	return quoteName(form, schemaName) + "." + quoteName(form, name)
}

func shapeQuery(form SQLForm, table string) (sql string, args []any) {
	schemaName, name, _ := strings.Cut(table, ".")
	if form == MySQLSQL {
		return `SELECT COLUMN_NAME, CASE WHEN DATA_TYPE = 'bit' THEN 'bit unsigned' ELSE COLUMN_TYPE END
			FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?`, []any{schemaName, name}
	}
	return `SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
		JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped`, []any{schemaName, name}
}

// isErased: NULL, empty or a value of the config. Blanks at the end are padding; a date of zeros is MySQL's way of having none.
func isErased(v Value, values []string) bool {
	if v.State != Present {
		return v.State == Null
	}
	text := bytes.TrimRight(v.Text, " ")
	if len(text) == 0 || bytes.HasPrefix(text, []byte("0000-00-00")) {
		return true
	}
	return slices.ContainsFunc(values, func(value string) bool { return strings.TrimRight(value, " ") == string(text) })
}

// isState compares a column with what the procedure sets it to.
func isState(v Value, want any) bool {
	if want == nil || v.State != Present {
		return want == nil && v.State == Null
	}
	text := strings.TrimRight(string(v.Text), " ")
	switch want := want.(type) {
	case bool:
		switch text {
		case "t", "true", "1":
			return want
		case "f", "false", "0":
			return !want
		}
		return false
	case string:
		return text == strings.TrimRight(want, " ")
	case int64:
		f, err := strconv.ParseFloat(text, 64)
		return text == strconv.FormatInt(want, 10) || err == nil && f == float64(want) && want < 1<<53 && want > -1<<53
	case float64:
		f, err := strconv.ParseFloat(text, 64)
		return err == nil && f == want
	}
	return false
}

// gateQuery makes a query of a condition, with the key in the places of $1, $2, ….
func gateQuery(form SQLForm, condition string, key []string) (sql string, args []any, err error) {
	sql, places, err := bindKey(form, condition, len(key))
	if err != nil {
		return "", nil, err
	}
	if form == PostgresSQL { // a number names its argument; a question mark takes the next one
		for _, part := range key {
			args = append(args, part)
		}
	} else {
		for _, n := range places {
			args = append(args, key[n])
		}
	}
	return "SELECT CASE WHEN (" + sql + "\n) THEN 1 ELSE 0 END", args, nil
}

// bindKey puts the placeholders of the server into a condition, and returns which part of the key each stands for. What stands in quotes or in a
// comment is left alone.
func bindKey(form SQLForm, condition string, parts int) (sql string, places []int, err error) {
	var b strings.Builder
	for i := 0; i < len(condition); {
		n := quotedLength(form, condition[i:])
		if n > 0 {
			b.WriteString(condition[i : i+n])
			i += n
			continue
		}
		digits := 0
		if condition[i] == '$' {
			for i+1+digits < len(condition) && condition[i+1+digits] >= '0' && condition[i+1+digits] <= '9' {
				digits++
			}
		}
		if digits == 0 {
			b.WriteByte(condition[i])
			i++
			continue
		}
		number, err := strconv.Atoi(condition[i+1 : i+1+digits])
		if err != nil || number < 1 || number > parts {
			return "", nil, fmt.Errorf("%s stands for no column of the CRM key, which has %d", condition[i:i+1+digits], parts)
		}
		places = append(places, number-1)
		b.WriteString(placeholder(form, number))
		i += 1 + digits
	}
	if len(places) == 0 {
		return "", nil, errors.New("$1 is not in it: it would say the same of everybody")
	}
	for n := range parts {
		if !slices.Contains(places, n) {
			return "", nil, fmt.Errorf("$%d is not in it: it would ask about more than one person", n+1)
		}
	}
	return b.String(), places, nil
}

// quotedLength is the length of the quoted text or comment that s begins with; 0: none.
func quotedLength(form SQLForm, s string) int {
	end := func(from int, mark string) int {
		if i := strings.Index(s[from:], mark); i >= 0 {
			return from + i + len(mark)
		}
		return len(s)
	}
	switch {
	case s[0] == '\'' || s[0] == '"' || s[0] == '`':
		for i := 1; i < len(s); i++ {
			if s[i] == '\\' && form == MySQLSQL && s[0] != '`' {
				i++
			} else if s[i] == s[0] {
				return i + 1 // a doubled quote begins the next one
			}
		}
		return len(s)
	case strings.HasPrefix(s, "--") || s[0] == '#' && form == MySQLSQL:
		return end(0, "\n")
	case strings.HasPrefix(s, "/*"):
		return end(2, "*/")
	}
	return 0
}

// ExplainGate has the server plan a check of the gate, without asking it: what is wrong with it, or not granted, shows.
func ExplainGate(ctx context.Context, q Querier, form SQLForm, condition string, parts int) error {
	sql, places, err := bindKey(form, condition, parts)
	if err != nil {
		return err
	}
	none := func([]Value) error { return nil }
	sql = "SELECT CASE WHEN (" + sql + "\n) THEN 1 ELSE 0 END"
	if form == MySQLSQL {
		return q.Query(ctx, none, "EXPLAIN "+sql, make([]any, len(places))...)
	}
	if err := q.Query(ctx, none, "PREPARE lethe_gate AS "+sql); err != nil {
		return err
	}
	nulls := strings.TrimSuffix(strings.Repeat("NULL, ", parts), ", ")
	err = q.Query(ctx, none, "EXPLAIN EXECUTE lethe_gate("+nulls+")")
	if err == nil {
		err = q.Query(ctx, none, "DEALLOCATE lethe_gate")
	}
	return err
}

// key opens the subject's key.
func (r *Readback) key(seal schema.AEAD, source string) (crmKey []byte, parts []string, err error) {
	crmKey, err = seal.Open(r.Subject, readbackContext(source, r.Case))
	if err != nil {
		return nil, nil, errors.New("opening the sealed key of a case: its seal key is not in the ring")
	}
	parts, err = schema.SplitKey(crmKey)
	return crmKey, parts, err
}

func readbackContext(source string, id schema.CaseID) []byte {
	return fmt.Appendf(nil, "lethe/readback/1\x00%s\x00%s", source, id)
}

// CanRead asks for no row of some columns: what is missing, or not granted, shows.
func CanRead(ctx context.Context, q Querier, form SQLForm, table string, columns []string) error {
	names := make([]string, len(columns))
	for i, name := range columns {
		names[i] = quoteName(form, name)
	}
	return q.Query(ctx, func([]Value) error { return nil }, "SELECT "+strings.Join(names, ", ")+" FROM "+quoteTable(form, table)+" LIMIT 0")
}
