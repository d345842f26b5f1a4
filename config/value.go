package config

import (
	"slices"
	"strconv"
	"strings"
)

// The kinds of a Value.
const (
	KindNull         = "null"
	KindConst        = "const"
	KindToken        = "token"
	KindTruncate     = "truncate"
	KindGeneralise   = "generalise"
	KindKey          = "key"
	KindNow          = "now"
	KindPermitted    = "permitted"
	KindReconsentDue = "reconsent_due"
	KindRestricted   = "restricted"
	KindObjected     = "objected"
)

// variables are the kinds that are written with a $.
var variables = []string{KindKey, KindNow, KindPermitted, KindReconsentDue, KindRestricted, KindObjected}

// valueUse says which kinds make sense where.
type valueUse struct {
	where string
	kinds []string
	why   string
}

var (
	forSuppress = valueUse{
		"suppress",
		[]string{KindNull, KindConst, KindNow},
		"suppressing is undone by cancel: it sets flags and codes, and leaves personal values to erase",
	}
	forInsert     = valueUse{"insert", []string{KindNull, KindConst, KindNow, KindKey}, "a new row has nothing that could be shortened"}
	forErase      = valueUse{"erase", []string{KindNull, KindConst, KindToken, KindTruncate, KindGeneralise, KindNow}, ""}
	forConsent    = valueUse{"consent", []string{KindPermitted, KindReconsentDue, KindNow}, "these columns follow the fold of all facts ($now: the time of its last change)"}
	forObjection  = valueUse{"objection", []string{KindObjected, KindNow}, "these columns follow the objection"}
	forRestricted = valueUse{"restricted", []string{KindRestricted, KindNow}, "these columns follow the restriction"}
)

// randomPlaceholder is what a token must hold, so that two rows never get the same.
const randomPlaceholder = "{random}"

// value reads what a column becomes and hands it on if it is well-formed.
func (it item) value(use valueUse, set func(Value)) {
	v, ok := it.parseValue()
	if !ok {
		return
	}
	if !slices.Contains(use.kinds, v.Kind) {
		forms := make([]string, 0, len(use.kinds))
		for _, kind := range use.kinds {
			forms = append(forms, valueForm(kind))
		}
		it.fault(use.why, "%s is not allowed in %s, only %s", valueForm(v.Kind), use.where, strings.Join(forms, ", "))
		return
	}
	set(v)
}

// valueForm is how a kind is written in the file.
func valueForm(kind string) string {
	switch {
	case slices.Contains(variables, kind):
		return "$" + kind
	case kind == KindNull:
		return "null"
	case kind == KindConst:
		return "a constant"
	}
	return "{" + kind + ": …}"
}

func (it item) parseValue() (v Value, ok bool) {
	if len(it.n.Content) > 0 {
		return it.valueSection()
	}
	raw, ok := it.constant()
	if !ok {
		return v, false
	}
	if raw == nil {
		return Value{Kind: KindNull}, true
	}
	s, isText := raw.(string)
	if name, found := strings.CutPrefix(s, "$"); isText && found && s == it.n.Value {
		if !slices.Contains(variables, name) {
			it.fault(strings.Replace(nearest(name, variables), "mean ", "mean $", 1), "%s is no value that Lethe knows", strconv.Quote(s))
			return v, false
		}
		return Value{Kind: name}, true
	}
	return Value{Kind: KindConst, Const: raw}, true
}

func (it item) valueSection() (v Value, ok bool) {
	before := len(it.d.faults)
	kind := func(k string, read func(item)) func(item) {
		return func(it item) {
			v.Kind = k
			read(it)
		}
	}
	it.fields(map[string]func(item){
		KindToken:    kind(KindToken, func(it item) { it.token(&v.Token) }),
		KindTruncate: kind(KindTruncate, integer(&v.Truncate, 1, 1000)),
		KindGeneralise: kind(KindGeneralise, func(it item) {
			s, ok := it.text()
			if n, err := strconv.ParseInt(s, 10, 32); ok && s != "year" && s != "month" && (err != nil || n < 2) {
				it.fault("", "must be year, month (of dates) or a whole number above 1 to round down to")
			}
			v.Generalise = s
		}),
		"hash": func(it item) {
			it.fault("use null, or {token: …} where the column must be unique and not null",
				"a hash of the old value is no erasure: it still tells the person (EDPB, CEF 2025 on Art. 17: anonymisation in place of deletion)")
		},
	})
	if len(it.n.Content) > 2 {
		it.fault("keep one", "must have one form, for example {truncate: 2}")
	}
	return v, len(it.d.faults) == before && v.Kind != ""
}

func (it item) token(into *string) {
	it.str(into)
	s := *into
	switch rest := strings.Replace(s, randomPlaceholder, "", 1); {
	case s == "":
	case !strings.Contains(s, randomPlaceholder):
		it.fault(`for example "e-{random}@erased.invalid"`, "must contain {random}, so that no two rows get the same token")
	case strings.ContainsAny(rest, "{}"):
		it.fault("", "must contain {random} once and no other braces")
	case strings.Contains(s, "@") && !strings.HasSuffix(s, ".invalid"):
		it.fault(`for example "e-{random}@erased.invalid"`, "must end in .invalid, so that no mail can ever reach anybody (RFC 2606)")
	}
}
