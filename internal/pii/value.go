// Package pii keeps personal values out of logs, metrics, errors and state: Value prints as a placeholder wherever it ends
// up, DriverError reduces what a database or broker says to a code and its class.
package pii

import (
	"fmt"
	"io"
)

// Placeholder is what a Value prints as.
const Placeholder = "‹pii›"

// Value is a personal value. Only Reveal gives it out. The value lies behind a pointer because fmt prints unexported fields of
// other people's structs by reflection, without asking their methods: there it meets an address only.
type Value struct{ clear *string }

// New wraps s.
func New(s string) Value { return Value{clear: &s} }

// NewBytes wraps a copy of b.
func NewBytes(b []byte) Value { return New(string(b)) }

// Reveal returns the clear value: for the parameter of an SQL statement and nothing else.
func (v Value) Reveal() string {
	if v.clear == nil {
		return ""
	}
	return *v.clear
}

// IsZero reports whether there is no value, or an empty one.
func (v Value) IsZero() bool { return v.clear == nil || *v.clear == "" }

// Format implements fmt.Formatter for every verb.
func (v Value) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Placeholder) }

// String implements fmt.Stringer.
func (v Value) String() string { return Placeholder }

// GoString implements fmt.GoStringer.
func (v Value) GoString() string { return Placeholder }

// MarshalText implements encoding.TextMarshaler.
func (v Value) MarshalText() ([]byte, error) { return []byte(Placeholder), nil }

// MarshalJSON implements json.Marshaler; zerolog uses it for Interface and Any.
func (v Value) MarshalJSON() ([]byte, error) { return []byte(`"` + Placeholder + `"`), nil }
