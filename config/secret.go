package config

// Secret is a password or token. It prints as <secret> everywhere; Reveal is for the one place that needs it.
type Secret struct{ value string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{value: s} }

// Reveal returns the clear value.
func (s Secret) Reveal() string { return s.value }

// IsSet reports whether there is one.
func (s Secret) IsSet() bool { return s.value != "" }

func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return "<secret>"
}

// GoString keeps %#v from printing the value.
func (s Secret) GoString() string { return s.String() }

// MarshalText keeps JSON and YAML from printing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
