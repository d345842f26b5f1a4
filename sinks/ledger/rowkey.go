package ledger

import "lethe/schema"

// What a column of config.Find says of a person.
const (
	FindEmail     = "email"
	FindPhone     = "phone"
	FindName      = "name"       // one part of a name
	FindBirthDate = "birth_date" // with the name
	FindPostal    = "postal"     // one part of an address
)

// The types of match keys.
const (
	KeyEmailStrict = "email_strict"
	KeyEmailLoose  = "email_loose"
	KeyPhone       = "phone_e164"
	KeyPostal      = "postal"
	KeyName        = "name"
	KeyNameDOB     = "name_dob"
)

// KeyMaker makes match keys of what lies in a replica: the same ones that capture makes of the same person. Each method
// returns one key for each live version of the match key, and none for a text that does not normalise. It is used by several
// goroutines at once.
type KeyMaker interface {
	Email(text string) []schema.MatchKey
	Phone(text, region string) []schema.MatchKey
	Postal(parts []string) []schema.MatchKey
	Identity(name []string, birthDate string) []schema.MatchKey
}

// RowTexts are what one row of a replica says of a person. All of it is personal: it becomes keys, and goes nowhere else.
type RowTexts struct {
	Emails, Phones, Name, Postal []string
	BirthDate                    string
}

// Add takes in the text of a column.
func (t *RowTexts) Add(kind, text string) {
	switch kind {
	case FindEmail:
		t.Emails = append(t.Emails, text)
	case FindPhone:
		t.Phones = append(t.Phones, text)
	case FindName:
		t.Name = append(t.Name, text)
	case FindPostal:
		t.Postal = append(t.Postal, text)
	case FindBirthDate:
		t.BirthDate = text
	}
}

// Merge adds what another row of the same person says.
func (t *RowTexts) Merge(o *RowTexts) {
	t.Emails, t.Phones = append(t.Emails, o.Emails...), append(t.Phones, o.Phones...)
	t.Name, t.Postal = append(t.Name, o.Name...), append(t.Postal, o.Postal...)
	if t.BirthDate == "" {
		t.BirthDate = o.BirthDate
	}
}

// RowKeys are all match keys of a row, as this replica's tables hold them.
func (c *Core) RowKeys(t *RowTexts) []StoredKey { return c.keysOf(t, false) }

// keysOf makes the keys of a row; indexed leaves out those by which no row is looked up, because a scan makes millions.
func (c *Core) keysOf(t *RowTexts, indexed bool) []StoredKey {
	var out []StoredKey
	add := func(keys []schema.MatchKey) {
		for i := range keys {
			if k := &keys[i]; !indexed || Indexed(k.Type) {
				out = append(out, StoredKey{Type: k.Type, KeyID: k.KeyID, NormVersion: k.NormVersion, Value: c.MatchValue(*k)})
			}
		}
	}
	for _, text := range t.Emails {
		add(c.Match.Email(text))
	}
	for _, text := range t.Phones {
		add(c.Match.Phone(text, ""))
	}
	if len(t.Postal) > 0 {
		add(c.Match.Postal(t.Postal))
	}
	if len(t.Name) > 0 && (!indexed || t.BirthDate != "") {
		add(c.Match.Identity(t.Name, t.BirthDate))
	}
	return out
}

// Indexed reports whether rows are looked up by keys of a type. Not by the strict form of an address: whoever has it has its
// loose form too; and not by a name alone, which finds nobody. What a row found has of both is seen when it is read.
func Indexed(keyType string) bool {
	switch keyType {
	case KeyEmailLoose, KeyPhone, KeyPostal, KeyNameDOB:
		return true
	}
	return false
}

// IndexKeys are those of a row's match keys by which it is looked up.
func (c *Core) IndexKeys(t *RowTexts) []StoredKey { return c.keysOf(t, true) }
