package config

import (
	"crypto/sha256"
	"encoding/json"
	"slices"
)

// The digests are taken of a normal form with names of its own, not of the Go types: renaming a field must not change
// what events and receipts carry, nor send every replica through setup again.

// SourceDigest identifies the mapping of the source: name, subject, erased and tables. Formatting, comments, the order of
// keys, secrets and addresses do not change it.
func (c *Config) SourceDigest() [32]byte {
	s := &c.Source
	tables := make(map[string]any, len(s.Tables))
	for name, t := range s.Tables {
		tables[name] = t.normal()
	}
	erased := map[string]any{
		"when": s.Erased.When, "window": s.Erased.Window.Nanoseconds(), "phase2": s.Erased.Phase2, "ground": s.Erased.Ground,
	}
	if m := s.Erased.Marker; m != nil {
		erased["marker"] = map[string]any{"table": m.Table, "when": m.When, "subject": m.Subject}
	}
	mapping := map[string]any{
		"name":    c.Name,
		"subject": map[string]any{"table": s.Subject.Table, "key": s.Subject.Key, "on_delete": s.Subject.OnDelete},
		"erased":  erased,
		"tables":  tables,
	}
	if regions := c.Locale.Regions(); regions != nil {
		mapping["regions"] = regions // they decide what key a phone number has
	}
	return digest("lethe.source.v1", mapping)
}

// Digest identifies the mapping of a replica: what is done to which columns of whom. Waiting times, addresses and limits
// are not part of it: changing them needs no owner.
func (r *Replica) Digest() [32]byte {
	erase := make(map[string]any, len(r.Erase.Tables))
	for name, t := range r.Erase.Tables {
		jsons := make(map[string]any, len(t.JSON))
		for column, paths := range t.JSON {
			jsons[column] = normalValues(paths)
		}
		erase[name] = map[string]any{"by": t.By, "set": normalValues(t.Set), "json": jsons, "delete": t.Delete, "unlink": t.Unlink}
	}
	suppress := []any{}
	for _, a := range r.Suppress {
		action := map[string]any{"set": normalSet(a.Set)}
		if a.Insert != nil {
			action["insert"] = map[string]any{"table": a.Insert.Table, "values": normalValues(a.Insert.Values)}
		}
		suppress = append(suppress, action)
	}
	hold := make(map[string]any, len(r.Hold))
	for name, h := range r.Hold {
		hold[name] = map[string]any{"by": h.By, "basis": h.Basis, "for": h.For.String(), "from": h.From}
	}
	consent, objection, restricted := []any{}, []any{}, any(nil)
	for _, a := range r.Consent {
		consent = append(consent, map[string]any{"purpose": a.Purpose, "channel": a.Channel, "set": normalSet(a.Set)})
	}
	for _, a := range r.Objection {
		objection = append(objection, map[string]any{"scope": a.Scope, "set": normalSet(a.Set)})
	}
	if r.Restricted != nil {
		restricted = normalSet(r.Restricted.Set)
	}
	mapping := map[string]any{
		"person":   map[string]any{"table": r.Person.Table, "key": r.Person.Key, "crm_key": r.Person.CRMKey},
		"suppress": suppress, "erase": erase, "hold": hold,
		"consent": consent, "objection": objection, "restricted": restricted, "audience": r.Audience,
	}
	if f := r.Find; f != nil {
		mapping["find"] = map[string]any{
			"email": sorted(f.Email), "phone": sorted(f.Phone), "name": f.Name, "birth_date": f.BirthDate, "postal": f.Postal, "changed": sorted(f.Changed), "regions": f.Regions,
		}
	}
	return digest("lethe.replica.v1", mapping)
}

func (t *Table) normal() map[string]any {
	state := make(map[string]any, len(t.State))
	for column, v := range t.State {
		state[column] = normalConst(v)
	}
	n := map[string]any{
		"subject": t.Subject, "erase": sorted(t.Erase), "erase_row": t.EraseRow, "erased_values": sorted(t.ErasedValues),
		"state": state, "optional": t.Optional,
	}
	if p := t.ContactPoint; p != nil {
		n["contact_point"] = map[string]any{"kind": p.Kind, "value": p.Value, "region": p.Region, "ignore": sorted(p.Ignore), "past": p.Past, "key": p.Key}
	}
	if i := t.Identity; i != nil {
		n["identity"] = map[string]any{"name": i.Name, "birth_date": i.BirthDate}
	}
	if m := t.Merged; m != nil {
		n["merged"] = map[string]any{"survivor": m.Survivor, "absorbed": m.Absorbed, "when": m.When}
	}
	if o := t.Objection; o != nil {
		n["objection"] = map[string]any{"when": o.When, "scope": o.Scope}
	}
	if r := t.Restricted; r != nil {
		n["restricted"] = map[string]any{"when": r.When, "until": r.Until}
	}
	if c := t.Consent; c != nil {
		consent := map[string]any{
			"kind": c.Kind, "as_of": c.AsOf, "purpose": c.Purpose.normal(), "channel": c.Channel.normal(), "state": c.State.normal(),
			"legal_basis": c.LegalBasis.normal(), "valid_until": c.ValidUntil, "evidence": c.Evidence,
			"method": c.Method.normal(), "notice": c.Notice.normal(), "actor": c.Actor.normal(),
		}
		if b := c.BoundTo; b != nil {
			consent["bound_to"] = map[string]any{"column": b.Column, "rows_of": b.RowsOf}
		}
		n["consent"] = consent
	}
	return n
}

func (m *Mapped) normal() map[string]any {
	return map[string]any{"column": m.Column, "map": m.Map, "value": m.Value}
}

func normalSet(set map[string]map[string]Value) map[string]any {
	n := make(map[string]any)
	for table, columns := range set {
		n[table] = normalValues(columns)
	}
	return n
}

func normalValues(values map[string]Value) map[string]any {
	n := make(map[string]any, len(values))
	for column, v := range values {
		n[column] = map[string]any{
			"kind": v.Kind, "const": normalConst(v.Const), "token": v.Token, "truncate": v.Truncate, "generalise": v.Generalise,
		}
	}
	return n
}

// normalConst keeps the text "1", the number 1 and the number 1.0 apart, which JSON alone would not.
func normalConst(v any) any {
	switch v := v.(type) {
	case nil:
		return nil
	case bool:
		return v
	case int64:
		return map[string]any{"int": v}
	case float64:
		return map[string]any{"float": v}
	}
	return map[string]any{"text": v}
}

// sorted is for lists that are sets.
func sorted(set []string) []string { return slices.Sorted(slices.Values(set)) }

// digest hashes the JSON of the normal form, in which encoding/json sorts the keys.
func digest(domain string, normal map[string]any) [32]byte {
	body, err := json.Marshal(normal)
	if err != nil {
		// Every leaf is a string, a number or a bool, so this cannot be reached by any file; a digest that silently
		// stands for nothing would be worse than stopping.
		panic("config: normal form of the mapping is no JSON: " + err.Error())
	}
	return sha256.Sum256(append([]byte(domain+"\x00"), body...))
}
