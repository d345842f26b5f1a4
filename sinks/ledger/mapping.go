package ledger

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"

	"lethe/config"
)

// TableNames lists every table that a mapping names, sorted, as the config writes them.
func TableNames(cfg *config.Replica) []string {
	seen := map[string]bool{cfg.Person.Table: true}
	sets := []map[string]map[string]config.Value{}
	for _, a := range cfg.Suppress {
		sets = append(sets, a.Set)
		if a.Insert != nil {
			seen[a.Insert.Table] = true
		}
	}
	for _, a := range cfg.Consent {
		sets = append(sets, a.Set)
	}
	for _, a := range cfg.Objection {
		sets = append(sets, a.Set)
	}
	if cfg.Restricted != nil {
		sets = append(sets, cfg.Restricted.Set)
	}
	for _, set := range sets {
		for name := range set {
			seen[name] = true
		}
	}
	for name := range cfg.Erase.Tables {
		seen[name] = true
	}
	for name := range cfg.Hold {
		seen[name] = true
	}
	return SortedKeys(seen)
}

// SortedKeys are the keys of a map in their order: everything that is compiled of a config comes out the same each time.
func SortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// ConstText is a constant of the config as text.
func ConstText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return fmt.Sprint(v)
}

// ConstJSON is a constant of the config as JSON.
func ConstJSON(v any) string {
	s, ok := v.(string)
	if !ok {
		return ConstText(v)
	}
	b, err := json.Marshal(s)
	if err != nil { // json.Marshal replaces what is not UTF-8 and fails for no string
		return `""`
	}
	return string(b)
}

// LooksPersonal recognises column names that usually hold what names, reaches or describes a person. It reads names
// only, in English and French; it is meant to find what a mapping forgot, so it would rather name one too many: a column
// that is harmless is mapped with what it should become, or kept out of the table.
func LooksPersonal(column string) bool { return looksPersonal.MatchString(column) }

var looksPersonal = regexp.MustCompile(`(?i)(^|_)(` +
	`(first|last|full|middle|given|family|maiden|birth|nick|display|holder|user|contact)_?names?|names?|surname|prenom|nom|` +
	`e?_?mails?|courriel|phones?|tel|telephone|mobile|fax|` +
	`addr(ess)?[0-9]*|adresse|address_?line[0-9]*|line_?[0-9]|street|rue|zip|zip_?code|post_?code|postal_?code|code_?postal|` +
	`birth(day|date|_date|_year)?|dob|date_naissance|` +
	`iban|bic|card_?number|pan|account_?number|ssn|national_?id|nir|passport|tax_?id|` +
	`gender|sexe|ip|ip_?addr(ess)?|login|comments?|notes?_?text|free_?text|remarks?` +
	`)(_|[0-9]*$|$)`)

// Step is what the order of phase 2 has to know of one of its steps.
type Step struct {
	Table  string // the same text for the same table
	Direct bool   // the person's own table, not reached through a column
	Delete bool
	Unlink bool
}

// Key is a foreign key, by the tables' texts as in Step.
type Key struct{ Child, Parent string }

// Order sorts the steps of phase 2 so that no foreign key is in the way: children first, the person's own table last,
// because the other steps find their rows through it. It returns the places of steps in the new order. circle is the place
// of a step that foreign keys keep from coming at all, with everything left behind it in the given order; -1: none.
func Order(steps []Step, keys []Key) (order []int, circle int) {
	left := make([]int, len(steps))
	for i := range steps {
		left[i] = i
	}
	for len(left) > 0 {
		next := slices.IndexFunc(left, func(i int) bool { return !hasChild(steps, left, i, keys) })
		if next < 0 {
			return append(order, left...), left[0]
		}
		order = append(order, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return order, -1
}

// hasChild reports whether a remaining step has to run before step i because its rows refer to rows of it.
func hasChild(steps []Step, left []int, i int, keys []Key) bool {
	if steps[i].Direct && slices.ContainsFunc(left, func(o int) bool { return !steps[o].Direct }) {
		return true
	}
	if !steps[i].Delete {
		return false
	}
	for _, k := range keys {
		if k.Parent != steps[i].Table || k.Child == steps[i].Table {
			continue
		}
		if slices.ContainsFunc(left, func(o int) bool { return steps[o].Table == k.Child }) {
			return true
		}
	}
	return false
}
