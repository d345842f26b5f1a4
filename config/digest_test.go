package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"
)

func digests(c *Config) map[string][32]byte {
	all := map[string][32]byte{"source": c.SourceDigest()}
	for name, r := range c.Replicas {
		all[name] = r.Digest()
	}
	return all
}

// TestDigestIgnoresForm writes the same file in other ways: keys in another order, flow and block style, other
// quotation marks, comments. What may differ besides must not count either: addresses, secrets, waiting times.
func TestDigestIgnoresForm(t *testing.T) {
	for _, name := range []string{"testdata/design.yaml", "testdata/postgres.yaml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want := digests(parseFile(t, name))
		rapid.Check(t, func(t *rapid.T) {
			var doc yaml.Node
			if err := yaml.Unmarshal(data, &doc); err != nil {
				t.Fatal(err)
			}
			reshape(t, &doc)
			text, err := yaml.Marshal(&doc)
			if err != nil {
				t.Fatal(err)
			}
			other := strings.NewReplacer(
				"cool_off: 24h", "cool_off: "+rapid.SampledFrom([]string{"24h", "1d", "0"}).Draw(t, "cool-off"),
				"@crm-db:5432", "@other-db:5433", "password_file: /etc/lethe/crm-password", "password: x",
			).Replace(string(text))
			c, err := Parse([]byte(other), "reshaped.yaml")
			if err != nil {
				t.Fatalf("%v\n%s", err, other)
			}
			if got := digests(c); !reflect.DeepEqual(got, want) {
				t.Fatalf("digests differ for\n%s", other)
			}
		})
	}
}

// reshape changes the form of a document and not its meaning.
func reshape(t *rapid.T, n *yaml.Node) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	switch n.Kind {
	case yaml.MappingNode:
		pairs := make([][2]*yaml.Node, 0, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			pairs = append(pairs, [2]*yaml.Node{n.Content[i], n.Content[i+1]})
		}
		n.Content = n.Content[:0]
		for _, pair := range rapid.Permutation(pairs).Draw(t, "order") {
			n.Content = append(n.Content, pair[0], pair[1])
		}
		n.Style = rapid.SampledFrom([]yaml.Style{0, yaml.FlowStyle}).Draw(t, "style")
	case yaml.ScalarNode:
		if n.ShortTag() == "!!str" && n.Style == 0 && rapid.Bool().Draw(t, "quoted") {
			n.Style = yaml.DoubleQuotedStyle
		}
		if n.Style == 0 && rapid.Bool().Draw(t, "comment") {
			n.HeadComment = "# why"
		}
	}
	for _, child := range n.Content {
		reshape(t, child)
	}
}

// notMapping are the fields that a digest leaves out on purpose.
var notMapping = map[string]bool{
	".Erase.CoolOff": true,
	".Find.Scan":     true,
}

// TestDigestCoversMapping changes every field of the mapping, one at a time, by reflection: a field that is added to the
// types and forgotten in the digest fails here.
func TestDigestCoversMapping(t *testing.T) {
	for _, name := range []string{"testdata/design.yaml", "testdata/postgres.yaml"} {
		c := parseFile(t, name)
		changed := 0
		check := func(place string, digest func() [32]byte) func(string, func() func()) {
			before := digest()
			return func(field string, change func() func()) {
				if notMapping[strings.TrimPrefix(field, place)] {
					return
				}
				restore := change()
				if digest() == before {
					t.Errorf("%s: changing %s leaves the digest as it was", name, field)
				}
				restore()
				if digest() != before {
					t.Fatalf("%s: %s was not restored", name, field)
				}
				changed++
			}
		}
		source := check("", c.SourceDigest)
		eachChange("Name", reflect.ValueOf(&c.Name).Elem(), source)
		eachChange("Subject", reflect.ValueOf(&c.Source.Subject).Elem(), source)
		eachChange("Erased", reflect.ValueOf(&c.Source.Erased).Elem(), source)
		if c.Locale != nil {
			eachChange("Locale", reflect.ValueOf(c.Locale).Elem(), source)
		}
		for table, mapped := range c.Source.Tables {
			value := reflect.ValueOf(mapped).Elem()
			for i := range value.NumField() {
				if field := value.Type().Field(i).Name; field != "Name" { // The key of the map says it already.
					eachChange("Tables."+table+"."+field, value.Field(i), source)
				}
			}
		}
		for _, r := range c.Replicas {
			value := reflect.ValueOf(r).Elem()
			for _, field := range []string{"Person", "Find", "Suppress", "Erase", "Hold", "Consent", "Objection", "Restricted", "Audience"} {
				eachChange("."+field, value.FieldByName(field), check("", r.Digest))
			}
		}
		if changed < 200 {
			t.Errorf("%s: only %d changes were tried", name, changed)
		}
	}
}

// eachChange calls try with every single change of v: each leaf another, each map and list longer, each pointer set or
// unset. A change returns what undoes it.
func eachChange(path string, v reflect.Value, try func(string, func() func())) {
	set := func(to reflect.Value) func() func() {
		return func() func() {
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			v.Set(to)
			return func() { v.Set(old) }
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			try(path, set(reflect.New(v.Type().Elem())))
			return
		}
		eachChange(path, v.Elem(), try)
		try(path, set(reflect.Zero(v.Type())))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type() == reflect.TypeFor[Period]() && v.Type().Field(i).Name == "Duration" {
				try(path, set(reflect.ValueOf(Period{Duration: time.Second})))
				continue
			}
			eachChange(path+"."+v.Type().Field(i).Name, v.Field(i), try)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			if v.MapIndex(key).Kind() == reflect.Pointer {
				eachChange(fmt.Sprintf("%s[%s]", path, key), v.MapIndex(key).Elem(), try)
				continue
			}
			element := reflect.New(v.Type().Elem()).Elem()
			element.Set(v.MapIndex(key))
			// Map elements have no address: each change of the copy is put back into the map.
			eachChange(fmt.Sprintf("%s[%s]", path, key), element, func(field string, change func() func()) {
				try(field, func() func() {
					old := reflect.New(element.Type()).Elem()
					old.Set(element)
					undo := change()
					v.SetMapIndex(key, element)
					return func() {
						undo()
						v.SetMapIndex(key, old)
					}
				})
			})
		}
		try(path, func() func() {
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			longer := reflect.MakeMap(v.Type())
			for _, key := range v.MapKeys() {
				longer.SetMapIndex(key, v.MapIndex(key))
			}
			element := reflect.Zero(v.Type().Elem())
			if element.Kind() == reflect.Pointer {
				element = reflect.New(v.Type().Elem().Elem())
			}
			longer.SetMapIndex(reflect.ValueOf("one more"), element)
			v.Set(longer)
			return func() { v.Set(old) }
		})
	case reflect.Slice:
		for i := range v.Len() {
			eachChange(fmt.Sprintf("%s[%d]", path, i), v.Index(i), try)
		}
		try(path, set(reflect.Append(v.Slice3(0, v.Len(), v.Len()), reflect.Zero(v.Type().Elem()))))
	case reflect.Interface:
		try(path, set(reflect.ValueOf("another")))
	case reflect.String:
		try(path, set(reflect.ValueOf(v.String()+"x").Convert(v.Type())))
	case reflect.Bool:
		try(path, set(reflect.ValueOf(!v.Bool())))
	case reflect.Int, reflect.Int64:
		try(path, set(reflect.ValueOf(v.Int()+1).Convert(v.Type())))
	default:
		panic("a field of kind " + v.Kind().String() + " at " + path)
	}
}

// TestDigestTellsConstantsApart: JSON would write some of these alike.
func TestDigestTellsConstantsApart(t *testing.T) {
	seen := make(map[[32]byte]any)
	for _, constant := range []any{nil, true, "true", int64(1), float64(1), "1", float64(1.5), "1.5", ""} {
		r := &Replica{Suppress: []Action{{Set: map[string]map[string]Value{"t": {"c": {Kind: KindConst, Const: constant}}}}}}
		d := r.Digest()
		if other, twice := seen[d]; twice {
			t.Errorf("%#v and %#v have one digest", constant, other)
		}
		seen[d] = constant
	}
}

// TestDigestIsStable pins the digests: a change of the normal form sends every replica through setup again, so it must
// be made knowingly.
func TestDigestIsStable(t *testing.T) {
	c := parseFile(t, "testdata/postgres.yaml")
	got := make(map[string]string)
	for name, d := range digests(c) {
		got[name] = fmt.Sprintf("%x", d[:8])
	}
	want := map[string]string{"source": "4ccdb8ea2b995942", "marketing": "3b81963eb7ce5fd9", "reporting": "981d2bf293ef8357"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("digests of postgres.yaml are %v, were %v", got, want)
	}
}
