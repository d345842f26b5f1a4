package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxFile bounds a config file: the parser's memory is a multiple of it.
const maxFile = 1 << 20

// decoder turns YAML nodes into the Config and gathers every fault on the way: it never stops at the first one.
type decoder struct {
	faults []Fault
	lines  map[string]int
	env    func(string) (string, bool)
	files  []secretFile
	paths  []*string // file names, relative to the file's own folder until Load resolves them
}

// secretFile is a password_file that Load has still to read.
type secretFile struct {
	item item
	name string
	into *Secret
}

// item is one value of the file and its place.
type item struct {
	d    *decoder
	n    *yaml.Node
	path string
}

func newDecoder() *decoder {
	return &decoder{lines: make(map[string]int), env: os.LookupEnv}
}

var syntaxLine = regexp.MustCompile(`line (\d+): `)

// document parses the one document of the file.
func (d *decoder) document(data []byte) (item, bool) {
	fail := func(line int, message, hint string) (item, bool) {
		d.faults = append(d.faults, Fault{Line: line, Message: message, Hint: hint})
		return item{}, false
	}
	if len(data) > maxFile {
		return fail(1, fmt.Sprintf("the file is larger than %d bytes", maxFile), "")
	}
	var doc, second yaml.Node
	reader := yaml.NewDecoder(bytes.NewReader(data))
	err := reader.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return fail(1, "the file is empty", "write a starter file with lethe init")
	}
	if err == nil {
		if err = reader.Decode(&second); err == nil {
			return fail(max(second.Line, 1), "a second YAML document begins here", "one file holds one document")
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
		if m := syntaxLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = strings.Replace(text, m[0], "", 1)
		}
		hint := ""
		if strings.Contains(text, "',' or") {
			hint = "inside { } and [ ] put quotes around values that hold ? , : { } [ ]"
		}
		return fail(max(line, 1), "this is no YAML: "+text, hint)
	}
	return item{d: d, n: doc.Content[0]}, true
}

func (it item) fault(hint, format string, args ...any) {
	it.d.faults = append(it.d.faults, Fault{Path: it.path, Line: max(it.n.Line, 1), Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (it item) child(name string, n *yaml.Node, line int) item {
	path := pathElement(name)
	if it.path != "" {
		path = it.path + "." + path
	}
	it.d.lines[path] = line
	return item{d: it.d, n: n, path: path}
}

// pathElement quotes a key that would make the message unreadable.
func pathElement(name string) string {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !strconv.IsPrint(r) || r == ' ' }) {
		return strconv.Quote(name)
	}
	return name
}

// usable refuses aliases and unknown tags: nothing is followed, so that a path has one line and a small file cannot grow without bound.
func (it item) usable() bool {
	if it.n.Kind == yaml.AliasNode || it.n.Anchor != "" {
		it.fault("write the value out where it is used", "anchors and aliases are not supported")
		return false
	}
	switch it.n.ShortTag() {
	case "!!null", "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!map", "!!seq":
		return true
	}
	it.fault("remove the tag", "the YAML tag %s is not supported", it.n.ShortTag())
	return false
}

func (it item) null() bool { return it.n.Kind == yaml.ScalarNode && it.n.ShortTag() == "!!null" }

func (it item) shape() string {
	switch {
	case it.n.Kind == yaml.MappingNode:
		return "a section"
	case it.n.Kind == yaml.SequenceNode:
		return "a list"
	case it.null():
		return "nothing"
	}
	return "a single value"
}

// entries calls f for each key of a section, in the order of the file.
func (it item) entries(f func(key string, value item)) bool {
	if !it.usable() {
		return false
	}
	if it.n.Kind != yaml.MappingNode {
		it.fault("", "must be a section of keys, not %s", it.shape())
		return false
	}
	first := make(map[string]int)
	for i := 0; i+1 < len(it.n.Content); i += 2 {
		k, v := it.n.Content[i], it.n.Content[i+1]
		at := item{d: it.d, n: k, path: it.path}
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
			at.fault("", "a key must be a plain name (no lists, aliases or merge keys)")
			continue
		}
		if !at.usable() {
			continue
		}
		if line, twice := first[k.Value]; twice {
			at.path = it.child(k.Value, v, line).path
			at.fault("keep one of the two", "is given twice, first in line %d", line)
			continue
		}
		first[k.Value] = k.Line
		f(k.Value, it.child(k.Value, v, k.Line))
	}
	return true
}

// fields reads a section whose keys are known. Required keys are given as "key" or "key: hint".
func (it item) fields(known map[string]func(item), required ...string) {
	seen := make(map[string]bool)
	ok := it.entries(func(key string, value item) {
		read, found := known[key]
		if !found {
			names := make([]string, 0, len(known))
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			value.n = &yaml.Node{Kind: yaml.ScalarNode, Line: it.d.lines[value.path]}
			value.fault(nearest(key, names), "is an unknown key")
			return
		}
		seen[key] = true
		read(value)
	})
	if !ok {
		return
	}
	for _, r := range required {
		key, hint, _ := strings.Cut(r, ": ")
		if !seen[key] {
			it.missing(key, hint)
		}
	}
}

func (it item) missing(key, hint string) {
	it.below(key).fault(hint, "is required")
}

// below is the place of a key, whether the section has it or not.
func (it item) below(key string) item {
	path, line := pathElement(key), it.n.Line
	if it.path != "" {
		path, line = it.path+"."+path, nearestLine(it.d.lines, it.path)
	}
	if given, ok := it.d.lines[path]; ok {
		line = given
	}
	return item{d: it.d, n: &yaml.Node{Line: line}, path: path}
}

// items calls f for each element of a list.
func (it item) items(f func(i int, element item)) bool {
	if !it.usable() {
		return false
	}
	if it.n.Kind != yaml.SequenceNode {
		it.fault("", "must be a list, not %s", it.shape())
		return false
	}
	for i, n := range it.n.Content {
		element := item{d: it.d, n: n, path: it.path + "[" + strconv.Itoa(i) + "]"}
		it.d.lines[element.path] = n.Line
		f(i, element)
	}
	return true
}

// text returns a scalar with ${ENV} expanded.
func (it item) text() (string, bool) {
	if !it.usable() {
		return "", false
	}
	if it.n.Kind != yaml.ScalarNode {
		it.fault("", "must be a single value, not %s", it.shape())
		return "", false
	}
	if it.null() {
		it.fault("give it one, or remove the key", "has no value")
		return "", false
	}
	return it.expand(it.n.Value)
}

var envReference = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// expand replaces ${NAME}. A $name without braces is no reference: value forms such as $key look like that.
func (it item) expand(s string) (string, bool) {
	ok := true
	out := envReference.ReplaceAllStringFunc(s, func(ref string) string {
		name := ref[2 : len(ref)-1]
		value, set := it.d.env(name)
		if !set {
			it.fault("export it, or write the value itself", "the environment variable %s is not set", name)
			ok = false
		}
		return value
	})
	if strings.Contains(envReference.ReplaceAllString(s, ""), "${") {
		it.fault("write ${NAME} with letters, digits and _", "has a ${ that names no environment variable")
		ok = false
	}
	return out, ok
}

func (it item) str(into *string) {
	s, ok := it.text()
	if !ok {
		return
	}
	if strings.TrimSpace(s) == "" {
		it.fault("give it a value, or remove the key", "is empty")
		return
	}
	*into = s
}

// reader makes the field function of a value with a form of its own.
func reader[T any](into *T, parse func(string) (T, error)) func(item) {
	return func(it item) {
		s, ok := it.text()
		if !ok {
			return
		}
		v, err := parse(s)
		if err != nil {
			it.fault("", "%s", err)
			return
		}
		*into = v
	}
}

func text(into *string) func(item)            { return func(it item) { it.str(into) } }
func duration(into *time.Duration) func(item) { return reader(into, parseDuration) }
func period(into *Period) func(item)          { return reader(into, parsePeriod) }
func size(into *int64) func(item)             { return reader(into, parseSize) }

func boolean(into *bool) func(item) {
	return reader(into, func(s string) (bool, error) {
		if s != "true" && s != "false" {
			return false, errors.New("must be true or false")
		}
		return s == "true", nil
	})
}

func integer(into *int, low, high int) func(item) {
	return reader(into, func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < low || n > high {
			return 0, fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		return n, nil
	})
}

// enum reads one of the allowed words.
func enum(into *string, allowed ...string) func(item) {
	return func(it item) {
		s, ok := it.text()
		if !ok {
			return
		}
		if !slices.Contains(allowed, s) {
			it.fault(nearest(s, allowed), "%s is not allowed here, only %s", strconv.Quote(it.n.Value), strings.Join(allowed, ", "))
			return
		}
		*into = s
	}
}

// texts reads a list of non-empty values.
func texts(into *[]string, parse func(string) (string, error)) func(item) {
	return func(it item) {
		first := make(map[string]bool)
		it.items(func(_ int, element item) {
			var s string
			reader(&s, parse)(element)
			if s != "" && first[s] {
				element.fault("keep one of the two", "is given twice")
				return
			}
			first[s] = true
			if s != "" {
				*into = append(*into, s)
			}
		})
		if it.n.Kind == yaml.SequenceNode && len(it.n.Content) == 0 {
			it.fault("give it an element, or remove the key", "is empty")
		}
	}
}

// columns reads a single column as a scalar, several as a list.
func columns(into *[]string) func(item) {
	return func(it item) {
		if it.n.Kind == yaml.SequenceNode {
			texts(into, parseColumn)(it)
			return
		}
		var s string
		reader(&s, parseColumn)(it)
		if s != "" {
			*into = []string{s}
		}
	}
}

// constant reads a scalar of the data: nil, string, int64, float64 or bool. The quoted or expanded is always a string.
func (it item) constant() (any, bool) {
	if !it.usable() {
		return nil, false
	}
	if it.n.Kind != yaml.ScalarNode {
		it.fault("", "must be a single value, not %s", it.shape())
		return nil, false
	}
	s, ok := it.expand(it.n.Value)
	if !ok {
		return nil, false
	}
	if s != it.n.Value {
		return s, true
	}
	var err error
	var v any
	switch it.n.ShortTag() {
	case "!!null":
		return nil, true
	case "!!bool":
		var b bool
		err = it.n.Decode(&b)
		v = b
	case "!!int":
		var i int64
		err = it.n.Decode(&i)
		v = i
	case "!!float":
		var f float64
		err = it.n.Decode(&f)
		// Infinities, and whole numbers that fit no int64 and would lose digits.
		if err == nil && (math.IsInf(f, 0) || math.IsNaN(f) || !strings.ContainsAny(it.n.Value, ".eE")) {
			err = errors.New("not exact")
		}
		v = f
	default:
		return s, true
	}
	if err != nil {
		it.fault("quote it to make it a text", "is no number that a database holds")
		return nil, false
	}
	return v, true
}

// nearest makes the "did you mean" of a mistyped word.
func nearest(word string, known []string) string {
	best, bestDistance := "", 1+max(len(word)/3, 2)
	for _, k := range known {
		if d := distance(word, k, bestDistance); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "did you mean " + best + "?"
}

// distance is the Levenshtein distance, or bound where it is at least that.
func distance(a, b string, bound int) int {
	if len(a)-len(b) >= bound || len(b)-len(a) >= bound {
		return bound
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
