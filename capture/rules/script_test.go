package rules

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lethe/capture"
	"lethe/config"
	"lethe/internal/keys"
	"lethe/internal/matchkey"
	"lethe/schema"
)

// frame completes the source section of a case to a file that config.Parse accepts.
const frame = `version: 1
name: crm
keys: {dir: keys}
kafka: {brokers: ["localhost:9092"]}
locale: {default_region: FR, try_regions: [RE]}
replicas:
  copy:
    recipient: {name: Copy, role: processor}
    mode: observe
    postgres: {dsn: "postgres://lethe@localhost/copy"}
    person: {table: person, key: id, crm_key: [%s]}
`

func parseSource(text string) (*config.Source, error) {
	crmKey := "a"
	if strings.Contains(text, "key: [") { // a replica has as many columns for the key as the source
		crmKey = "a, b"
	}
	source := strings.Replace(text, "source:\n", "source:\n  postgres: {dsn: \"postgres://lethe@localhost/crm\"}\n", 1)
	c, err := config.Parse([]byte(fmt.Sprintf(frame, crmKey)+source), "case.yaml")
	if err != nil {
		return nil, err
	}
	return &c.Source, nil
}

// script reads the lines of a case: tables, commits and row changes in the order of the log.
//
//	table public.customer key id:int8 status:bpchar     identity: key (columns marked with *), full, nothing, or mysql (whole old rows, and a key)
//	commit 2026-03-01 10:00:00
//	insert public.customer id=1 status='A'
//	update public.customer id=1 status=E | id=1 status=A     the new row, and after the bar the old one
//	delete public.customer id=1                              the old row
//	read public.customer id=1                                by a pass
//	truncate public.customer
//	message 1772359200000
//
// A column that is not named is absent; null and unchanged are states; quotes keep blanks.
type script struct {
	tables map[string]*capture.Table
	tx     *capture.Transaction
}

func newScript() *script {
	return &script{
		tables: map[string]*capture.Table{},
		tx:     &capture.Transaction{CommittedAt: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)},
	}
}

// line returns the change that a line describes; nil for a line that only sets the scene.
func (s *script) line(line string) (*capture.Change, error) {
	words := split(line)
	verb, rest := words[0], words[1:]
	if verb == "commit" {
		t, _, err := parseTime([]byte(strings.Join(rest, " ")))
		s.tx = &capture.Transaction{CommittedAt: t}
		return nil, err
	}
	if verb == "message" {
		return &capture.Change{Op: capture.OpMessage, Message: []byte(rest[0])}, nil
	}
	if verb == "table" {
		s.tables[rest[0]] = newTable(rest[0], rest[1], rest[2:]...)
		return nil, nil
	}
	t := s.tables[rest[0]]
	if t == nil {
		return nil, fmt.Errorf("no table %s", rest[0])
	}
	c := &capture.Change{Table: t}
	newRow, oldRow := rest[1:], []string(nil)
	if bar := slices.Index(newRow, "|"); bar >= 0 {
		newRow, oldRow = newRow[:bar], newRow[bar+1:]
	}
	switch verb {
	case "insert":
		c.Op, c.New = capture.OpInsert, values(t, newRow)
	case "read":
		c.Op, c.New = capture.OpRead, values(t, newRow)
	case "update":
		c.Op, c.New = capture.OpUpdate, values(t, newRow)
		if oldRow != nil {
			c.Old = values(t, oldRow)
		}
	case "delete":
		c.Op, c.Old = capture.OpDelete, values(t, newRow)
	case "truncate":
		c.Op = capture.OpTruncate
	default:
		return nil, fmt.Errorf("unknown line %q", line)
	}
	return c, nil
}

func newTable(name, identity string, columns ...string) *capture.Table {
	t := &capture.Table{Name: name, OldRow: map[string]capture.OldRow{
		"key": capture.OldRowKey, "full": capture.OldRowFull, "nothing": capture.OldRowNothing, "mysql": capture.OldRowFull,
	}[identity]}
	for _, c := range columns {
		column, typeName, _ := strings.Cut(c, ":")
		column, key := strings.CutPrefix(column, "*")
		t.Columns = append(t.Columns, capture.Column{Name: column, Type: typeName, Key: key || identity == "full"})
	}
	return t
}

func values(t *capture.Table, words []string) []capture.Value {
	row := make([]capture.Value, len(t.Columns))
	for _, w := range words {
		column, text, _ := strings.Cut(w, "=")
		i := t.Index(column)
		if i < 0 {
			panic("no column " + column)
		}
		switch text {
		case "null":
			row[i] = capture.Value{State: capture.Null}
		case "unchanged":
			row[i] = capture.Value{State: capture.Unchanged}
		default:
			row[i] = capture.Value{State: capture.Present, Text: []byte(strings.Trim(text, "'"))}
		}
	}
	return row
}

// split cuts a line at blanks outside of quotes.
func split(line string) (words []string) {
	quoted := false
	return strings.FieldsFunc(line, func(r rune) bool {
		if r == '\'' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	})
}

// describe writes a draft for a person to read.
func describe(d Draft) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", d.Rule)
	for _, part := range []struct {
		name string
		key  []byte
	}{{"subject", d.SubjectKey}, {"row", d.PK}} {
		if part.key != nil {
			fmt.Fprintf(&b, " %s=%s", part.name, keyText(part.key))
		}
	}
	b.WriteString(": ")
	switch body := d.Body.(type) {
	case *schema.SubjectErasure:
		fmt.Fprintf(&b, "erasure ground=%s phase2=%s marker=%t", body.Ground, map[schema.Phase2]string{
			schema.Phase2Automatic: "automatic", schema.Phase2OnDecision: "on_decision",
		}[body.Phase2], body.Marker)
	case *schema.ConsentChange:
		fmt.Fprintf(&b, "consent %s/%s %s", body.Purpose, body.Channel, stateName(body.State))
		for _, part := range []struct{ name, text string }{
			{"basis", body.LegalBasis},
			{"until", timeText(body.ValidUntil)},
			{"as_of", timeText(body.AsOf)},
			{"evidence", string(body.Evidence)},
			{"method", body.Method},
			{"notice", body.Notice},
			{"actor", body.Actor},
			{"contact", d.ContactTable},
		} {
			if part.text != "" {
				fmt.Fprintf(&b, " %s=%s", part.name, part.text)
			}
		}
		if d.ContactPK != nil {
			fmt.Fprintf(&b, "#%s", keyText(d.ContactPK))
		}
	case *schema.Objection:
		fmt.Fprintf(&b, "objection %s raised=%t", body.Scope, body.Raised)
	case *schema.ProcessingRestriction:
		fmt.Fprintf(&b, "restriction imposed=%t", body.Imposed)
		if until := timeText(body.Until); until != "" {
			fmt.Fprintf(&b, " until=%s", until)
		}
	case *schema.ContactPoint:
		fmt.Fprintf(&b, "%s of %s#%s", body.Kind, d.ContactTable, keyText(d.ContactPK))
		if body.Past {
			b.WriteString(" past")
		}
		if body.Removed {
			b.WriteString(" removed")
		}
		for _, k := range body.Keys {
			fmt.Fprintf(&b, " %s:'%s'", k.Type, legible.text(k))
		}
	case *schema.SubjectMerged:
		fmt.Fprintf(&b, "merged with")
		for _, key := range d.Absorbed {
			fmt.Fprintf(&b, " %s", keyText(key))
		}
	case *schema.Gap:
		fmt.Fprintf(&b, "gap opened=%t cause=%s", body.Opened, body.Cause)
	case *schema.Heartbeat:
		fmt.Fprintf(&b, "heartbeat %s", timeText(body.EmittedAt))
	default:
		fmt.Fprintf(&b, "%T", d.Body)
	}
	return b.String()
}

func keyText(key []byte) string {
	parts, err := schema.SplitKey(key)
	if err != nil {
		return fmt.Sprintf("%x", key)
	}
	return strings.Join(parts, "+")
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.999Z")
}

func stateName(s schema.ConsentState) string {
	for name, state := range consentStates {
		if state == s {
			return name
		}
	}
	return "?"
}

// legibleKeys is a key that tells what was keyed.
type legibleKeys map[[32]byte]string

var (
	legible   = legibleKeys{}
	testMatch = matchkey.New([]keys.MatchKey{{ID: 1, PRF: legible}}, []string{"FR", "RE"})
)

func (l legibleKeys) Compute(dst *[32]byte, data []byte) {
	*dst = sha256.Sum256(data)
	l[*dst] = string(data)
}

// text is the value of a key, without the domain.
func (l legibleKeys) text(k schema.MatchKey) string {
	parts := strings.SplitN(l[k.Value], "|", 4)
	return parts[len(parts)-1]
}

// play runs all lines through a new Engine and tells what came of each.
func play(cfg *config.Source, lines []string) (string, error) {
	e, err := New(cfg, Options{Match: testMatch})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	s := newScript()
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		c, err := s.line(line)
		if err != nil {
			return "", fmt.Errorf("line %q: %w", line, err)
		}
		if c == nil {
			continue
		}
		fmt.Fprintf(&b, "%s\n", line)
		drafts, err := e.Apply(s.tx, c, nil)
		for _, d := range drafts {
			fmt.Fprintf(&b, "  %s\n", describe(d))
		}
		for _, err := range flatten(err) {
			fmt.Fprintf(&b, "  error: %v\n", err)
		}
	}
	for _, n := range e.Notices() {
		fmt.Fprintf(&b, "notice %s on %s: %d\n", n.Kind, n.Table, n.Count)
	}
	return b.String(), nil
}

func flatten(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		return joined.Unwrap()
	}
	return []error{err}
}
