package schema

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// canonicalForm gives the Parsing Canonical Form of an Avro schema (Avro 1.11 specification, "Transforming into Parsing
// Canonical Form"). goavro's own keeps logical types, which the specification strips, and so gives other fingerprints than
// every other implementation.
func canonicalForm(schema []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(schema))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("reading Avro schema: %w", err)
	}
	return appendCanonical(nil, v, "")
}

var primitives = map[string]bool{
	"null": true, "boolean": true, "int": true, "long": true, "float": true, "double": true, "bytes": true, "string": true,
}

var errSchemaForm = errors.New("reading Avro schema: not of the form that the specification gives")

func appendCanonical(dst []byte, v any, namespace string) ([]byte, error) {
	switch v := v.(type) {
	case string:
		if !primitives[v] {
			v = fullName(v, namespace)
		}
		return appendString(dst, v)
	case []any:
		return appendList(dst, v, func(dst []byte, item any) ([]byte, error) { return appendCanonical(dst, item, namespace) })
	case map[string]any:
		return appendComplex(dst, v, namespace)
	}
	return dst, errSchemaForm
}

func appendComplex(dst []byte, v map[string]any, namespace string) ([]byte, error) {
	kind, ok := v["type"].(string)
	if !ok {
		return appendCanonical(dst, v["type"], namespace)
	}
	if primitives[kind] {
		return appendString(dst, kind)
	}
	var err error
	switch kind {
	case "array":
		dst = append(dst, `{"type":"array","items":`...)
		dst, err = appendCanonical(dst, v["items"], namespace)
		return append(dst, '}'), err
	case "map":
		dst = append(dst, `{"type":"map","values":`...)
		dst, err = appendCanonical(dst, v["values"], namespace)
		return append(dst, '}'), err
	case "record", "error", "enum", "fixed":
		return appendNamed(dst, kind, v, namespace)
	}
	return appendCanonical(dst, kind, namespace)
}

func appendNamed(dst []byte, kind string, v map[string]any, namespace string) ([]byte, error) {
	name, _ := v["name"].(string)
	if name == "" {
		return dst, errSchemaForm
	}
	if own, ok := v["namespace"].(string); ok {
		namespace = own
	}
	name = fullName(name, namespace)
	if dot := strings.LastIndexByte(name, '.'); dot >= 0 {
		namespace = name[:dot]
	}
	dst = append(dst, `{"name":`...)
	dst, err := appendString(dst, name)
	if err != nil {
		return dst, err
	}
	dst = append(dst, `,"type":"`+kind+`"`...)
	switch kind {
	case "enum":
		symbols, _ := v["symbols"].([]any)
		dst = append(dst, `,"symbols":`...)
		dst, err = appendList(dst, symbols, appendString)
	case "fixed":
		size, _ := v["size"].(json.Number)
		n, convErr := size.Int64()
		if convErr != nil {
			return dst, errSchemaForm
		}
		dst = fmt.Appendf(dst, `,"size":%d`, n)
	default:
		fields, _ := v["fields"].([]any)
		dst = append(dst, `,"fields":`...)
		dst, err = appendList(dst, fields, func(dst []byte, f any) ([]byte, error) { return appendField(dst, f, namespace) })
	}
	return append(dst, '}'), err
}

func appendField(dst []byte, v any, namespace string) ([]byte, error) {
	f, ok := v.(map[string]any)
	if !ok {
		return dst, errSchemaForm
	}
	dst = append(dst, `{"name":`...)
	dst, err := appendString(dst, f["name"])
	if err != nil {
		return dst, err
	}
	dst = append(dst, `,"type":`...)
	dst, err = appendCanonical(dst, f["type"], namespace)
	return append(dst, '}'), err
}

func appendList(dst []byte, items []any, each func([]byte, any) ([]byte, error)) ([]byte, error) {
	dst = append(dst, '[')
	var err error
	for i, item := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = each(dst, item); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

// appendString takes names and symbols only; these need no escapes.
func appendString(dst []byte, v any) ([]byte, error) {
	s, ok := v.(string)
	if !ok || !nameForm.MatchString(s) {
		return dst, errSchemaForm
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"'), nil
}

var nameForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

func fullName(name, namespace string) string {
	if namespace == "" || strings.Contains(name, ".") {
		return name
	}
	return namespace + "." + name
}

// rabinEmpty is the fingerprint of nothing and the polynomial of CRC-64-AVRO (Avro specification, "Schema Fingerprints").
const rabinEmpty = 0xc15d213aa4d7a795

// rabin is CRC-64-AVRO. It runs a dozen times in the life of a process: no table is worth its memory.
func rabin(data []byte) uint64 {
	fp := uint64(rabinEmpty)
	for _, b := range data {
		fp ^= uint64(b)
		for range 8 {
			fp = fp>>1 ^ rabinEmpty&-(fp&1)
		}
	}
	return fp
}

// objectHeader is the ten bytes before a single-object encoded datum of schema: a marker and the fingerprint, little-endian.
func objectHeader(schema []byte) (h [headerSize]byte, err error) {
	canonical, err := canonicalForm(schema)
	if err != nil {
		return h, err
	}
	h[0], h[1] = 0xc3, 0x01
	binary.LittleEndian.PutUint64(h[2:], rabin(canonical))
	return h, nil
}

const headerSize = 10
