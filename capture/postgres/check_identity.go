package postgres

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// identityPlan is what a table's replica identity will be.
type identityPlan struct {
	full    bool
	columns []string
}

// identitySuffix marks the indexes that Setup makes, so that UninstallSQL finds them.
const identitySuffix = "_lethe_identity"

// identityState compares a table's replica identity, and that of each partition, with what is read of old rows.
func (in *inspection) identityState(t *catalogTable, needs TableNeeds) {
	plan := in.identityOf(t, needs)
	for _, leaf := range t.leaves {
		// Rows are decoded with the identity of the partition that they are in.
		if leafPlan := in.identityOf(leaf, needs); leafPlan.full {
			plan.full = true
		}
	}
	in.planned[t.full()] = plan
}

func (in *inspection) identityOf(t *catalogTable, needs TableNeeds) identityPlan {
	have := t.identityColumns()
	now := identityPlan{full: t.identity == "f", columns: have}
	deletes := missingFrom(have, needs.SubjectColumns)
	if !needs.ReadsDelete {
		deletes = nil
	}
	old := missingFrom(have, needs.OldColumns)
	if len(have) != 0 && deletes == nil && old == nil {
		return now
	}
	fix, plan := t.identityFix(needs)
	switch {
	case len(have) == 0:
		in.add(SeverityError, CodeIdentityNothing, t.full(),
			"the table has no replica identity: once it is published, the application's own UPDATEs and DELETEs fail", fix...)
		return plan
	case old != nil:
		in.add(SeverityError, CodeOldUnseen, t.full(),
			"rules read old."+strings.Join(old, ", old.")+", which the replica identity does not carry", fix...)
		return plan
	case needs.AllowUnseenDeletes:
		in.add(SeverityWarning, CodeDeletesUnseen, t.full(),
			"a DELETE does not say whose row it was ("+strings.Join(deletes, ", ")+" is not in the replica identity): only a pass finds it", fix...).byOwner = true
		return now
	}
	in.add(SeverityError, CodeDeletesUnseen, t.full(),
		"a DELETE does not say whose row it was: "+strings.Join(deletes, ", ")+" is not in the replica identity", fix...)
	return plan
}

// identityFix chooses the cheapest identity that carries what is needed: the primary key, an index that is there, a new
// index of primary key and the columns in question, or the whole row.
func (t *catalogTable) identityFix(needs TableNeeds) ([]string, identityPlan) {
	need := slices.Clone(needs.OldColumns)
	if needs.ReadsDelete {
		need = append(need, needs.SubjectColumns...)
	}
	alter := "ALTER TABLE " + t.quoted() + " REPLICA IDENTITY "
	key := t.primaryKey()
	if key != nil && missingFrom(key, need) == nil {
		return []string{alter + "DEFAULT"}, identityPlan{columns: key}
	}
	best := -1
	for i, index := range t.indexes {
		if t.canIdentify(index) && missingFrom(index.columns, need) == nil &&
			(best < 0 || len(index.columns) < len(t.indexes[best].columns)) {
			best = i
		}
	}
	if best >= 0 {
		index := t.indexes[best]
		return []string{alter + "USING INDEX " + quoteIdentifier(index.name)}, identityPlan{columns: index.columns}
	}
	columns := slices.Clone(key)
	for _, col := range need {
		if !slices.Contains(columns, col) {
			columns = append(columns, col)
		}
	}
	// A unique index on a part of a partitioned table would have to be made on the root, under a lock; an index on columns
	// that may be NULL is no identity.
	if key == nil || t.kind == "p" || slices.ContainsFunc(columns, func(name string) bool {
		c := t.column(name)
		return c == nil || !c.notNull
	}) {
		return []string{alter + "FULL"}, identityPlan{full: true, columns: t.columnNames()}
	}
	name := t.identityIndex()
	var fix []string
	if slices.ContainsFunc(t.indexes, func(i catalogIndex) bool { return i.name == name }) {
		fix = append(fix, "DROP INDEX CONCURRENTLY "+quoteIdentifier(t.schema)+"."+quoteIdentifier(name)) // left over by a failed try, or too narrow by now
	}
	return append(fix,
		"CREATE UNIQUE INDEX CONCURRENTLY "+quoteIdentifier(name)+" ON "+t.quoted()+" ("+quotedList(columns)+")",
		alter+"USING INDEX "+quoteIdentifier(name),
	), identityPlan{columns: columns}
}

// identityIndex is the name of the index that Setup makes for the table, in the table's schema.
func (t *catalogTable) identityIndex() string {
	name := t.name
	for len(name)+len(identitySuffix) > maxIdentifier {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name + identitySuffix
}

// missingFrom returns the needed columns that have does not hold, nil for none.
func missingFrom(have, need []string) []string {
	var missing []string
	for _, col := range need {
		if !slices.Contains(have, col) && !slices.Contains(missing, col) {
			missing = append(missing, col)
		}
	}
	return missing
}
