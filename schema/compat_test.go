package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// onlyGrown compares a schema with the one that was released: fields keep their names, types and order; new ones have a default and stand
// after the old ones, before sealed_key; symbols are added at the end of an enum. Whoever reads what was written before reads it still.
func onlyGrown(released, now []byte) error {
	old, err := readSchema(released)
	if err != nil {
		return err
	}
	cur, err := readSchema(now)
	if err != nil {
		return err
	}
	if old.Name != cur.Name || old.Namespace != cur.Namespace {
		return fmt.Errorf("%s.%s was renamed to %s.%s", old.Namespace, old.Name, cur.Namespace, cur.Name)
	}
	oldFields, curFields := old.Fields, cur.Fields
	if n := len(oldFields); n > 0 && oldFields[n-1].Name == "sealed_key" {
		m := len(curFields)
		if m == 0 || curFields[m-1].Name != "sealed_key" || !grownType(oldFields[n-1].Type, curFields[m-1].Type) {
			return errors.New("sealed_key is not the last field any more")
		}
		oldFields, curFields = oldFields[:n-1], curFields[:m-1]
	}
	for i, f := range oldFields {
		if i >= len(curFields) || curFields[i].Name != f.Name {
			return fmt.Errorf("field %s is not in its place", f.Name)
		}
		if !grownType(f.Type, curFields[i].Type) {
			return fmt.Errorf("field %s has another type", f.Name)
		}
		if f.Default != nil && !reflect.DeepEqual(f.Default, curFields[i].Default) {
			return fmt.Errorf("field %s has another default", f.Name)
		}
	}
	for _, f := range curFields[len(oldFields):] {
		if f.Default == nil {
			return fmt.Errorf("new field %s has no default", f.Name)
		}
	}
	return nil
}

type avroField struct {
	Name    string
	Type    any
	Default *json.RawMessage
}

type avroRecord struct {
	Name, Namespace string
	Fields          []avroField
}

func readSchema(text []byte) (r avroRecord, err error) {
	var raw struct {
		Name, Namespace string
		Fields          []map[string]json.RawMessage
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return r, err
	}
	r.Name, r.Namespace = raw.Name, raw.Namespace
	for _, f := range raw.Fields {
		var out avroField
		if err := errors.Join(json.Unmarshal(f["name"], &out.Name), json.Unmarshal(f["type"], &out.Type)); err != nil {
			return r, err
		}
		if d, ok := f["default"]; ok { // null is a default, too
			out.Default = &d
		}
		r.Fields = append(r.Fields, out)
	}
	return r, nil
}

// grownType allows nothing but more symbols at the end of an enum, wherever it stands, and other words in doc.
func grownType(old, cur any) bool {
	switch o := old.(type) {
	case map[string]any:
		c, ok := cur.(map[string]any)
		if !ok {
			return false
		}
		for k := range c {
			if _, known := o[k]; !known && k != "doc" {
				return false
			}
		}
		for k, v := range o {
			if k == "symbols" {
				a, okA := v.([]any)
				b, okB := c[k].([]any)
				if !okA || !okB || len(b) < len(a) || !reflect.DeepEqual(a, b[:len(a)]) {
					return false
				}
			} else if k != "doc" && !grownType(v, c[k]) {
				return false
			}
		}
		return true
	case []any:
		c, ok := cur.([]any)
		if !ok || len(c) != len(o) {
			return false
		}
		for i := range o {
			if !grownType(o[i], c[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(old, cur)
}

func TestReleasedSchemasOnlyGrow(t *testing.T) {
	released, err := filepath.Glob("avsc/released/*.avsc")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range released {
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		now, err := avsc(strings.TrimSuffix(filepath.Base(file), ".avsc"))
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was released and is gone", file)
			continue
		}
		if err == nil {
			err = onlyGrown(old, now)
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestOnlyGrownTellsGoodFromBad(t *testing.T) {
	const base = `{"type":"record","name":"R","namespace":"n","fields":[{"name":"a","type":"int"},` +
		`{"name":"e","type":{"type":"enum","name":"E","symbols":["X","Y"]}},{"name":"o","type":["null","string"],"default":null},{"name":"sealed_key","type":"bytes"}]}`
	edit := func(old, replacement string) string {
		s := strings.Replace(base, old, replacement, 1)
		if s == base {
			t.Fatalf("%s is not in the schema", old)
		}
		return s
	}
	good := map[string]string{
		"same":             base,
		"doc":              edit(`"name":"R"`, `"name":"R","doc":"words"`),
		"doc of an enum":   edit(`"name":"E"`, `"name":"E","doc":"words"`),
		"field at the end": edit(`{"name":"sealed_key"`, `{"name":"n","type":["null","int"],"default":null},{"name":"sealed_key"`),
		"symbol at end":    edit(`"X","Y"`, `"X","Y","Z"`),
	}
	bad := map[string]string{
		"no default":         edit(`{"name":"sealed_key"`, `{"name":"n","type":"int"},{"name":"sealed_key"`),
		"after sealed_key":   edit(`"type":"bytes"}`, `"type":"bytes"},{"name":"n","type":"int","default":0}`),
		"in the middle":      edit(`{"name":"e"`, `{"name":"n","type":"int","default":0},{"name":"e"`),
		"removed":            edit(`{"name":"a","type":"int"},`, ``),
		"renamed":            edit(`"name":"a"`, `"name":"b"`),
		"type":               edit(`"type":"int"`, `"type":"long"`),
		"logical type":       edit(`"type":"int"`, `"type":{"type":"int","logicalType":"date"}`),
		"sealed_key removed": edit(`,{"name":"sealed_key","type":"bytes"}`, ``),
		"sealed_key's type":  edit(`"bytes"`, `"string"`),
		"symbol removed":     edit(`"X","Y"`, `"X"`),
		"symbol in front":    edit(`"X","Y"`, `"Z","X","Y"`),
		"union narrowed":     edit(`["null","string"]`, `["null"]`),
		"union turned":       edit(`["null","string"]`, `["string","null"]`),
		"default removed":    edit(`,"default":null`, ``),
		"record renamed":     edit(`"name":"R"`, `"name":"S"`),
		"namespace":          edit(`"namespace":"n"`, `"namespace":"m"`),
		"no schema":          `{`,
	}
	for name, s := range good {
		if err := onlyGrown([]byte(base), []byte(s)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range bad {
		if err := onlyGrown([]byte(base), []byte(s)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
