package rules

import (
	"errors"
	"math"
	"regexp"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	utc := func(year int, month time.Month, day, hour, minute, second, nano int) time.Time {
		return time.Date(year, month, day, hour, minute, second, nano, time.UTC)
	}
	tests := map[string]struct {
		want time.Time
		end  int
		err  error
	}{
		"2026-03-01":                       {want: utc(2026, 3, 1, 0, 0, 0, 0)},
		"2024-02-29":                       {want: utc(2024, 2, 29, 0, 0, 0, 0)},
		"2026-03-01 10:20:30":              {want: utc(2026, 3, 1, 10, 20, 30, 0)},
		"2026-03-01 10:20:30.5":            {want: utc(2026, 3, 1, 10, 20, 30, 500e6)},
		"2026-03-01 10:20:30.123456":       {want: utc(2026, 3, 1, 10, 20, 30, 123456e3)},
		"2026-03-01 10:20:30+00":           {want: utc(2026, 3, 1, 10, 20, 30, 0)},
		"2026-03-01 10:20:30.25+02":        {want: utc(2026, 3, 1, 8, 20, 30, 250e6)},
		"2026-03-01 00:20:30+05:30":        {want: utc(2026, 2, 28, 18, 50, 30, 0)},
		"2026-03-01 23:20:30-03:30":        {want: utc(2026, 3, 2, 2, 50, 30, 0)},
		"1890-01-01 00:09:21+00:09:21":     {want: utc(1890, 1, 1, 0, 0, 0, 0)},
		"2026-03-01T10:20:30Z":             {want: utc(2026, 3, 1, 10, 20, 30, 0)},
		"12026-03-01":                      {want: utc(12026, 3, 1, 0, 0, 0, 0)},
		"294276-12-31 23:59:59":            {want: utc(294276, 12, 31, 23, 59, 59, 0)},
		"1969-12-31":                       {want: utc(1969, 12, 31, 0, 0, 0, 0)},
		"0001-01-01":                       {want: utc(1, 1, 1, 0, 0, 0, 1e6)}, // never "none"
		"0001-01-01 01:00:00+01":           {want: utc(1, 1, 1, 0, 0, 0, 1e6)},
		"infinity":                         {end: 1},
		"-infinity":                        {end: -1},
		"0044-03-15 BC":                    {err: errBC},
		"0044-03-15 00:00:00+00 BC":        {err: errBC},
		"0000-01-01":                       {err: errYear},
		"294277-01-01":                     {err: errYear},
		"":                                 {err: errNotTime},
		"now":                              {err: errNotTime},
		"today":                            {err: errNotTime},
		"Infinity":                         {err: errNotTime},
		"2026-02-29":                       {err: errNotTime},
		"2026-13-01":                       {err: errNotTime},
		"2026-00-01":                       {err: errNotTime},
		"2026-01-00":                       {err: errNotTime},
		"2026-01-32":                       {err: errNotTime},
		"2026-1-1":                         {err: errNotTime},
		"26-01-01":                         {err: errNotTime},
		"01/03/2026":                       {err: errNotTime},
		"2026-03-01 ":                      {err: errNotTime},
		" 2026-03-01":                      {err: errNotTime},
		"2026-03-01 24:00:00":              {err: errNotTime},
		"2026-03-01 10:60:00":              {err: errNotTime},
		"2026-03-01 10:20:60":              {err: errNotTime},
		"2026-03-01 10:20":                 {err: errNotTime},
		"2026-03-01 10:20:30.":             {err: errNotTime},
		"2026-03-01 10:20:30.1234567890":   {err: errNotTime},
		"2026-03-01 10:20:30+":             {err: errNotTime},
		"2026-03-01 10:20:30+2":            {err: errNotTime},
		"2026-03-01 10:20:30+16":           {err: errNotTime},
		"2026-03-01 10:20:30+02:60":        {err: errNotTime},
		"2026-03-01 10:20:30 Europe/Paris": {err: errNotTime},
		"2026-03-01 10:20:30+02 x":         {err: errNotTime},
		"٢٠٢٦-٠٣-٠١":                       {err: errNotTime},
	}
	for text, test := range tests {
		got, end, err := parseTime([]byte(text))
		if !errors.Is(err, test.err) || end != test.end || !got.Equal(test.want) {
			t.Errorf("parseTime(%q) = %v, %d, %v; want %v, %d, %v", text, got, end, err, test.want, test.end, test.err)
		}
	}
}

func TestDecode(t *testing.T) {
	tests := []struct {
		typeName, text string
		want           any
		err            error
	}{
		{"bool", "t", true, nil},
		{"boolean", "f", false, nil},
		{"bool", "true", true, nil},
		{"bool", "1", nil, errNotBool},
		{"bool", "", nil, errNotBool},
		{"int2", "-3", -3, nil},
		{"int8", "9223372036854775807", math.MaxInt64, nil},
		{"int8", "9223372036854775808", nil, errNotInt},
		{"integer", "1.5", nil, errNotInt},
		{"numeric", "12.50", 12.5, nil},
		{"numeric(10,2)", "-0.01", -0.01, nil},
		{"float8", "Infinity", math.Inf(1), nil},
		{"numeric", "1e400", math.Inf(1), nil},
		{"numeric", "x", nil, errNotFloat},
		{"bpchar", "E   ", "E", nil},
		{"character(4)", "E   ", "E", nil},
		{"varchar(4)", "E   ", "E   ", nil},
		{"text", "", "", nil},
		{"public.mood", "sad", "sad", nil},
		{"uuid", "0-1", "0-1", nil},
		{"date", "2026-03-01", time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), nil},
		{"timestamp(3) with time zone", "2026-03-01 00:00:00+01", time.Date(2026, 2, 28, 23, 0, 0, 0, time.UTC), nil},
		{"timestamptz", "infinity", farFuture, nil},
		{"date", "-infinity", distantPast, nil},
		{"date", "0044-03-15 BC", nil, errBC},
	}
	for _, test := range tests {
		got, err := kindOf(test.typeName).decode([]byte(test.text))
		if !errors.Is(err, test.err) || got != test.want {
			t.Errorf("%s %q: got %v, %v; want %v, %v", test.typeName, test.text, got, err, test.want, test.err)
		}
	}
}

// FuzzParseTime compares with the parser of the standard library wherever that reads the same forms.
func FuzzParseTime(f *testing.F) {
	for _, seed := range []string{
		"2026-03-01", "2026-03-01 10:20:30.123456+02", "2026-02-30", "0001-01-01", "infinity", "-infinity", "0044-03-15 BC",
		"12026-03-01 00:00:00+05:30:15", "2026-03-01T10:20:30Z", "2026-03-01 10:20:30-15:59",
	} {
		f.Add([]byte(seed))
	}
	layouts := []string{"2006-01-02", "2006-01-02 15:04:05", "2006-01-02 15:04:05Z07", "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05Z07:00"}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, end, err := parseTime(text)
		if err == nil && end == 0 {
			if got.IsZero() || got.Year() > maxYear+1 {
				t.Fatalf("parseTime(%q) = %v", text, got)
			}
			// What was read is read again from its own text.
			again, _, err := parseTime([]byte(got.Format("2006-01-02 15:04:05.999999999+00")))
			if got.Year() >= 1 && got.Year() <= 9999 && (err != nil || !again.Equal(got)) {
				t.Fatalf("parseTime(%q) = %v, but its own text gives %v, %v", text, got, again, err)
			}
		}
		for _, layout := range layouts {
			want, wantErr := time.Parse(layout, string(text))
			// The library also reads what PostgreSQL never writes, such as hours of one digit.
			if wantErr != nil || want.IsZero() || want.Year() == 0 || want.Format(layout) != fraction.ReplaceAllString(string(text), "") {
				continue
			}
			if _, offset := want.Zone(); offset >= 16*3600 || offset <= -16*3600 {
				continue
			}
			if err != nil || !got.Equal(want) {
				t.Fatalf("parseTime(%q) = %v, %v; time.Parse with %q gives %v", text, got, err, layout, want)
			}
		}
	})
}

var fraction = regexp.MustCompile(`\.[0-9]{1,9}\b`)

// FuzzDecode looks for values that make the rules panic or that are read as two types.
func FuzzDecode(f *testing.F) {
	for _, typeName := range []string{"bool", "int8", "numeric", "text", "bpchar", "date", "timestamptz", "numeric(", "x)y("} {
		f.Add(typeName, []byte("2026-03-01"))
		f.Add(typeName, []byte("t"))
		f.Add(typeName, []byte("1e999"))
	}
	f.Fuzz(func(t *testing.T, typeName string, text []byte) {
		k := kindOf(typeName)
		v, err := k.decode(text)
		if (v == nil) == (err == nil) {
			t.Fatalf("decode(%q) as %q = %v, %v", text, typeName, v, err)
		}
		again, _ := k.decode(text)
		if f, ok := v.(float64); again != v && !(ok && math.IsNaN(f)) {
			t.Fatalf("decode(%q) as %q gives %v and then %v", text, typeName, v, again)
		}
	})
}
